"""Whether the training data holds what the items ask about: records, patients, or scans byte for byte."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from radfm.medmd.shards import read_columns

from .items import Item
from .records import split_files

EXAMPLES = 20  # ids that are listed for each kind of leak


def find_leaks(items: Sequence[Item], training_data: Path, splits: Sequence[str]) -> dict[str, Any]:
    """Compare items with some splits of training data by record id, group (patient) and SHA-256 of the stored scans.

    Groups are salted hashes: they are equal for one patient only where both data sets were built with one salt.

    Returns:
        {"data": the folder, "records": training records that were looked at, "leaks": {kind: {"items": count, "examples":
        ids}}}; kinds without a leak are left out.

    Raises:
        DataError: the folder holds no data set.
    """
    ids: set[str] = set()
    groups: set[str] = set()
    scans: set[str] = set()
    item_hashes = {sha256 for item in items for sha256 in item.image_sha256}
    count = 0
    for split in splits:
        for file in split_files(training_data, split):
            for row in read_columns(file, ("id", "group", "image_sha256")):
                count += 1
                ids.add(row["id"])
                groups.add(row["group"])
                scans |= item_hashes.intersection(row["image_sha256"])
    found = {
        "same record": [item.id for item in items if item.record in ids],
        "same patient": [item.id for item in items if item.group in groups],
        "same scan": [item.id for item in items if scans.intersection(item.image_sha256)],
    }
    leaks = {kind: {"items": len(names), "examples": names[:EXAMPLES]} for kind, names in found.items() if names}
    return {"data": str(training_data), "records": count, "leaks": leaks}
