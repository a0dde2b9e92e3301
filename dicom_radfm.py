"""DICOM files → `Scan`: reading files within bounds, and choosing one of their series (DICOM PS3.3, PS3.5, PS3.10)."""

import io
import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .dicom_header_radfm import HEAD_BYTES, plain_header, tags_of
from .dicom_volume_radfm import stack_of
from .scan_radfm import ReadContext, ReadOptions, Scan, ScanError, first_line

try:
    import pydicom
except ImportError:
    pydicom = None  # type: ignore[assignment]

DEFLATED = b"1.2.840.10008.1.2.1.99"
# All that is read of a header. A patient's weight is among it for SUV, and goes no further.
TAGS = tags_of([
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "SeriesTime", "AcquisitionTime", "ContentTime", "Modality",
    "SeriesDescription", "PatientWeight", "SliceThickness", "EchoTime", "SpacingBetweenSlices", "TriggerTime",
    "SeriesInstanceUID", "SeriesNumber", "AcquisitionNumber", "ImagePositionPatient", "ImageOrientationPatient",
    "TemporalPositionIdentifier", "SliceLocation", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows",
    "Columns", "PixelSpacing", "ImagerPixelSpacing", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "WindowCenter", "WindowWidth", "VOILUTFunction", "RescaleIntercept",
    "RescaleSlope", "ModalityLUTSequence", "VOILUTSequence", "Units", "DecayCorrection",
    "RadiopharmaceuticalInformationSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "DiffusionBValue",
])  # fmt: skip
PIXEL_ELEMENTS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
# Headers are parsed side by side: a good part of the time goes into waiting for the disk.
THREADS = 2


@dataclass
class Instance:
    """One DICOM file: its header, and the byte at which its pixel element starts (-1: none, or in the header)."""

    name: str
    header: Any
    source: Path | bytes | None
    pixels_at: int = -1

    @property
    def has_image(self) -> bool:
        """Whether there is an image, and of what size."""
        sized = self.header.get("Rows") and self.header.get("Columns")
        return bool(sized) and (self.pixels_at >= 0 or any(word in self.header for word in PIXEL_ELEMENTS))

    def complete(self) -> Any:
        """The dataset with its pixel element."""
        return self.header if self.source is None else _read(self.name, self.source)[0]


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file's first 132 bytes are DICOM's: with a preamble, or without one (first group 0002 or 0008)."""
    return head[128:132] == b"DICM" or head[:2] in (b"\x08\x00", b"\x02\x00", b"\x00\x08")


def parse(name: str, source: Path | bytes, max_bytes: int) -> Instance:
    """The header of one file; its pixels stay where they are. Raises `ScanError`."""
    return parse_all([(name, source)], max_bytes)[0]


def _parse(name: str, source: Path | bytes, max_bytes: int) -> Instance:
    if pydicom is None:
        raise ScanError(f"{name}: reading DICOM needs pydicom: pip install pydicom 'pylibjpeg[all]'.")
    with _opened(source) as file:
        head = file.read(HEAD_BYTES)
        plain = plain_header(head, TAGS)
        if plain is not None:
            return Instance(name, plain[0], source, plain[1])
        if DEFLATED in head[:1024]:
            file.seek(0)
            _refuse_deflate_bomb(name, file.read(), max_bytes)
            return Instance(name, _read(name, source)[0], None)
    header, at = _read(name, source, stop_before_pixels=True, specific_tags=sorted(TAGS))
    return Instance(name, header, source, at)


def parse_all(files: Iterable[tuple[str, Path | bytes]], max_bytes: int) -> list[Instance]:
    """The headers of many files. Raises `ScanError` for the first that cannot be read."""
    with ThreadPoolExecutor(THREADS) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(pool.map(lambda file: _parse(file[0], file[1], max_bytes), files))


def _read(name: str, source: Path | bytes, **options: Any) -> tuple[Any, int]:
    try:
        with _opened(source) as file:
            force = looks_like_dicom(file.read(132))
            file.seek(0)
            dataset = pydicom.dcmread(file, force=force, **options)
            at = file.tell()
            return dataset, at if file.read(4) else -1
    except Exception as error:
        raise ScanError(f"{name}: is no scan that can be read: not DICOM, NIfTI, NumPy or a picture.") from error


def _opened(source: Path | bytes) -> Any:
    return open(source, "rb") if isinstance(source, Path) else io.BytesIO(source)


def _refuse_deflate_bomb(name: str, content: bytes, max_bytes: int) -> None:
    # The group length of the file meta information (PS3.10, 7.1) says where the deflated dataset starts.
    start = 144 + int.from_bytes(content[140:144], "little")
    try:
        unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content[start:], max_bytes + 1)
    except zlib.error as error:
        raise ScanError(f"{name}: its deflated dataset is damaged.") from error
    if len(unpacked) > max_bytes:
        raise ScanError(f"{name}: unpacks to more than {max_bytes / 1e9:.1f} GB.")


def describe_series(instances: list[Instance], context: ReadContext) -> list[str]:
    """One line a series, largest first: UID, number and description, files."""
    return [f"{uid} · {title_of(files[0])} · {len(files)} files" for uid, files in _series(context.name, instances)]


def scan_of_instances(name: str, instances: list[Instance], choice: ReadOptions) -> Scan:
    """The chosen series of some files, or the largest, as one scan. Raises `ScanError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _chosen(name, instances, choice)
    except ScanError:
        raise
    except Exception as error:
        raise ScanError(f"{name}: its header holds values that cannot be understood ({first_line(error)[:160]}).") from error


def _chosen(name: str, instances: list[Instance], choice: ReadOptions) -> Scan:
    groups = _series(name, instances)
    if choice.series is not None:
        wanted = str(choice.series)
        found = [g for g in groups if wanted in (g[0], str(g[1][0].header.get("SeriesNumber")), _description(g[1][0]))]
        if not found:
            raise ScanError(f"{name}: has no series {wanted!r}, only {'; '.join(title_of(g[1][0]) for g in groups)}.")
        groups = found
    chosen = groups[0][1]
    scan = stack_of(name, chosen, choice)
    scan.series = title_of(chosen[0])
    if len(groups) > 1:
        others = "; ".join(f"{title_of(files[0])} ({len(files)} files)" for _, files in groups[1:6])
        more = f" and {len(groups) - 6} more" if len(groups) > 6 else ""
        scan.warnings.append(f"The largest of {len(groups)} series was read; the others: {others}{more}.")
    return scan


def _series(name: str, instances: list[Instance]) -> list[tuple[str, list[Instance]]]:
    groups = defaultdict(list)
    for instance in instances:
        if instance.has_image:
            groups[str(instance.header.get("SeriesInstanceUID", ""))].append(instance)
    if not groups:
        raise ScanError(f"{name}: is DICOM without an image in it.")
    return sorted(groups.items(), key=lambda group: -len(group[1]))


def _description(instance: Instance) -> str:
    return str(instance.header.get("SeriesDescription", "")).strip()


def title_of(instance: Instance) -> str:
    """Number and description of an instance's series."""
    words = [str(word) for word in (instance.header.get("SeriesNumber"), _description(instance)) if word not in (None, "")]
    return " ".join(words) or "series without a name"


# The interface that load_scan_radfm.py calls.


def read_instances(files: Sequence[tuple[str, Path | bytes]], context: ReadContext) -> list[Instance]:
    """The headers of many files; one that cannot be read is named in a warning."""
    instances = []
    for name, source in files:
        try:
            instances.append(parse(name, source, context.options.max_bytes))
        except ScanError as error:
            context.warnings.append(str(error))
    return instances


def instance_from_dataset(dataset: Any, context: ReadContext) -> Instance:
    """A pydicom dataset that is in memory already."""
    return Instance(context.name, dataset, None)


def load_dicom(instances: list[Instance], context: ReadContext) -> Scan:
    """The chosen series of some files, or the largest, as one scan. Raises `ScanError`."""
    scan = scan_of_instances(context.name, instances, context.options)
    scan.warnings[:0] = context.warnings
    return scan


def describe_volumes(instances: list[Instance], context: ReadContext) -> list[str]:
    """One line a volume."""
    return ["0"]
