"""`load_scan`: whatever a hospital, an archive or a program hands over → a `Scan`, or a `ScanError` that says why not."""

import io
import os
import warnings
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .scan_radfm import ReadContext, ReadOptions, Scan, ScanError, first_line, replace_nonfinite

MAX_BYTES = 2 << 30
MAX_FILES = 100_000
PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"RIFF", b"BM", b"GIF8")
NIFTI_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".img.gz", ".mgh", ".mgz", ".mnc")
ARRAY_SUFFIXES = (".npy", ".npz")
ZIP = b"PK\x03\x04"
DICOMDIR = "DICOMDIR"


def load_scan(
    source: Any,
    *,
    series: str | int | None = None,
    volume: int | dict[str, Any] | None = None,
    allow_missing: bool = False,
    max_bytes: int = MAX_BYTES,
) -> Scan:
    """Read one scan.

    Args:
        source: a file (DICOM, NIfTI, Analyze, MGH, MINC, picture, `.npy`, `.npz`), a folder, zip or DICOMDIR with one of
            these or with DICOM series, a list of DICOM files, bytes, an array or tensor ((H, W), (H, W, D), RGB as uint8
            (H, W, 3), or (C, H, W, D)), a PIL image, a nibabel image, a pydicom dataset, or a `Scan`.
        series: which DICOM series of several: its UID, number, or description. The largest where none is named, with a
            warning that lists the others.
        volume: which of several that one source holds, from 0: of a 4D NIfTI, of the echoes or phases of a series, or of
            the frames of a film. The first where none is named, with a warning.
        allow_missing: a DICOM series that lacks slices is read, the places filled by interpolation between their neighbours
            and named in a warning, and not refused.
        max_bytes: voxels, or unpacked files, that would take more memory than this are refused.

    Raises:
        ScanError: one line that names the source and says why it is no scan.
    """
    choice = ReadOptions(series, volume, allow_missing, max_bytes)
    if all(hasattr(source, name) for name in ("voxels", "affine", "spacing")):
        return source
    if isinstance(source, str | os.PathLike):
        return _read_path(Path(source), choice)
    if isinstance(source, bytes | bytearray | memoryview):
        return _read_content("the given bytes", bytes(source), choice)
    if hasattr(source, "dataobj"):
        from .nifti_radfm import scan_of_nibabel

        return scan_of_nibabel(source, "the given image", volume, max_bytes)
    if hasattr(source, "file_meta") or hasattr(source, "SOPClassUID"):
        from .dicom_radfm import Instance, load_dicom

        given = Instance("the given dataset", source, None)
        return load_dicom([given], ReadContext("the given dataset", choice))
    if hasattr(source, "getbands"):
        return _scan_of_picture(source, "the given picture", max_bytes)
    if isinstance(source, list | tuple) and source and all(isinstance(item, str | os.PathLike) for item in source):
        return _read_files(f"{source[0]} and {len(source) - 1} more", map(Path, source), choice)
    if hasattr(source, "detach"):
        source = source.detach().cpu().numpy()
    if not hasattr(source, "__array__"):
        raise ScanError(f"{type(source).__name__} is nothing that a scan can be read from: give a path, bytes or an array.")
    return _scan_of_array(np.asarray(source), "the given array", max_bytes)


def list_series(source: str | os.PathLike, *, max_bytes: int = MAX_BYTES) -> list[str]:
    """The DICOM series of a folder, zip or file, largest first: UID, number, description and number of files of each.

    Raises:
        ScanError: there is no DICOM image.
    """
    from .dicom_radfm import describe_series

    return describe_series(*_instances_of(Path(source), ReadOptions(None, None, False, max_bytes)))


def list_volumes(source: str | os.PathLike, *, series: str | int | None = None, max_bytes: int = MAX_BYTES) -> list[str]:
    """The volumes that `volume=` chooses from in a DICOM series: index, what tells each apart, slices, the default.

    Raises:
        ScanError: there is no DICOM image.
    """
    from .dicom_radfm import describe_volumes

    return describe_volumes(*_instances_of(Path(source), ReadOptions(series, None, False, max_bytes)))


def _instances_of(path: Path, choice: ReadOptions) -> tuple[list[Any], ReadContext]:
    context = ReadContext(str(path), choice)
    if not path.exists():
        raise ScanError(f"{path}: there is no such file or folder.")
    if path.is_dir() or path.name.upper() == DICOMDIR:
        return _instances(_walk(path if path.is_dir() else path.parent), context)[0], context
    content = path.read_bytes()
    members = _members(str(path), content, choice.max_bytes) if content[:4] == ZIP else [(str(path), content)]
    return _dicom_members(members, context), context


def _read_path(path: Path, choice: ReadOptions) -> Scan:
    try:
        if not path.exists():
            raise ScanError(f"{path}: there is no such file or folder.")
        if path.is_dir():
            return _read_files(str(path), _walk(path), choice)
        if path.name.upper() == DICOMDIR:
            return _read_files(str(path), _walk(path.parent), choice)
        with open(path, "rb") as file:
            is_dicom = file.read(132)[128:] == b"DICM"
        if path.name.lower().endswith(NIFTI_SUFFIXES) and not is_dicom:
            from .nifti_radfm import read_nifti

            return read_nifti(path, choice.volume, choice.max_bytes)
        with open(path, "rb") as file:
            head = file.read(352)
        from .dicom_radfm import load_dicom, looks_like_dicom, read_instances

        if looks_like_dicom(head) or not _known(head):
            context = ReadContext(str(path), choice)
            return load_dicom(_only(read_instances([(str(path), path)], context), context), context)
        if path.stat().st_size > choice.max_bytes:
            raise ScanError(f"{path}: has {path.stat().st_size / 1e9:.1f} GB, more than {choice.max_bytes / 1e9:.1f} GB.")
        return _read_content(str(path), path.read_bytes(), choice)
    except OSError as error:
        raise ScanError(f"{path}: cannot be read ({error.strerror or first_line(error)}).") from error


def _only(instances: list[Any], context: ReadContext) -> list[Any]:
    if not instances:
        raise ScanError(context.warnings[-1])
    return instances


def _known(head: bytes) -> bool:
    """Whether the first bytes are those of something else than DICOM that can be read."""
    return _is_nifti(head) or head.startswith((b"\x93NUMPY", ZIP, *PICTURES))


def _is_nifti(head: bytes) -> bool:
    return head[:2] == b"\x1f\x8b" or head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] == b"n+2\0"


def _read_content(name: str, content: bytes, choice: ReadOptions) -> Scan:
    from .dicom_radfm import load_dicom, looks_like_dicom, read_instances

    if not looks_like_dicom(content[:132]):
        if _is_nifti(content[:352]):
            from .nifti_radfm import scan_of_nifti_bytes

            return scan_of_nifti_bytes(name, content, choice.volume, choice.max_bytes)
        if content[:6] == b"\x93NUMPY":
            return _scan_of_npy(name, content, choice.max_bytes)
        if content[:4] == ZIP:
            return _scan_of_zip(name, content, choice)
        if content.startswith(PICTURES):
            return _read_picture(name, content, choice.max_bytes)
    context = ReadContext(name, choice)
    return load_dicom(_only(read_instances([(name, content)], context), context), context)


def _walk(folder: Path) -> list[Path]:
    files = []
    for path in folder.rglob("*"):
        if path.is_file():
            files.append(path)
        if len(files) > MAX_FILES:
            raise ScanError(f"{folder}: holds more than {MAX_FILES} files; name a folder with one study in it.")
    return sorted(files)


def _instances(files: Iterable[Path], context: ReadContext) -> tuple[list[Any], list[Path]]:
    """The DICOM files among some, parsed, and the other scans."""
    from .dicom_radfm import looks_like_dicom, read_instances

    dicom, others = [], []
    for file in files:
        with open(file, "rb") as stream:
            head = stream.read(352)
        if looks_like_dicom(head):
            dicom.append((str(file), file))
        elif head.startswith(PICTURES) or file.name.lower().endswith((*NIFTI_SUFFIXES, *ARRAY_SUFFIXES)):
            others.append(file)
    return read_instances(dicom, context) if dicom else [], others


def _read_files(name: str, files: Iterable[Path], choice: ReadOptions) -> Scan:
    from .dicom_radfm import load_dicom

    context = ReadContext(name, choice)
    try:
        instances, others = _instances(files, context)
    except OSError as error:
        raise ScanError(f"{name}: {error.filename or 'a file'} cannot be read ({error.strerror}).") from error
    if any(instance.has_image for instance in instances):
        return load_dicom(instances, context)
    if len(others) == 1:
        return _read_path(others[0], choice)
    if others:
        raise ScanError(f"{name}: holds {len(others)} scans and no DICOM series ({others[0].name}, …): name one of them.")
    raise ScanError(f"{name}: holds no scan.")


def _members(name: str, content: bytes, max_bytes: int) -> list[tuple[str, bytes]]:
    """The files in a zip, unpacked in memory: a name that climbs out of the archive has nowhere to go."""
    members, unpacked = [], 0
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            if len(entries) > MAX_FILES:
                raise ScanError(f"{name}: holds more than {MAX_FILES} files.")
            for entry in entries:
                with archive.open(entry) as file:
                    data = file.read(max_bytes - unpacked + 1)
                unpacked += len(data)
                if unpacked > max_bytes:
                    raise ScanError(f"{name}: unpacks to more than {max_bytes / 1e9:.1f} GB.")
                members.append((f"{name}/{entry.filename}", data))
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        if isinstance(error, ScanError):
            raise
        raise ScanError(f"{name}: the zip archive is damaged or encrypted ({first_line(error)}).") from error
    return members


def _dicom_members(members: list[tuple[str, bytes]], context: ReadContext) -> list[Any]:
    from .dicom_radfm import looks_like_dicom, read_instances

    found = [(file, data) for file, data in members if looks_like_dicom(data[:132])]
    return read_instances(found, context) if found else []


def _scan_of_zip(name: str, content: bytes, choice: ReadOptions) -> Scan:
    from .dicom_radfm import load_dicom

    context = ReadContext(name, choice)
    members = _members(name, content, choice.max_bytes)
    if len(members) == 1 and members[0][0].endswith(".npy"):
        return _scan_of_npy(name, members[0][1], choice.max_bytes)
    instances = _dicom_members(members, context)
    if any(instance.has_image for instance in instances):
        return load_dicom(instances, context)
    if len(members) == 1 and members[0][1][:4] != ZIP:
        return _read_content(members[0][0], members[0][1], choice)
    raise ScanError(f"{name}: holds {len(members)} files and no DICOM series among them: unpack it and name one scan.")


def _scan_of_npy(name: str, content: bytes, max_bytes: int) -> Scan:
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:
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
    return replace_nonfinite(Scan(voxels.astype(np.float32), windows=windows), name)


def _read_picture(name: str, content: bytes, max_bytes: int) -> Scan:
    try:
        from PIL import Image
    except ImportError as error:
        raise ScanError(f"{name}: is a picture, and reading one needs Pillow: pip install pillow.") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content))
            if image.width * image.height * 12 > max_bytes:
                raise ScanError(f"{name}: {image.width}×{image.height} pixels need more than {max_bytes / 1e9:.1f} GB.")
            scan = _scan_of_picture(image, name, max_bytes)
            pages = getattr(image, "n_frames", 1)
            if pages > 1:
                scan.warnings.append(f"Only page 1 of {pages} was read.")
            return scan
    except ScanError:
        raise
    except Exception as error:
        raise ScanError(f"{name}: the picture is damaged or of an unknown kind.") from error


def _scan_of_picture(image: Any, name: str, max_bytes: int) -> Scan:
    if image.mode in ("P", "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV"):
        image = image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    array = np.asarray(image)
    if array.ndim == 3 and (array == array[..., :1]).all():
        array = array[..., 0]
    return _scan_of_array(array, name, max_bytes)


__all__ = ["Scan", "ScanError", "list_series", "list_volumes", "load_scan"]
