"""Scans that are in a test split and, byte for byte, in a training split of any source: the training record goes."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .schema import SPLITS
from .shards import ShardWriter, read_columns, read_records
from .statistics import Statistics
from .task import ShardTask, write_result

PRECEDENCE = {"test": 2, "validation": 1, "train": 0}


def remove_shared_scans(out: Path, tasks: list[ShardTask], results: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Take records out of the shards (and change `results`) whose scan a split with more right to it has as well.

    Test comes before validation, and both before train. Memory grows with the scans of validation and test alone.

    Returns:
        source → reason → how many.
    """
    files = [(task, result, name) for task, result in zip(tasks, results, strict=True) for name in result["files"]]
    held = scans_of_splits(out / name for task, _, name in files if task.slice.split != "train")
    dropped: dict[str, Counter[str]] = {}
    for task, result, name in files:
        removed = {}
        for row in read_columns(out / name, ("id", "source", "split", "image_sha256")):
            owner = max((held.get(sha256, "train") for sha256 in row["image_sha256"]), key=PRECEDENCE.__getitem__)
            if PRECEDENCE[owner] > PRECEDENCE[row["split"]]:
                removed[row["id"]] = owner
                dropped.setdefault(row["source"], Counter())[f"same pixels are in {owner}"] += 1
        if removed:
            _rewrite(out, task, result, name, removed)
    return {source: dict(sorted(reasons.items())) for source, reasons in sorted(dropped.items())}


def scans_of_splits(files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each scan → the split that has most right to it."""
    held: dict[str, str] = {}
    for file in files:
        for row in read_columns(file, ("split", "image_sha256")):
            for sha256 in row["image_sha256"]:
                held[sha256] = max(held.get(sha256, "train"), row["split"], key=PRECEDENCE.__getitem__)
    return held


def _rewrite(out: Path, task: ShardTask, result: dict[str, Any], name: str, removed: dict[str, str]) -> None:
    """The shard without some records; an interrupted build finds file and result at odds and writes the shard again."""
    writer = ShardWriter(out / name, name.split("/")[0])
    for record in read_records(out / name):
        if record.id not in removed:
            writer.add(record)
    result["files"][name] = writer.close()
    if not result["files"][name]["rows"]:
        (out / name).unlink()
        del result["files"][name]
    statistics = Statistics()
    for file in result["files"]:
        for record in read_records(out / file):
            statistics.add(record)
    result["statistics"] = statistics.to_json()
    write_result(task.result_file, result)


assert sorted(PRECEDENCE) == sorted(SPLITS)
