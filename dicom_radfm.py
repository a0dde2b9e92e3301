"""DICOM files → `Scan`: series, order of slices, geometry, grey values (DICOM PS3.3 C.7.6 and C.11)."""

import io
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from .scan_types_radfm import Scan, ScanError

try:
    import pydicom
    from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array
except ImportError:
    pydicom = None  # type: ignore[assignment]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Frames of these are slices; of the others (ultrasound, angiography, endoscopy) moments in time.
SLICED = ("CT", "MR", "PT", "NM")
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
Named = tuple[str, Any]


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file's first 132 bytes are those of DICOM, with a preamble or (group 0008 first) without one."""
    return head[128:132] == b"DICM" or head[:2] in (b"\x08\x00", b"\x02\x00")


def parse(name: str, content: bytes | Path) -> Any:
    """The dataset of one file, its pixels not yet decoded. Raises `ScanError`."""
    if pydicom is None:
        raise ScanError(f"{name}: reading DICOM needs pydicom: pip install pydicom pylibjpeg[all].")
    try:
        source = io.BytesIO(content) if isinstance(content, bytes) else content
        dataset = pydicom.dcmread(source, force=isinstance(content, Path) or looks_like_dicom(content[:132]))
    except Exception as error:
        raise ScanError(f"{name}: is no scan that can be read: not DICOM, NIfTI, NumPy or a picture.") from error
    return dataset


def describe_series(name: str, contents: list[tuple[str, bytes]]) -> list[str]:
    """One line a series, largest first."""
    groups = _series([(file, parse(file, data)) for file, data in contents if looks_like_dicom(data[:132])])
    if not groups:
        raise ScanError(f"{name}: holds no DICOM image.")
    return [f"{uid} · {_title(files[0][1])} · {len(files)} files" for uid, files in groups]


def scan_of_datasets(name: str, datasets: list[Named], series: str | int | None, max_bytes: int) -> Scan:
    """The chosen series of named datasets, or the largest. Raises `ScanError`."""
    groups = _series(datasets)
    if not groups:
        raise ScanError(f"{name}: is DICOM without an image in it.")
    if series is not None:
        wanted = str(series)
        found = [g for g in groups if wanted in (g[0], str(g[1][0][1].get("SeriesNumber")), _description(g[1][0][1]))]
        if not found:
            raise ScanError(f"{name}: has no series {wanted!r}, only {'; '.join(_title(g[1][0][1]) for g in groups)}.")
        groups = found
    chosen = groups[0][1]
    scan = _volume(name, chosen, max_bytes) if len(chosen) > 1 else _single(*chosen[0], max_bytes)
    scan.series = _title(chosen[0][1])
    if len(groups) > 1:
        others = "; ".join(f"{_title(files[0][1])} ({len(files)} files)" for _, files in groups[1:])
        scan.warnings.append(f"The largest of {len(groups)} series was read; the others: {others}.")
    return scan


def _series(datasets: list[Named]) -> list[tuple[str, list[Named]]]:
    groups = defaultdict(list)
    for file, dataset in datasets:
        if "Rows" in dataset and any(word in dataset for word in PIXELS):
            groups[str(dataset.get("SeriesInstanceUID", ""))].append((file, dataset))
    return sorted(groups.items(), key=lambda group: -len(group[1]))


def _description(dataset: Any) -> str:
    return str(dataset.get("SeriesDescription", "")).strip()


def _title(dataset: Any) -> str:
    number, description = dataset.get("SeriesNumber"), _description(dataset)
    words = [str(w) for w in (number, description) if w not in (None, "")]
    return " ".join(words) or "series without a name"


def _single(name: str, dataset: Any, max_bytes: int) -> Scan:
    """One file: an image, or the frames of one that holds several."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    values = _decode(name, dataset, max_bytes)
    warnings = []
    if frames > 1 and str(dataset.get("Modality")) in SLICED:
        warnings.append(f"{frames} frames were stacked in the file's order; where they lie was not read.")
        values = np.moveaxis(values, 1, -1)
    elif frames > 1:
        warnings.append(f"Only the first of {frames} frames was read: they follow in time.")
        values = values[:, 0, ..., None]
    else:
        values = values[..., None]
    affine, spacing = _image_geometry(dataset)
    if values.shape[-1] > 1:
        affine, spacing = None, None
    return _finish(dataset, values, affine, spacing, warnings)


def _volume(name: str, files: list[Named], max_bytes: int) -> Scan:
    """A series of single images, ordered along the normal of their planes."""
    first = files[0][1]
    shapes = {(int(d.Rows), int(d.Columns)) for _, d in files}
    if len(shapes) > 1:
        raise ScanError(f"{name}: images of different sizes ({shapes}) are no volume: choose one of its files.")
    if any("ImagePositionPatient" not in d or "ImageOrientationPatient" not in d for _, d in files):
        raise ScanError(
            f"{name}: {len(files)} images that do not say where they lie are no volume: choose one of its files."
        )
    if len(files) * first.Rows * first.Columns * 4 > max_bytes:
        raise ScanError(
            f"{name}: {len(files)} images of {first.Rows}×{first.Columns} need more than {max_bytes / 1e9:.1f} GB."
        )
    orientation = np.array(first.ImageOrientationPatient, dtype=float)
    if any(np.abs(np.array(d.ImageOrientationPatient, dtype=float) - orientation).max() > 1e-2 for _, d in files):
        raise ScanError(f"{name}: its images lie in different planes (a localizer?): choose some of its files.")
    normal = np.cross(orientation[:3], orientation[3:])
    positions = np.array([d.ImagePositionPatient for _, d in files], dtype=float)
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    along, positions = along[order], positions[order]
    gaps = np.diff(along)
    if gaps.min() < 1e-3:
        raise ScanError(f"{name}: several images lie at one position (phases, echoes?): choose some of its files.")
    slices = [_decode(files[i][0], files[i][1], max_bytes) for i in order]
    affine, image_spacing = _image_geometry(files[order[0]][1])
    if affine is None or image_spacing is None:
        raise ScanError(f"{name}: its images do not say how far their pixels lie apart.")
    voxels, warnings, step = np.stack(slices, axis=-1), [], float(np.median(gaps))
    if np.abs(gaps - step).max() > 0.02 * step:
        voxels, positions = _even(voxels, along, positions, step)
        warnings.append(f"Slices lie {gaps.min():.2f} to {gaps.max():.2f} mm apart; resampled to every {step:.2f} mm.")
    shift = (positions[-1] - positions[0]) / (len(positions) - 1)
    tilt = np.degrees(np.arccos(np.clip(shift @ normal / np.linalg.norm(shift), -1, 1)))
    if tilt > 0.5:
        warnings.append(f"The stack is sheared by {tilt:.1f}° (gantry tilt); the affine says so, voxels are as recorded.")
    affine[:3, 2] = LPS_TO_RAS[:3, :3] @ shift
    return _finish(first, voxels, affine, (*image_spacing[:2], step), warnings)


def _even(voxels: np.ndarray, along: np.ndarray, positions: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Slices and positions on an even grid, by linear interpolation between the two that lie around each."""
    wanted = np.arange(along[0], along[-1] + step / 2, step).clip(max=along[-1])
    after = np.searchsorted(along, wanted).clip(1, len(along) - 1)
    share = ((wanted - along[after - 1]) / (along[after] - along[after - 1])).astype(np.float32)
    even = voxels[..., after - 1] * (1 - share) + voxels[..., after] * share
    return even, positions[after - 1] * (1 - share[:, None]) + positions[after] * share[:, None]


def _image_geometry(dataset: Any) -> tuple[np.ndarray | None, tuple[float, float, float] | None]:
    """Affine (RAS+, mm) and spacing of one image (PS3.3 C.7.6.2.1.1); as much of it as the header has."""
    pixel = dataset.get("PixelSpacing") or dataset.get("ImagerPixelSpacing")
    if not pixel or min(map(float, pixel)) <= 0:
        return None, None
    rows_mm, columns_mm = map(float, pixel)
    gap = float(dataset.get("SpacingBetweenSlices") or dataset.get("SliceThickness") or 0) or 1.0
    spacing = (rows_mm, columns_mm, abs(gap))
    if "ImagePositionPatient" not in dataset or "ImageOrientationPatient" not in dataset:
        return None, spacing
    along_columns, along_rows = np.array(dataset.ImageOrientationPatient, dtype=float).reshape(2, 3)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along_rows * rows_mm, along_columns * columns_mm
    affine[:3, 2] = np.cross(along_columns, along_rows) * spacing[2]
    affine[:3, 3] = np.array(dataset.ImagePositionPatient, dtype=float)
    return LPS_TO_RAS @ affine, spacing


def _decode(name: str, dataset: Any, max_bytes: int) -> np.ndarray:
    """Pixels in native units as float32: (channels, height, width), or (channels, frames, height, width)."""
    frames, samples = int(dataset.get("NumberOfFrames") or 1), int(dataset.get("SamplesPerPixel") or 1)
    needed = frames * int(dataset.Rows) * int(dataset.Columns) * samples * 4
    if needed > max_bytes:
        raise ScanError(f"{name}: its pixels need {needed / 1e9:.1f} GB, more than {max_bytes / 1e9:.1f} GB.")
    try:
        values = pixel_array(dataset)
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            values, samples = apply_color_lut(values, dataset), 3
        elif samples == 1:
            values = apply_modality_lut(values, dataset)
    except Exception as error:
        syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
        raise ScanError(f"{name}: its pixels ({getattr(syntax, 'name', 'unknown syntax')}) cannot be decoded.") from error
    values = values.astype(np.float32)
    return np.moveaxis(values[..., :3], -1, 0) if samples > 1 else values[None]


def _finish(
    dataset: Any,
    voxels: np.ndarray,
    affine: np.ndarray | None,
    spacing: tuple[float, float, float] | None,
    warnings: list[str],
) -> Scan:
    windows = _windows(dataset)
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation)
        ends = np.array([-(1 << bits - 1), (1 << bits - 1) - 1] if signed else [0, (1 << bits) - 1])
        both = float(apply_modality_lut(ends, dataset).sum())
        voxels, windows = both - voxels, [(both - high, both - low) for low, high in windows]
    if voxels.shape[0] == 3 and not windows and int(dataset.BitsAllocated) == 8:
        windows = [(0.0, 255.0)]
    return Scan(voxels, affine, spacing, str(dataset.get("Modality") or "") or None, None, windows, warnings)


def _windows(dataset: Any) -> list[tuple[float, float]]:
    """The VOI windows as (low, high) (PS3.3 C.11.2.1.2)."""
    many = lambda value: list(value) if isinstance(value, pydicom.multival.MultiValue) else [value]  # noqa: E731
    if dataset.get("WindowCenter") in (None, "") or dataset.get("WindowWidth") in (None, ""):
        return []
    exact = dataset.get("VOILUTFunction") == "LINEAR_EXACT"
    windows = []
    for center, width in zip(many(dataset.WindowCenter), many(dataset.WindowWidth), strict=False):
        center, width = (float(center), float(width)) if exact else (float(center) - 0.5, float(width) - 1)
        if width > 0:
            windows.append((center - width / 2, center + width / 2))
    return windows
