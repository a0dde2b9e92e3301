"""What the tests of `radfm.medmd` share: a download made in a folder, its records with and without scans."""

from pathlib import Path
from typing import Any

from portals import PORTALS

from radfm.medmd.plan import Plan, PlanOptions, make_plan
from radfm.medmd.scans import StorageOptions
from radfm.medmd.schema import Record
from radfm.medmd.shards import read_records
from radfm.medmd.sources import find_source
from radfm.medmd.task import ShardTask


def make_portal(name: str, folder: Path) -> Path:
    """The download of a source, in a new folder below one."""
    root = folder / f"portal-{name}"
    root.mkdir()
    PORTALS[name](root)
    return root


def make_plan_of(folder: Path, *names: str, roots: dict[str, Path] | None = None) -> tuple[Plan, dict[str, dict[str, int]]]:
    """A plan of some sources' downloads, and what was dropped."""
    roots = {**{name: make_portal(name, folder) for name in names}, **(roots or {})}
    return make_plan(folder / "plan.sqlite", {find_source(name): root for name, root in roots.items()}, PlanOptions())


def rows_of(folder: Path, *names: str, roots: dict[str, Path] | None = None) -> list[dict[str, Any]]:
    """The rows of a plan: records with references instead of scans."""
    plan, _ = make_plan_of(folder, *names, roots=roots)
    rows = [row for slice_ in plan.slices() for row in plan.rows(slice_)]
    plan.close()
    return rows


def records_of(folder: Path, name: str, root: Path) -> tuple[list[Record], list[dict[str, str]]]:
    """The validated records of a download with their scans, and the rows whose scans could not be read."""
    plan, _ = make_plan_of(folder, roots={name: root})
    slices = plan.slices()
    plan.close()
    records, skipped = [], []
    for slice_ in slices:
        roots = {name: root if root.is_dir() else root.parent}
        result = ShardTask(folder / "out", folder / "plan.sqlite", slice_, roots, StorageOptions(), 1000).run()
        skipped += result["skipped"]
        for file in result["files"]:
            records += read_records(folder / "out" / file)
    return records, skipped


def text_of(row: dict[str, Any], role: str) -> str:
    """What one side says in a row."""
    return "".join(
        part["text"] or "" for message in row["messages"] if message["role"] == role for part in message["content"]
    )
