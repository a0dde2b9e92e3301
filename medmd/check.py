"""Is a dataset what it says? Leaks between splits, duplicates, broken scans, what may name a patient, files that changed."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

from radfm.load_scan_radfm import ScanError, load_scan

from .leaks import PRECEDENCE
from .near import ScanIndex
from .privacy import identities
from .publish import read_manifest
from .schema import DataError, Record, validate
from .shards import add_hashes, canonical_json, file_sha256, logical_hash, read_columns, read_records, shard_files
from .statistics import Statistics

LISTED = 20  # of each kind of problem, so many are named; all are counted


class Problems:
    """Problems by kind: how many, and the first of them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, kind: str, example: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= LISTED:
            self.examples.setdefault(kind, []).append(example)

    def to_json(self) -> dict[str, Any]:
        return {kind: {"count": count, "examples": self.examples[kind]} for kind, count in sorted(self.counts.items())}


def check(folder: Path) -> dict[str, Any]:
    """Look at every record of a dataset.

    Returns:
        `problems` (kind → count and examples; empty for a sound dataset), `suspected` (training scans that look like
        one of validation or test, which may be another slice of one patient), `records` and `statistics`.

    Raises:
        DataError: the folder holds no dataset.
    """
    files = shard_files(folder)
    problems, suspected, statistics = Problems(), Problems(), Statistics()
    groups, scans, near = _held_out(files)
    ids: set[int] = set()
    contents: set[int] = set()
    sums = []
    for path in files:
        name = path.relative_to(folder).as_posix()
        total = 0
        try:
            for record in read_records(path):
                statistics.add(record)
                total += logical_hash(record.to_row())
                _check_record(record, name, problems)
                _check_twins(record, ids, contents, problems)
                _check_leaks(record, groups, scans, near, problems, suspected)
        except (DataError, TypeError, KeyError) as error:
            problems.add("unreadable shard", f"{name}: {error}")
        sums.append(f"{total % (1 << 256):064x}")
    _check_manifest(folder, files, sums, problems)
    for answer in ("yes", "no"):
        statistics.count("yes or no", answer, 0)
    return {
        "records": statistics.counts.get("total", Counter())["records"],
        "problems": problems.to_json(),
        "suspected": suspected.to_json(),
        "statistics": statistics.to_json(),
    }


def _held_out(files: list[Path]) -> tuple[dict[str, str], dict[str, str], ScanIndex]:
    """Group → split, SHA-256 → split, and hashes, of what is in validation and test."""
    groups: dict[str, str] = {}
    scans: dict[str, str] = {}
    near = ScanIndex()
    for path in files:
        if not path.name.startswith("train-"):
            for row in read_columns(path, ("split", "group", "image_sha256", "image_hash")):
                for table, keys in ((groups, [row["group"]]), (scans, row["image_sha256"])):
                    for key in keys:
                        table[key] = max(table.get(key, "train"), row["split"], key=PRECEDENCE.__getitem__)
                for image_hash in row["image_hash"]:
                    near.add(image_hash, row["split"])
    return groups, scans, near


def _check_record(record: Record, name: str, problems: Problems) -> None:
    try:
        validate(record)
    except DataError as error:
        problems.add("invalid record", str(error))
    if not name.split("/")[-1].startswith(f"{record.split}-"):
        problems.add("wrong shard", f"{record.id} of {record.split} is in {name}")
    for scan, shape in zip(record.images, record.shapes, strict=False):
        try:
            found = load_scan(scan.bytes).voxels.shape[1:]
        except ScanError as error:
            problems.add("broken scan", f"{record.id}: {scan.path}: {error}")
        else:
            if found[: len(shape)] != shape:
                problems.add("wrong shape", f"{record.id}: {scan.path} is {found}, the record says {shape}")
    for identity in identities(record):
        problems.add("may name a patient", f"{record.id}: {identity}")


def _check_twins(record: Record, ids: set[int], contents: set[int], problems: Problems) -> None:
    for seen, content, kind in (
        (ids, record.id, "same id twice"),
        (contents, canonical_json([record.to_row()["messages"], record.image_sha256]), "same scans and words twice"),
    ):
        key = int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big")
        if key in seen:
            problems.add(kind, record.id)
        seen.add(key)


def _check_leaks(
    record: Record, groups: dict[str, str], scans: dict[str, str], near: ScanIndex, problems: Problems, suspected: Problems
) -> None:
    rank = PRECEDENCE[record.split]
    if PRECEDENCE[owner := groups.get(record.group, "train")] > rank:
        problems.add("patient in two splits", f"{record.id} of {record.split}: group {record.group} is in {owner}")
    exact = max((scans.get(sha256, "train") for sha256 in record.image_sha256), key=PRECEDENCE.__getitem__, default="train")
    if PRECEDENCE[exact] > rank:
        problems.add("scan in two splits", f"{record.id} of {record.split}: a scan is in {exact}")
    elif any(PRECEDENCE[split] > rank for image_hash in record.image_hash for split in near.near(image_hash)):
        suspected.add("nearly a scan of another split", record.id)


def _check_manifest(folder: Path, files: list[Path], sums: list[str], problems: Problems) -> None:
    manifest = read_manifest(folder)
    if manifest is None:
        problems.add("no manifest", f"{folder}: has no manifest.json, so the build is not finished")
        return
    names = {path.relative_to(folder).as_posix(): path for path in files}
    for name in sorted(set(names) ^ set(manifest["files"])):
        problems.add("files differ from the manifest", name)
    for name in sorted(set(names) & set(manifest["files"])):
        if file_sha256(names[name]) != manifest["files"][name]["sha256"]:
            problems.add("file changed since it was written", name)
    if add_hashes(sums) != manifest["logical_hash"]:
        problems.add("content differs from the logical hash", str(folder))
