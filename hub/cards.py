"""The README of what is pushed, from the templates in `templates/` and the facts in the folder."""

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .errors import PushError
from .files import is_hub_id
from .upload import Content

TEMPLATES = Path(__file__).parent / "templates"
CARD = "README.md"
CITATION = """@article{wu2023radfm,
  title   = {Towards Generalist Foundation Model for Radiology by Leveraging Web-scale 2D\\&3D Medical Data},
  author  = {Wu, Chaoyi and Zhang, Xiaoman and Zhang, Ya and Wang, Yanfeng and Xie, Weidi},
  journal = {arXiv:2308.02463},
  year    = {2023}
}"""
# Parts of the cards that radfm, Trainer, transformers and peft write. A card with one of them is written anew.
GENERATED = (
    "<!-- This card is written by radfm",
    "This model card has been generated automatically",
    "[More Information Needed]",
)
# Stands for the owner of a model that is no repository of the Hub yet.
NOT_PUSHED = "OWNER/"
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


def render(template: str, **facts: Any) -> str:
    """A card from a template."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["cell"] = lambda value: str(value).replace("|", "\\|").replace("\n", " ")
    return environment.get_template(template).render(citation=CITATION, **facts)


def split_front_matter(readme: str) -> tuple[dict[str, Any], str]:
    """The front matter of a README and the rest.

    Examples:
        >>> split_front_matter("---\\nlicense: mit\\n---\\n# A model\\n")
        ({'license': 'mit'}, '# A model\\n')
    """
    match = FRONT_MATTER.match(readme)
    if match is None:
        return {}, readme
    return yaml.safe_load(match[1]) or {}, readme[match.end() :]


def make_model_card(folder: Path, files: Mapping[str, Content], repo_id: str) -> str:
    """The card of a model's folder: the README that somebody wrote, or one from the facts in the folder.

    Raises:
        PushError: a README without a licence.
    """
    file = folder / CARD
    written = file.read_text(encoding="utf-8") if file.exists() else ""
    if written and not any(part in written for part in GENERATED):
        if "license" not in split_front_matter(written)[0]:
            raise PushError(
                f"{file}: names no licence. Begin it with front matter that has `license: …`, or remove the file: then a "
                "card is made."
            )
        return written
    return model_card(folder, repo_id, {name: content for name, content in files.items() if isinstance(content, bytes)})


def model_card(folder: Path, repo_id: str, changed: Mapping[str, bytes] | None = None) -> str:
    """A card for a folder with a model or an adapter.

    Args:
        folder: config.json or adapter_config.json, weights, and what there is of training.json (`radfm train`),
            conversion.json (`radfm convert`) and scores.json (`radfm bench`).
        repo_id: the id under which the card's example loads the model.
        changed: files that are pushed with another content than the folder has.
    """

    def read(name: str) -> Any:
        if changed and name in changed:
            return json.loads(changed[name])
        file = folder / name
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    config, adapter = read("config.json") or {}, read("adapter_config.json")
    if adapter and not is_hub_id(adapter["base_model_name_or_path"]):
        adapter = {**adapter, "base_model_name_or_path": f"{NOT_PUSHED}{Path(adapter['base_model_name_or_path']).name}"}
    training, conversion, scores = read("training.json"), read("conversion.json"), read("scores.json")
    kind = "adapter" if adapter else "vision" if config.get("model_type") == "radfm_vision" else "model"
    licence, terms = find_licence(conversion, training, adapter)
    metadata = ModelCardData(
        license=licence,
        license_name="see-the-terms-below" if licence == "other" else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="image-feature-extraction" if kind == "vision" else "image-text-to-text",
        base_model=find_base(training, adapter),
        tags=["radiology", "medical", "ct", "mri", "x-ray", "3d", "radfm"],
        language="en",
    )
    return render(
        "model.md.jinja",
        metadata=metadata.to_yaml(),
        name=repo_id.split("/")[-1],
        repo_id=repo_id,
        kind=kind,
        config=config,
        adapter=adapter,
        has_processor=(folder / "tokenizer_config.json").is_file(),
        weights=describe_weights(folder),
        quantisation=(config.get("quantization_config") or {}).get("quant_method"),
        licence=licence,
        terms=terms,
        conversion=conversion,
        training=training,
        recipe=yaml.safe_dump(training["recipe"], sort_keys=False) if training else "",
        scores=scores if isinstance(scores, dict) else None,
    )


def find_base(training: Mapping[str, Any] | None, adapter: Mapping[str, Any] | None) -> str | None:
    """The Hub id of the model that this one was made from."""
    base = adapter["base_model_name_or_path"] if adapter else (training or {}).get("base")
    return base if base and "/" in base and not base.startswith(NOT_PUSHED) else None


def find_licence(
    conversion: Mapping[str, Any] | None, training: Mapping[str, Any] | None, adapter: Mapping[str, Any] | None
) -> tuple[str, list[str]]:
    """The Hub's name of the licence of the weights, and the terms that lead to it, each a sentence."""
    terms = []
    if conversion and "decoder" in conversion:
        terms.append(f"The decoder {conversion['decoder']} has its own licence; the published vision tower states none.")
    elif conversion:
        terms.append("The published weights state no licence. They derive from LLaMA, whose licence allows research alone.")
    base = find_base(training, adapter)
    if base:
        terms.append(f"The terms of {base}, from which these weights were trained, apply to them too.")
    terms += [
        f"The data of {row['source']} are not open ({row['licence']}, access: {row['access']})."
        for row in (training or {}).get("data", ())
        if row["access"] != "open"
    ]
    return ("other", terms) if terms else ("apache-2.0", [])


def describe_weights(folder: Path) -> str:
    """The size of the weights, and the type of most of them, from the headers of the safetensors.

    Examples:
        >>> describe_weights(Path("radfm-14b"))  # doctest: +SKIP
        '28,000 MB, mostly BF16'
    """
    sizes: dict[str, int] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
        for name, tensor in header.items():
            if name != "__metadata__":
                start, end = tensor["data_offsets"]
                sizes[tensor["dtype"]] = sizes.get(tensor["dtype"], 0) + end - start
    if not sizes:
        return "no weights yet"
    return f"{sum(sizes.values()) / 1e6:,.1f} MB, mostly {max(sizes, key=lambda dtype: sizes[dtype])}"
