"""Slices of a DICOM series → one volume: order, gaps, duplicates, tilt, planes (DICOM PS3.3 C.7.6.2, C.7.6.16)."""

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from .dicom_pixels_radfm import inverted, rescale_of, stored_pixels, suv_factor, to_native, windows_of
from .scan_radfm import ReadOptions, Scan, ScanError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Frames of these are slices; of the others (ultrasound, angiography, endoscopy) moments in time.
SLICED = ("CT", "MR", "PT", "NM")
# What tells the volumes of one series apart, where several images lie at one place; the first that does is taken.
VOLUME_KEYS = (
    "EchoTime", "TemporalPositionIdentifier", "AcquisitionNumber", "DiffusionBValue", "TriggerTime", "ImageType",
    "ContentTime", "AcquisitionTime",
)  # fmt: skip
SAME_PLACE_MM = 1e-3
THREADS = 2


@dataclass
class Slice:
    """One image of a series, or one frame of a file with many: where it lies and how its values are read."""

    instance: Any
    frame: int
    position: np.ndarray | None
    orientation: np.ndarray | None
    pixel_mm: tuple[float, float] | None
    rescale: tuple[float, float] | None
    places: list[Any]

    def key(self, word: str) -> str:
        """The value by which volumes of a series may differ, of the frame or else of the file."""
        header = self.instance.header
        if word == "EchoTime":
            echo = _group(header, self.places, "MREchoSequence")
            return str(echo.get("EffectiveEchoTime", header.get(word, "")))
        if word == "TemporalPositionIdentifier":
            content = _group(header, self.places, "FrameContentSequence")
            return str(content.get("TemporalPositionIndex", header.get(word, "")))
        return str(header.get(word, ""))


def stack_of(name: str, instances: list[Any], choice: ReadOptions) -> Scan:
    """One scan of a series' files, of several volumes at one place the chosen one. Raises `ScanError`."""
    volume, max_bytes = choice.volume, choice.max_bytes
    header = instances[0].header
    if "MOSAIC" in [str(word).upper() for word in header.get("ImageType", [])]:
        raise ScanError(f"{name}: is a Siemens mosaic, many slices in one picture: convert it with dcm2niix first.")
    frames = int(header.get("NumberOfFrames") or 1)
    if len(instances) == 1 and (frames == 1 or str(header.get("Modality")) not in SLICED):
        return _picture(instances[0], frames, volume, max_bytes)
    slices = [piece for instance in instances for piece in _slices(instance)]
    notes: list[str] = []
    slices = _largest_plane(name, slices, notes)
    total = len(slices) * int(header.Rows) * int(header.Columns) * 4
    if total > max_bytes:
        raise ScanError(f"{name}: {len(slices)} slices need {total / 1e9:.1f} GB, more than {max_bytes / 1e9:.1f} GB.")
    if len(slices) == 1:
        return _picture(slices[0].instance, frames, slices[0].frame, max_bytes)
    if any(s.position is None or s.orientation is None for s in slices):
        return _by_slice_location(name, slices, notes, max_bytes)
    slices, along = _ordered(slices)
    slices, along = _one_volume(name, slices, along, volume, notes, max_bytes)
    return _volume(name, slices, along, notes, choice)


def _slices(instance: Any) -> list[Slice]:
    """The images of one file, each with its own place, from the header or from the functional groups of its frames."""
    header = instance.header
    frames = int(header.get("NumberOfFrames") or 1)
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or [None] * frames
    shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
    slices = []
    for frame in range(frames):
        places = [group for group in (per_frame[frame] if frame < len(per_frame) else None, shared) if group is not None]
        position = _vector(_group(header, places, "PlanePositionSequence").get("ImagePositionPatient"), 3)
        orientation = _vector(_group(header, places, "PlaneOrientationSequence").get("ImageOrientationPatient"), 6)
        measures = _group(header, places, "PixelMeasuresSequence")
        spacing = _vector(measures.get("PixelSpacing") or header.get("ImagerPixelSpacing"), 2)
        pixel_mm = (float(spacing[0]), float(spacing[1])) if spacing is not None and spacing.min() > 0 else None
        rescale = rescale_of(_group(header, places, "PixelValueTransformationSequence"))
        slices.append(Slice(instance, frame, position, orientation, pixel_mm, rescale, places))
    return slices


def _group(header: Any, places: list[Any], sequence: str) -> Any:
    """The functional group of a frame, or the shared one, or the header itself."""
    return next((place[sequence].value[0] for place in places if place.get(sequence)), header)


def _vector(value: Any, length: int) -> np.ndarray | None:
    try:
        vector = np.array([float(v) for v in value], dtype=float)
    except (TypeError, ValueError):
        return None
    return vector if len(vector) == length and np.isfinite(vector).all() else None


def _largest_plane(name: str, slices: list[Slice], notes: list[str]) -> list[Slice]:
    """The slices of one size and orientation that are most; the others (a localizer, say) are left out and told."""
    planes: dict[Any, list[Slice]] = defaultdict(list)
    for piece in slices:
        header = piece.instance.header
        direction = None if piece.orientation is None else tuple(np.round(piece.orientation, 2) + 0.0)
        planes[header.get("Rows"), header.get("Columns"), direction].append(piece)
    largest = max(planes.values(), key=len)
    left_out = len(slices) - len(largest)
    if left_out:
        if len(largest) == 1:
            raise ScanError(f"{name}: its {len(slices)} images differ in size or plane and are no volume: name one of them.")
        notes.append(f"{left_out} of {len(slices)} images lie in another plane or have another size and were left out.")
    return largest


def _ordered(slices: list[Slice]) -> tuple[list[Slice], np.ndarray]:
    """Slices by their place along the normal, in mm, whatever their names and numbers are."""
    orientation = slices[0].orientation
    assert orientation is not None
    normal = np.cross(orientation[:3], orientation[3:])
    along = np.array([piece.position @ normal for piece in slices])
    order = np.argsort(along, kind="stable")
    return [slices[i] for i in order], along[order]


def _one_volume(
    name: str, slices: list[Slice], along: np.ndarray, volume: int | None, notes: list[str], max_bytes: int
) -> tuple[list[Slice], np.ndarray]:
    """Of several volumes in one series (echoes, phases, repeated acquisitions) one; copies of a slice are dropped."""
    repeated = int((np.diff(along) < SAME_PLACE_MM).sum())
    if not repeated:
        return slices, along
    for key in VOLUME_KEYS:
        volumes: dict[str, list[Slice]] = {}
        for piece in slices:
            volumes.setdefault(piece.key(key), []).append(piece)
        parts = [_ordered(part) for part in volumes.values()]
        if len(volumes) > 1 and all(len(p) > 1 and (np.diff(a) >= SAME_PLACE_MM).all() for p, a in parts):
            values = sorted(volumes, key=lambda value: (_number(value), value))
            if volume is not None and not 0 <= volume < len(values):
                raise ScanError(f"{name}: has volumes 0 to {len(values) - 1}, and no volume {volume}.")
            chosen = values[volume or 0]
            notes.append(f"The series holds {len(values)} volumes ({key} {', '.join(values[:6])}); {chosen} was read.")
            return _ordered(volumes[chosen])
    keep = [0]
    for i in range(1, len(slices)):
        if along[i] - along[keep[-1]] >= SAME_PLACE_MM:
            keep.append(i)
        elif not np.array_equal(_native(slices[i], max_bytes), _native(slices[keep[-1]], max_bytes)):
            raise ScanError(
                f"{name}: two different images lie at {along[i]:.1f} mm and nothing in their headers tells them apart."
            )
    notes.append(f"{repeated} slices came twice and were dropped once.")
    return [slices[i] for i in keep], along[keep]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("inf")


def _volume(name: str, slices: list[Slice], along: np.ndarray, notes: list[str], choice: ReadOptions) -> Scan:
    first = slices[0]
    assert first.position is not None and first.orientation is not None
    if first.pixel_mm is None:
        raise ScanError(f"{name}: its images do not say how far their pixels lie apart.")
    gaps = np.diff(along)
    step, odd, missing = _steps(gaps)
    where = ", ".join(f"{along[i]:.1f}–{along[i + 1]:.1f}" for i in odd[:6])
    if missing and not choice.allow_missing:
        raise ScanError(
            f"{name}: {missing} of {len(slices) + missing} slices are missing (at {where} mm): bring the whole series, or "
            "fill the places by interpolation with allow_missing=True (--allow-missing)."
        )
    voxels = _stacked(slices, choice.max_bytes)
    positions = np.array([piece.position for piece in slices])
    if len(odd):
        voxels, positions = _even(voxels, along, positions, step, choice.max_bytes, name)
        what = f"{missing} slices are missing" if missing else f"Slices lie {gaps.min():.2f} to {gaps.max():.2f} mm apart"
        notes.append(f"{what} (at {where} mm); resampled to every {step:.2f} mm.")
    axes = np.stack([first.orientation[3:] * first.pixel_mm[0], first.orientation[:3] * first.pixel_mm[1]], 1)
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    shift = (positions[-1] - positions[0]) / (len(positions) - 1)
    sideways = np.linalg.lstsq(axes, shift - (shift @ normal) * normal, rcond=None)[0]
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(axes @ sideways), abs(shift @ normal))))
    if tilt > 0.5:
        voxels, corner = _straightened(voxels, sideways, choice.max_bytes, name)
        positions = positions + (axes @ corner)
        notes.append(f"The slices are stacked at a tilt of {tilt:.1f}° and were shifted onto a straight grid.")
    affine = np.eye(4)
    affine[:3, :2] = axes
    affine[:3, 2] = normal * step
    affine[:3, 3] = positions[0]
    return _scan(first, voxels, LPS_TO_RAS @ affine, (*first.pixel_mm, step), notes)


def _steps(gaps: np.ndarray) -> tuple[float, np.ndarray, int]:
    """The step of an even grid, the gaps that are wider or narrower, and how many slices are missing.

    Slices are missing where single gaps are whole steps wide; a spacing that changes for three gaps and more was chosen.
    """
    least = float(gaps.min())
    steps = np.round(gaps / least)
    whole = bool((np.abs(gaps / least - steps) < 0.05).all())
    ends = [0, *(np.flatnonzero(np.diff(steps)) + 1), len(steps)]
    runs = [(steps[start], end - start) for start, end in pairwise(ends)]
    lacking = whole and any(step > 1 and length < 3 for step, length in runs)
    step = least if lacking else float(np.median(gaps))
    odd = np.flatnonzero(np.abs(gaps - step) > max(0.02 * step, 2 * SAME_PLACE_MM))
    return step, odd, int((steps - 1).sum()) if lacking else 0


def _stacked(slices: list[Slice], max_bytes: int) -> np.ndarray:
    """(channels, height, width, depth), decoded side by side into one buffer whose slices lie one after the other."""
    first = _native(slices[0], max_bytes)
    buffer = np.empty((len(slices), *first.shape), dtype=np.float32)
    buffer[0] = first
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda i: _native(slices[i], max_bytes, buffer[i]), range(1, len(slices))))
    return np.moveaxis(buffer, 0, -1)


def _native(piece: Slice, max_bytes: int, into: np.ndarray | None = None) -> np.ndarray:
    """(channels, height, width) in native units, float32."""
    stored = stored_pixels(piece.instance, max_bytes)
    frame = stored[min(piece.frame, len(stored) - 1)]
    shape = (1, *frame.shape) if frame.ndim == 2 else (frame.shape[-1], *frame.shape[:2])
    values = np.empty(shape, dtype=np.float32) if into is None else into
    if frame.ndim == 3:
        values[...] = np.moveaxis(frame, -1, 0)
    else:
        to_native(frame, piece.instance.header, piece.rescale, values[0])
    return values


def _even(
    voxels: np.ndarray, along: np.ndarray, positions: np.ndarray, step: float, max_bytes: int, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Slices and positions on an even grid, by linear interpolation between the two that lie around each."""
    count = round((along[-1] - along[0]) / step) + 1
    if count > 2 * len(along):
        raise ScanError(
            f"{name}: between its {len(along)} images lie {count - len(along)} empty places: most would be made up."
        )
    if count * voxels[..., 0].size * 4 > max_bytes:
        raise ScanError(f"{name}: with gaps of up to {np.diff(along).max():.0f} mm an even grid would be too large.")
    wanted = np.minimum(along[0] + step * np.arange(count), along[-1])
    after = np.searchsorted(along, wanted).clip(1, len(along) - 1)
    share = (wanted - along[after - 1]) / (along[after] - along[after - 1])
    even = voxels[..., after - 1] * (1 - share.astype(np.float32)) + voxels[..., after] * share.astype(np.float32)
    return even, positions[after - 1] * (1 - share[:, None]) + positions[after] * share[:, None]


def _straightened(voxels: np.ndarray, sideways: np.ndarray, max_bytes: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A sheared stack on a straight grid: each slice moved in its plane by its share of `sideways` (rows, columns a slice).

    Returns the voxels and the place of the new first voxel, in rows and columns of the old one.
    """
    depth = voxels.shape[-1]
    offsets = np.arange(depth)[:, None] * sideways
    low, high = np.floor(offsets.min(0)), np.ceil(offsets.max(0))
    size = np.array(voxels.shape[1:3]) + (high - low).astype(int) + 1
    if size.prod() * depth * len(voxels) * 4 > max_bytes:
        raise ScanError(f"{name}: its slices are stacked too far aslant to be put on a straight grid.")
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
        straight[:, start[0] : start[0] + moved.shape[1], start[1] : start[1] + moved.shape[2], k] = moved
    return straight, low


def _by_slice_location(name: str, slices: list[Slice], notes: list[str], max_bytes: int) -> Scan:
    """What is left of a series whose header lost its positions: an order, if it kept that."""
    places = [piece.instance.header.get("SliceLocation") for piece in slices]
    if any(p in (None, "") for p in places) or len({float(p) for p in places}) < len(slices):
        if len({id(piece.instance) for piece in slices}) > 1:
            raise ScanError(f"{name}: {len(slices)} images that do not say where they lie are no volume: name one of them.")
        notes.append(f"The {len(slices)} frames do not say where they lie; they are stacked as they come.")
        order = list(range(len(slices)))
    else:
        notes.append("The images have lost their positions; they are in the order of SliceLocation (0020,1041).")
        order = sorted(range(len(slices)), key=lambda i: float(places[i]))
    return _scan(slices[0], _stacked([slices[i] for i in order], max_bytes), None, None, notes)


def _picture(instance: Any, frames: int, frame: int | None, max_bytes: int) -> Scan:
    """One image: a file of its own, or one moment of a film."""
    notes = []
    if frame is not None and not 0 <= frame < frames:
        raise ScanError(f"{instance.name}: has frames 0 to {frames - 1}, and no frame {frame}.")
    if frames > 1:
        notes.append(f"Only frame {frame or 0} of {frames} was read: they follow in time.")
    piece = _slices(instance)[frame or 0]
    voxels = _native(piece, max_bytes)[..., None]
    if piece.pixel_mm is None:
        return _scan(piece, voxels, None, None, notes)
    gap = instance.header.get("SpacingBetweenSlices") or instance.header.get("SliceThickness")
    thickness = abs(float(gap)) if gap not in (None, "") and float(gap) != 0 else 1.0
    spacing = (*piece.pixel_mm, thickness)
    if piece.position is None or piece.orientation is None:
        return _scan(piece, voxels, None, spacing, notes)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = piece.orientation[3:] * spacing[0], piece.orientation[:3] * spacing[1]
    affine[:3, 2] = np.cross(piece.orientation[:3], piece.orientation[3:]) * thickness
    affine[:3, 3] = piece.position
    return _scan(piece, voxels, LPS_TO_RAS @ affine, spacing, notes)


def _scan(
    piece: Slice,
    voxels: np.ndarray,
    affine: np.ndarray | None,
    spacing: tuple[float, float, float] | None,
    notes: list[str],
) -> Scan:
    header = piece.instance.header
    windows = windows_of(header) or _frame_windows(header)
    if header.get("PhotometricInterpretation") == "MONOCHROME1":
        voxels, windows = inverted(voxels, header, windows)
    if len(voxels) == 3 and not windows:
        windows = [(0.0, 255.0)] if voxels.max() <= 255 else []
    modality = str(header.get("Modality") or "") or None
    if modality == "PT":
        factor = suv_factor(header)
        if factor is None:
            notes.append("The header does not allow SUV; the values are those of the file.")
        else:
            voxels, windows = voxels * np.float32(factor), [(low * factor, high * factor) for low, high in windows]
    if modality == "CT" and len(voxels) == 1:
        _doubt_hounsfield(voxels, notes)
    return Scan(voxels, affine, spacing, modality, None, windows, notes)


def _frame_windows(header: Any) -> list[tuple[float, float]]:
    """The windows of the first frame of an enhanced file."""
    for sequence in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        groups = header.get(sequence)
        if groups and groups[0].get("FrameVOILUTSequence"):
            return windows_of(groups[0].FrameVOILUTSequence[0])
    return []


def _doubt_hounsfield(voxels: np.ndarray, notes: list[str]) -> None:
    """A CT whose values cannot be HU was windowed before, or rescaled twice; nobody but its sender can tell."""
    voxels = voxels[:, ::4, ::4, :: max(voxels.shape[-1] // 32, 1)]
    lowest, highest = float(voxels.min()), float(voxels.max())
    if lowest > -500:
        notes.append(f"No air: the values run from {lowest:g} to {highest:g}, so they may have been windowed and be no HU.")
    elif np.mean(voxels < -1500) > 0.2 and np.mean((voxels > -150) & (voxels < 200)) < 0.01:
        notes.append(f"Air lies near {np.median(voxels[voxels < -1500]):.0f}, not −1000: rescaled twice?")
