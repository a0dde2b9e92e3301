"""What a dataset holds, counted: per column, words per answer, scans per record. Counts of shards add up."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from .schema import Record

COUNTED = ("source", "task", "answer_type", "modality", "body_part", "plane", "split", "split_origin", "licence", "access")
WORD_BINS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # an answer counts for the largest that it reaches


class Statistics:
    """Counters by name; a value that is unknown counts as `unknown`."""

    def __init__(self, counts: Mapping[str, Mapping[str, int]] | None = None) -> None:
        self.counts: dict[str, Counter[str]] = {name: Counter(values) for name, values in (counts or {}).items()}

    def count(self, name: str, value: str, by: int = 1) -> None:
        self.counts.setdefault(name, Counter())[value] += by

    def add(self, record: Record) -> None:
        """Count a record."""
        for column in COUNTED:
            self.count(column, getattr(record, column) or "unknown")
        self.count("config", record.config)
        self.count("source and split", f"{record.source} {record.split}")
        words = max(len(record.answer.split()), 1)
        self.count("words per answer", str(max(bin_ for bin_ in WORD_BINS if bin_ <= words)))
        self.count("scans per record", str(len(record.images)))
        self.count("total", "records")
        self.count("total", "scans", len(record.images))
        self.count("total", "bytes of scans", sum(len(scan.bytes) for scan in record.images))
        if record.answer_type == "closed":
            self.count("yes or no", record.answer.lower().rstrip("."))
        for finding in record.findings:
            if finding.value == 1:
                self.count("finding", finding.name)

    def merge(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """Add the counts of another part."""
        for name, values in counts.items():
            self.counts.setdefault(name, Counter()).update(values)

    def to_json(self) -> dict[str, Any]:
        """Counters as dicts, names sorted, most frequent values first."""
        return {
            name: dict(sorted(values.items(), key=lambda item: (-item[1], item[0])))
            for name, values in sorted(self.counts.items())
        }
