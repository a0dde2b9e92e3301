"""Lay the kernels out as the Hub has them: `build/torch-cuda/`, and `torch-cpu/` where the references run, with metadata.

    python kernels/build.py            # writes kernels/build/
    python kernels/build.py OUT        # writes OUT/build/, with build.toml and the README as its card

Each build registers its operators under a name made of its content, so that two versions can be loaded side by side.
"""

import hashlib
import json
import shutil
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE / "torch-ext" / "radfm_kernels"
VARIANTS = {"torch-cuda": "cuda", "torch-cpu": "cpu"}


def files() -> list[Path]:
    """What a build holds."""
    return sorted(SOURCE.glob("*.py"))


def namespace(name: str) -> str:
    """Where this version's operators are registered."""
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files())).hexdigest()
    return f"_{name.replace('-', '_')}_{digest[:8]}"


def build(out: Path) -> list[Path]:
    """Write every variant below `out`; returns their folders."""
    about = tomllib.loads((HERE / "build.toml").read_text())["general"]
    prefix, written = namespace(about["name"]), []
    shutil.rmtree(out / "build", ignore_errors=True)
    for variant, backend in VARIANTS.items():
        folder = out / "build" / variant
        folder.mkdir(parents=True)
        for file in files():
            text = file.read_text()
            if file.name == "_ops.py":
                text = text.replace('NAMESPACE = "radfm_kernels"', f'NAMESPACE = "{prefix}"')
            (folder / file.name).write_text(text)
        metadata = {"id": prefix, **{key: about[key] for key in ("name", "version", "license")}, "python-depends": []}
        (folder / "metadata.json").write_text(json.dumps({**metadata, "backend": {"type": backend}}, indent=1) + "\n")
        written.append(folder)
    if out != HERE:
        for name in ("build.toml", "README.md"):
            shutil.copyfile(HERE / name, out / name)
        shutil.copytree(
            HERE / "torch-ext", out / "torch-ext", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
        )
    return written


if __name__ == "__main__":
    for folder in build(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE):
        print(folder)
