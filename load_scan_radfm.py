"""`load_scan`: whatever a hospital, an archive or a program hands over → a `Scan`, or a `ScanError` that says why not.

One straight path: open the source (a file, or the files of a folder or archive), recognise each file by its content, and
call the reader of that format.
"""

import base64
import binascii
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path
from typing import Any

import numpy as np

from .archive_radfm import GZIP, SourceFile, archive_files, folder_files, unpack_gzip, unpacked_head
from .array_radfm import NUMPY, PICTURES, count_pages, read_npy, read_picture, scan_from_array, scan_from_picture
from .dicom_radfm import (
    describe_series,
    describe_volumes,
    instance_from_dataset,
    load_dicom,
    looks_like_dicom,
    read_instances,
)
from .itk_radfm import count_itk_volumes, is_metaimage, is_nrrd, read_itk
from .nifti_radfm import (
    HDF5,
    MINC1,
    is_analyze,
    is_mgh,
    is_nifti,
    list_nifti_volumes,
    read_mgh,
    read_minc,
    read_nifti,
    scan_from_nibabel,
)
from .scan_radfm import ReadContext, ReadOptions, Scan, ScanError, one_line

MAX_BYTES = 2 << 30
DATA_URL = "data:"
# How many files an error message or a warning names.
MOST_NAMES = 3
# The shortest header of a NetCDF file (magic, number of records, three empty lists), and so of a MINC file.
MINC_HEADER = 32
# The SOP class of a DICOMDIR (PS3.4 annex I.4, Media Storage Directory Storage), which stands in its meta header.
DICOMDIR_CLASS = b"1.2.840.10008.1.3.10"


class Format(Enum):
    """What a file is, by its first bytes; NIFTI includes Analyze, ITK is MetaImage and NRRD."""

    DICOM = auto()
    DICOMDIR = auto()
    NIFTI = auto()
    MGH = auto()
    MINC = auto()
    ITK = auto()
    NUMPY = auto()
    PICTURE = auto()
    ZIP = auto()
    TAR = auto()


ARCHIVES = (Format.ZIP, Format.TAR)
READERS: dict[Format, Callable[[SourceFile, ReadContext], Scan]] = {
    Format.NIFTI: read_nifti,
    Format.MGH: read_mgh,
    Format.MINC: read_minc,
    Format.ITK: read_itk,
    Format.NUMPY: read_npy,
    Format.PICTURE: read_picture,
}
# Formats whose readers get the unpacked bytes of a file compressed with gzip; the others read the gzip stream.
READ_UNPACKED = (Format.DICOM, Format.MGH, Format.MINC, Format.ITK, Format.NUMPY, Format.PICTURE)
# What is often handed over and not read: the first bytes, and what to do.
FOREIGN = {
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive, which is not read: unpack it and name the folder.",
    b"Rar!": "is a RAR archive, which is not read: unpack it and name the folder.",
    b"BZh": "is compressed with bzip2, which is not read: unpack it first (bunzip2).",
    b"\xfd7zXZ\0": "is compressed with xz, which is not read: unpack it first (unxz).",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd, which is not read: unpack it first (unzstd).",
    b"%PDF": "is a PDF document and no scan.",
    b"\x1f\x8b": "is compressed with gzip and damaged: copy or download it again.",
    b"version https://git-lfs": "is a pointer of Git LFS and not the file: fetch it with git lfs pull.",
}
UNKNOWN = (
    "is no scan that can be read: none of DICOM, NIfTI, Analyze, MGH, MINC, MetaImage, NRRD, NumPy, PNG, JPEG, TIFF, WebP, "
    "BMP and GIF, nor a zip or tar of them."
)


@dataclass
class Contents:
    """The files of a source by what they are."""

    dicom: list[SourceFile]
    scans: list[tuple[Format, SourceFile]]
    archives: list[SourceFile]
    unknown: list[SourceFile]


def load_scan(
    source: Any,
    *,
    series: str | int | None = None,
    volume: int | Mapping[str, object] | None = None,
    allow_missing: bool = False,
    max_bytes: int = MAX_BYTES,
) -> Scan:
    """Read one scan.

    Args:
        source: a file (DICOM, NIfTI, Analyze, MGH, MINC, MetaImage, NRRD, picture, `.npy`, `.npz`), a folder, zip, tar or
            DICOMDIR with one of these or with DICOM series, a list of files, bytes, a data URL with base64 (RFC 2397), an
            array or tensor ((H, W), (H, W, D), RGB as uint8 (H, W, 3), or (C, H, W, D)), a PIL image, a nibabel image, a
            pydicom dataset, or a `Scan`.
        series: which DICOM series of several: its UID, number, or description. Where none is named: a volume before single
            images, the one with most images first, with a warning that lists the others.
        volume: which of several that one source holds, as `list_volumes` lists them: its index from 0, or for DICOM what
            tells it from the others, such as {"EchoTime": 4.6}. Where none is named: magnitude before phase, then
            most slices, then the first, with a warning.
        allow_missing: a DICOM series that lacks slices is read, the places filled by interpolation between their neighbours
            and named in a warning, and not refused.
        max_bytes: voxels, or unpacked files, that would take more memory than this are refused.

    Returns:
        The scan: voxels (channels, height, width, depth) float32 in native units, affine in mm RAS+. Safe to call from many
        threads.

    Raises:
        ScanError: one line that names the source and says why it is no scan.

    >>> load_scan(np.zeros((64, 48, 20), np.int16))
    Scan(unknown modality, 1×64×48×20, unknown)
    """
    if all(hasattr(source, name) for name in ("voxels", "affine", "spacing")):
        return source
    context = ReadContext(_name(source), ReadOptions(series, volume, allow_missing, max_bytes))
    with _one_line_errors(context):
        if hasattr(source, "dataobj"):
            return scan_from_nibabel(source, context)
        if hasattr(source, "file_meta") or hasattr(source, "SOPClassUID"):
            return load_dicom([instance_from_dataset(source, context)], context)
        if hasattr(source, "getbands"):
            return scan_from_picture(source, context)
        files = _open(source, context)
        if files is not None:
            return _read_contents(files, context)
        if hasattr(source, "detach"):
            source = source.detach().cpu()
            source = source.float().numpy() if str(source.dtype) == "torch.bfloat16" else source.numpy()
        if not hasattr(source, "__array__"):
            raise ScanError(f"{type(source).__name__}: no scan can be read from it; give a path, bytes or an array.")
        context.volume_index(1)
        return scan_from_array(np.asarray(source), context)


def list_series(source: str | os.PathLike[str] | bytes, *, max_bytes: int = MAX_BYTES) -> list[str]:
    """The DICOM series of a source, in the order of `load_scan`: UID, number, description and number of files of each.

    Raises:
        ScanError: there is no DICOM image.
    """
    context = ReadContext(_name(source), ReadOptions(max_bytes=max_bytes))
    with _one_line_errors(context):
        contents = _recognise_all(_open(source, context) or [], context)
        if not contents.dicom:
            raise context.error("holds no DICOM series.")
        return describe_series(_read_headers(contents.dicom, context), context)


def list_volumes(
    source: str | os.PathLike[str] | bytes, series: str | int | None = None, *, max_bytes: int = MAX_BYTES
) -> list[str]:
    """What `volume` of `load_scan` chooses from, one line each: volumes of a series or file, frames, or pages.

    Args:
        source: a file, folder or archive.
        series: which DICOM series of several, as for `load_scan`.
        max_bytes: as for `load_scan`.

    Raises:
        ScanError: there is no scan.
    """
    context = ReadContext(_name(source), ReadOptions(series, max_bytes=max_bytes))
    with _one_line_errors(context):
        contents = _recognise_all(_open(source, context) or [], context)
        instances = _read_headers(contents.dicom, context) if contents.dicom else []
        if any(instance.has_image for instance in instances):
            return describe_volumes(instances, context)
        kind, file = _only_scan(contents, context)
        context = replace(context, name=file.name)
        if kind is Format.NIFTI:
            return list_nifti_volumes(file, context)
        counts = {Format.PICTURE: count_pages, Format.ITK: count_itk_volumes}
        return [str(index) for index in range(counts[kind](file, context) if kind in counts else 1)]


def _name(source: Any) -> str:
    """A source as error messages name it."""
    if _is_data_url(source):
        return "the data URL"
    if isinstance(source, str | os.PathLike):
        return os.fspath(source) if isinstance(os.fspath(source), str) else os.fsdecode(source)
    if _is_list_of_paths(source):
        return os.fsdecode(source[0]) + (f" and {len(source) - 1} more" if len(source) > 1 else "")
    if isinstance(source, bytes | bytearray | memoryview):
        return "the bytes"
    names = {"dataobj": "the image", "getbands": "the picture", "SOPClassUID": "the dataset", "file_meta": "the dataset"}
    return next((name for attribute, name in names.items() if hasattr(source, attribute)), "the array")


def _is_data_url(source: Any) -> bool:
    return isinstance(source, str) and source[: len(DATA_URL)].lower() == DATA_URL


def _decode_data_url(url: str, context: ReadContext) -> bytes:
    """The bytes in a data URL (RFC 2397). What a server gets as a data URL is never taken for a path."""
    head, _, text = url.partition(",")
    context.require_bytes(len(text) * 3 // 4, "it")
    if head.lower().endswith(";base64"):
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            pass  # refused below, without its text
    raise context.error("holds no valid base64.")


def _is_list_of_paths(source: Any) -> bool:
    return isinstance(source, list | tuple) and bool(source) and all(isinstance(item, str | os.PathLike) for item in source)


@contextmanager
def _one_line_errors(context: ReadContext) -> Iterator[None]:
    """What the system refuses as a `ScanError` that names the source."""
    try:
        yield
    except OSError as error:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else context.name
        raise ScanError(one_line(f"{name}: cannot be read ({error.strerror or 'input/output error'}).")) from error
    except MemoryError as error:
        raise context.error("does not fit into the free memory of this machine; choose one series or volume.") from error


def _open(source: Any, context: ReadContext) -> list[SourceFile] | None:
    """The files of a source: itself, or those of the folder or archive; None where it is no file at all."""
    if _is_list_of_paths(source):
        return [_file(Path(item), context) for item in source]
    if _is_data_url(source):
        source = _decode_data_url(source, context)
    if isinstance(source, bytes | bytearray | memoryview):
        file = SourceFile(context.name, bytes(source))
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.is_dir():
            return folder_files(path, context)
        file = _file(path, context)
    else:
        return None
    kind = recognise(file.head())
    if kind in ARCHIVES:
        return archive_files(file, context, _is_readable)
    if kind is Format.DICOMDIR:
        if isinstance(file.content, Path):
            return folder_files(file.content.parent, context)
        raise context.error("is a DICOMDIR, an index of other files: give the folder that it lies in.")
    return [file]


def _file(path: Path, context: ReadContext) -> SourceFile:
    if not path.exists():
        raise ScanError(one_line(f"{path}: there is no such file or folder."))
    if not path.is_file():
        raise ScanError(one_line(f"{path}: is no regular file but a folder, pipe or device."))
    return SourceFile(str(path), path)


def recognise(head: bytes) -> Format | None:
    """What a file is by its first 512 bytes or more (unpacked where they are compressed with gzip); None: not known."""
    if head[128:132] == b"DICM":
        return Format.DICOMDIR if DICOMDIR_CLASS in head[:512] else Format.DICOM
    if is_nifti(head) or is_analyze(head):
        return Format.NIFTI
    if head.startswith(NUMPY):
        return Format.NUMPY
    if _is_picture(head):
        return Format.PICTURE
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return Format.ZIP
    if head[257:262] == b"ustar":
        return Format.TAR
    if head.startswith((*MINC1, HDF5)) and len(head) >= MINC_HEADER:
        return Format.MINC
    if is_mgh(head):
        return Format.MGH
    if is_nrrd(head) or is_metaimage(head):
        return Format.ITK
    return Format.DICOM if looks_like_dicom(head) else None


def _is_picture(head: bytes) -> bool:
    if head[:4] == b"RIFF":
        return head[8:12] == b"WEBP"
    if head[:2] == b"BM":
        return len(head) > 26 and head[6:10] == bytes(4)  # two reserved fields, which are 0
    return head.startswith(tuple(PICTURES))


def _is_readable(head: bytes) -> bool:
    """Whether a member of an archive is worth unpacking: it is a scan."""
    return recognise(head) not in (None, Format.DICOMDIR, *ARCHIVES)


def _recognise_all(files: list[SourceFile], context: ReadContext) -> Contents:
    """Sort files by what they are; one of several that cannot be opened is named in a warning."""
    contents = Contents([], [], [], [])
    left = context.options.max_bytes
    for file in files:
        try:
            stored = file.stored_head()
            kind = recognise(unpacked_head(stored))
            if stored.startswith(GZIP) and kind in READ_UNPACKED:
                file = unpack_gzip(file, left, context)
                left -= len(file.content) if isinstance(file.content, bytes) else 0
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or "the gzip stream is damaged or cut short"
            if len(files) == 1:
                raise ScanError(one_line(f"{file.name}: cannot be read ({reason}); copy or download it again.")) from error
            context.warnings.append(one_line(f"{file.base_name} cannot be read ({reason}) and was left out."))
            continue
        if kind is None:
            contents.unknown.append(file)
        elif kind is Format.DICOM:
            contents.dicom.append(file)
        elif kind in ARCHIVES:
            contents.archives.append(file)
        elif kind in READERS:
            contents.scans.append((kind, file))
    return contents


def _read_contents(files: list[SourceFile], context: ReadContext) -> Scan:
    """The one scan among some files: a DICOM series if there is one, or else the only file that is a scan."""
    contents = _recognise_all(files, context)
    _warn_of_unknown(contents, len(files), context)
    instances = _read_headers(contents.dicom, context) if contents.dicom else []
    if any(instance.has_image for instance in instances) or (instances and not contents.scans):
        if contents.scans:
            context.warnings.append(f"Besides DICOM it holds {_names([file for _, file in contents.scans])}, not read.")
        return load_dicom(instances, context)
    kind, file = _only_scan(contents, context)
    if context.options.series is not None:
        raise context.error(f"is no DICOM, so it has no series {context.options.series!r} to choose.")
    return READERS[kind](file, replace(context, name=file.name))


def _read_headers(files: list[SourceFile], context: ReadContext) -> list[Any]:
    instances = read_instances([(file.name, file.content) for file in files], context)
    if not instances and context.warnings and len(files) == 1:
        reason = context.warnings[-1]
        raise ScanError(one_line(reason)) if files[0].base_name in reason else context.error(reason)
    return instances


def _only_scan(contents: Contents, context: ReadContext) -> tuple[Format, SourceFile]:
    """The file to read where there is no DICOM image: the only one, or the only one that is not a picture."""
    scans = contents.scans
    better = [(kind, file) for kind, file in scans if kind is not Format.PICTURE]
    if len(better) == 1:
        pictures = [file for kind, file in scans if kind is Format.PICTURE]
        if pictures:
            context.warnings.append(f"{better[0][1].base_name} was read; {_names(pictures)} besides it were not.")
        return better[0]
    if len(scans) == 1:
        return scans[0]
    if scans:
        names = _names([file for _, file in scans])
        raise context.error(f"holds {len(scans)} scans and no DICOM series ({names}): name one of them.")
    if len(contents.unknown) == 1 and not contents.dicom and not contents.archives:
        return _header_of(contents.unknown[0])
    if contents.archives:
        raise context.error(f"holds no scan but an archive ({_names(contents.archives)}): unpack it, or name it.")
    if contents.dicom:
        raise context.error(f"its DICOM files cannot be read ({_names(contents.dicom)}).")
    raise context.error("holds no scan.")


def _header_of(file: SourceFile) -> tuple[Format, SourceFile]:
    """The header in the same folder that belongs to a file of voxels alone (`.img` of a pair). Raises `ScanError`."""
    stem = file.base_name.removesuffix(".gz").rsplit(".", 1)[0]
    for suffix in (".hdr", ".HDR"):
        header = file.sibling(stem + suffix)
        if header is not None and recognise(header.head()) is Format.NIFTI:
            return Format.NIFTI, header
    head = file.head()
    if not head:
        raise ScanError(one_line(f"{file.name}: is empty."))
    sentence = next((sentence for magic, sentence in FOREIGN.items() if head.startswith(magic)), UNKNOWN)
    raise ScanError(one_line(f"{file.name}: {sentence}"))


def _warn_of_unknown(contents: Contents, files: int, context: ReadContext) -> None:
    """Name the binary files that are no scans; text (README, JSON, bvec) beside a scan is usual and not named."""
    headers = {_stem(file) for kind, file in contents.scans if kind in (Format.NIFTI, Format.ITK)}
    foreign = [file for file in contents.unknown if _stem(file) not in headers and not _is_text(file)]
    if foreign and files > 1:
        context.warnings.append(f"Not recognised as a scan and left out: {_names(foreign)}.")
    if contents.archives and files > 1:
        context.warnings.append(f"Archives inside it were not opened: {_names(contents.archives)}.")


def _stem(file: SourceFile) -> str:
    return file.name.removesuffix(".gz").rsplit(".", 1)[0]


def _is_text(file: SourceFile) -> bool:
    return b"\0" not in file.head()


def _names(files: list[SourceFile]) -> str:
    names = ", ".join(file.base_name for file in files[:MOST_NAMES])
    return one_line(names + (f" and {len(files) - MOST_NAMES} more" if len(files) > MOST_NAMES else ""))


__all__ = ["Scan", "ScanError", "list_series", "list_volumes", "load_scan"]
