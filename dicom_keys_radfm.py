"""What tells the volumes of one series apart: echo, time, diffusion, phase, kind of image, and the scanner's own indices.

The same fact stands in an element of a classic header and in a functional group of an enhanced one (PS3.3 C.7.6.16,
C.8.13.5). It is read under the classic element's keyword from both.
"""

from collections.abc import Sequence

from .dicom_elements_radfm import Header, get_items, get_number, get_numbers, get_text, get_texts, get_vector

try:  # noqa: SIM105 - transformers refuses remote code whose optional imports stand elsewhere
    from pydicom.datadict import keyword_for_tag
except ImportError:
    pass
KeyValue = float | str | tuple[float, ...]
DIMENSION = "index of"

# Where each key stands: (keyword of the classic object, sequence and keyword of the functional groups).
NUMBER_KEYS: tuple[tuple[str, str, str], ...] = (
    ("EchoTime", "MREchoSequence", "EffectiveEchoTime"),
    ("EchoNumbers", "", ""),
    ("TemporalPositionIdentifier", "FrameContentSequence", "TemporalPositionIndex"),
    ("DiffusionBValue", "MRDiffusionSequence", "DiffusionBValue"),
    ("TriggerTime", "CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("NominalPercentageOfCardiacPhase", "CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
    ("InversionTime", "MRModifierSequence", "InversionTimes"),
    ("FlipAngle", "MRTimingAndRelatedParametersSequence", "FlipAngle"),
    ("KVP", "CTXRayDetailsSequence", "KVP"),
    ("AcquisitionNumber", "FrameContentSequence", "FrameAcquisitionNumber"),
    ("InstanceNumber", "", ""),
)
FRAME_TYPES = (
    "MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence", "XRay3DFrameTypeSequence",
    "USImageDescriptionSequence", "MRSpectroscopyFrameTypeSequence",
)  # fmt: skip
VECTORS = ("EnergyWindowVector", "DetectorVector", "PhaseVector", "RRIntervalVector", "TimeSlotVector", "TimeSliceVector")


def find_group(groups: Sequence[Header], sequence: str, header: Header) -> Header:
    """A functional group's only item, of the frame, else of all frames, else the header itself."""
    return next((items[0] for group in groups if (items := get_items(group, sequence))), header)


def find_volume_dimensions(header: Header) -> list[tuple[int, str]]:
    """Places in DimensionIndexValues that do not count slices (PS3.3 C.7.6.17), and what they count."""
    spatial = {0x00200032, 0x00209057, 0x00209113, 0x0020930E, 0x00209301, 0x00201041, 0x00209116}
    found = []
    for place, item in enumerate(get_items(header, "DimensionIndexSequence")):
        pointer = item.get("DimensionIndexPointer")
        if pointer is not None and int(pointer) not in spatial:
            found.append((place, f"{DIMENSION} {keyword_for_tag(pointer) or pointer}"))
    return found


def read_volume_keys(
    header: Header, groups: Sequence[Header], frame: int, dimensions: Sequence[tuple[int, str]]
) -> dict[str, KeyValue]:
    """Everything by which volumes at one place may differ."""
    keys: dict[str, KeyValue] = {}
    for classic, sequence, functional in NUMBER_KEYS:
        value = get_number(find_group(groups, sequence, header), functional) if sequence and groups else None
        value = get_number(header, classic) if value is None else value
        if value is not None:
            keys[classic] = value
    _add_diffusion(keys, find_group(groups, "MRDiffusionSequence", header))
    content = find_group(groups, "FrameContentSequence", header)
    stack = get_text(content, "StackID")
    if stack:
        keys["StackID"] = stack
    indices = get_numbers(content, "DimensionIndexValues") if groups else None
    for place, name in dimensions:
        if indices is not None and place < len(indices):
            keys[name] = indices[place]
    frame_type = next((items[0] for group in groups for word in FRAME_TYPES if (items := get_items(group, word))), header)
    kinds = get_texts(frame_type, "FrameType") or get_texts(header, "ImageType")
    if kinds:
        keys["ImageType"] = "\\".join(kinds)
        keys.update({f"ImageType{i + 1}": word.upper() for i, word in enumerate(kinds) if i in (2, 3)})
    component = get_text(frame_type, "ComplexImageComponent") or get_text(header, "ComplexImageComponent")
    if component:
        keys["ComplexImageComponent"] = component
    for word in VECTORS:
        vector = get_numbers(header, word)
        if vector is not None and frame < len(vector):
            keys[word] = vector[frame]
    _add_times(keys, header, content)
    return keys


def _add_diffusion(keys: dict[str, KeyValue], dataset: Header) -> None:
    direction = next(iter(get_items(dataset, "DiffusionGradientDirectionSequence")), dataset)
    vector = get_vector(direction, "DiffusionGradientOrientation", 3)
    if vector is not None:
        keys["DiffusionGradientOrientation"] = tuple(v + 0.0 for v in vector)


def _add_times(keys: dict[str, KeyValue], header: Header, content: Header) -> None:
    moment = get_text(content, "FrameAcquisitionDateTime") or get_text(header, "AcquisitionDateTime")
    if not moment and get_text(header, "AcquisitionTime"):
        moment = get_text(header, "AcquisitionDate") + get_text(header, "AcquisitionTime")
    # An offset from UTC (PS3.5 6.2, DT) is one for the whole series.
    times = {"AcquisitionDateTime": moment.split("+")[0], "ContentTime": get_text(header, "ContentTime")}
    keys.update({word: text for word, text in times.items() if text.replace(".", "", 1).isdigit()})
