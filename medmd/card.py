"""The dataset card: what the Hub shows, with the configs that its viewer and `load_dataset` read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .schema import CONFIGS, SPLITS
from .source import Source

ACCESS_WORDS = {
    "open": "open",
    "nc": "no commercial use",
    "form": "terms to sign at the portal; not to be passed on",
    "credentialed": "PhysioNet credentialed access; not to be passed on, nor records made of it",
}
STRICTEST = ("open", "nc", "form", "credentialed")
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
TABLES = (
    ("source", "Source"),
    ("task", "Task"),
    ("modality", "Modality"),
    ("body_part", "Body part"),
    ("split", "Split"),
    ("config", "2D or 3D"),
    ("answer_type", "Kind of answer"),
    ("words per answer", "Words per answer, from"),
)
MAX_ROWS = 20
THIS_FOLDER = "path/to/this/folder"


def card(
    manifest: Mapping[str, Any],
    report: Mapping[str, Any],
    sources: Sequence[Source],
    plots: Sequence[str],
    place: str = THIS_FOLDER,
) -> str:
    """The text of `README.md`, from the template `card.md.jinja`.

    Args:
        place: what the card's example loads: the folder, or the id of the repository on the Hub.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["cell"] = lambda value: str(value).replace("|", "\\|")
    access = max((source.access for source in sources), key=STRICTEST.index)
    configs = [config for config in CONFIGS if any(name.startswith(f"{config}/") for name in manifest["files"])]
    splits = [split for split in SPLITS if any(name.startswith(f"{configs[0]}/{split}-") for name in manifest["files"])]
    return environment.get_template("card.md.jinja").render(
        metadata=yaml.safe_dump(_metadata(manifest, sources, access, configs), sort_keys=False).strip(),
        manifest=manifest,
        total={"records": 0, "scans": 0, "bytes of scans": 0, **report["statistics"].get("total", {})},
        sources=sources,
        access=access,
        access_words=ACCESS_WORDS,
        place=place,
        config=configs[0],
        split=splits[0],
        tables=[(title, _rows(name, report["statistics"].get(name, {}))) for name, title in TABLES],
        plots=plots,
        left_out=[
            (source, reason, count) for source, reasons in report["dropped"].items() for reason, count in reasons.items()
        ],
        unreadable=report["unreadable"]["count"],
    )


def _rows(name: str, counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """The rows of a table of counts, the last of them a sum where there are many."""
    rows = list(counts.items())
    if name == "words per answer":
        rows.sort(key=lambda row: int(row[0]))
    rest = rows[MAX_ROWS:]
    return [*rows[:MAX_ROWS], *([(f"{len(rest)} more", sum(count for _, count in rest))] if rest else [])]


def _metadata(manifest: Mapping[str, Any], sources: Sequence[Source], access: str, configs: Sequence[str]) -> dict[str, Any]:
    """The front matter: licence, size, and which files are which config and split."""
    licences = {source.licence for source in sources}
    records = manifest["records"]
    metadata: dict[str, Any] = {
        "license": HUB_LICENCES.get(licences.pop(), "other") if len(licences) == 1 else "other",
        "language": ["en"],
        "task_categories": ["visual-question-answering", "image-text-to-text"],
        "tags": ["medical", "radiology", "radfm"],
        "size_categories": [next((name for limit, name in SIZES if records < limit), "n>10M")],
    }
    if access in ("form", "credentialed"):
        metadata["extra_gated_heading"] = (
            "The terms of the sources forbid to pass this dataset on; keep the repository private."
        )
    metadata["configs"] = [
        {
            "config_name": config,
            # `load_dataset(folder)` caches by the folder's name, config and version, so that without a version it would
            # return the rows of another data set in a folder of this name.
            "version": f"0.0.{int(manifest['logical_hash'][:8], 16)}",
            "data_files": [
                {"split": split, "path": f"{config}/{split}-*.parquet"}
                for split in SPLITS
                if any(name.startswith(f"{config}/{split}-") for name in manifest["files"])
            ],
        }
        for config in configs
    ]
    return metadata


# The Hub's names of licences (its documentation, "Licenses").
HUB_LICENCES = {
    "CC BY 4.0": "cc-by-4.0",
    "CC BY-SA 4.0": "cc-by-sa-4.0",
    "CC BY-SA": "cc-by-sa-4.0",
    "CC BY-NC 4.0": "cc-by-nc-4.0",
    "CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0",
    "CC0": "cc0-1.0",
    "Apache-2.0": "apache-2.0",
}
