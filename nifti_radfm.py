"""NIfTI and what else nibabel reads (Analyze, MGH, MINC) → `Scan`."""

import gzip
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .scan_radfm import Scan, ScanError, first_line, replace_nonfinite

try:
    import nibabel
except ImportError:
    nibabel = None  # type: ignore[assignment]

# NIfTI does not say what made the scan. Values from air to bone are taken for HU.
AIR, BONE = (-4100.0, -900.0), 100.0


def read_nifti(path: Path, volume: int | None, max_bytes: int) -> Scan:
    """Read a file that nibabel knows. Raises `ScanError`."""
    _need_nibabel(path)
    try:
        with _quiet():
            image = nibabel.load(path)
    except Exception as error:
        raise ScanError(f"{path}: is no readable NIfTI, Analyze, MGH or MINC file ({first_line(error)}).") from error
    return scan_of_nibabel(image, str(path), volume, max_bytes)


def scan_of_nifti_bytes(name: str, content: bytes, volume: int | None, max_bytes: int) -> Scan:
    """Read the bytes of a `.nii` or `.nii.gz`. Raises `ScanError`."""
    _need_nibabel(name)
    try:
        if content[:2] == b"\x1f\x8b":
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(max_bytes + 1)
            if len(content) > max_bytes:
                raise ScanError(f"{name}: unpacks to more than {max_bytes / 1e9:.1f} GB.")
        kind = nibabel.Nifti2Image if content[4:8] == b"n+2\0" else nibabel.Nifti1Image
        with _quiet():
            image = kind.from_bytes(content)
    except ScanError:
        raise
    except Exception as error:
        raise ScanError(f"{name}: is no readable NIfTI file ({first_line(error)}).") from error
    return scan_of_nibabel(image, name, volume, max_bytes)


def scan_of_nibabel(image: Any, name: str, volume: int | None, max_bytes: int) -> Scan:
    """A nibabel image, its scaling applied; of a 4D one the chosen or the first volume. Raises `ScanError`."""
    if getattr(image, "affine", None) is None:
        raise ScanError(f"{name}: is a {type(image).__name__} and no volume of voxels.")
    shape, notes = tuple(image.shape), []
    if len(shape) < 2 or min(shape) < 1:
        raise ScanError(f"{name}: has shape {shape}, which is no image and no volume.")
    if np.prod(shape[:3], dtype=float) * 4 > max_bytes or np.prod(shape[3:], dtype=float) > 2**31:
        raise ScanError(f"{name}: shape {shape} needs more than {max_bytes / 1e9:.1f} GB.")
    volumes = int(np.prod(shape[3:], dtype=float))
    if volume is not None and not 0 <= volume < volumes:
        raise ScanError(f"{name}: has volumes 0 to {volumes - 1}, and no volume {volume}.")
    which = np.unravel_index(volume or 0, shape[3:]) if len(shape) > 3 else ()
    try:
        values = np.asarray(image.dataobj[(..., *(int(i) for i in which))] if which else image.dataobj)
    except Exception as error:
        raise ScanError(f"{name}: its voxels cannot be read ({first_line(error)}).") from error
    if volumes > 1:
        notes.append(f"Only volume {volume or 0} of {volumes} was read, of shape {shape}.")
    values = values.reshape(*values.shape, *(1,) * (3 - values.ndim))
    if values.dtype.names is not None:
        values = np.stack([values[channel] for channel in values.dtype.names[:3]])
    elif values.dtype.kind in "biuf":
        values = values[None]
    else:
        raise ScanError(f"{name}: values of type {values.dtype} are no grey values.")
    affine = np.asarray(image.affine, dtype=float)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ScanError(f"{name}: its affine is singular, so nothing says where the voxels lie.")
    mm = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
    scan = replace_nonfinite(Scan(values.astype(np.float32), affine, mm, warnings=notes), name)
    lowest, highest = scan.voxels.min(), scan.voxels.max()
    if AIR[0] <= lowest <= AIR[1] and highest >= BONE:
        scan.modality = "CT"
        scan.warnings.append(f"Taken for CT in HU: the values run from {lowest:g} to {highest:g}.")
    return scan


@contextmanager
def _quiet() -> Iterator[None]:
    """nibabel logs and warns of each odd header that it mends."""
    logger = nibabel.imageglobals.logger
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _need_nibabel(name: Any) -> None:
    if nibabel is None:
        raise ScanError(f"{name}: reading NIfTI needs nibabel: pip install nibabel.")
