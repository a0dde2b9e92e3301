"""The kernels on the Hub: a repository of type kernel, whose branch `v<version>` is what `get_kernel(version=…)` loads."""

import importlib.util
import tempfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from .cards import CARD
from .errors import PushError
from .files import LICENCE, PACKAGE
from .upload import MAIN, Content, Push, Target


def plan_kernels(folder: Path, target: Target) -> Push:
    """What a push of the kernel project would do; builds it first.

    `kernels` has no upload, and kernel-builder's needs Nix: https://huggingface.co/docs/kernels/builder-cli.

    Args:
        folder: the project, `kernels/` of this repository.
        target: where to; its branch is `v<version>` of build.toml unless another is named. The card goes to `main` as well.

    Raises:
        PushError: the folder is no kernel project.
    """
    builder = _load_builder(folder)
    with tempfile.TemporaryDirectory() as work:
        builder.build(Path(work), target.repo_id)
        built = sorted(file for file in Path(work).rglob("*") if file.is_file())
        files: dict[str, Content] = {file.relative_to(work).as_posix(): file.read_bytes() for file in built}
    files[LICENCE] = PACKAGE / LICENCE
    if target.revision == MAIN:
        target = replace(target, revision=f"v{builder.read_general()['version']}")
    return Push(target, files, replaced=("build/*", "torch-ext/*"), main_files=(CARD, LICENCE))


def _load_builder(folder: Path) -> ModuleType:
    file = folder / "build.py"
    if not file.is_file() or not (folder / "build.toml").is_file():
        raise PushError(f"{folder}: is no kernel project (build.toml, build.py); name kernels/ of the repository.")
    spec = importlib.util.spec_from_file_location("radfm_build_kernels", file)
    assert spec is not None and spec.loader is not None
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    return builder
