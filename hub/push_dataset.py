"""A data set that `radfm data build` wrote, on the Hub."""

import json
from pathlib import Path

from radfm.medmd.card import card
from radfm.medmd.publish import read_manifest
from radfm.medmd.sources import find_source

from .errors import PushError
from .files import refuse_local_paths
from .upload import Content, Push, Target

# What the terms of these kinds of access forbid to pass on.
NOT_TO_BE_PASSED_ON = ("form", "credentialed")


def plan_dataset(folder: Path, target: Target) -> Push:
    """What a push of a data set would do: its shards, the card, and the metadata beside them.

    `report.json` stays here: it names files of the downloads.

    Raises:
        PushError: the folder is no finished data set, a shard is not the one that was built, or sources that may not be
            passed on would become public.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise PushError(f"{folder}: is no finished data set (no manifest.json); `radfm data build` makes one.")
    for name, facts in manifest["files"].items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != facts["bytes"]:
            raise PushError(f"{folder / name}: is missing or was changed after the build; build the data set again.")
    sources = [find_source(name) for name in manifest["sources"]]
    closed = [source.name for source in sources if source.access in NOT_TO_BE_PASSED_ON]
    if closed and not target.private:
        raise PushError(
            f"{folder}: the terms of {', '.join(closed)} forbid to pass the data on, so the repository may not be "
            "public; add --private, and check whether the terms allow that."
        )
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    plots = [file.relative_to(folder).as_posix() for file in sorted((folder / "plots").glob("*.png"))]
    names = (*manifest["files"], *plots, "manifest.json", "croissant.json")
    files: dict[str, Content] = {name: folder / name for name in names}
    files["README.md"] = card(manifest, report, sources, plots, target.repo_id).encode()
    refuse_local_paths(files)
    return Push(target, files, replaced=("*.parquet", "plots/*"))
