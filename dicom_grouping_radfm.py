"""Planes of a series → stacks → volumes.

A stack is what has one size, pixel spacing and orientation. Where several of its planes lie at one place, or where two grids
interleave, the smallest set of keys that gives complete volumes separates them: the scanner's own indices first, then single
keys, then pairs, then the order of acquisition. Volumes are listed by the order of their keys, the largest stack first.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from .dicom_elements_radfm import get_text
from .dicom_keys_radfm import DIMENSION, KeyValue
from .dicom_plane_radfm import Plane
from .dicom_tolerances_radfm import (
    ALIKE_GAPS,
    BLOCK_GAP_STEPS,
    BLOCK_SLICES,
    COMPLETE_STEP_THICKNESSES,
    EVEN_GAP_RATIO,
    EVEN_STEPS,
    SAME_DIRECTION,
    SAME_NUMBER,
    SAME_PIXEL_SPACING,
    SAME_PLACE_MM,
    SAME_PLACE_PIXELS,
    SAME_STACK_SHARE,
)

# In this order: what the scanner counts itself, what is known to differ between volumes, what may differ by accident.
KEYS = (
    "TemporalPositionIdentifier", "TimeSlotVector", "TimeSliceVector", "PhaseVector", "EnergyWindowVector", "DetectorVector",
    "RRIntervalVector", "StackID", "EchoTime", "EchoNumbers", "DiffusionBValue", "DiffusionGradientOrientation",
    "ComplexImageComponent", "ImageType", "InversionTime", "TriggerTime", "NominalPercentageOfCardiacPhase", "FlipAngle",
    "KVP", "AcquisitionNumber", "AcquisitionDateTime", "ContentTime",
)  # fmt: skip
# A difference in one of these alone is no reason to take an even stack apart: packages of one volume differ in them too.
ACCIDENTAL = ("AcquisitionDateTime", "ContentTime", "ImageType", "StackID", "FlipAngle", "KVP", "TriggerTime", "EchoNumbers")
OFFSET = "offset in the plane"
MOST_KEYS = 8
SHOWN_KEYS = 3
Parts = list[list[Plane]]


class AmbiguousImagesError(ValueError):
    """Different images lie at one place and nothing tells them apart; the message says where."""


@dataclass(frozen=True)
class Volume:
    """Planes that make one image or volume, in the order of the normal, and what tells them from the other volumes."""

    planes: tuple[Plane, ...]
    label: str = ""

    @property
    def is_placed(self) -> bool:
        """Whether all planes say where they lie."""
        return all(plane.is_placed for plane in self.planes)

    def get_values(self, key: str) -> list[KeyValue | None]:
        """The values of a key in this volume, each once."""
        values = [plane.keys.get(key) for plane in self.planes]
        return list(dict.fromkeys(values))


def split_into_volumes(
    planes: Iterable[Plane], same_pixels: Callable[[Plane, Plane], bool]
) -> tuple[list[Volume], list[str]]:
    """All volumes of a series, and remarks on what was left out.

    Args:
        planes: the images of one series, in any order.
        same_pixels: whether two planes hold the same values; called only for planes that nothing else tells apart.

    Raises:
        AmbiguousImagesError: different images lie at one place and nothing tells them apart.
    """
    remarks: list[str] = []
    volumes: list[Volume] = []
    for stack in split_into_stacks(planes):
        if not stack[0].is_slice:
            parts = [[plane] for plane in stack]
        elif not stack[0].is_placed:
            parts = [stack]
        else:
            parts, dropped = _separate(stack, same_pixels)
            if dropped:
                remarks.append(f"{dropped} slices came twice and were dropped once.")
        volumes += [Volume(tuple(part)) for part in parts]
    return _label(volumes), remarks


def split_into_stacks(planes: Iterable[Plane]) -> Parts:
    """Planes of one size, pixel spacing and orientation, the largest stack first."""
    stacks: Parts = []
    for plane in sorted(planes, key=_file_order):
        for stack in stacks:
            if _same_grid(stack[0], plane):
                stack.append(plane)
                break
        else:
            stacks.append([plane])
    return sorted(stacks, key=lambda stack: (not stack[0].is_slice, -len(stack)))


def choose_default(volumes: Sequence[Volume]) -> int:
    """The volume that is read where none is chosen: magnitude before phase, then most slices, then the first."""
    order = range(len(volumes))
    return min(order, key=lambda i: (not volumes[i].planes[0].is_magnitude, -len(volumes[i].planes), i))


def matches(volume: Volume, chosen: Mapping[str, object]) -> bool:
    """Whether a volume has these values of these keys."""
    return all(any(_same_value(found, value) for found in volume.get_values(key)) for key, value in chosen.items())


def positions_along(planes: Sequence[Plane]) -> np.ndarray:
    """Distance of each plane along the first one's normal, in mm."""
    return np.asarray(np.array([plane.position for plane in planes]) @ planes[0].normal())


def fit_even_grid(along: np.ndarray) -> tuple[float, float] | None:
    """Step and start of the even grid on which slices lie, within the tolerances; None where they do not."""
    step, start, residual = fit_line(np.arange(len(along)), along)
    gaps = np.diff(along)
    even = residual <= EVEN_STEPS * step and gaps.max() <= EVEN_GAP_RATIO * gaps.min()
    return (step, start) if even else None


def fit_line(numbers: np.ndarray, along: np.ndarray) -> tuple[float, float, float]:
    """Step and start of the line next to all slices, and how far the worst of them lies from it, in mm."""
    step, start = np.polyfit(numbers, along, 1)
    return float(step), float(start), float(np.abs(along - start - step * numbers).max())


def offsets_in_plane(planes: Sequence[Plane]) -> np.ndarray:
    """Where each plane's first pixel lies from the first plane's, in rows and columns; (planes, 2)."""
    first = planes[0]
    orientation, pixel_mm = np.array(first.orientation).reshape(2, 3), np.array(first.pixel_mm or (1.0, 1.0))
    positions = np.array([plane.position for plane in planes])
    return np.asarray((positions - positions[0]) @ orientation[::-1].T / pixel_mm)


def _file_order(plane: Plane) -> tuple[object, ...]:
    header = plane.instance.header
    number, name = plane.get_number("InstanceNumber"), get_text(header, "SOPInstanceUID") or plane.instance.name
    return number, plane.position or (), name, plane.frame, plane.tile or ()


def _same_grid(one: Plane, other: Plane) -> bool:
    if (one.rows, one.columns, one.is_slice, one.is_placed) != (other.rows, other.columns, other.is_slice, other.is_placed):
        return False
    if (one.pixel_mm is None) != (other.pixel_mm is None):
        return False
    if one.pixel_mm is not None and other.pixel_mm is not None:
        for a, b in zip(one.pixel_mm, other.pixel_mm, strict=True):
            if abs(a - b) > SAME_PIXEL_SPACING * a:
                return False
    if one.orientation is None or other.orientation is None:
        return True
    return max(abs(a - b) for a, b in zip(one.orientation, other.orientation, strict=True)) <= SAME_DIRECTION


def _separate(stack: list[Plane], same_pixels: Callable[[Plane, Plane], bool]) -> tuple[Parts, int]:
    """The volumes of one stack, each in the order of the normal, and how many copies of a slice were dropped."""
    stack, dropped = _drop_copies(_along_normal(stack), same_pixels, known_twins=True)
    if len(stack) == 1:
        parts = [stack]
    elif _has_repeated_places(stack):
        parts = _split_repeated(stack)
        if not parts:
            stack, more = _drop_copies(stack, same_pixels, known_twins=False)
            dropped += more
            parts = [stack]
    else:
        parts = _split_interleaved(stack) or [stack]
    pieces = [piece for part in parts for piece in _split_jumps(part)]
    return [block for piece in pieces for block in _split_blocks(piece)], dropped


def _along_normal(planes: Sequence[Plane]) -> list[Plane]:
    return [planes[i] for i in np.argsort(positions_along(planes), kind="stable")]


def _same_place_mm(plane: Plane) -> float:
    return min(SAME_PLACE_MM, SAME_PLACE_PIXELS * min(plane.pixel_mm)) if plane.pixel_mm else SAME_PLACE_MM


def _place_numbers(planes: Sequence[Plane]) -> np.ndarray:
    """The place of each plane along the normal, counted from 0; `planes` are in the order of the normal."""
    return np.concatenate([[0], np.cumsum(np.diff(positions_along(planes)) >= _same_place_mm(planes[0]))])


def _has_repeated_places(planes: Sequence[Plane]) -> bool:
    return int(_place_numbers(planes)[-1]) + 1 < len(planes)


def _is_regular(planes: Sequence[Plane]) -> bool:
    """Whether planes, in the order of the normal, lie on an even grid; one or two always do."""
    if len(planes) < 3:
        return True
    return fit_even_grid(positions_along(planes)) is not None


def _has_even_gaps(planes: Sequence[Plane]) -> bool:
    """Whether all gaps are alike; those of two grids that lie between each other alternate."""
    gaps = np.diff(positions_along(planes))
    return bool(np.abs(gaps - np.median(gaps)).max() <= ALIKE_GAPS * np.median(gaps))


def _drop_copies(
    planes: list[Plane], same_pixels: Callable[[Plane, Plane], bool], known_twins: bool
) -> tuple[list[Plane], int]:
    """Planes without those that are there twice, and how many were dropped.

    Args:
        known_twins: compare only the pixels of planes with one SOP Instance UID and frame; otherwise of all at one place.
    """
    places, kept = _place_numbers(planes), []
    last: dict[Hashable, Plane] = {}
    for place, plane in zip(places.tolist(), planes, strict=True):
        uid = get_text(plane.instance.header, "SOPInstanceUID")
        twin: Hashable = (place, uid, plane.frame, plane.tile) if known_twins else place
        first = last.get(twin)
        if first is None or (known_twins and not uid):
            last[twin] = plane
            kept.append(plane)
        elif not same_pixels(first, plane):
            if not known_twins:
                at = float(positions_along(planes)[len(kept)])
                raise AmbiguousImagesError(
                    f"two different images lie at {at:.1f} mm and nothing in their headers tells them apart"
                )
            kept.append(plane)
    return kept, len(planes) - len(kept)


def _split_repeated(stack: list[Plane]) -> Parts:
    """Volumes that lie at the same places; none where nothing tells them apart."""
    places = _place_numbers(stack)
    count = int(places[-1]) + 1
    whole: list[Parts] = []
    for parts in _partitions(stack):
        if any(_has_repeated_places(part) for part in parts):
            continue
        if len(parts) * count == len(stack):
            return parts
        if count == 1 or min(map(len, parts)) > 1:
            whole.append(parts)
    # Not all volumes have all places: better each an even stack than each whatever is left of one.
    return next((parts for parts in whole if all(map(_is_regular, parts))), whole[0] if whole else [])


def _split_interleaved(stack: list[Plane]) -> Parts:
    """Volumes on grids that lie between each other, such as two phases half a slice apart; none where there is one grid."""
    even = _has_even_gaps(stack)
    for parts, keys in _keyed_partitions(stack):
        if even and all(key in ACCIDENTAL for key in keys):
            continue
        if _are_interleaved_volumes(parts):
            return parts
    for parts in (_runs_of_acquisition(stack),):
        if (not even or _slices_would_overlap(stack)) and _are_interleaved_volumes(parts):
            return parts
    return []


def _are_interleaved_volumes(parts: Parts) -> bool:
    if len(parts) < 2 or min(map(len, parts)) < 3 or not all(map(_is_regular, parts)):
        return False
    normal = parts[0][0].normal()
    ends = sorted((float(np.dot(part[0].position, normal)), float(np.dot(part[-1].position, normal))) for part in parts)  # type: ignore[arg-type]
    if all(ends[i][1] < ends[i + 1][0] for i in range(len(ends) - 1)):
        return False  # one behind the other: the rotations of one acquisition
    thickness, (low, high) = parts[0][0].thickness_mm, ends[0]
    return thickness is None or (high - low) / (len(parts[0]) - 1) <= COMPLETE_STEP_THICKNESSES * thickness


def _slices_would_overlap(stack: list[Plane]) -> bool:
    thickness, along = stack[0].thickness_mm, positions_along(stack)
    return thickness is not None and thickness >= COMPLETE_STEP_THICKNESSES * (along[-1] - along[0]) / (len(along) - 1)


def _split_jumps(part: list[Plane]) -> Parts:
    """Stacks one behind the other that lie far apart in their plane."""
    first = part[0]
    if len(part) < 2 or first.pixel_mm is None:
        return [part]
    steps = np.diff(offsets_in_plane(part), axis=0)
    jumps = np.abs(steps - np.median(steps, axis=0)) > SAME_STACK_SHARE * np.array([first.rows, first.columns])
    cuts = np.flatnonzero(jumps.any(axis=1)) + 1
    return [part[start:end] for start, end in zip([0, *cuts], [*cuts, len(part)], strict=True)]


def _split_blocks(part: list[Plane]) -> Parts:
    """Parallel blocks with wide gaps between them, such as one for each intervertebral disc."""
    along = positions_along(part)
    gaps = np.diff(along)
    if len(gaps) < 2 * BLOCK_SLICES - 1 or _is_regular(part):
        return [part]
    step = float(np.median(gaps))
    cuts = np.flatnonzero(gaps >= (BLOCK_GAP_STEPS - 0.5) * step) + 1
    blocks = [part[start:end] for start, end in zip([0, *cuts], [*cuts, len(part)], strict=True)]
    if len(blocks) < 2 or min(map(len, blocks)) < BLOCK_SLICES or not all(map(_is_regular, blocks)):
        return [part]
    for cut in cuts:
        steps = gaps[cut - 1] / step
        missing = abs(steps - round(steps)) <= EVEN_STEPS
        numbers = [part[i].get_number("InstanceNumber") for i in (cut - 1, cut)]
        if missing and abs(numbers[1] - numbers[0]) != 1:
            return [part]  # a whole number of steps, and instance numbers are missing too: slices that were lost
    return blocks


def _partitions(stack: list[Plane]) -> Iterator[Parts]:
    for parts, _ in _keyed_partitions(stack):
        yield parts
    for key in ("AcquisitionDateTime", "InstanceNumber", "ContentTime"):
        yield _ranks(stack, key)
    yield _runs_of_acquisition(stack)


def _keyed_partitions(stack: list[Plane]) -> Iterator[tuple[Parts, tuple[str, ...]]]:
    """The stack divided by the scanner's indices, by each key, and by each pair of keys, in the order of their values."""
    values = {key: _number_values(stack, key) for key in _varying_keys(stack)}
    indices = tuple(key for key in values if key.startswith(DIMENSION))
    candidates: list[tuple[str, ...]] = [indices] if indices else []
    single = [key for key in values if not key.startswith(DIMENSION)]
    candidates += [(key,) for key in single]
    candidates += list(combinations(single[:MOST_KEYS], 2))
    for keys in candidates:
        parts: dict[tuple[int, ...], list[Plane]] = {}
        for plane, value in zip(stack, zip(*(values[key] for key in keys), strict=True), strict=True):
            parts.setdefault(value, []).append(plane)
        if len(parts) > 1:
            yield [parts[value] for value in sorted(parts)], keys


def _varying_keys(stack: list[Plane]) -> list[str]:
    """Keys that differ, but not from plane to plane."""
    found = {key for plane in stack for key in plane.keys if key.startswith(DIMENSION)}
    names = [*sorted(found), *KEYS]
    counts = {name: len({plane.keys.get(name) for plane in stack}) for name in names}
    most = len(stack) if int(_place_numbers(stack)[-1]) == 0 else max(len(stack) // 2, 2)
    return [name for name in names if 1 < counts[name] <= most] + [OFFSET]


def _number_values(stack: list[Plane], key: str) -> list[int]:
    """For each plane which of the key's values it has, counted in ascending order; numbers are compared with a tolerance."""
    if key == OFFSET:
        return _number_offsets(stack)
    values = [plane.keys.get(key) for plane in stack]
    distinct = list(dict.fromkeys(values))
    numbers = [v for v in distinct if isinstance(v, int | float)]
    ids: dict[KeyValue | None, int] = {None: 0}
    if len(numbers) == len([v for v in distinct if v is not None]):
        last = None
        for number in sorted(numbers):
            if last is None or number - last > SAME_NUMBER * max(abs(number), abs(last)):
                last = number
                ids[number] = max(ids.values()) + 1
            else:
                ids[number] = max(ids.values())
    else:
        # Directions and words have no order of their own: first come, first listed; times are in order as they are written.
        others = [v for v in distinct if v is not None]
        in_time = key in ("AcquisitionDateTime", "ContentTime")
        first: dict[KeyValue | None, tuple[float, int]] = {}
        for plane, value in zip(stack, values, strict=True):
            at = (plane.get_number("InstanceNumber"), plane.frame)
            first[value] = min(at, first.get(value, at))
        for value in sorted(others, key=lambda v: (str(v) if in_time else "", first[v], str(v))):
            twin = next((v for v in ids if v is not None and _same_value(v, value)), None)
            ids[value] = ids[twin] if twin is not None else max(ids.values()) + 1
    return [ids[value] for value in values]


def _number_offsets(stack: list[Plane]) -> list[int]:
    """Stacks side by side: which of the places across the slices each plane has."""
    centres: list[np.ndarray] = []
    numbers = []
    for offset in offsets_in_plane(stack):
        near = next((i for i, centre in enumerate(centres) if np.abs(offset - centre).max() < 1), None)
        if near is None:
            near = len(centres)
            centres.append(offset)
            if near > MOST_KEYS:
                return [0] * len(stack)  # a tilted stack: each slice lies elsewhere
        numbers.append(near)
    return numbers


def _ranks(stack: list[Plane], key: str) -> Parts:
    """The nth plane at each place in the order of a key is of volume n; nothing where that would be a guess."""
    by_place: dict[int, list[Plane]] = {}
    for place, plane in zip(_place_numbers(stack).tolist(), stack, strict=True):
        if key not in plane.keys:
            return [stack]
        by_place.setdefault(place, []).append(plane)
    if len({len(planes) for planes in by_place.values()}) > 1:
        return [stack]
    parts: Parts = [[] for _ in by_place[0]]
    for planes in by_place.values():
        if len({plane.keys[key] for plane in planes}) < len(planes):
            return [stack]
        for part, plane in zip(parts, sorted(planes, key=lambda p: (p.keys[key], p.frame)), strict=True):
            part.append(plane)
    return parts


def _runs_of_acquisition(stack: list[Plane]) -> Parts:
    """The stack cut where, in the order of instance numbers, the way along the normal begins anew."""
    if len({plane.keys.get("InstanceNumber") for plane in stack}) < len(stack):
        return [stack]
    order = sorted(range(len(stack)), key=lambda i: stack[i].get_number("InstanceNumber"))
    along = positions_along(stack)[order]
    direction = np.sign(np.median(np.diff(along)))
    cuts = np.flatnonzero(np.sign(np.diff(along)) != direction) + 1
    runs = [[stack[i] for i in order[start:end]] for start, end in zip([0, *cuts], [*cuts, len(order)], strict=True)]
    return [_along_normal(run) for run in runs]


def _same_value(value: KeyValue | object, expected: object) -> bool:
    """Whether a header's value is the one that is wanted: numbers with a tolerance, one word of several words."""
    if isinstance(value, tuple) or isinstance(expected, list | tuple):
        values = list(value) if isinstance(value, tuple) else str(value).split("\\")
        expected_values = list(expected) if isinstance(expected, list | tuple) else [expected]
        return len(values) == len(expected_values) and all(map(_same_value, values, expected_values))
    if isinstance(value, int | float) and isinstance(expected, int | float | str):
        try:
            number = float(expected)
        except ValueError:
            return False
        return abs(number - value) <= SAME_NUMBER * max(abs(number), abs(value))
    if value is None:
        return expected is None
    words = str(value).upper().split("\\")
    return str(expected).upper() in (str(value).upper(), *words)


def _label(volumes: list[Volume]) -> list[Volume]:
    """Each volume with the keys that differ between volumes and not within them."""
    names: list[str] = []
    for key in (*KEYS, "InstanceNumber"):
        values = [volume.get_values(key) for volume in volumes]
        if all(len(v) == 1 for v in values) and len({v[0] for v in values}) > 1:
            names.append(key)
    informative = [name for name in names if name not in ("AcquisitionDateTime", "ContentTime", "InstanceNumber")]
    names = (informative or names)[:SHOWN_KEYS]
    one_grid = all(_same_grid(volumes[0].planes[0], volume.planes[0]) for volume in volumes)
    labels = [_describe(volume, names, not one_grid) for volume in volumes]
    counts = Counter(labels)
    for i, volume in enumerate(volumes):
        number = min(plane.get_number("InstanceNumber") for plane in volume.planes)
        if counts[labels[i]] > 1 and np.isfinite(number) and volume.planes[0].instance.frames == 1:
            labels[i] = f"{labels[i]} from instance {number:g}".strip()
    return [Volume(volume.planes, label) for volume, label in zip(volumes, labels, strict=True)]


def _describe(volume: Volume, names: Sequence[str], with_grid: bool) -> str:
    first, last = volume.planes[0], volume.planes[-1]
    words = [f"{name} {_text(first.keys[name])}" for name in names if name in first.keys]
    if with_grid:
        pixels = f"pixels of {first.pixel_mm[0]:.4g}×{first.pixel_mm[1]:.4g} mm" if first.pixel_mm else ""
        words.append(" ".join(word for word in (_name_plane(first), f"{first.rows}×{first.columns}", pixels) if word))
    if not words and first.is_placed and len(volume.planes) > 1:
        low, high = (float(np.dot(plane.position, first.normal())) for plane in (first, last))  # type: ignore[arg-type]
        words.append(f"at {low:.1f} to {high:.1f} mm")
    if not words and first.instance.frames > 1:
        words.append(f"frame {first.frame}")
    return ", ".join(words)


def _text(value: KeyValue) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(f"{v:.3g}" for v in value) + ")"
    return value if isinstance(value, str) else f"{value:g}"


def _name_plane(plane: Plane) -> str:
    if not plane.is_placed:
        return ""
    return ("sagittal", "coronal", "axial")[int(np.argmax(np.abs(plane.normal())))]
