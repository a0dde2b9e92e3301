"""One image plane: the record on which all geometry and all grouping work.

A file with one image, a frame of an enhanced or multi-frame file and a tile of a Siemens mosaic all become the same `Plane`.
Whether planes are slices in space or moments in time is decided here, by what the object is (its SOP class, PS3.4 B.5, and
its functional groups, PS3.3 C.7.6.16) and never by the number of frames.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .dicom_elements_radfm import Header, get_integer, get_items, get_number, get_numbers, get_text, get_texts, get_vector
from .dicom_file_radfm import SIEMENS_MOSAIC_SLICES, Instance
from .dicom_keys_radfm import KeyValue, find_group, find_volume_dimensions, read_volume_keys
from .dicom_tolerances_radfm import ORTHONORMAL

CLASS = "1.2.840.10008.5.1.4.1.1."
NUCLEAR, RT_DOSE, ENHANCED_US_VOLUME = CLASS + "20", CLASS + "481.2", CLASS + "6.2"
SEGMENTATIONS = (CLASS + "66.4", CLASS + "66.5", CLASS + "66.7")
# Classes whose images are slices of a body: CT, MR, PET with their enhanced and legacy forms, 3D X-ray, tomosynthesis, OCT.
SLICES = (
    CLASS + "2", CLASS + "2.1", CLASS + "2.2", CLASS + "4", CLASS + "4.1", CLASS + "4.3", CLASS + "4.4", CLASS + "128",
    CLASS + "128.1", CLASS + "130", CLASS + "13.1.1", CLASS + "13.1.2", CLASS + "13.1.3", CLASS + "77.1.5.4", CLASS + "30",
    CLASS + "77.1.5.8", ENHANCED_US_VOLUME, RT_DOSE,
)  # fmt: skip
SLICED_MODALITIES = ("CT", "MR", "PT", "OPT")
# Values of ImageType and FrameType that mark another component of a complex image than the magnitude (PS3.3 C.8.13.3.1.1;
# the one-letter words are the vendors' for the classic object).
NOT_MAGNITUDE = {"P", "PHASE", "PHASE MAP", "R", "REAL", "I", "IMAGINARY", "VELOCITY", "VELOCITY MAP", "B0", "FIELD_MAP"}
CENTIMETRES = 3  # PhysicalUnitsXDirection, PS3.3 C.8.5.5.1.15
TISSUE_2D = 1  # RegionSpatialFormat, PS3.3 C.8.5.5.1.1
Vector = tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Plane:
    """One image: where it lies, what it is, and where its pixels are.

    Args:
        instance, frame: the file, and which of its frames.
        rows, columns: size in pixels.
        is_slice: part of a body in space; otherwise a moment of a film or a projection, an image of its own.
        position: mm LPS of the centre of its first pixel; None where nothing states it.
        orientation: direction of a row and of a column (LPS unit vectors), six numbers.
        pixel_mm: mm from row to row and from column to column.
        gap_mm: the stated distance to the next slice, or else the slice thickness.
        thickness_mm: the slice thickness.
        rescale: slope and intercept of its values; None where a modality LUT or nothing states them.
        keys: what may tell volumes at one place apart, by DICOM keyword.
        tile: first row and column of a mosaic's tile in its frame.
        in_patient: whether position and orientation are the patient's, and not the transducer's.
        remarks: what a reader should know of its geometry.
    """

    instance: Instance
    frame: int
    rows: int
    columns: int
    is_slice: bool
    position: Vector | None
    orientation: Vector | None
    pixel_mm: tuple[float, float] | None
    gap_mm: float | None
    thickness_mm: float | None
    rescale: tuple[float, float] | None
    keys: dict[str, KeyValue] = field(default_factory=dict)
    tile: tuple[int, int] | None = None
    in_patient: bool = True
    remarks: tuple[str, ...] = ()

    @property
    def is_placed(self) -> bool:
        """Whether the header says where the image lies."""
        return self.position is not None and self.orientation is not None

    @property
    def is_magnitude(self) -> bool:
        """Whether this is no phase, real or imaginary part of a complex image."""
        words = {str(self.keys.get(word, "")) for word in ("ComplexImageComponent", "ImageType3", "ImageType4")}
        return not words & NOT_MAGNITUDE

    def get_number(self, key: str, default: float = math.inf) -> float:
        """A key's value where it is a number."""
        value = self.keys.get(key)
        return float(value) if isinstance(value, int | float) else default

    def normal(self) -> np.ndarray:
        """Unit vector at a right angle to the image, away from who looks at it."""
        assert self.orientation is not None
        return np.cross(self.orientation[:3], self.orientation[3:])


def describe_planes(instance: Instance) -> list[Plane]:
    """The images of one file. Raises `ScanError` where it holds no scan."""
    header = instance.header
    sop_class = get_text(header, "SOPClassUID")
    if sop_class in SEGMENTATIONS or get_text(header, "Modality") == "SEG":
        raise instance.error("is a segmentation (outlines of structures in another series) and no scan.")
    if "MOSAIC" in [word.upper() for word in get_texts(header, "ImageType")]:
        return _split_mosaic(instance)
    if instance.frames == 1 and not get_items(header, "PerFrameFunctionalGroupsSequence"):
        return [_plane(instance, 0, [], _place_of_header(header, sop_class))]
    if get_items(header, "PerFrameFunctionalGroupsSequence") or get_items(header, "SharedFunctionalGroupsSequence"):
        return _enhanced_planes(instance, sop_class)
    if sop_class == RT_DOSE:
        return _offset_planes(instance, get_numbers(header, "GridFrameOffsetVector"), header)
    if sop_class == NUCLEAR or get_text(header, "Modality") == "NM":
        return _nuclear_planes(instance)
    if sop_class in SLICES or (not sop_class and get_text(header, "Modality") in SLICED_MODALITIES):
        return _stacked_planes(instance, header)
    return [_plane(instance, frame, [], _Place(False)) for frame in range(instance.frames)]


@dataclass(frozen=True)
class _Place:
    """How the images of a kind of object lie."""

    is_slice: bool
    position: Vector | None = None
    orientation: Vector | None = None
    in_patient: bool = True
    remarks: tuple[str, ...] = ()


def _place_of_header(header: Header, sop_class: str) -> _Place:
    position, orientation = get_vector(header, "ImagePositionPatient", 3), _unit_vectors(header, "ImageOrientationPatient")
    if sop_class == NUCLEAR:
        position, orientation = _detector_place(header)
    sliced = sop_class in SLICES or (not sop_class and get_text(header, "Modality") in SLICED_MODALITIES)
    return _Place(sliced or (position is not None and orientation is not None), position, orientation)


def _enhanced_planes(instance: Instance, sop_class: str) -> list[Plane]:
    """Frames with functional groups (PS3.3 C.7.6.16): each says itself where it lies."""
    header = instance.header
    shared = [*get_items(header, "SharedFunctionalGroupsSequence")][:1]
    per_frame = get_items(header, "PerFrameFunctionalGroupsSequence")
    dimensions = find_volume_dimensions(header)
    planes = []
    for frame in range(instance.frames):
        groups = [*per_frame[frame : frame + 1], *shared]
        position = get_vector(find_group(groups, "PlanePositionSequence", header), "ImagePositionPatient", 3)
        orientation = _unit_vectors(find_group(groups, "PlaneOrientationSequence", header), "ImageOrientationPatient")
        place = _Place(sop_class in SLICES or position is not None, position, orientation)
        if position is None and any(get_items(group, "PlanePositionVolumeSequence") for group in groups):
            # Enhanced ultrasound: coordinates of the volume that the transducer sweeps (PS3.3 C.8.24.2, C.7.6.16.2.21).
            position = get_vector(find_group(groups, "PlanePositionVolumeSequence", header), "ImagePositionVolume", 3)
            orientation = _unit_vectors(
                find_group(groups, "PlaneOrientationVolumeSequence", header), "ImageOrientationVolume"
            )
            place = _Place(True, position, orientation, in_patient=False)
        planes.append(_plane(instance, frame, groups, place, dimensions))
    return planes


def _offset_planes(instance: Instance, offsets: Vector | None, header: Header) -> list[Plane]:
    """RT dose: offsets along the normal from the header's position, or absolute places (PS3.3 C.8.8.3.2)."""
    position, orientation = get_vector(header, "ImagePositionPatient", 3), _unit_vectors(header, "ImageOrientationPatient")
    if offsets is None or len(offsets) != instance.frames or position is None or orientation is None:
        return _stacked_planes(instance, header)
    normal = np.cross(orientation[:3], orientation[3:])
    if abs(offsets[0]) > 0:  # the older form gives the coordinate itself
        offsets = tuple(offset - offsets[0] for offset in offsets)
    places = [tuple(map(float, position + normal * offset)) for offset in offsets]
    return [_plane(instance, frame, [], _Place(True, places[frame], orientation)) for frame in range(instance.frames)]


def _nuclear_planes(instance: Instance) -> list[Plane]:
    """Nuclear medicine: reconstructed tomograms are slices; dynamic, whole-body and raw frames are not (PS3.3 C.8.4.9)."""
    header = instance.header
    kind = (*get_texts(header, "ImageType"), "", "", "")[2].upper()
    position, orientation = _detector_place(header)
    step = get_number(header, "SpacingBetweenSlices") or get_number(header, "SliceThickness")
    slices = get_numbers(header, "SliceVector")
    planes = []
    for frame in range(instance.frames):
        if "RECON" not in kind or step is None:
            planes.append(_plane(instance, frame, [], _Place("RECON" in kind)))
            continue
        number = slices[frame] - 1 if slices is not None and len(slices) == instance.frames else frame
        place = None
        if position is not None and orientation is not None:
            # The sign of the spacing is the direction along the normal (PS3.3 C.8.4.15).
            along = np.cross(orientation[:3], orientation[3:]) * step * number
            place = tuple(map(float, position + along))
        planes.append(_plane(instance, frame, [], _Place(True, place, orientation)))
    return planes


def _detector_place(header: Header) -> tuple[Vector | None, Vector | None]:
    detector = next(iter(get_items(header, "DetectorInformationSequence")), header)
    position, orientation = (
        get_vector(detector, "ImagePositionPatient", 3),
        _unit_vectors(detector, "ImageOrientationPatient"),
    )
    return (
        position or get_vector(header, "ImagePositionPatient", 3),
        orientation or _unit_vectors(header, "ImageOrientationPatient"),
    )


def _stacked_planes(instance: Instance, header: Header) -> list[Plane]:
    """Slices in one file of a class that has no place for their positions: taken to lie evenly along the normal."""
    position, orientation = get_vector(header, "ImagePositionPatient", 3), _unit_vectors(header, "ImageOrientationPatient")
    step = get_number(header, "SpacingBetweenSlices") or get_number(header, "SliceThickness")
    if position is None or orientation is None or not step:
        return [_plane(instance, frame, [], _Place(True)) for frame in range(instance.frames)]
    normal = np.cross(orientation[:3], orientation[3:])
    remark = f"Only the first of {instance.frames} frames says where it lies; the others were put {abs(step):g} mm apart."
    return [
        _plane(
            instance, k, [], _Place(True, tuple(map(float, position + normal * step * k)), orientation, remarks=(remark,))
        )
        for k in range(instance.frames)
    ]


def _split_mosaic(instance: Instance) -> list[Plane]:
    """The slices that Siemens tiles into one image: a square of tiles, row by row, the last ones empty.

    ImagePositionPatient is where a slice as large as the whole mosaic would start; the tile lies in its middle.
    """
    header = instance.header
    count, flipped = get_integer(header, SIEMENS_MOSAIC_SLICES), False
    if count < 1:
        count, flipped = _read_csa(instance)
    if count < 1:
        raise instance.error(
            "is a Siemens mosaic that does not say how many slices it holds: convert it with dcm2niix first."
        )
    side = math.ceil(math.sqrt(count))
    rows, columns = get_integer(header, "Rows") // side, get_integer(header, "Columns") // side
    place = _place_of_header(header, get_text(header, "SOPClassUID"))
    whole = _plane(instance, 0, [], place)
    step = get_number(header, "SpacingBetweenSlices") or get_number(header, "SliceThickness")
    planes = []
    for number in range(count):
        position = None
        if place.position is not None and place.orientation is not None and whole.pixel_mm is not None and step:
            along_row, along_column = np.array(place.orientation[:3]), np.array(place.orientation[3:])
            corner = along_row * whole.pixel_mm[1] * (columns * side - columns) / 2
            corner = corner + along_column * whole.pixel_mm[0] * (rows * side - rows) / 2
            normal = whole.normal() * (-1 if flipped else 1)
            position = tuple(map(float, place.position + corner + normal * step * number))
        tile = (number // side * rows, number % side * columns)
        at = _Place(True, position, place.orientation)
        planes.append(_plane(instance, 0, [], at, size=(rows, columns), tile=tile))
    return planes


def _read_csa(instance: Instance) -> tuple[int, bool]:
    """Slices of a mosaic, and whether they run against the normal, from Siemens' private header (0029,xx10)."""
    dataset = instance.read_dataset()
    try:
        content = bytes(dataset.private_block(0x29, "SIEMENS CSA HEADER")[0x10].value)
    except (KeyError, TypeError, ValueError):
        return 0, False
    count = _csa_values(content, b"NumberOfImagesInMosaic")
    normal = _csa_values(content, b"SliceNormalVector")
    orientation = _unit_vectors(dataset, "ImageOrientationPatient")
    flipped = False
    if len(normal) == 3 and orientation is not None:
        flipped = float(np.cross(orientation[:3], orientation[3:]) @ np.array(normal)) < 0
    return int(count[0]) if count else 0, flipped


def _csa_values(content: bytes, name: bytes) -> list[float]:
    """The numbers of one element: a name of 64 bytes, five integers, then items of a length of 16 bytes and a text."""
    at = content.find(name + b"\0")
    if at < 0 or at + 84 > len(content):
        return []
    items = int.from_bytes(content[at + 76 : at + 80], "little")
    values, at = [], at + 84
    for _ in range(min(items, 64)):
        length = int.from_bytes(content[at + 4 : at + 8], "little")
        text = content[at + 16 : at + 16 + length].split(b"\0")[0].strip()
        at += 16 + (length + 3) // 4 * 4
        try:
            values.append(float(text))
        except ValueError:
            continue
    return values


def _plane(
    instance: Instance,
    frame: int,
    groups: Sequence[Header],
    place: _Place,
    dimensions: Sequence[tuple[int, str]] = (),
    size: tuple[int, int] | None = None,
    tile: tuple[int, int] | None = None,
) -> Plane:
    header = instance.header
    measures = find_group(groups, "PixelMeasuresSequence", header)
    pixel_mm, remarks = _pixel_spacing(measures, header)
    thickness = _positive(get_number(measures, "SliceThickness") or get_number(header, "SliceThickness"))
    gap = _positive(get_number(measures, "SpacingBetweenSlices") or get_number(header, "SpacingBetweenSlices"))
    return Plane(
        instance,
        frame,
        size[0] if size else get_integer(header, "Rows"),
        size[1] if size else get_integer(header, "Columns"),
        place.is_slice,
        place.position if place.orientation is not None else None,
        place.orientation if place.position is not None else None,
        pixel_mm,
        gap or thickness,
        thickness,
        _rescale(find_group(groups, "PixelValueTransformationSequence", header)),
        read_volume_keys(header, groups, frame, dimensions),
        tile,
        place.in_patient,
        (*place.remarks, *remarks),
    )


def _positive(value: float | None) -> float | None:
    return abs(value) if value else None


def _unit_vectors(dataset: Header, element: str) -> Vector | None:
    """Directions of rows and columns, of length 1; None where they are not at a right angle (PS3.3 C.7.6.2.1.1)."""
    values = get_vector(dataset, element, 6)
    if values is None:
        return None
    lengths = math.hypot(*values[:3]), math.hypot(*values[3:])
    product = sum(a * b for a, b in zip(values[:3], values[3:], strict=True))
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(product)) > ORTHONORMAL:
        return None
    return tuple(v / lengths[i // 3] for i, v in enumerate(values))


def _pixel_spacing(measures: Header, header: Header) -> tuple[tuple[float, float] | None, tuple[str, ...]]:
    """mm from row to row and column to column: in the patient, else at the detector, else of an ultrasound region."""
    for dataset, element in (
        (measures, "PixelSpacing"),
        (header, "PixelSpacing"),
        (header, "ImagerPixelSpacing"),
        (header, "NominalScannedPixelSpacing"),
    ):
        spacing = get_vector(dataset, element, 2)
        if spacing is not None and min(spacing) > 0:
            return (spacing[0], spacing[1]), ()
    return _region_spacing(header)


def _region_spacing(header: Header) -> tuple[tuple[float, float] | None, tuple[str, ...]]:
    """Pixel size of an ultrasound image: that of its largest two-dimensional region (PS3.3 C.8.5.5)."""
    found: list[tuple[float, tuple[float, float]]] = []
    for region in get_items(header, "SequenceOfUltrasoundRegions"):
        units = get_integer(region, "PhysicalUnitsXDirection"), get_integer(region, "PhysicalUnitsYDirection")
        across, down = get_number(region, "PhysicalDeltaX"), get_number(region, "PhysicalDeltaY")
        if (
            units != (CENTIMETRES, CENTIMETRES)
            or get_integer(region, "RegionSpatialFormat") != TISSUE_2D
            or not across
            or not down
        ):
            continue
        corners = [get_number(region, f"RegionLocation{c}") or 0 for c in ("MinX0", "MinY0", "MaxX1", "MaxY1")]
        area = (corners[2] - corners[0] + 1) * (corners[3] - corners[1] + 1)
        found.append((area, (abs(down) * 10, abs(across) * 10)))
    if not found:
        return None, ()
    _, spacing = max(found)
    if any(not np.allclose(other, spacing, rtol=0.01) for _, other in found):
        return spacing, ("Its regions have different pixel sizes; the spacing is that of the largest.",)
    return spacing, ()


def _rescale(dataset: Header) -> tuple[float, float] | None:
    """Slope and intercept (PS3.3 C.11.1.1.2); those of a dose grid are its scaling (C.8.8.3.2). None for a modality LUT."""
    scaling = get_number(dataset, "DoseGridScaling")
    if scaling is not None:
        return scaling, 0.0
    slope, intercept = get_number(dataset, "RescaleSlope"), get_number(dataset, "RescaleIntercept")
    if slope is None and get_items(dataset, "ModalityLUTSequence"):
        return None
    return 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
