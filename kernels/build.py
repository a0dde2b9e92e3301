"""Lay the kernels out as a kernel repository of the Hub: one folder `build/torch-BACKEND/` for each backend of build.toml.

    python kernels/build.py            # writes kernels/build/
    python kernels/build.py OUT        # writes OUT/build/, and the rest of the repository beside it

`radfm push kernels` uploads the result. This file does for a project without anything to compile what kernel-builder does
(https://huggingface.co/docs/kernels/builder/writing-kernels, kernel-requirements): it gives the operators a namespace of the
build's own, so that two versions can be loaded in one process, fills in CARD.md, and writes `metadata.json` with the compute
capabilities and a digest of each file.
"""

import base64
import hashlib
import json
import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

from jinja2 import Environment

ROOT = Path(__file__).parent
SOURCE = ROOT / "torch-ext" / "radfm_kernels"
OPS_FILE = "_ops.py"
# Triton compiles for the card at hand, of `common.MIN_CAPABILITY` or newer: in the words of `kernels`, 8.0 with PTX.
ARCHS = {"cuda": ["8.0+PTX"]}

# The package in a folder of its name, for versions of `kernels` that look for it there.
COMPATIBILITY = '''"""The module of the folder above, for versions of `kernels` that import it from a folder of its name."""

import importlib.util
import sys
from pathlib import Path

NAME = "{namespace}"

if NAME not in sys.modules:
    spec = importlib.util.spec_from_file_location(NAME, Path(__file__).parents[1] / "__init__.py")
    module = sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
__all__ = sys.modules[NAME].__all__
globals().update({{name: getattr(sys.modules[NAME], name) for name in __all__}})
'''


def source_files() -> list[Path]:
    """The Python files of the package."""
    return sorted(SOURCE.glob("*.py"))


def read_general() -> dict[str, Any]:
    """The table `[general]` of build.toml."""
    general: dict[str, Any] = tomllib.loads((ROOT / "build.toml").read_text())["general"]
    return general


def op_namespace(name: str, backend: str) -> str:
    """Namespace of a build's operators, with a hash of its source: `_radfm_kernels_cuda_1a2b3c4`."""
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in source_files())).hexdigest()
    return f"_{name.replace('-', '_')}_{backend}_{digest[:7]}"


def digest_of(folder: Path) -> dict[str, Any]:
    """SHA-256 of each file in a folder, in base64, as `kernels verify-signature` checks it."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    hashes = {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).digest() for file in files}
    return {"algorithm": "sha256", "files": {name: base64.b64encode(value).decode() for name, value in hashes.items()}}


def build_variant(folder: Path, backend: str) -> None:
    """Write the package for one backend, with its metadata."""
    general = read_general()
    namespace = op_namespace(general["name"], backend)
    compatible = folder / SOURCE.name
    compatible.mkdir(parents=True)
    (compatible / "__init__.py").write_text(COMPATIBILITY.format(namespace=namespace))
    for file in source_files():
        text = file.read_text()
        if file.name == OPS_FILE:
            text = text.replace(f'"{SOURCE.name}"', f'"{namespace}"').replace(f"'{SOURCE.name}::", f"'{namespace}::")
        (folder / file.name).write_text(text)
    metadata = {
        "id": namespace,
        **{key: general[key] for key in ("name", "version", "license")},
        "python-depends": [],
        "backend": {"type": backend, **({"archs": ARCHS[backend]} if backend in ARCHS else {})},
        "digest": digest_of(folder),
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")


def fill_card(repo_id: str) -> str:
    """CARD.md with its placeholders replaced, which are kernel-builder's."""
    general = read_general()
    card = Environment(keep_trailing_newline=True).from_string((ROOT / "CARD.md").read_text())
    return card.render(repo_id=repo_id, version=general["version"], license=general["license"].lower())


def build(out: Path, repo_id: str | None = None) -> list[Path]:
    """Write every variant below `out`, and the project itself where `out` is another folder; returns the variants.

    Args:
        repo_id: the id under which the repository is published; that of build.toml by default.
    """
    shutil.rmtree(out / "build", ignore_errors=True)
    repo_id = repo_id or str(read_general()["hub"]["repo-id"])
    variants = []
    for backend in read_general()["backends"]:
        variants.append(out / "build" / f"torch-{backend}")
        build_variant(variants[-1], backend)
    if out != ROOT:
        settings = re.sub(r'(?m)^repo-id = ".*"$', f'repo-id = "{repo_id}"', (ROOT / "build.toml").read_text())
        (out / "build.toml").write_text(settings)
        # What visitors of the repository read.
        (out / "README.md").write_text(fill_card(repo_id))
        for name in ("flake.nix", "CARD.md"):
            shutil.copyfile(ROOT / name, out / name)
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "torch-ext", out / "torch-ext", ignore=ignore, dirs_exist_ok=True)
    return variants


if __name__ == "__main__":
    for variant in build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT):
        print(variant)
