"""`load_scan`: whatever a hospital, an archive or a program hands over → a `Scan`, or a `ScanError` that says why not."""

import io
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .scan_types_radfm import Scan, ScanError, finite, first_line

MAX_BYTES = 2 << 30
PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"RIFF", b"BM", b"GIF8")
NIFTI_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".mgh", ".mgz", ".mnc")


def load_scan(source: Any, *, series: str | int | None = None, max_bytes: int = MAX_BYTES) -> Scan:
    """Read one scan.

    Args:
        source: a file (DICOM, NIfTI, Analyze, MGH, picture, `.npy`, `.npz`), a folder or zip with one of these or with
            DICOM series, a list of DICOM files, bytes, an array or tensor ((H, W), (H, W, D), RGB as uint8 (H, W, 3), or
            (C, H, W, D)), a PIL image, a nibabel image, a pydicom dataset, or a `Scan`.
        series: which DICOM series of several: its UID, number, or description. The largest where none is named.
        max_bytes: voxels that would take more memory than this are refused.

    Raises:
        ScanError: one line that names the source and says why it is no scan.
    """
    if all(hasattr(source, name) for name in ("voxels", "affine", "spacing")):
        return source
    if isinstance(source, str | os.PathLike):
        return _read_path(Path(source), series, max_bytes)
    if isinstance(source, bytes | bytearray | memoryview):
        return _read_content("the given bytes", bytes(source), series, max_bytes)
    if hasattr(source, "dataobj"):
        from .nifti_radfm import scan_of_nibabel

        return scan_of_nibabel(source, "the given image", max_bytes)
    if hasattr(source, "file_meta") or hasattr(source, "SOPClassUID"):
        from .dicom_radfm import scan_of_datasets

        return scan_of_datasets("the given dataset", [("the given dataset", source)], series, max_bytes)
    if hasattr(source, "getbands"):
        return _scan_of_picture(source, "the given picture", max_bytes)
    if isinstance(source, list | tuple) and source and all(isinstance(item, str | os.PathLike) for item in source):
        return _read_files(f"{source[0]} and {len(source) - 1} more", map(Path, source), series, max_bytes)
    if hasattr(source, "detach"):
        source = source.detach().cpu().numpy()
    if not hasattr(source, "__array__"):
        raise ScanError(f"{type(source).__name__} is nothing that a scan can be read from: give a path, bytes or an array.")
    return _scan_of_array(np.asarray(source), "the given array", max_bytes)


def list_series(source: str | os.PathLike) -> list[str]:
    """The DICOM series of a folder, zip or file, largest first: UID, number, description and number of files of each."""
    from .dicom_radfm import describe_series

    path = Path(source)
    return describe_series(str(path), _contents(path, MAX_BYTES))


def _read_path(path: Path, series: str | int | None, max_bytes: int) -> Scan:
    if not path.exists():
        raise ScanError(f"{path}: there is no such file or folder.")
    if path.is_dir():
        return _read_files(str(path), sorted(p for p in path.rglob("*") if p.is_file()), series, max_bytes)
    try:
        if path.name.lower().endswith(NIFTI_SUFFIXES):
            from .nifti_radfm import read_nifti

            return read_nifti(path, max_bytes)
        return _read_content(str(path), path.read_bytes(), series, max_bytes)
    except OSError as error:
        raise ScanError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _read_content(name: str, content: bytes, series: str | int | None, max_bytes: int) -> Scan:
    if content[:2] == b"\x1f\x8b" or content[344:348] in (b"n+1\0", b"ni1\0") or content[4:8] == b"n+2\0":
        from .nifti_radfm import scan_of_nifti_bytes

        return scan_of_nifti_bytes(name, content, max_bytes)
    if content[:6] == b"\x93NUMPY":
        return _scan_of_npy(name, content, max_bytes)
    if content[:4] == b"PK\x03\x04":
        return _scan_of_zip(name, content, series, max_bytes)
    if content.startswith(PICTURES) and content[128:132] != b"DICM":
        return _read_picture(name, content, max_bytes)
    from .dicom_radfm import parse, scan_of_datasets

    return scan_of_datasets(name, [(name, parse(name, content))], series, max_bytes)


def _contents(path: Path, max_bytes: int) -> list[tuple[str, bytes]]:
    if path.is_dir():
        return [(str(p), p.read_bytes()) for p in sorted(path.rglob("*")) if p.is_file()]
    content = path.read_bytes()
    return _members(str(path), content, max_bytes) if content[:4] == b"PK\x03\x04" else [(str(path), content)]


def _read_files(name: str, files: Iterable[Path], series: str | int | None, max_bytes: int) -> Scan:
    from .dicom_radfm import looks_like_dicom, parse, scan_of_datasets

    datasets, others = [], []
    for file in files:
        with open(file, "rb") as stream:
            head = stream.read(132)
        if looks_like_dicom(head):
            datasets.append((str(file), parse(str(file), file)))
        elif head.startswith(PICTURES) or file.name.lower().endswith((*NIFTI_SUFFIXES, ".npy", ".npz")):
            others.append(file)
    if datasets:
        return scan_of_datasets(name, datasets, series, max_bytes)
    if len(others) == 1:
        return _read_path(others[0], series, max_bytes)
    if others:
        raise ScanError(
            f"{name}: holds {len(others)} scans that are no DICOM series ({others[0].name}, …): name one of them."
        )
    raise ScanError(f"{name}: holds no scan.")


def _members(name: str, content: bytes, max_bytes: int) -> list[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            announced = sum(entry.file_size for entry in entries)
            if announced > max_bytes:
                raise ScanError(f"{name}: unpacks to {announced / 1e9:.1f} GB, more than {max_bytes / 1e9:.1f} GB.")
            return [(f"{name}/{entry.filename}", archive.read(entry)) for entry in entries]
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ScanError(f"{name}: the zip archive is damaged or encrypted ({error}).") from error


def _scan_of_zip(name: str, content: bytes, series: str | int | None, max_bytes: int) -> Scan:
    from .dicom_radfm import looks_like_dicom, parse, scan_of_datasets

    members = _members(name, content, max_bytes)
    arrays = [(file, data) for file, data in members if file.endswith(".npy")]
    if len(arrays) == 1 and len(members) == 1:
        return _scan_of_npy(name, arrays[0][1], max_bytes)
    datasets = [(file, parse(file, data)) for file, data in members if looks_like_dicom(data[:132])]
    if datasets:
        return scan_of_datasets(name, datasets, series, max_bytes)
    if len(members) == 1 and members[0][1][:4] != b"PK\x03\x04":
        return _read_content(members[0][0], members[0][1], series, max_bytes)
    raise ScanError(f"{name}: holds {len(members)} files and no DICOM series among them: unpack it and name one scan.")


def _scan_of_npy(name: str, content: bytes, max_bytes: int) -> Scan:
    if len(content) > max_bytes:
        raise ScanError(f"{name}: {len(content) / 1e9:.1f} GB are more than {max_bytes / 1e9:.1f} GB.")
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ScanError(f"{name}: is no readable NumPy array ({first_line(error)}).") from error
    return _scan_of_array(array, name, max_bytes)


def _scan_of_array(array: np.ndarray, name: str, max_bytes: int) -> Scan:
    if array.dtype.kind not in "biuf" or array.size == 0:
        raise ScanError(f"{name}: an array of {array.dtype} with shape {array.shape} holds no grey values.")
    if array.size * 4 > max_bytes:
        raise ScanError(
            f"{name}: shape {array.shape} needs {array.size * 4 / 1e9:.1f} GB, more than {max_bytes / 1e9:.1f} GB."
        )
    windows = [(0.0, 255.0)] if array.dtype == np.uint8 else []
    if array.ndim == 2:
        voxels = array[None, :, :, None]
    elif array.ndim == 3 and array.shape[-1] == 3 and array.dtype == np.uint8:
        voxels = array.transpose(2, 0, 1)[..., None]
    elif array.ndim == 3:
        voxels = array[None]
    elif array.ndim == 4 and array.shape[0] in (1, 3):
        voxels = array
    else:
        raise ScanError(
            f"{name}: shape {array.shape} is not (height, width), (height, width, depth), RGB (height, width, 3) as uint8, "
            "or (channels, height, width, depth) with 1 or 3 channels."
        )
    return finite(Scan(voxels.astype(np.float32), windows=windows), name)


def _read_picture(name: str, content: bytes, max_bytes: int) -> Scan:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ScanError(f"{name}: is a picture, and reading one needs Pillow: pip install pillow.") from error
    try:
        return _scan_of_picture(Image.open(io.BytesIO(content)), name, max_bytes)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, ScanError):
            raise
        raise ScanError(f"{name}: the picture is damaged or of an unknown kind ({first_line(error)}).") from error


def _scan_of_picture(image: Any, name: str, max_bytes: int) -> Scan:
    if image.mode in ("P", "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV"):
        image = image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    array = np.asarray(image)
    if array.ndim == 3 and (array == array[..., :1]).all():
        array = array[..., 0]
    return _scan_of_array(array, name, max_bytes)


__all__ = ["Scan", "ScanError", "list_series", "load_scan"]
