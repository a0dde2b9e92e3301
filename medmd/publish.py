"""What stands beside the shards: manifest, report, Croissant metadata, plots and the dataset card."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .card import card
from .croissant import croissant
from .plots import draw_plots
from .schema import DataError
from .shards import add_hashes
from .sources import find_source
from .task import write_atomically

LIBRARIES = ("pyarrow", "datasets", "pillow", "numpy", "nibabel", "pydicom")


def write_documents(out: Path, manifest: Mapping[str, Any], report: Mapping[str, Any]) -> None:
    """Write `README.md`, `croissant.json`, `plots/`, `report.json`, and last `manifest.json`: the sign that a build is done.

    Args:
        out: the dataset's folder.
        manifest: with `files` (name → rows, bytes, sha256, logical_sum) and `sources`; logical hash and versions are added.
        report: with `records`, `unreadable`, `dropped`, `statistics`.

    Raises:
        DataError: there is no record.
    """
    if not manifest["files"]:
        raise DataError(f"{out}: no record is left to write.")
    manifest = {
        **manifest,
        "records": sum(file["rows"] for file in manifest["files"].values()),
        "logical_hash": add_hashes([file["logical_sum"] for file in manifest["files"].values()]),
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    sources = [find_source(name) for name in manifest["sources"]]
    plots = draw_plots(out / "plots", report["statistics"])
    write_atomically(out / "README.md", card(manifest, report, sources, plots))
    write_atomically(out / "croissant.json", _json(croissant(manifest, sources)))
    write_atomically(out / "report.json", _json(report))
    write_atomically(out / "manifest.json", _json(manifest))


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished build, None where there is none."""
    path = folder / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _json(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
