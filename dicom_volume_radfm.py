"""One volume's planes → a `Scan`: an even, upright grid in the patient (PS3.3 C.7.6.2), decoded once.

The geometry of all planes is checked, not only of the first: what lies off the grid is resampled or shifted and reported.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .affine_radfm import LPS_TO_RAS
from .dicom_elements_radfm import get_number, get_text
from .dicom_file_radfm import Instance
from .dicom_frames_radfm import FrameTask, decode_frames, read_format
from .dicom_grouping_radfm import Volume, fit_even_grid, fit_line, offsets_in_plane, positions_along
from .dicom_plane_radfm import RT_DOSE, Plane
from .dicom_suv_radfm import find_suv_factor
from .dicom_tolerances_radfm import ALIKE_GAPS, EVEN_STEPS, INTENDED_RUN, SAME_PLACE_MM, STRAIGHT_PIXELS
from .dicom_values_radfm import convert_into, count_channels, invert_monochrome1, read_plane_windows
from .scan_radfm import ReadContext, Scan, ScanError, replace_nonfinite

# A gap this share wider or narrower than the step is named where a stack is resampled.
NAMED_GAP = 0.02
GAPS_NAMED = 6
# Slopes and intercepts up to this keep 32-bit integers within float32.
SAFE_SCALE = 1e28
GIGABYTE = 1e9


class OptionRequiredError(ScanError):
    """A refusal that an option of `load_scan` lifts; another series is not read in its place."""


def load_volume(volume: Volume, instances: Sequence[Instance], context: ReadContext) -> Scan:
    """One volume, or one image, in native units.

    Args:
        volume: its planes.
        instances: all files of the series; a PET's decay is counted from the earliest of them.
        context: receives the warnings.

    Raises:
        ScanError: slices are missing, memory is not enough, the pixels cannot be decoded.
    """
    planes = volume.planes
    for remark in dict.fromkeys(remark for plane in planes for remark in plane.remarks):
        context.warnings.append(remark)
    _check_memory(planes, context)
    if len(planes) == 1:
        voxels, affine, spacing = _load_image(planes[0], context)
    elif not volume.is_placed:
        voxels, affine, spacing = _load_unplaced(planes, context)
    else:
        voxels, affine, spacing = _load_stack(planes, context)
    if not planes[0].in_patient and affine is not None:
        affine = None
        context.warnings.append("The positions are the transducer's; where the volume lies in the patient is not stated.")
    return _finish(planes[0], instances, voxels, affine, spacing, context)


def same_pixels(one: Plane, other: Plane, context: ReadContext) -> bool:
    """Whether two planes have the same native values."""
    if (one.rows, one.columns, count_channels(one)) != (other.rows, other.columns, count_channels(other)):
        return False
    return np.array_equal(_decode([one], context), _decode([other], context))


Grid = tuple[np.ndarray, np.ndarray | None, tuple[float, float, float] | None]


def _check_memory(planes: Sequence[Plane], context: ReadContext) -> None:
    first = planes[0]
    needed = len(planes) * first.rows * first.columns * count_channels(first) * 4
    if needed > context.options.max_bytes:
        raise OptionRequiredError(
            f"{context.name}: {len(planes)} images of {first.rows}×{first.columns} need {needed / GIGABYTE:.1f} GB, "
            f"more than {context.options.max_bytes / GIGABYTE:.1f} GB (max_bytes)."
        )


def _decode(planes: Sequence[Plane], context: ReadContext) -> np.ndarray:
    """(planes, channels, rows, columns) float32; each frame is decoded once, straight into its place."""
    first = planes[0]
    buffer = np.empty((len(planes), count_channels(first), first.rows, first.columns), dtype=np.float32)
    numbers: dict[tuple[int, int], list[int]] = {}
    for number, plane in enumerate(planes):
        numbers.setdefault((id(plane.instance), plane.frame), []).append(number)

    def store(number: int, stored: np.ndarray) -> None:
        plane = planes[number]
        for k in numbers[id(plane.instance), plane.frame]:  # the tiles of a mosaic share one frame
            convert_into(buffer[k], stored, planes[k])

    tasks = [FrameTask(planes[found[0]].instance, planes[found[0]].frame, found[0]) for found in numbers.values()]
    decode_frames(tasks, store, context)
    return buffer


def _load_image(plane: Plane, context: ReadContext) -> Grid:
    voxels = np.moveaxis(_decode([plane], context), 0, -1)
    if plane.pixel_mm is None:
        return voxels, None, None
    spacing = (*plane.pixel_mm, plane.gap_mm or 1.0)
    if not plane.is_placed:
        return voxels, None, spacing
    return voxels, _affine(plane, np.array(plane.position), spacing), spacing


def _affine(plane: Plane, origin: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Voxel index (row, column, slice, 1) → mm RAS (PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1, and the slices' step)."""
    assert plane.orientation is not None
    affine = np.eye(4)
    affine[:3, 0] = np.array(plane.orientation[3:]) * spacing[0]
    affine[:3, 1] = np.array(plane.orientation[:3]) * spacing[1]
    affine[:3, 2] = plane.normal() * spacing[2]
    affine[:3, 3] = origin
    return np.asarray(LPS_TO_RAS @ affine)


def _load_unplaced(planes: Sequence[Plane], context: ReadContext) -> Grid:
    """Slices without positions: in the order of SliceLocation, or as the frames of one file come; no affine."""
    places = [get_number(plane.instance.header, "SliceLocation") for plane in planes]
    if len({id(plane.instance) for plane in planes}) == 1:
        context.warnings.append(f"The {len(planes)} frames do not say where they lie; they are stacked as they come.")
        planes = sorted(planes, key=lambda plane: plane.frame)
    elif any(place is None for place in places) or len(set(places)) < len(places):
        raise context.error(f"{len(planes)} images that do not say where they lie are no volume: name one of them.")
    else:
        context.warnings.append("The images have lost their positions; they are in the order of SliceLocation (0020,1041).")
        planes = [plane for _, plane in sorted(zip(places, planes, strict=True), key=lambda found: found[0] or 0.0)]
    first = planes[0]
    spacing = (*first.pixel_mm, first.gap_mm) if first.pixel_mm and first.gap_mm else None
    return np.moveaxis(_decode(planes, context), 0, -1), None, spacing


def _load_stack(planes: Sequence[Plane], context: ReadContext) -> Grid:
    first, along = planes[0], positions_along(planes)
    gaps = np.diff(along)
    step, start, irregular, missing = _fit_steps(along)
    where = ", ".join(f"{along[i]:.1f}–{along[i + 1]:.1f}" for i in irregular[:GAPS_NAMED])
    if missing and not context.options.allow_missing:
        raise OptionRequiredError(
            f"{context.name}: {missing} of {len(planes) + missing} slices are missing (at {where} mm): bring the whole "
            "series, or fill the places by interpolation with allow_missing=True (--allow-missing)."
        )
    voxels = np.moveaxis(_decode(planes, context), 0, -1)
    if first.pixel_mm is None:
        context.warnings.append("The images do not say how far their pixels lie apart: no spacing is stated.")
        return voxels, None, None
    offsets = offsets_in_plane(planes)
    if len(irregular):
        voxels, offsets = _resample_evenly(voxels, along, offsets, step, context)
        what = f"{missing} slices are missing" if missing else f"Slices lie {gaps.min():.2f} to {gaps.max():.2f} mm apart"
        context.warnings.append(f"{what} (at {where} mm); resampled to every {step:.2f} mm.")
    spacing = (*first.pixel_mm, step)
    affine = _affine(first, np.array(first.position) + first.normal() * (start - along[0]), spacing)
    if np.abs(offsets).max() > STRAIGHT_PIXELS:
        context.warnings.append(_describe_shift(offsets, spacing))
        voxels, corner = _remove_shift(voxels, offsets, context)
        affine[:3, 3] += affine[:3, :2] @ corner
    return voxels, affine, spacing


def _fit_steps(along: np.ndarray) -> tuple[float, float, np.ndarray, int]:
    """Step and start of an even grid, the gaps that are not one step wide, and how many slices are missing.

    Isolated gaps of whole steps are missing slices; a run of equal wider gaps is an intended change of spacing.
    """
    gaps = np.diff(along)
    even = fit_even_grid(along)
    if even is not None:
        return *even, np.array([], dtype=int), 0
    least = float(np.mean(gaps[gaps <= (1 + ALIKE_GAPS) * gaps.min()]))
    steps = np.maximum(np.round(gaps / least), 1)
    fitted, start, residual = fit_line(np.concatenate([[0], np.cumsum(steps)]), along)
    whole = residual <= EVEN_STEPS * least
    ends = [0, *(np.flatnonzero(np.diff(steps)) + 1), len(steps)]
    runs = [(steps[start], end - start) for start, end in pairwise(ends)]
    if whole and any(step > 1 and length < INTENDED_RUN for step, length in runs):
        return fitted, start, np.flatnonzero(steps > 1), int((steps - 1).sum())
    step = float(np.median(gaps))
    irregular = np.flatnonzero(np.abs(gaps - step) > max(NAMED_GAP * step, SAME_PLACE_MM))
    return step, float(along[0]), irregular, 0


def _resample_evenly(
    voxels: np.ndarray, along: np.ndarray, offsets: np.ndarray, step: float, context: ReadContext
) -> tuple[np.ndarray, np.ndarray]:
    """Slices and their offsets on an even grid, by linear interpolation between the two that lie around each."""
    count = round((along[-1] - along[0]) / step) + 1
    if count > 2 * len(along):
        raise context.error(f"between its {len(along)} images lie {count - len(along)} empty places: most would be made up.")
    if count * voxels[..., 0].size * 4 > context.options.max_bytes:
        raise context.error(f"with gaps of up to {np.diff(along).max():.0f} mm an even grid would be too large.")
    grid_positions = np.minimum(along[0] + step * np.arange(count), along[-1])
    after = np.searchsorted(along, grid_positions).clip(1, len(along) - 1)
    share = (grid_positions - along[after - 1]) / (along[after] - along[after - 1])
    even = voxels[..., after - 1] * (1 - share.astype(np.float32)) + voxels[..., after] * share.astype(np.float32)
    return even, offsets[after - 1] * (1 - share[:, None]) + offsets[after] * share[:, None]


def _describe_shift(offsets: np.ndarray, spacing: tuple[float, float, float]) -> str:
    """A tilt where slices move evenly, a moved centre of reconstruction where they do not."""
    numbers = np.arange(len(offsets))[:, None] / max(len(offsets) - 1, 1)
    is_even = np.abs(offsets - offsets[-1] * numbers).max() <= STRAIGHT_PIXELS
    moved_mm = np.linalg.norm(offsets * np.array(spacing[:2]), axis=1)
    if is_even:
        angle = np.degrees(np.arctan2(moved_mm[-1], spacing[2] * (len(offsets) - 1)))
        return f"The slices are stacked at a tilt of {angle:.1f}° and were shifted onto a straight grid."
    steps = np.linalg.norm(np.diff(offsets * np.array(spacing[:2]), axis=0), axis=1)
    at = int(np.argmax(steps))
    return (
        f"The centre of the images moves by up to {moved_mm.max():.2f} mm (most, {steps[at]:.2f} mm, between slices {at} "
        f"and {at + 1}); they were put on one grid."
    )


def _remove_shift(voxels: np.ndarray, offsets: np.ndarray, context: ReadContext) -> tuple[np.ndarray, np.ndarray]:
    """A stack whose slices lie offset in their plane, on one upright grid that holds them all; the rest is the lowest value.

    Args:
        voxels: (channels, rows, columns, depth).
        offsets: (depth, 2), where each slice's first pixel lies, in rows and columns.

    Returns:
        The voxels, and the place of the new first voxel in rows and columns of the first slice.
    """
    depth = voxels.shape[-1]
    whole = np.round(offsets)
    offsets = np.where(np.abs(offsets - whole) < 1e-3, whole, offsets)  # positions are rounded: no blur for whole pixels
    low, high = np.floor(offsets.min(0)), np.ceil(offsets.max(0))
    size = np.array(voxels.shape[1:3]) + (high - low).astype(int) + 1
    if size.prod() * depth * len(voxels) * 4 > context.options.max_bytes:
        raise context.error("its slices are stacked too far aslant to be put on a straight grid.")
    straight = np.full((len(voxels), *size, depth), voxels.min(), dtype=np.float32)
    for k in range(depth):
        start = np.floor(offsets[k] - low).astype(int)
        row, column = (offsets[k] - low - start).astype(np.float32)
        padded = np.pad(voxels[..., k], ((0, 0), (1, 1), (1, 1)), mode="edge")
        moved = (
            padded[:, 1:, 1:] * (1 - row) * (1 - column)
            + padded[:, :-1, 1:] * row * (1 - column)
            + padded[:, 1:, :-1] * (1 - row) * column
            + padded[:, :-1, :-1] * row * column
        )
        # Where nothing is interpolated, the row and column beyond the image are no part of it.
        moved = moved[:, : moved.shape[1] - (row == 0), : moved.shape[2] - (column == 0)]
        straight[:, start[0] : start[0] + moved.shape[1], start[1] : start[1] + moved.shape[2], k] = moved
    return straight, low


def _finish(
    plane: Plane,
    instances: Sequence[Instance],
    voxels: np.ndarray,
    affine: np.ndarray | None,
    spacing: tuple[float, float, float] | None,
    context: ReadContext,
) -> Scan:
    """The scan with its windows, upright grey values, SUV where that is possible, and doubts about its units."""
    header = plane.instance.header
    windows, remarks = read_plane_windows(plane)
    context.warnings += remarks
    if get_text(header, "PhotometricInterpretation") == "MONOCHROME1" and len(voxels) == 1:
        windows = invert_monochrome1(voxels, plane, windows)
    if len(voxels) == 3 and not windows:
        windows = [(0.0, 255.0)] if voxels.max() <= 255 else []
    modality = get_text(header, "Modality") or None
    if modality == "PT":
        factor = find_suv_factor([instance.header for instance in instances])
        if factor is None:
            context.warnings.append("The header does not allow SUV; the values are those of the file.")
        else:
            voxels *= np.float32(factor)
            windows = [(low * factor, high * factor) for low, high in windows]
    if get_text(header, "SOPClassUID") == RT_DOSE:
        units = get_text(header, "DoseUnits")
        context.warnings.append(f"The values are a dose in {'Gy' if units == 'GY' else units or 'an unknown unit'}.")
    if modality == "CT" and len(voxels) == 1:
        _warn_if_not_hounsfield(voxels, context)
    scan = Scan(voxels, affine, spacing, modality, None, windows, context.warnings)
    return replace_nonfinite(scan, context.name) if _may_be_infinite(plane) else scan


def _may_be_infinite(plane: Plane) -> bool:
    """Whether values may be no finite float32: those stored as floats, or scaled beyond its range."""
    largest = max(map(abs, plane.rescale)) if plane.rescale else 0.0
    return largest > SAFE_SCALE or read_format(plane.instance).pixel_keyword != "PixelData"


def _warn_if_not_hounsfield(voxels: np.ndarray, context: ReadContext) -> None:
    """Warn where CT values cannot be HU: no air, or air near −2000 because the rescale was applied twice."""
    voxels = voxels[:, ::4, ::4, :: max(voxels.shape[-1] // 32, 1)]
    lowest, highest = float(voxels.min()), float(voxels.max())
    if lowest > -500:
        context.warnings.append(
            f"No air: the values run from {lowest:g} to {highest:g}, so they may have been windowed and be no HU."
        )
    elif np.mean(voxels < -1500) > 0.2 and np.mean((voxels > -150) & (voxels < 200)) < 0.01:
        context.warnings.append(f"Air lies near {np.median(voxels[voxels < -1500]):.0f}, not −1000: rescaled twice?")
