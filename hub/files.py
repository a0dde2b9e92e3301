"""Which files of a model's folder go to the Hub. What is not listed stays: optimiser states, training_args.bin, .venv."""

import json
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from .errors import PushError
from .upload import Content, read

PACKAGE = Path(__file__).parents[1]  # holds the remote code, and LICENSE

WEIGHTS = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
)
CONFIGS = ("config.json", "generation_config.json", "adapter_config.json")
PROCESSOR = (
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
WITH_AUTO_MAP = ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
# What the card is made of, and what the Space shows.
FACTS = (
    "conversion.json",
    "training.json",
    "scores.json",
    "tasks.json",
    "training/demo/scores.json",
    "training/demo/tasks.json",
)
CODE = "*_radfm.py"
LICENCE, CARD = "LICENSE", "README.md"
# Files that README.md shows or links, if they lie in the folder.
LINKED_SUFFIXES = (".md", ".png", ".jpg", ".svg")

LINK = re.compile(r"\]\(([^)\s#]+)")
CLASS_REFERENCE = re.compile(r"^(?:.*--)?(\w+)\.\w+$")
TEXT_SUFFIXES = (".json", ".md", ".jinja", ".yaml", ".toml", ".txt")
ABSOLUTE_PATH = re.compile(r"(?<![\w:/.~])(?:/[\w.+@-]+){2,}")


def find_model_files(folder: Path) -> dict[str, Content]:
    """Path in the repository → file, for the folder of a model or of an adapter, with the code that its configs name.

    Raises:
        PushError: the folder holds no model, its weights are a pickle, or code that a config names is nowhere.
    """
    present = [file.name for file in sorted(folder.iterdir())] if folder.is_dir() else []
    listed = [name for name in present if any(fnmatchcase(name, pattern) for pattern in (*WEIGHTS, *CONFIGS, *PROCESSOR))]
    files: dict[str, Content] = {name: folder / name for name in (*listed, *FACTS) if (folder / name).is_file()}
    if "config.json" not in files and "adapter_config.json" not in files:
        raise PushError(f"{folder}: holds no model (no config.json and no adapter_config.json).")
    if not any(name.endswith(".safetensors") for name in files):
        raise PushError(f"{folder}: holds no weights in safetensors; save the model with save_pretrained.")
    return {**files, **find_code(folder, files)}


def find_code(folder: Path, files: Mapping[str, Content]) -> dict[str, Path]:
    """The modules that `auto_map` in the configs names, with all that they import: from the folder, or of this package.

    Raises:
        PushError: a module is in neither.
    """
    code: dict[str, Path] = {}
    configs = [read_json(files[name]) for name in WITH_AUTO_MAP if name in files]
    for entry in sorted(set().union(*map(modules_of, configs))):
        source = next((place / f"{entry}.py" for place in (folder, PACKAGE) if (place / f"{entry}.py").is_file()), None)
        if source is None:
            raise PushError(f"{folder}: a config names the code {entry}.py, which is neither there nor in this package.")
        code |= {Path(file).name: Path(file) for file in (str(source), *get_relative_import_files(source))}
    return code


def modules_of(config: Any) -> set[str]:
    """The modules of remote code that a config names in `auto_map`, nested configs included.

    Examples:
        >>> modules_of({"auto_map": {"AutoConfig": "owner/name--configuration_radfm.RadFMConfig"}})
        {'configuration_radfm'}
    """
    if isinstance(config, list):
        return set().union(*map(modules_of, config))
    if not isinstance(config, dict):
        return set()
    values = config.get("auto_map", {}).values()
    references = [name for value in values for name in (value if isinstance(value, list) else [value])]
    modules = {match[1] for name in references if isinstance(name, str) and (match := CLASS_REFERENCE.match(name))}
    return modules.union(*(modules_of(value) for key, value in config.items() if key != "auto_map"))


def find_linked_files(folder: Path, readme: str) -> dict[str, Content]:
    """The pictures and pages in the folder that a README shows or links."""
    links = {Path(link).as_posix() for link in LINK.findall(readme) if link.endswith(LINKED_SUFFIXES) and ".." not in link}
    return {link: folder / link for link in sorted(links) if not link.startswith("/") and (folder / link).is_file()}


def clean_config(config: Any) -> Any:
    """A config without what only this machine knows: folders in `_name_or_path`, and owners in `auto_map`."""
    if isinstance(config, list):
        return [clean_config(value) for value in config]
    if not isinstance(config, dict):
        return config
    cleaned = {}
    for key, value in config.items():
        if key in ("_name_or_path", "name_or_path") and isinstance(value, str) and not is_hub_id(value):
            continue
        if key == "auto_map":
            value = json.loads(re.sub(r'"[^"]*?--', '"', json.dumps(value)))
        cleaned[key] = clean_config(value)
    return cleaned


def is_hub_id(name: str) -> bool:
    """Whether a name can be OWNER/NAME on the Hub, and is no folder here."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).exists()


def read_json(content: Content) -> Any:
    """A JSON file of a push, parsed."""
    return json.loads(read(content))


def write_json(config: Any) -> bytes:
    """JSON as transformers writes it."""
    return (json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def refuse_local_paths(files: Mapping[str, Content]) -> None:
    """Nothing that goes up may tell a path of this machine.

    Raises:
        PushError: a text holds an absolute path that exists here.
    """
    for name, content in files.items():
        if name.endswith(TEXT_SUFFIXES) and name not in ("tokenizer.json", "vocab.json", "merges.txt"):
            for match in ABSOLUTE_PATH.finditer(read(content).decode("utf-8", "replace")):
                path = match[0].rstrip(".")
                if Path(path).exists():
                    raise PushError(f"{name}: holds the path {path} of this machine; remove it from the file.")
