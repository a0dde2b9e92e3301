"""DICOM as it really comes, made from nothing: small files whose right values are known because they were made so."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT, MR, PET = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.128"
ENHANCED_MR, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.2.1"
NUCLEAR, RT_DOSE, TOMOSYNTHESIS = (
    "1.2.840.10008.5.1.4.1.1.20",
    "1.2.840.10008.5.1.4.1.1.481.2",
    "1.2.840.10008.5.1.4.1.1.13.1.3",
)
ULTRASOUND, ULTRASOUND_FILM = "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.3.1"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
MODALITIES = {CT: "CT", MR: "MR", PET: "PT", ENHANCED_MR: "MR", ENHANCED_CT: "CT", NUCLEAR: "NM", RT_DOSE: "RTDOSE"}
ROWS, COLUMNS = 8, 6
AXIAL = [1, 0, 0, 0, 1, 0]


def pixels(number: int, add: int = 0) -> np.ndarray:
    """An image that no other number has: its values are 100·number + place + add."""
    return (100 * number + add + np.arange(ROWS * COLUMNS)).reshape(ROWS, COLUMNS).astype(np.int16)


def image(values: np.ndarray, sop_class: str = MR, **tags: Any) -> Dataset:
    """A file with one grey image, or with a frame for each image of a stack (frames, rows, columns)."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    dataset.Modality = MODALITIES.get(sop_class, "OT")
    dataset.SeriesNumber, dataset.SeriesDescription = 5, "made"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Rows, dataset.Columns = values.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = values.dtype.itemsize * 8
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsAllocated - 1, int(values.dtype.kind == "i")
    if values.ndim == 3:
        dataset.NumberOfFrames = len(values)
    dataset.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2)
    for word, value in tags.items():
        setattr(dataset, word, value)
    return dataset


def slice_at(number: int, position: Sequence[float], add: int = 0, sop_class: str = MR, **tags: Any) -> Dataset:
    """A slice with a place, pixels of 4 × 4 mm, and an instance number."""
    tags = {"PixelSpacing": [4, 4], "ImageOrientationPatient": AXIAL, "InstanceNumber": number + 1, **tags}
    return image(pixels(number, add), sop_class, ImagePositionPatient=[float(x) for x in position], **tags)


def stack(
    count: int, step: float = 5.0, start: float = 0.0, change: Callable[[int], dict[str, Any]] = lambda k: {}
) -> list[Dataset]:
    """Axial slices one above the other; `change` gives tags for each."""
    return [slice_at(k, (-10, -20, start + step * k), **change(k)) for k in range(count)]


def item(**tags: Any) -> Items:
    """A sequence with one item."""
    dataset = Dataset()
    for word, value in tags.items():
        setattr(dataset, word, value)
    return Items([dataset])


def enhanced(frames: Sequence[dict[str, Any]], values: np.ndarray, sop_class: str = ENHANCED_MR, **tags: Any) -> Dataset:
    """A multi-frame file with functional groups: each frame's `position` and further sequences."""
    dataset = image(values, sop_class, **tags)
    groups = []
    for number, frame in enumerate(frames):
        group = Dataset()
        group.FrameContentSequence = item(StackID="1", InStackPositionNumber=number + 1)
        for word, value in frame.items():
            if word == "position":
                group.PlanePositionSequence = item(ImagePositionPatient=[float(x) for x in value])
            else:
                setattr(group, word, value)
        groups.append(group)
    shared = Dataset()
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=AXIAL)
    shared.PixelMeasuresSequence = item(PixelSpacing=[4, 4], SliceThickness=5)
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = Items([shared]), Items(groups)
    return dataset


def pet(number: int = 0, **tags: Any) -> Dataset:
    """A PET slice of 1,000 Bq/ml, injected at 11:00, acquired at 12:00 with a half-life of one hour."""
    drug = {"RadionuclideTotalDose": 7e7, "RadionuclideHalfLife": 3600, "RadiopharmaceuticalStartTime": "110000"}
    drug = {word: value for word, value in {**drug, **tags.pop("drug", {})}.items() if value is not None}
    tags = {
        "Units": "BQML", "DecayCorrection": "START", "PatientWeight": 70, "SeriesDate": "20240101", "SeriesTime": "120000",
        "AcquisitionDate": "20240101", "AcquisitionTime": "120000", "RadiopharmaceuticalInformationSequence": item(**drug),
        "PixelSpacing": [4, 4], "ImageOrientationPatient": AXIAL, "ImagePositionPatient": [0, 0, 5 * number],
        "InstanceNumber": number + 1, **tags,
    }  # fmt: skip
    return image(np.full((ROWS, COLUMNS), 1000, np.int16), PET, **tags)


def to_bytes(dataset: Dataset) -> bytes:
    """The file."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def save(folder: Path, datasets: Sequence[Dataset]) -> Path:
    """A folder with these files, under names that say nothing of their order."""
    folder.mkdir(exist_ok=True)
    for number, dataset in enumerate(datasets):
        (folder / f"{(number * 7919 + 13) % 9973:04}").write_bytes(to_bytes(dataset))
    return folder
