"""DICOM pixels → native units: decoding, LUTs, padding, windows, MONOCHROME1, SUV (DICOM PS3.3 C.7.6.3, C.8.9, C.11)."""

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np

from .dicom_codestream_radfm import checked_frames
from .scan_radfm import ScanError, first_line

try:
    import pydicom
    from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array
except ImportError:
    pydicom = None  # type: ignore[assignment]
try:
    import libjpeg
except ImportError:
    libjpeg = None  # type: ignore[assignment]

NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
# Retired processes of JPEG, which pydicom leaves alone and libjpeg decodes; and frames that are deflated one by one.
RETIRED_JPEG = ("1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55")
DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
# JPEG, JPEG-LS, JPEG 2000 (4.x), RLE (5) and deflated frames (8.1): the syntaxes that hold a frame in an item each.
ENCAPSULATED = ("1.2.840.10008.1.2.4.", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.8.")
PIXEL_TAG = 0x7FE00010
Windows = list[tuple[float, float]]


def transfer_syntax(dataset: Any) -> str:
    """UID of a dataset's transfer syntax; as it was found to be written where the file does not say."""
    stated = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    implicit, little = getattr(dataset, "original_encoding", (True, True))
    return str(stated or NATIVE[0 if implicit else 1 if little else 2])


def native_pixels(instance: Any) -> np.ndarray | None:
    """Stored values (frames, height, width) of an uncompressed grey file, read straight from its bytes; None for others."""
    header, syntax = instance.header, transfer_syntax(instance.header)
    bits = header.get("BitsAllocated")
    if instance.pixels_at < 0 or syntax not in NATIVE or header.get("SamplesPerPixel", 1) != 1 or bits not in (8, 16, 32):
        return None
    if header.get("BitsStored", bits) > bits or header.get("HighBit", bits) != header.get("BitsStored", bits) - 1:
        return None
    order = ">" if syntax == NATIVE[2] else "<"
    frames = int(header.get("NumberOfFrames") or 1)
    count = frames * header.Rows * header.Columns
    with open(instance.source, "rb") if not isinstance(instance.source, bytes) else io.BytesIO(instance.source) as file:
        file.seek(instance.pixels_at)
        start = file.read(12)
        group, element = struct.unpack(order + "HH", start[:4])
        if len(start) < 12 or group << 16 | element != PIXEL_TAG:
            return None
        if syntax == NATIVE[0]:
            file.seek(instance.pixels_at + 8)
            (length,) = struct.unpack("<I", start[4:8])
        else:
            (length,) = struct.unpack(order + "I", start[8:12])
        if length < count * bits // 8 or length == 0xFFFFFFFF:
            return None
        data = file.read(count * bits // 8)
    if len(data) < count * bits // 8:
        return None
    kind = f"{order}{'i' if header.get('PixelRepresentation') else 'u'}{bits // 8}"
    return np.frombuffer(data, kind).reshape(frames, header.Rows, header.Columns)


def stored_pixels(instance: Any, max_bytes: int) -> np.ndarray:
    """Stored values, (frames, height, width) grey or (frames, height, width, 3) RGB. Raises `ScanError`."""
    header = instance.header
    frames, samples = int(header.get("NumberOfFrames") or 1), int(header.get("SamplesPerPixel") or 1)
    needed = frames * int(header.Rows) * int(header.Columns) * samples * 4
    if needed > max_bytes:
        raise ScanError(f"{instance.name}: its pixels need {needed / 1e9:.1f} GB, more than {max_bytes / 1e9:.1f} GB.")
    values = native_pixels(instance)
    if values is not None:
        unused = header.BitsAllocated - header.get("BitsStored", header.BitsAllocated)
        # Bits above those that are stored may hold an old overlay: shifted out, the sign kept.
        return values if unused == 0 else (values << unused) >> unused
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = instance.complete()
            if not hasattr(dataset, "file_meta"):
                dataset.file_meta = pydicom.dataset.FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(transfer_syntax(dataset))
            if header.get("BitsAllocated") == 12:
                return _packed_12_bit(dataset)
            values = _decoded(dataset, frames)
            if dataset.PhotometricInterpretation == "PALETTE COLOR":
                values, samples = _eight_bits(apply_color_lut(values, dataset)), 3
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the RLE decoder panics on damaged data, and a panic of Rust is no Exception
        syntax = pydicom.uid.UID(transfer_syntax(header)).name
        reason = first_line(error)[:160]
        raise ScanError(f"{instance.name}: Pixel Data (7FE0,0010) in {syntax} cannot be decoded ({reason}).") from error
    shape = (frames, int(header.Rows), int(header.Columns))
    return values.reshape(*shape, -1)[..., :3] if samples > 1 else values.reshape(shape)


def _decoded(dataset: Any, frames: int) -> np.ndarray:
    if not transfer_syntax(dataset).startswith(ENCAPSULATED):
        return pixel_array(dataset)
    encoded = checked_frames(dataset, frames)
    if transfer_syntax(dataset) in RETIRED_JPEG:
        return np.stack([libjpeg.decode(frame) for frame in encoded])
    if transfer_syntax(dataset) == DEFLATED_FRAMES:
        return np.stack([_inflated(frame, dataset) for frame in encoded])
    dataset.PixelData = pydicom.encaps.encapsulate(encoded)
    for word in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        dataset.pop(word, None)
    return pixel_array(dataset)


def _inflated(frame: bytes, dataset: Any) -> np.ndarray:
    pixels, bits = int(dataset.Rows) * int(dataset.Columns), int(dataset.BitsAllocated)
    data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(frame, pixels * max(bits // 8, 1) + 1)
    values = np.frombuffer(data, np.uint8 if bits <= 8 else f"<u{bits // 8}")
    return (np.unpackbits(values, bitorder="little") if bits == 1 else values)[:pixels]


def _packed_12_bit(dataset: Any) -> np.ndarray:
    """Two values of 12 bits in three bytes (a retired way of PS3.5 8.1.1)."""
    frames, rows, columns = int(dataset.get("NumberOfFrames") or 1), int(dataset.Rows), int(dataset.Columns)
    count = frames * rows * columns
    triple = np.frombuffer(dataset.PixelData, np.uint8)[: -(-count // 2) * 3].reshape(-1, 3).astype(np.uint16)
    first, second = triple[:, 0] | (triple[:, 1] & 15) << 8, triple[:, 1] >> 4 | triple[:, 2] << 4
    return np.stack([first, second], 1).reshape(-1)[:count].reshape(frames, rows, columns)


def _eight_bits(colours: np.ndarray) -> np.ndarray:
    return (colours >> 8).astype(np.uint8) if colours.dtype == np.uint16 else colours


def to_native(stored: np.ndarray, dataset: Any, rescale: tuple[float, float] | None, values: np.ndarray) -> None:
    """Grey stored values → native units in `values` (float32): rescale or modality LUT, and padding at the lowest value."""
    values[...] = stored
    if rescale is not None:
        slope, intercept = rescale
        if slope != 1:
            values *= np.float32(slope)
        if intercept != 0:
            values += np.float32(intercept)
    elif "ModalityLUTSequence" in dataset:
        values[...] = apply_modality_lut(stored, dataset)
    padding = dataset.get("PixelPaddingValue")
    if isinstance(padding, int):
        limit = dataset.get("PixelPaddingRangeLimit")
        outside = stored == padding if limit is None else (stored >= min(padding, limit)) & (stored <= max(padding, limit))
        if outside.any() and not outside.all():
            np.copyto(values, np.min(values, where=~outside, initial=np.inf), where=outside)


def rescale_of(dataset: Any) -> tuple[float, float] | None:
    """Slope and intercept; None where a modality LUT stands in their place."""
    if "ModalityLUTSequence" in dataset and "RescaleSlope" not in dataset:
        return None
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    return float(1 if slope in (None, "") else slope), float(0 if intercept in (None, "") else intercept)


def windows_of(dataset: Any) -> Windows:
    """All VOI windows, then the ranges of all VOI LUTs, as (low, high) in native units (PS3.3 C.11.2)."""
    exact = dataset.get("VOILUTFunction") == "LINEAR_EXACT"
    windows = []
    for center, width in zip(_many(dataset.get("WindowCenter")), _many(dataset.get("WindowWidth")), strict=False):
        center, width = (center, width) if exact else (center - 0.5, width - 1)
        if width > 0:
            windows.append((center - width / 2, center + width / 2))
    for lut in dataset.get("VOILUTSequence") or []:
        entries, first, _ = (int(v) for v in lut.LUTDescriptor)
        windows.append((float(first), float(first + (entries or 65536) - 1)))
    return windows


def _many(value: Any) -> list[float]:
    if value in (None, ""):
        return []
    values = value if isinstance(value, list | tuple | pydicom.multival.MultiValue) else [value]
    return [float(v) for v in values if v not in (None, "")]


def inverted(values: np.ndarray, dataset: Any, windows: Windows) -> tuple[np.ndarray, Windows]:
    """MONOCHROME1 (low is white) turned over on the range of its stored bits, its windows with it."""
    bits, signed = int(dataset.BitsStored), int(dataset.get("PixelRepresentation") or 0)
    ends = np.array([-(1 << bits - 1), (1 << bits - 1) - 1] if signed else [0, (1 << bits) - 1], dtype=np.int64)
    slope, intercept = rescale_of(dataset) or (1.0, 0.0)
    both = float((ends * slope + intercept).sum())
    return both - values, [(both - high, both - low) for low, high in windows]


def suv_factor(dataset: Any) -> float | None:
    """What turns Bq/ml into SUV by body weight (g/ml), or None where the header does not allow it (QIBA's pseudo-code).

    The dose has to be known at the start of the series: `DecayCorrection` START, half-life, and both times.
    """
    sequence = dataset.get("RadiopharmaceuticalInformationSequence")
    weight = dataset.get("PatientWeight")
    if dataset.get("Units") != "BQML" or dataset.get("DecayCorrection") != "START" or not sequence or not weight:
        return None
    drug = sequence[0]
    dose, half_life = drug.get("RadionuclideTotalDose"), drug.get("RadionuclideHalfLife")
    injected, started = _seconds(drug.get("RadiopharmaceuticalStartTime")), _seconds(dataset.get("SeriesTime"))
    if not dose or not half_life or injected is None or started is None:
        return None
    decayed = float(dose) * 2 ** (-((started - injected) % 86_400) / float(half_life))
    return float(weight) * 1000 / decayed


def _seconds(time: Any) -> float | None:
    digits = str(time or "")
    if len(digits) < 6:
        return None
    return int(digits[:2]) * 3600 + int(digits[2:4]) * 60 + float(digits[4:])
