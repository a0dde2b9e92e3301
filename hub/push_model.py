"""A model or an adapter on the Hub: what is pushed loads with `AutoModel.from_pretrained(id, trust_remote_code=True)`."""

import re
from pathlib import Path
from typing import Any

from radfm.configuration_radfm import auto_map

from .cards import CARD, make_model_card
from .errors import PushError
from .files import (
    CODE,
    CONFIGS,
    FACTS,
    LICENCE,
    PACKAGE,
    PROCESSOR,
    WEIGHTS,
    WITH_AUTO_MAP,
    clean_config,
    find_code,
    find_linked_files,
    find_model_files,
    is_hub_id,
    read_json,
    refuse_local_paths,
    write_json,
)
from .upload import Push, Target, find_commit

COMMIT = re.compile(r"[0-9a-f]{40}")
CLASS_OF = {"radfm": "RadFMForConditionalGeneration", "radfm_vision": "RadFMVisionModel"}


def plan_model(folder: Path, target: Target, base: str | None = None, kernels: str | None = None) -> Push:
    """What a push of a model's folder would do.

    Args:
        folder: a clone of this repository under any name, or what `save_pretrained`, Trainer, peft, `radfm convert` or
            `radfm train` wrote.
        base: for an adapter, the model that it belongs to, OWNER/NAME@COMMIT; what adapter_config.json says by default.
        kernels: kernel repository that the pushed config names, OWNER/NAME or OWNER/NAME@COMMIT.

    Raises:
        PushError: no model, an adapter whose base others cannot load, a README without a licence, a path of this machine.
    """
    files = find_model_files(folder)
    if "config.json" in files:
        files["config.json"] = write_json(complete_config(read_json(files["config.json"]), kernels, target.token))
        files |= find_code(folder, files)
    elif kernels is not None:
        raise PushError(f"{folder}: is an adapter; its base model names the kernels.")
    if "adapter_config.json" in files:
        files["adapter_config.json"] = write_json(pin_base(read_json(files["adapter_config.json"]), folder, base, target))
    elif base is not None:
        raise PushError(f"{folder}: is no adapter, so --base does not apply.")
    for name in set(WITH_AUTO_MAP) & set(files) - {"config.json"}:
        files[name] = write_json(clean_config(read_json(files[name])))
    files[LICENCE] = next(file for file in (folder / LICENCE, PACKAGE / LICENCE) if file.is_file())
    readme = make_model_card(folder, files, target.repo_id)
    files[CARD] = readme.encode()
    files |= find_linked_files(folder, readme)
    refuse_local_paths(files)
    return Push(target, files, replaced=(*WEIGHTS, *CONFIGS, *PROCESSOR, *FACTS, CODE))


def complete_config(config: dict[str, Any], kernels: str | None, token: str | None) -> dict[str, Any]:
    """config.json with an `auto_map`, without folders of this machine, and with the kernels at a commit.

    Raises:
        PushError: a config of another model.
    """
    kind = config.get("model_type")
    if kind not in CLASS_OF:
        raise PushError(f"config.json: model_type is {kind}, not {' or '.join(CLASS_OF)}; `radfm push` pushes RadFM models.")
    config = clean_config(config)
    if not config.get("auto_map"):
        model_class = (config.get("architectures") or [CLASS_OF[kind]])[0]
        config["auto_map"] = auto_map("RadFMConfig" if kind == "radfm" else "RadFMVisionConfig", model_class)
    if kernels is not None:
        repository, _, revision = kernels.partition("@")
        commit = revision if COMMIT.fullmatch(revision) else find_commit(repository, "kernel", revision or "v1", token)
        vision = config["vision_config"] if kind == "radfm" else config
        vision["kernels"] = f"{repository}@{commit}"
    return config


def pin_base(config: dict[str, Any], folder: Path, base: str | None, target: Target) -> dict[str, Any]:
    """adapter_config.json whose base is a model of the Hub at a commit.

    Raises:
        PushError: the base is a folder, or its revision is not a commit; with the remedy.
    """
    named, revision = str(config.get("base_model_name_or_path") or ""), config.get("revision")
    if base is not None:
        named, _, revision = base.partition("@")
    if not is_hub_id(named):
        raise PushError(
            f"{folder}: the adapter belongs to {named or 'a model without a name'}, which nobody else has. Push that model "
            "first, `radfm push model FOLDER OWNER/NAME`, and then the adapter with --base OWNER/NAME@COMMIT."
        )
    if not COMMIT.fullmatch(revision or ""):
        commit = find_commit(named, "model", revision, target.token)
        raise PushError(
            f"{folder}: the adapter belongs to {named}, at no pinned commit, so it would change with that model. "
            f"{revision or 'main'} is {commit} now: if the adapter was trained on it, push with --base {named}@{commit}."
        )
    # `auto_mapping` names the module path that the class of the base had on this machine.
    return {**config, "base_model_name_or_path": named, "revision": revision, "auto_mapping": None}
