"""One shard, in a worker process or a Ray task: a slice of the plan → Parquet files and a JSON file about them."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radfm.load_scan_radfm import ScanError

from .plan import Plan, Slice
from .scans import StorageOptions, store_scans
from .schema import CONFIGS, DataError, Finding, Message, Part, Record, validate
from .shards import ShardWriter, file_sha256
from .statistics import Statistics

STATE = ".build"  # in the output folder, until the build is done


@dataclass(frozen=True)
class ShardTask:
    """Everything that a shard needs.

    Args:
        out: the dataset's folder.
        plan: the plan's file.
        slice: which rows of it.
        roots: source name → folder of its download.
        storage: how scans are stored.
        skip_limit: more rows than this that cannot be read are a `DataError`.
    """

    out: Path
    plan: Path
    slice: Slice
    roots: dict[str, Path]
    storage: StorageOptions
    skip_limit: int

    @property
    def result_file(self) -> Path:
        return self.out / STATE / "shards" / f"{self.slice.name}.json"

    def finished(self) -> dict[str, Any] | None:
        """What an earlier run wrote for this shard, None where a file is missing or is not what was written."""
        if not self.result_file.exists():
            return None
        result = json.loads(self.result_file.read_text(encoding="utf-8"))
        for name, file in result["files"].items():
            path = self.out / name
            if not path.exists() or file_sha256(path) != file["sha256"]:
                return None
        return result

    def run(self, tick: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Write the shard: a file for each config that its rows turn out to have. `tick` is called after each row."""
        writers: dict[str, ShardWriter] = {}
        statistics, skipped = Statistics(), []
        plan = Plan(self.plan)
        try:
            for row in plan.rows(self.slice):
                try:
                    record = self._record(row)
                except ScanError as error:
                    skipped.append({"id": row["id"], "source": row["source"], "reason": str(error)})
                    if len(skipped) > self.skip_limit:
                        raise too_many_broken(skipped, self.skip_limit) from error
                else:
                    validate(record)
                    if record.config not in writers:
                        path = self.out / record.config / f"{self.slice.name}.parquet"
                        writers[record.config] = ShardWriter(path, record.config)
                    writers[record.config].add(record)
                    statistics.add(record)
                tick()
            files = {
                f"{config}/{self.slice.name}.parquet": writers[config].close() for config in CONFIGS if config in writers
            }
        except BaseException:
            for writer in writers.values():
                writer.abort()
            raise
        finally:
            plan.close()
        result = {"files": files, "skipped": skipped, "statistics": statistics.to_json()}
        write_result(self.result_file, result)
        return result

    def _record(self, row: dict[str, Any]) -> Record:
        scans = store_scans(self.roots[row["source"]], row.pop("references"), self.storage)
        del row["twin"]
        messages = tuple(
            Message(message["role"], tuple(Part(part["type"], part["text"]) for part in message["content"]))
            for message in row.pop("messages")
        )
        findings = tuple(Finding(finding["name"], finding["value"]) for finding in row.pop("findings"))
        if row["modality"] is None:
            known = {scan.modality for scan in scans}
            row["modality"] = known.pop() if len(known) == 1 else None
        return Record(
            images=tuple(scan.stored for scan in scans),
            image_sha256=tuple(scan.sha256 for scan in scans),
            image_hash=tuple(scan.image_hash for scan in scans),
            shapes=tuple(scan.shape for scan in scans),
            messages=messages,
            findings=findings,
            choices=tuple(row.pop("choices")),
            **row,
        )


def too_many_broken(skipped: list[dict[str, str]], limit: int) -> DataError:
    """The error that stops a build, with the first scans that could not be read."""
    examples = "; ".join(entry["reason"] for entry in skipped[:3])
    return DataError(
        f"more than {limit} rows have scans that cannot be read ({examples}, …): "
        "check the folder, or allow more with --max-broken."
    )


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write what is known of a finished shard."""
    write_atomically(path, json.dumps(result, ensure_ascii=False))


def write_atomically(path: Path, text: str) -> None:
    """Write a text file that is whole whenever it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
