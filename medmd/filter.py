"""MedMD → RadMD: what is no radiology, too small, broken or there twice is left out, each record for one reason."""

import io
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from radfm.load_scan_radfm import ScanError, load_scan

from .figures import is_chart, is_compound
from .hashing import min_hash
from .leaks import PRECEDENCE
from .near import ScanIndex
from .publish import read_manifest, write_documents
from .schema import DataError, Record
from .shards import ShardWriter, read_columns, read_records, shard_files
from .sources import all_sources
from .statistics import Statistics
from .task import STATE

# Modalities that a source may state and that are none of radiology; MedPix and figures of papers have them.
OTHER_MODALITIES = {
    *("histology", "histopathology", "pathology", "microscopy", "endoscopy", "dermoscopy", "fundus photography"),
    *("photograph", "optical coherence tomography", "colonoscopy", "he", "em", "ecg", "gross"),
}
RADIOLOGY_WORDS = re.compile(
    r"\b(CT|CBCT|MRI?|MRA|FLAIR|T[12]|PET|SPECT|X-?rays?|radiograph\w*|radiolog\w*|tomogra\w*|magnetic resonance|"
    r"ultraso\w*|sonogra\w*|echocardiogra\w*|doppler|angiogra\w*|mammogra\w*|fluoroscop\w*|scintigra\w*|scans?|axial|"
    r"sagittal|coronal|contrast[- ]enhanced|hyperintens\w*|hypointens\w*|hypodens\w*|hyperdens\w*|hypoechoic|"
    r"hyperechoic|opaci\w*|radiolucen\w*|barium|DWI|ADC|urogra\w*|venogra\w*|imaging)\b",
    re.IGNORECASE,
)
SAME_TEXT = 0.8  # Jaccard similarity of word triples above which two texts are one


@dataclass(frozen=True)
class FilterOptions:
    """What `radfm data filter` leaves out.

    Args:
        min_side: images with a shorter side, in pixels, are left out; volumes with a shorter side in plane too.
        papers: keep sources in the style of papers (PMC-OA, PMC-Inline), which RadMD leaves out.
    """

    min_side: int = 28
    papers: bool = False


def filter_dataset(folder: Path, out: Path, options: FilterOptions | None = None) -> dict[str, Any]:
    """Write the dataset without what RadMD leaves out; shard by shard, each row in its place.

    Reasons, in the order in which they are tried: source in the style of papers; stated modality is none of
    radiology; no word of radiology in the text of a source that mixes; a chart or a compound figure in such a source;
    too small; broken; a training scan that is nearly one of validation or test; the same scan with the same text
    again.

    Returns:
        The report, with the dropped records by source and reason.

    Raises:
        DataError: `folder` is no finished dataset, or `out` is not empty.
    """
    options = options or FilterOptions()
    manifest = read_manifest(folder)
    if manifest is None:
        raise DataError(f"{folder}: has no manifest.json; build it with `radfm data build`, to its end.")
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out}: is not empty; choose a new folder with --out.")
    (out / STATE).mkdir(parents=True)
    files = shard_files(folder)
    held = _scans_held_out(files)
    seen = ScanIndex(out / STATE / "seen.sqlite")
    statistics, dropped = Statistics(), dict[str, Counter[str]]()
    written: dict[str, Any] = {}
    for path in _held_out_first(files):
        name = path.relative_to(folder).as_posix()
        writer = ShardWriter(out / name, path.parent.name)
        for record in read_records(path):
            reason = _reason(record, options, held, seen)
            if reason is None:
                writer.add(record)
                statistics.add(record)
            else:
                dropped.setdefault(record.source, Counter())[reason] += 1
        written[name] = writer.close()
        if not writer.rows:
            (out / name).unlink()
            del written[name]
    report = {
        "records": sum(file["rows"] for file in written.values()),
        "unreadable": {"count": 0, "scans": []},
        "dropped": {source: dict(sorted(reasons.items())) for source, reasons in sorted(dropped.items())},
        "statistics": statistics.to_json(),
    }
    write_documents(out, {**manifest, "filter": asdict(options), "files": dict(sorted(written.items()))}, report)
    shutil.rmtree(out / STATE)
    return report


def _held_out_first(files: list[Path]) -> list[Path]:
    """Test, then validation, then train: of two equal records the one with more right to its place stays."""
    return sorted(files, key=lambda path: (-PRECEDENCE[path.name.split("-")[0]], path))


def _scans_held_out(files: list[Path]) -> ScanIndex:
    index = ScanIndex()
    for path in files:
        if not path.name.startswith("train-"):
            for row in read_columns(path, ("split", "image_hash")):
                for image_hash in row["image_hash"]:
                    index.add(image_hash, row["split"])
    return index


def _reason(record: Record, options: FilterOptions, held: ScanIndex, seen: ScanIndex) -> str | None:
    """Why a record is left out, None where it stays."""
    for rule in (_not_radiology, _scan_problem):
        reason = rule(record, options)
        if reason is not None:
            return reason
    near = [split for image_hash in record.image_hash for split in held.near(image_hash)]
    owner = max(near, key=PRECEDENCE.__getitem__, default=record.split)
    if PRECEDENCE[owner] > PRECEDENCE[record.split]:
        return f"nearly a scan of {owner}"
    if _was_seen(record, seen):
        return "same scan with the same text"
    return None


def _not_radiology(record: Record, options: FilterOptions) -> str | None:
    source = all_sources().get(record.source)
    if source is not None and source.paper and not options.papers:
        return "source in the style of papers"
    if (record.modality or "").lower() in OTHER_MODALITIES:
        return "stated modality is none of radiology"
    if source is None or source.radiology or record.modality is not None:
        return None
    text = " ".join(part.text or "" for message in record.messages for part in message.content)
    if not RADIOLOGY_WORDS.search(text):
        return "no word of radiology in the text"
    checks: tuple[tuple[Callable[[Image.Image], bool], str], ...] = ((is_chart, "chart"), (is_compound, "compound figure"))
    for check, name in checks:
        if record.config == "2d" and any(_image_is(scan.bytes, check) for scan in record.images):
            return name
    return None


def _image_is(content: bytes, check: Callable[[Image.Image], bool]) -> bool:
    try:
        return check(Image.open(io.BytesIO(content)))
    except OSError:
        return False  # `_scan_problem` names it


def _scan_problem(record: Record, options: FilterOptions) -> str | None:
    if any(min(shape[:2]) < options.min_side for shape in record.shapes):
        return f"side shorter than {options.min_side}"
    for scan in record.images:
        try:
            load_scan(scan.bytes)
        except ScanError:
            return "broken scan"
    return None


def _was_seen(record: Record, seen: ScanIndex) -> bool:
    """Whether all scans and the text were there before; if not, they are from now on."""
    text = " ".join(part.text or "" for message in record.messages for part in message.content)
    signature = min_hash([f"{record.task} {text}"])[0]
    key = record.image_hash[0]
    for payload in seen.near(key):
        count, other = payload.split(" ", 1)
        equal = np.frombuffer(bytes.fromhex(other), dtype=np.uint32) == signature
        if int(count) == len(record.images) and equal.mean() >= SAME_TEXT:
            return True
    seen.add(key, f"{len(record.images)} {signature.tobytes().hex()}")
    return False
