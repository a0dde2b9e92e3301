"""The scans of a data set of the source `demo`: pixel values decoded once, labels, and the records about each."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from safetensors.torch import load_file, save_file

from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.load_scan_radfm import load_scan
from radfm.medmd.schema import PRESENT, Record

from ..data import load_rows

ACQUISITION = ("modality", "body_part", "plane", "sequence")


@dataclass
class DemoScan:
    """One scan and all that is known of it.

    Args:
        pack: the source that it comes from.
        kind: the pack, or "slices" and "volumes" for those of packs of volumes: what a step is mixed of.
        pixels: (1, H, W, D) uint8, where 255 stands for 1.0 in `pixel_values`.
        labels: `ACQUISITION` as far as known; a finding under the name of the pack, because a normal breast and a normal
            chest have nothing in common.
        records: about this scan, without its bytes.
    """

    pack: str
    kind: str
    pixels: torch.Tensor
    labels: dict[str, str]
    records: list[Record] = field(default_factory=list)

    @property
    def is_volume(self) -> bool:
        return self.pixels.shape[-1] > 1

    @property
    def finding(self) -> str | None:
        """The finding or "normal"; None where the pack's labels do not say."""
        return self.labels.get(self.pack)


def read_scans(data: str, split: str, image_processor: RadFMImageProcessor, cache: Path) -> list[DemoScan]:
    """The scans of a split, in the order in which the data set first has them. Decoded pixels are kept in `cache`.

    Raises:
        DataError: no such data set.
    """
    rows = load_rows(data, split)
    file = cache / f"{split}.safetensors"
    decoded = load_file(file) if file.exists() else {}
    scans: dict[str, DemoScan] = {}
    with_volumes = {_pack(row["extra"]) for row in rows.select_columns(["extra", "shapes"]) if len(row["shapes"][0]) == 3}
    for row in track(rows, f"reading scans ({split})", transient=True):
        record = Record.from_row(row)
        # The same pixels may be in two packs, and in one pack with two names.
        key = f"{record.group}-{record.image_sha256[0]}"
        if key not in scans:
            if key not in decoded:
                decoded[key] = _decode(record, image_processor)
            pack = record.extra["pack"]
            kind = "volumes" if record.config == "3d" else "slices" if pack in with_volumes else pack
            scans[key] = DemoScan(pack, kind, decoded[key], _labels(record))
        scans[key].records.append(replace(record, images=()))
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        save_file(decoded, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)
    return list(scans.values())


def _pack(extra: Any) -> str:
    import json

    name: str = (json.loads(extra) if isinstance(extra, str) else extra)["pack"]
    return name


def _decode(record: Record, image_processor: RadFMImageProcessor) -> torch.Tensor:
    scan = load_scan(record.images[0].bytes)
    if scan.is_volume and record.modality == "CT":
        scan = replace(scan, modality="CT")  # NIfTI has no modality; the window of the model is for HU
    return (image_processor.preprocess(scan) * 255).round().to(torch.uint8)


def _labels(record: Record) -> dict[str, str]:
    known = {"modality": record.modality, "body_part": record.body_part, "plane": record.plane}
    labels = {name: value for name, value in known.items() if value is not None}
    if "sequence" in record.extra:
        labels["sequence"] = record.extra["sequence"]
    if record.findings:
        present = (finding.name for finding in record.findings if finding.value == PRESENT)
        labels[record.extra["pack"]] = next(present, "normal")
    return labels


def label_values(scans: list[DemoScan]) -> dict[str, tuple[str, ...]]:
    """Label → its values, from the scans."""
    values: dict[str, set[str]] = {}
    for scan in scans:
        for name, value in scan.labels.items():
            values.setdefault(name, set()).add(value)
    return {name: tuple(sorted(values[name])) for name in sorted(values)}
