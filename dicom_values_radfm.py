"""Stored values → native units: rescale, padding, palettes, windows, MONOCHROME1 (PS3.3 C.7.6.3, C.7.9, C.11)."""

from typing import TYPE_CHECKING

import numpy as np

from .dicom_elements_radfm import Header, as_dataset, get_integer, get_items, get_number, get_numbers, get_text, get_texts
from .dicom_plane_radfm import Plane

try:
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
except ImportError:
    if not TYPE_CHECKING:
        apply_color_lut = apply_modality_lut = None
PALETTE = "PALETTE COLOR"
Window = tuple[float, float]


def count_channels(plane: Plane) -> int:
    """3 for colour, 1 for grey."""
    header = plane.instance.header
    is_colour = get_integer(header, "SamplesPerPixel", 1) > 1 or get_text(header, "PhotometricInterpretation") == PALETTE
    return 3 if is_colour else 1


def convert_into(out: np.ndarray, stored: np.ndarray, plane: Plane) -> None:
    """Stored values of one frame → native units in `out`, (channels, rows, columns) float32.

    Padding gets the lowest value that is none (PS3.3 C.7.5.1.1.2), so that it is air in CT and background elsewhere.
    """
    if plane.tile is not None:
        row, column = plane.tile
        stored = stored[row : row + plane.rows, column : column + plane.columns]
    header = plane.instance.header
    if get_text(header, "PhotometricInterpretation") == PALETTE:
        colours = apply_color_lut(stored, as_dataset(header))
        stored = (colours >> 8).astype(np.uint8) if colours.dtype == np.uint16 else colours
    if stored.ndim == 3:
        out[...] = np.moveaxis(stored, -1, 0)
        return
    values = out[0]
    values[...] = stored
    if plane.rescale is not None:
        slope, intercept = plane.rescale
        if slope != 1:
            values *= np.float32(slope)
        if intercept != 0:
            values += np.float32(intercept)
    elif get_items(header, "ModalityLUTSequence"):
        values[...] = apply_modality_lut(stored, as_dataset(header))
    outside = _find_padding(stored, header)
    if outside is not None and outside.any() and not outside.all():
        np.copyto(values, np.min(values, where=~outside, initial=np.inf), where=outside)


def _find_padding(stored: np.ndarray, header: Header) -> np.ndarray | None:
    padding = get_number(header, "PixelPaddingValue")
    if padding is None:
        return None
    limit = get_number(header, "PixelPaddingRangeLimit")
    low, high = sorted(_signed_as_pixels(int(value), header) for value in (padding, padding if limit is None else limit))
    return np.asarray(stored == low if low == high else (stored >= low) & (stored <= high))


def _signed_as_pixels(value: int, header: Header) -> int:
    """A padding value with the sign of the pixels: some writers declare 63536 (US) where they pad with −2000 (SS)."""
    bits = get_integer(header, "BitsAllocated", 16)
    if get_integer(header, "PixelRepresentation") == 1:
        return value - (1 << bits) if value >= 1 << bits - 1 else value
    return value + (1 << bits) if value < 0 else value


def read_windows(dataset: Header) -> tuple[list[Window], list[str]]:
    """All VOI windows, then the ranges of all VOI LUTs, as (low, high) in native units, and remarks on those left out.

    LINEAR ends half a value inside, LINEAR_EXACT at the window's edges (PS3.3 C.11.2.1.2, C.11.2.1.3.2). SIGMOID has no
    ends; its window is where it is steepest, from 12 to 88 % of the output (C.11.2.1.3.1).
    """
    function = get_text(dataset, "VOILUTFunction") or "LINEAR"
    centers, widths = get_numbers(dataset, "WindowCenter"), get_numbers(dataset, "WindowWidth")
    stated = any(get_texts(dataset, "WindowCenter"))
    windows, remarks = [], []
    if stated and (centers is None or widths is None):
        remarks.append("The grey window in the header is no pair of numbers and was left out.")
    for center, width in zip(centers or (), widths or (), strict=False):
        if function not in ("LINEAR_EXACT", "SIGMOID"):
            center, width = center - 0.5, width - 1
        if width > 0:
            windows.append((center - width / 2, center + width / 2))
    for lut in get_items(dataset, "VOILUTSequence"):
        descriptor = get_numbers(lut, "LUTDescriptor")
        if descriptor is None or len(descriptor) != 3:
            remarks.append("A VOI LUT in the header has no valid descriptor and was left out.")
            continue
        windows.append((descriptor[1], descriptor[1] + (descriptor[0] or 65536) - 1))
    return windows, remarks


def read_plane_windows(plane: Plane) -> tuple[list[Window], list[str]]:
    """The windows of a plane's file, or of its first frame's functional group."""
    header = plane.instance.header
    windows, remarks = read_windows(header)
    for sequence in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in get_items(header, sequence)[:1]:
            for item in get_items(group, "FrameVOILUTSequence")[:1]:
                if not windows:
                    windows, remarks = read_windows(item)
    return windows, remarks


def invert_monochrome1(voxels: np.ndarray, plane: Plane, windows: list[Window]) -> list[Window]:
    """MONOCHROME1 (low is white) inverted in place on the range of its stored bits; returns the inverted windows.

    v' = slope·(least + greatest stored value) + 2·intercept − v
    """
    bits = get_integer(plane.instance.header, "BitsStored", 16)
    signed = get_integer(plane.instance.header, "PixelRepresentation")
    ends = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    slope, intercept = plane.rescale or (1.0, 0.0)
    both = float(sum(ends)) * slope + 2 * intercept
    np.subtract(np.float32(both), voxels, out=voxels)
    return [(both - high, both - low) for low, high in windows]
