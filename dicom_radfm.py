"""DICOM files → `Scan`: which series, which volume of it, and what is said about the others.

read_instances   headers of many files, side by side
load_dicom       instances → series → planes → volumes → one `Scan`
describe_series, describe_volumes   what there is to choose from
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from .dicom_elements_radfm import MALFORMED, get_items, get_text, get_texts, get_vector
from .dicom_file_radfm import Instance, describe_instance, looks_like_dicom, read_instance
from .dicom_grouping_radfm import (
    AmbiguousImagesError,
    Volume,
    choose_default,
    matches,
    split_into_stacks,
    split_into_volumes,
)
from .dicom_plane_radfm import SEGMENTATIONS, Plane, describe_planes
from .dicom_volume_radfm import OptionRequiredError, load_volume, same_pixels
from .scan_radfm import ReadContext, Scan, ScanError

try:
    import pydicom
except ImportError:
    if not TYPE_CHECKING:
        pydicom = None

# Headers are parsed side by side: a good part of the time goes into waiting for the disk.
THREADS = 2
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
# Words in ImageType (PS3.3 C.8.2.1.1.1, C.8.3.1.1.1) or in a description of planning images and pictures of a screen.
LOCALIZERS = ("LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW", "SURVEY", "SCREEN SAVE", "DOSE_INFO", "DOSE REPORT")
# So many series of one image each, alike in all but their UID, are one whose UID changes from slice to slice.
FEWEST_JOINED = 3
OTHERS_NAMED = 6

__all__ = [
    "Instance",
    "describe_series",
    "describe_volumes",
    "instance_from_dataset",
    "load_dicom",
    "looks_like_dicom",
    "read_instances",
]


class _Series:
    """Files of one series, and how it is ranked among others."""

    def __init__(self, uid: str, instances: list[Instance]):
        self.uid = uid
        self.instances = instances
        self.label = describe_instance(instances[0])
        self.images = sum(instance.frames for instance in instances)
        self.rank = self._find_rank()

    @cached_property
    def planes(self) -> list[Plane]:
        """Its images. Raises `ScanError` where one of its files is no scan."""
        return [plane for instance in self.instances for plane in describe_planes(instance)]

    def _find_rank(self) -> int:
        """0: may be a volume; 1: other images; 2: localizers and pictures of a screen; 3: no scan."""
        header = self.instances[0].header
        sop_class = get_text(header, "SOPClassUID")
        words = " ".join((*get_texts(header, "ImageType"), get_text(header, "SeriesDescription"))).upper()
        if sop_class in SEGMENTATIONS or get_text(header, "Modality") == "SEG":
            return 3
        if any(word in words for word in LOCALIZERS) or sop_class.startswith(SECONDARY_CAPTURE):
            return 2
        try:
            return 0 if self._may_be_volume() else 1
        except MALFORMED:  # it is refused, with the reason, when it is read
            return 1

    def _may_be_volume(self) -> bool:
        """Whether several images may lie one behind the other; functional groups are not read for that."""
        first = self.instances[0]
        if first.frames > 1:
            groups = (f"{word}FunctionalGroupsSequence" for word in ("Shared", "PerFrame"))
            return any(get_items(first.header, word) for word in groups) or self.planes[0].is_slice
        if "MOSAIC" in get_texts(first.header, "ImageType"):
            return True
        placed = sum(get_vector(instance.header, "ImagePositionPatient", 3) is not None for instance in self.instances)
        return placed > 1 and len(split_into_stacks(plane for plane in self.planes if plane.is_placed)[0]) > 1

    @property
    def is_joined(self) -> bool:
        """Whether its files come under several UIDs."""
        return len({get_text(instance.header, "SeriesInstanceUID") for instance in self.instances}) > 1


def read_instances(files: Sequence[tuple[str, Path | bytes]], context: ReadContext) -> list[Instance]:
    """The headers of many files. A file that cannot be read is named in `context.warnings` and left out.

    Raises:
        ScanError: pydicom is not installed.
    """
    if pydicom is None:
        raise context.error("is DICOM, and reading it needs pydicom: pip install pydicom 'pylibjpeg[all]'.")

    def read(file: tuple[str, Path | bytes]) -> Instance | ScanError:
        try:
            return read_instance(file[0], file[1], context.options.max_bytes)
        except ScanError as error:
            return error
        except OSError as error:
            return ScanError(f"{file[0]}: cannot be read ({error.strerror}).")

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(read, files))
    context.warnings += [str(result) for result in results if isinstance(result, ScanError)]
    return [result for result in results if isinstance(result, Instance)]


def instance_from_dataset(dataset: "pydicom.Dataset", context: ReadContext) -> Instance:
    """A dataset in memory as if it had been read from a file."""
    return Instance(context.name, dataset, None)


def describe_series(instances: Sequence[Instance], context: ReadContext) -> list[str]:
    """One line a series, in the order in which they are chosen: UID, number and description, images and files."""
    return [
        f"{series.uid} · {series.label} · {series.images} images in {len(series.instances)} files"
        for series in _find_series(instances, context)
    ]


def describe_volumes(instances: Sequence[Instance], context: ReadContext) -> list[str]:
    """One line for each volume of the chosen series: its index, what tells it apart, its size, which is the default."""
    series = _choose_series(_find_series(instances, context), context)[0]
    volumes = _find_volumes(series, context)
    default = choose_default(volumes)
    return [
        " · ".join(word for word in (str(i), volume.label, _size(volume), "default" if i == default else "") if word)
        for i, volume in enumerate(volumes)
    ]


def load_dicom(instances: Sequence[Instance], context: ReadContext) -> Scan:
    """The chosen series, or the first by rank, and of its volumes the chosen one, or the default.

    Where nothing is chosen and a series cannot be read, the next is, with a warning.

    Raises:
        ScanError: no series can be read, or an option is needed.
    """
    found = _find_series(instances, context)
    candidates = _choose_series(found, context)
    failed: ScanError | None = None
    for series in candidates:
        before = len(context.warnings)
        try:
            scan = _load_series(series, context)
        except OptionRequiredError:
            raise
        except MALFORMED as error:
            del context.warnings[before:]
            failed = failed or _as_scan_error(error, series)
            context.warnings.append(f"Series {series.label} cannot be read: {failed}")
            continue
        scan.series = series.label
        others = [other for other in found if other is not series]
        if others and context.options.series is None:
            names = "; ".join(f"{other.label} ({other.images} images)" for other in others[:OTHERS_NAMED])
            more = f" and {len(others) - OTHERS_NAMED} more" if len(others) > OTHERS_NAMED else ""
            read = f"Series {series.label} ({series.images} images) was read, one of {len(found)}"
            context.warnings.append(f"{read}; the others: {names}{more}.")
        return scan
    assert failed is not None
    raise failed


def _as_scan_error(error: Exception, series: _Series) -> ScanError:
    """What pydicom or numpy raise at a malformed element, as a sentence; the cause stays chained."""
    if isinstance(error, ScanError):
        return error
    refusal = series.instances[0].error("its header holds values that cannot be understood.")
    refusal.__cause__ = error
    return refusal


def _find_series(instances: Sequence[Instance], context: ReadContext) -> list[_Series]:
    """All series with images, in the order in which they are chosen."""
    groups: dict[str, list[Instance]] = {}
    for instance in instances:
        if instance.has_image:
            groups.setdefault(get_text(instance.header, "SeriesInstanceUID"), []).append(instance)
    if not groups:
        kinds = {_name_class(instance) for instance in instances} - {""}
        raise context.error(f"is DICOM without an image in it{f' ({chr(44).join(sorted(kinds))})' if kinds else ''}.")
    series = [_Series(uid, files) for uid, files in _join_single_images(groups).items()]
    return sorted(series, key=lambda s: (s.rank, -s.images, s.label, s.uid))


def _name_class(instance: Instance) -> str:
    uid = pydicom.uid.UID(get_text(instance.header, "SOPClassUID"))
    return "" if uid.name == uid else uid.name


def _join_single_images(groups: dict[str, list[Instance]]) -> dict[str, list[Instance]]:
    """Series of one image each that agree in study, number, description and grid are one (some scanners number UIDs so)."""
    alike: dict[tuple[object, ...], list[str]] = {}
    for uid, files in groups.items():
        header = files[0].header
        named = get_text(header, "SeriesNumber") or get_text(header, "SeriesDescription")
        is_image = len(files) == 1 and files[0].frames == 1 and get_text(header, "SOPClassUID") not in SEGMENTATIONS
        if is_image and named and get_vector(header, "ImagePositionPatient", 3):
            words = ("StudyInstanceUID", "Modality", "SeriesNumber", "SeriesDescription", "Rows", "Columns")
            alike.setdefault(tuple(get_text(header, word) for word in words), []).append(uid)
    joined = dict(groups)
    for uids in alike.values():
        if len(uids) < FEWEST_JOINED:
            continue
        planes = [plane for uid in uids for plane in describe_planes(groups[uid][0])]
        for stack in split_into_stacks(planes):
            if len(stack) >= FEWEST_JOINED and len({plane.position for plane in stack}) == len(stack):
                files = [plane.instance for plane in stack]
                for instance in files:
                    joined.pop(get_text(instance.header, "SeriesInstanceUID"), None)
                joined[get_text(files[0].header, "SeriesInstanceUID")] = files
    return joined


def _choose_series(found: list[_Series], context: ReadContext) -> list[_Series]:
    """The series to try, in order."""
    choice = context.options.series
    if choice is None:
        # A localizer or a picture of a screen is no substitute for a volume that cannot be read.
        return [series for series in found if series.rank == found[0].rank or series.rank < 2]
    chosen = []
    for series in found:
        header = series.instances[0].header
        names = (get_text(header, "SeriesNumber"), get_text(header, "SeriesDescription"))
        if str(choice) in (series.uid, series.label, *names):
            chosen.append(series)
    if not chosen:
        raise context.error(f"has no series {str(choice)!r}, only {'; '.join(series.label for series in found)}.")
    return chosen[:1]


def _find_volumes(series: _Series, context: ReadContext) -> list[Volume]:
    def compare(one: Plane, other: Plane) -> bool:
        return same_pixels(one, other, context)

    try:
        volumes, remarks = split_into_volumes(series.planes, compare)
    except AmbiguousImagesError as error:
        raise context.error(f"{error}.") from error
    if series.is_joined:
        count = len(series.instances)
        context.warnings.append(f"{count} series of one image each were joined: their UID changes from slice to slice.")
    context.warnings += remarks
    return volumes


def _load_series(series: _Series, context: ReadContext) -> Scan:
    volumes = _find_volumes(series, context)
    chosen = _choose_volume(volumes, context)
    if len(volumes) > 1:
        context.warnings.append(_name_others(volumes, chosen))
    return load_volume(volumes[chosen], series.instances, context)


def _choose_volume(volumes: list[Volume], context: ReadContext) -> int:
    choice = context.options.volume
    if choice is None:
        return choose_default(volumes)
    if isinstance(choice, Mapping):
        fitting = [i for i, volume in enumerate(volumes) if matches(volume, choice)]
        if not fitting:
            labels = "; ".join(f"{i} ({volume.label})" for i, volume in enumerate(volumes[:OTHERS_NAMED]))
            raise OptionRequiredError(f"{context.name}: has no volume with {choice}, only {labels}.")
        return fitting[choose_default([volumes[i] for i in fitting])]
    if not 0 <= choice < len(volumes):
        what = "frame" if _are_moments(volumes) else "volume"
        raise OptionRequiredError(f"{context.name}: has {what}s 0 to {len(volumes) - 1}, and no {what} {choice}.")
    return int(choice)


def _are_moments(volumes: list[Volume]) -> bool:
    first = volumes[0].planes[0]
    return first.instance.frames > 1 and all(v.planes[0].instance is first.instance and len(v.planes) == 1 for v in volumes)


def _name_others(volumes: list[Volume], chosen: int) -> str:
    if _are_moments(volumes):
        return f"Only frame {chosen} of {len(volumes)} was read: they follow in time; volume= chooses another."
    words: list[str] = []
    for i, volume in enumerate(volumes):
        if i != chosen and len(words) < OTHERS_NAMED:
            words.append(f"{i} ({', '.join(word for word in (volume.label, _size(volume)) if word)})")
    more = f" and {len(volumes) - 1 - len(words)} more" if len(volumes) - 1 > len(words) else ""
    label = ", ".join(word for word in (volumes[chosen].label, _size(volumes[chosen])) if word)
    return (
        f"The series holds {len(volumes)} volumes; volume {chosen} ({label}) was read. volume= chooses another: "
        f"{', '.join(words)}{more}."
    )


def _size(volume: Volume) -> str:
    return f"{len(volume.planes)} slices" if len(volume.planes) > 1 else "1 image"
