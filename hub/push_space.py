"""The Space on the Hub: the files of `space/`, a card for the model that it shows, and the variables that name the model."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi

from .cards import CARD, render, split_front_matter
from .errors import PushError, hub_errors
from .files import CODE, CONFIGS, LICENCE, PACKAGE, PROCESSOR, WEIGHTS, refuse_local_paths
from .upload import Content, Push, Target

SPACE_FILES = ("*.py", "requirements.txt", "static/*")
ZERO_GPU = "zero-a10g"  # the Hub's name of ZeroGPU, whatever the cards are
PRELOADED = (*WEIGHTS, *CONFIGS, *PROCESSOR, CODE)


def plan_space(folder: Path, target: Target, model: str) -> Push:
    """What a push of the Space would do: on ZeroGPU, with the model pinned to the commit that it has now.

    Args:
        folder: `space/` of this repository.
        model: the model that the Space shows, OWNER/NAME or OWNER/NAME@REVISION, already on the Hub.

    Raises:
        PushError: the folder is no Space, or the Hub has no such model.
    """
    if not (folder / "app.py").is_file() or not (folder / CARD).is_file():
        raise PushError(f"{folder}: is no Space (app.py and README.md); name the folder space/ of the repository.")
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    listed = [name for name in names if any(fnmatchcase(name, pattern) for pattern in SPACE_FILES)]
    files: dict[str, Content] = {
        name: folder / name for name in listed if "__pycache__" not in name and name != "__init__.py"
    }
    model_id, _, revision = model.partition("@")
    with hub_errors(model_id, "model"):
        info = HfApi(token=target.token).model_info(model_id, revision=revision or None)
    commit = str(info.sha)
    weights = [file.rfilename for file in info.siblings or ()]
    preloaded = [name for name in sorted(weights) if any(fnmatchcase(name, pattern) for pattern in PRELOADED)]
    settings, body = split_front_matter((folder / CARD).read_text(encoding="utf-8"))
    settings |= {"models": [model_id], "suggested_hardware": ZERO_GPU}
    if not info.private:  # the builder of a Space has no token
        settings["preload_from_hub"] = [f"{model_id} {','.join(preloaded)} {commit}"]
    files[CARD] = make_space_card(settings, body, target.repo_id, model_id, commit).encode()
    files[LICENCE] = PACKAGE / LICENCE
    refuse_local_paths(files)
    return Push(
        target,
        files,
        replaced=SPACE_FILES,
        space={"space_sdk": "gradio", "space_hardware": ZERO_GPU},
        variables={"RADFM_MODEL": model_id, "RADFM_REVISION": commit},
    )


def make_space_card(settings: dict[str, Any], body: str, repo_id: str, model_id: str, commit: str) -> str:
    """The README of the Space: its settings, and what it shows."""
    metadata = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=10_000).strip()
    return render("space.md.jinja", metadata=metadata, body=body, repo_id=repo_id, model_id=model_id, commit=commit)
