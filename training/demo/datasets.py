"""The labelled packs of real scans as samples: pixel values from the image processor, and labels."""

import csv
import gzip
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from PIL import Image
from rich.progress import track

from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.load_scan_radfm import load_scan
from radfm.scan_radfm import Scan, to_radiological_view

# Labels and their values. Each pack with findings is a label of its own, because a normal breast and a normal chest
# have nothing in common.
LABELS: dict[str, tuple[str, ...]] = {
    "modality": ("CT", "MRI", "X-ray", "ultrasound"),
    "body_part": ("abdomen", "brain", "breast", "cervical spine", "chest", "hand", "head", "pelvis"),
    "plane": ("axial", "coronal", "sagittal", "frontal"),
    "sequence": ("T1", "T2", "FLAIR", "DWI"),
    "brain_tumor_t1ce": ("glioma", "meningioma", "pituitary tumor"),
    "busi_breast_us": ("benign breast lesion", "malignant breast tumor", "normal"),
    "pneumoniamnist_28": ("normal", "pneumonia"),
}
FINDINGS = ("brain_tumor_t1ce", "busi_breast_us", "pneumoniamnist_28")
PICTURE_PACKS = ("mednist", "ct_planes_nysbu", "brain_tumor_t1ce", "busi_breast_us")
VOLUME_PACKS = ("mr_volumes", "ct_volumes")
SERIES_PACKS = ("dicom_series_ct", "dicom_series_mr")


@dataclass
class Sample:
    """One scan: `pixels` (1, H, W, D) uint8, where 255 stands for 1.0 in `pixel_values`."""

    pack: str
    split: str
    pixels: torch.Tensor
    labels: dict[str, str]

    @property
    def is_volume(self) -> bool:
        return self.pixels.shape[-1] > 1


def read_packs(folder: Path, processor: RadFMImageProcessor) -> list[Sample]:
    """Every sample of the packs in `folder`, volumes also slice by slice; `val` rows keep their split."""
    samples = []
    for pack, row, source in track(list(_sources(folder)), "reading scans", transient=True):
        sample = Sample(pack, row["split"], _pixels(processor, source), _labels(pack, row))
        samples.append(sample)
        if sample.is_volume:
            samples += _slices(processor, load_scan(source), replace(sample, pack="slices"))
    return samples


def _pixels(processor: RadFMImageProcessor, source: Any) -> torch.Tensor:
    return (processor.preprocess(source) * 255).round().to(torch.uint8)


def _sources(folder: Path) -> Iterator[tuple[str, dict[str, str], Any]]:
    for pack in (*PICTURE_PACKS, *VOLUME_PACKS, "pneumoniamnist_28", *SERIES_PACKS):
        with open(folder / f"{pack}.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if pack == "pneumoniamnist_28":
            arrays = np.load(folder / f"{pack}.npz")
            stores = {name: arrays[name] for name in arrays.files}
            for row in rows:
                name, index = row["file"].rstrip("]").split("[")
                yield pack, row, stores[name][int(index)].reshape(28, 28)
        elif pack in SERIES_PACKS:
            yield pack, rows[0], folder / f"{pack}.zip"
        else:
            with zipfile.ZipFile(folder / f"{pack}.zip") as archive:
                for row in rows:
                    content = archive.read(row["file"])
                    if pack in VOLUME_PACKS:
                        yield pack, row, nibabel.Nifti1Image.from_bytes(gzip.decompress(content))
                    else:
                        yield pack, row, Image.open(io.BytesIO(content))


def _labels(pack: str, row: dict[str, str]) -> dict[str, str]:
    labels = {name: row[name] for name in ("modality", "body_part", "plane", "sequence") if row[name]}
    labels["modality"] = {"MR": "MRI"}.get(labels["modality"], labels["modality"])
    labels["body_part"] = labels["body_part"].replace(" and pelvis", "")
    if labels.get("sequence") not in LABELS["sequence"]:
        labels.pop("sequence", None)
    if labels["body_part"] not in LABELS["body_part"]:
        labels.pop("body_part")
    if pack in FINDINGS:
        labels[pack] = row["finding"]
    return labels


def _slices(processor: RadFMImageProcessor, scan: Scan, whole: Sample) -> Iterator[Sample]:
    """Images cut from the middle 60 % of a volume in its three planes, with the grey window of the volume."""
    scan = to_radiological_view(scan)
    assert scan.affine is not None and scan.spacing is not None
    window = processor.intensity_windows(scan)[0]
    for axis, plane in _planes(scan):
        count = scan.voxels.shape[axis + 1]
        for index in np.linspace(count * 0.2, count * 0.8, 12 if axis == 2 else 4).astype(int):
            voxels = np.take(scan.voxels, [index], axis + 1)
            rest = [a for a in range(3) if a != axis]
            flat = np.moveaxis(voxels, axis + 1, 3)
            spacing = (scan.spacing[rest[0]], scan.spacing[rest[1]], scan.spacing[axis])
            affine = scan.affine[:, [*rest, axis, 3]]
            image = Scan(flat, affine, spacing, "CT" if scan.modality == "CT" else "DX", windows=[window])
            yield replace(whole, pixels=_pixels(processor, image), labels={**whole.labels, "plane": plane})


def _planes(scan: Scan) -> list[tuple[int, str]]:
    assert scan.affine is not None
    strongest = np.abs(scan.affine[:3, :3]).argmax(axis=0)
    return [(axis, ("sagittal", "coronal", "axial")[strongest[axis]]) for axis in range(3)]
