"""The plan of a build: every record without its scans, in a SQLite file, so that memory stays flat however many there are.

A row's place follows from the hash of the seed and its id. So the rows of a shard are a random sample of all rows, a
shard is a fixed slice of a sorted list, and nothing depends on the order in which a folder is read.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .folder import Folder
from .groups import digest, salted_hash, split_of_group
from .prompts import open_question
from .questions import ask
from .schema import SPLITS, DataError
from .source import Draft, Source, Study

SHARDS_AT_A_TIME = 64  # divides among 1, 2, 4, … 64 ranks without rest
# A set of fewer rows is one shard; a larger one a multiple of 64 shards of at most so many rows, about 500 MB.
SMALL_SET = {"2d": 5_000, "3d": 256}
ROWS_PER_SHARD = {"2d": 8_192, "3d": 128}
VOLUME_ENDINGS = (".nii", ".nii.gz", ".npy", ".mgz", ".mgh", ".mnc", ".zip")

_TABLES = """
CREATE TABLE rows (
    place BLOB, id TEXT, source TEXT, split TEXT, expected TEXT, patient_group TEXT, topic TEXT, answer TEXT, payload TEXT
);
CREATE UNIQUE INDEX places ON rows (place);
CREATE TABLE identities (identity TEXT, place BLOB);
"""
_INDICES = """
CREATE INDEX slices ON rows (split, expected, place);
CREATE INDEX yes_no ON rows (source, split, topic, answer, place) WHERE topic != '';
CREATE INDEX groups_of_rows ON rows (patient_group);
CREATE INDEX shared_scans ON identities (identity);
"""


@dataclass(frozen=True)
class PlanOptions:
    """What decides the records besides the data: seed of wordings and order, salt of the hashes of patients and studies."""

    seed: int = 0
    salt: str = "medmd"


@dataclass(frozen=True)
class Slice:
    """The rows of one shard: `rows` rows from row `start` on of a split's rows that are expected to be 2d, or 3d."""

    split: str
    expected: str
    number: int
    start: int
    rows: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}"


def make_plan(path: Path, inputs: dict[Source, Path], options: PlanOptions) -> tuple["Plan", dict[str, dict[str, int]]]:
    """Read every source into a new plan, and take what is in a test split out of the training splits.

    Returns the plan, and how many rows were dropped of each source by reason.

    Raises:
        DataError: a folder lacks a file, a table a column.
    """
    path.unlink(missing_ok=True)
    plan = Plan(path)
    plan.database.executescript(_TABLES)
    dropped: dict[str, Counter[str]] = {}
    for source in sorted(inputs, key=lambda source: source.name):
        drops = dropped.setdefault(source.name, Counter())
        count = 0
        for row in source.read(Folder(inputs[source])):
            for draft in ask(row, options.seed) if isinstance(row, Study) else (row,):
                count += 1
                if not plan.add(draft, source, options):
                    drops["the same row twice"] += 1
        if count == 0:
            raise DataError(f"{source.name}: {inputs[source]} holds no row; it needs {source.layout}.")
    plan.database.executescript(_INDICES)
    plan.remove_leaks(dropped)
    plan.balance_yes_no(dropped)
    plan.database.commit()
    return plan, {name: dict(sorted((+drops).items())) for name, drops in dropped.items() if +drops}


class Plan:
    """An open plan."""

    def __init__(self, path: Path) -> None:
        self.database = sqlite3.connect(path)
        # A plan that was interrupted is made anew, so nothing has to survive a crash.
        self.database.execute("PRAGMA journal_mode = OFF")
        self.database.execute("PRAGMA synchronous = OFF")

    def close(self) -> None:
        self.database.close()

    def add(self, draft: Draft, source: Source, options: PlanOptions) -> bool:
        """Add a row; False where the very same is there already. Another row of the same id gets the next free number."""
        number = draft.number
        while True:
            row = _payload(draft, source, options, number)
            place = digest(str(options.seed), row["id"])[:16]
            payload = json.dumps(row, ensure_ascii=False, sort_keys=True)
            existing = self.database.execute("SELECT payload FROM rows WHERE place = ?", (place,)).fetchone()
            if existing is None:
                break
            if json.loads(existing[0])["twin"] == row["twin"]:
                return False
            number += 1
        expected = "3d" if any(_looks_like_volume(reference) for reference in draft.images) else "2d"
        values = (place, row["id"], source.name, row["split"], expected, row["group"], draft.topic, draft.answer, payload)
        self.database.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        names = sorted({*draft.identities, *(f"{source.name}:{reference}" for reference in draft.images)})
        self.database.executemany("INSERT INTO identities VALUES (?, ?)", [(name, place) for name in names])
        return True

    def remove_leaks(self, dropped: dict[str, Counter[str]]) -> None:
        """Drop rows whose scan or patient is in a split with more right to it: test, then validation."""
        for kept_split, dropped_splits in (("test", ("validation", "train")), ("validation", ("train",))):
            places = f"('{dropped_splits[0]}', '{dropped_splits[-1]}')"
            same_scan = f"""rows.split IN {places} AND place IN (
                SELECT a.place FROM identities a JOIN identities b USING (identity)
                JOIN rows kept ON kept.place = b.place AND kept.split = '{kept_split}')"""
            same_group = f"""rows.split IN {places} AND patient_group IN (
                SELECT patient_group FROM rows WHERE split = '{kept_split}')"""
            for condition, reason in ((same_scan, f"scan is in {kept_split}"), (same_group, f"patient is in {kept_split}")):
                counts = self.database.execute(f"SELECT source, COUNT(*) FROM rows WHERE {condition} GROUP BY source")
                for source, count in counts.fetchall():
                    dropped[source][reason] += count
                self.database.execute(f"DELETE FROM rows WHERE {condition}")

    def balance_yes_no(self, dropped: dict[str, Counter[str]]) -> None:
        """Of each value that our yes/no questions ask for, keep in each source and split as many with yes as with no."""
        counts: dict[tuple[str, str, str], dict[str, int]] = {}
        query = "SELECT source, split, topic, answer, COUNT(*) FROM rows WHERE topic != '' GROUP BY 1, 2, 3, 4"
        for source, split, topic, answer, count in self.database.execute(query):
            counts.setdefault((source, split, topic), {})[answer] = count
        for (source, split, topic), by_answer in counts.items():
            kept = min(by_answer.get("yes", 0), by_answer.get("no", 0))
            for answer, count in by_answer.items():
                dropped[source]["yes/no question without its counterpart"] += count - kept
                self.database.execute(
                    """DELETE FROM rows WHERE rowid IN (SELECT rowid FROM rows
                    WHERE source = ? AND split = ? AND topic = ? AND answer = ? AND topic != ''
                    ORDER BY place LIMIT -1 OFFSET ?)""",
                    (source, split, topic, answer, kept),
                )

    def slices(self) -> list[Slice]:
        """The shards: for each split first those of images, then those of volumes."""
        slices = []
        for split in SPLITS:
            number = 0
            for expected in ("2d", "3d"):
                query = "SELECT COUNT(*) FROM rows WHERE split = ? AND expected = ?"
                rows = self.database.execute(query, (split, expected)).fetchone()[0]
                shards = count_shards(rows, expected)
                for k in range(shards):
                    start, end = rows * k // shards, rows * (k + 1) // shards
                    slices.append(Slice(split, expected, number, start, end - start))
                    number += 1
        return slices

    def rows(self, slice_: Slice) -> Iterator[dict[str, Any]]:
        """The rows of a slice, in the order in which they are written."""
        query = "SELECT payload FROM rows WHERE split = ? AND expected = ? ORDER BY place LIMIT ? OFFSET ?"
        for (payload,) in self.database.execute(query, (slice_.split, slice_.expected, slice_.rows, slice_.start)):
            yield json.loads(payload)

    def fingerprint(self, *options: str) -> str:
        """SHA-256 of all rows and of the options: two builds of one fingerprint are one build."""
        state = digest(*options)
        for (payload,) in self.database.execute("SELECT payload FROM rows ORDER BY place"):
            state = digest(state.hex(), payload)
        return state.hex()


def count_shards(rows: int, config: str) -> int:
    """None for no rows, 1 for a small set, else a multiple of 64.

    >>> [count_shards(n, "2d") for n in (0, 10, 5_000, 524_288, 524_289)]
    [0, 1, 64, 64, 128]
    """
    if rows < SMALL_SET[config]:
        return min(rows, 1)
    return SHARDS_AT_A_TIME * -(-rows // (SHARDS_AT_A_TIME * ROWS_PER_SHARD[config]))


def _looks_like_volume(reference: str) -> bool:
    """What the name tells. A shard takes whatever the scan turns out to be; the guess only decides how many rows it gets."""
    return reference.lower().endswith(VOLUME_ENDINGS) or reference.endswith("/")


def _payload(draft: Draft, source: Source, options: PlanOptions, number: int) -> dict[str, Any]:
    """The record of a draft as JSON, with references instead of scans."""
    patients = source.patients or source.name
    key = draft.key if source.public_keys else salted_hash(options.salt, source.name, draft.key)
    record_id = f"{source.name}/{_plain_key(key)}/{draft.task}/{number}"
    if draft.patient:
        group = salted_hash(options.salt, patients, draft.patient)
    else:
        group = salted_hash(
            options.salt, "scan", draft.identities[0] if draft.identities else f"{source.name}:{draft.images[0]}"
        )
    question = draft.question or open_question(draft.wording or draft.task, options.seed, record_id)
    if isinstance(question, str):
        question = f"{draft.context} {question}".strip()
    parts = (*(None for _ in draft.images), question) if isinstance(question, str) else question
    content = [{"type": "image" if part is None else "text", "text": part} for part in parts if part != ""]
    extra = dict(sorted(draft.extra.items()))
    return {
        "id": record_id,
        "twin": digest(json.dumps([draft.context, draft.question, draft.answer, draft.images, extra], default=str)).hex()[
            :16
        ],
        "references": list(draft.images),
        "messages": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": draft.answer.strip()}]},
        ],
        "task": draft.task,
        "answer_type": draft.answer_type,
        "choices": list(draft.choices),
        "findings": [{"name": name, "value": value} for name, value in sorted(draft.findings.items())],
        "modality": draft.modality,
        "body_part": draft.body_part,
        "plane": draft.plane,
        "source": source.name,
        "source_version": source.version,
        "licence": extra.pop("licence", source.licence),
        "access": source.access,
        "split": draft.split or split_of_group(options.salt, group),
        "split_origin": "published" if draft.split else "ours",
        "group": group,
        "study": None if draft.study is None else salted_hash(options.salt, patients, "study " + draft.study),
        "extra": extra,
    }


def _plain_key(key: str) -> str:
    """A key in the letters that ids have; what is replaced or cut off is told apart by a hash."""
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_.,=+-") else "-" for letter in key)[:80]
    return plain if plain == key else f"{plain}-{digest(key).hex()[:8]}"
