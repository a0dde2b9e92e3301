"""Lay the kernels out as a kernel repository of the Hub: one folder `build/torch-BACKEND/` for each backend of build.toml.

    python kernels/build.py            # writes kernels/build/
    python kernels/build.py OUT        # writes OUT/build/, and the rest of the repository beside it

It does for this project, which has nothing to compile, what kernel-builder does
(https://huggingface.co/docs/kernels/builder/writing-kernels): it gives the operators a namespace of the build's own, so that
two versions can be loaded in one process, and writes `metadata.json` with a digest of each file.

Two parts of kernel-builder's output are left out. `archs`, because `get_kernel` raises where the card is not among them, and
these kernels fall back to PyTorch instead. The folder `build/*/radfm_kernels/`, because versions of the `kernels` library
that need it look for `torch-universal` and do not find `torch-cuda`.
"""

import base64
import hashlib
import json
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
SOURCE = ROOT / "torch-ext" / "radfm_kernels"
OPS_FILE = "_ops.py"


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
    hashes = {file.name: hashlib.sha256(file.read_bytes()).digest() for file in sorted(folder.iterdir())}
    return {"algorithm": "sha256", "files": {name: base64.b64encode(value).decode() for name, value in hashes.items()}}


def build_variant(folder: Path, backend: str) -> None:
    """Write the package for one backend, with its metadata."""
    general = read_general()
    namespace = op_namespace(general["name"], backend)
    folder.mkdir(parents=True)
    for file in source_files():
        text = file.read_text()
        if file.name == OPS_FILE:
            text = text.replace(f'"{SOURCE.name}"', f'"{namespace}"').replace(f"'{SOURCE.name}::", f"'{namespace}::")
        (folder / file.name).write_text(text)
    metadata = {
        "id": namespace,
        **{key: general[key] for key in ("name", "version", "license")},
        "python-depends": [],
        "backend": {"type": backend},
        "digest": digest_of(folder),
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")


def build(out: Path) -> list[Path]:
    """Write every variant below `out`, and the project itself where `out` is another folder; returns the variants."""
    shutil.rmtree(out / "build", ignore_errors=True)
    variants = []
    for backend in read_general()["backends"]:
        variants.append(out / "build" / f"torch-{backend}")
        build_variant(variants[-1], backend)
    if out != ROOT:
        shutil.copyfile(ROOT / "build.toml", out / "build.toml")
        # As kernel-builder does: CARD.md is what visitors of the Hub repository read.
        shutil.copyfile(ROOT / "CARD.md", out / "README.md")
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "torch-ext", out / "torch-ext", ignore=ignore, dirs_exist_ok=True)
    return variants


if __name__ == "__main__":
    for variant in build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT):
        print(variant)
