"""One real volume stored in many ways: how far what reaches the model moves, and why.

    python benchmarks/robustness.py

Prints a Markdown table: the largest and the mean difference of `pixel_values` (0 to 1) from the volume as it came.
"""

import io
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import torch
from nibabel import orientations
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid

from radfm.image_processing_radfm import RadFMImageProcessor


def volume() -> Any:
    """A brain from nibabel's wheel: 33 × 41 × 25 voxels of 2 mm."""
    return nibabel.load(Path(nibabel.__file__).parent / "tests" / "data" / "anatomical.nii")


def turned(image: Any, axes: str) -> Any:
    """The same volume with its voxels stored along other axes."""
    start = orientations.io_orientation(image.affine)
    return image.as_reoriented(orientations.ornt_transform(start, orientations.axcodes2ornt(axes)))


def dicom(image: Any, folder: Path) -> Path:
    """The volume as a DICOM series of axial slices, under names that say nothing of their order."""
    ras = turned(image, "LPS")
    values = np.asarray(ras.dataobj, dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    stored = np.round((values - low) / (high - low) * 65535).astype(np.uint16)
    template = pydicom.dcmread(str(get_testdata_file("MR_small.dcm")))
    template.SeriesInstanceUID = generate_uid()
    spacing = np.linalg.norm(ras.affine[:3, :3], axis=0)
    directions = np.diag([-1, -1, 1]) @ (ras.affine[:3, :3] / spacing)
    origin = np.diag([-1, -1, 1]) @ ras.affine[:3, 3]
    template.ImageOrientationPatient = [*map(float, directions[:, 0]), *map(float, directions[:, 1])]
    template.PixelSpacing, template.SliceThickness = [float(spacing[1]), float(spacing[0])], float(spacing[2])
    template.Rows, template.Columns = values.shape[1], values.shape[0]
    template.BitsAllocated = template.BitsStored = 16
    template.HighBit, template.PixelRepresentation = 15, 0
    template.RescaleSlope, template.RescaleIntercept = (high - low) / 65535, low
    for k in np.random.default_rng(0).permutation(values.shape[2]):
        template.SOPInstanceUID = template.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        template.ImagePositionPatient = [float(x) for x in origin + directions[:, 2] * spacing[2] * k]
        template.PixelData = np.ascontiguousarray(stored[:, :, k].T).tobytes()
        template.save_as(folder / f"{generate_uid().split('.')[-1]}.dcm")
    return folder


def multi_frame(series: Path) -> bytes:
    """The series in one file, each frame with its place, in the order of the file names."""
    slices = [pydicom.dcmread(file) for file in sorted(series.iterdir())]
    whole = slices[0]
    groups = []
    for piece in slices:
        group, place = Dataset(), Dataset()
        place.ImagePositionPatient = piece.ImagePositionPatient
        group.PlanePositionSequence = Sequence([place])
        groups.append(group)
    pixels = b"".join(piece.PixelData for piece in slices)
    shared, orientation, measures, values = Dataset(), Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = whole.ImageOrientationPatient
    measures.PixelSpacing = whole.PixelSpacing
    values.RescaleSlope, values.RescaleIntercept = whole.RescaleSlope, whole.RescaleIntercept
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([orientation]), Sequence([measures])
    shared.PixelValueTransformationSequence = Sequence([values])
    whole.SharedFunctionalGroupsSequence, whole.PerFrameFunctionalGroupsSequence = Sequence([shared]), Sequence(groups)
    for word in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(whole, word)
    whole.NumberOfFrames, whole.PixelData = len(slices), pixels
    buffer = io.BytesIO()
    whole.save_as(buffer)
    return buffer.getvalue()


def ways(folder: Path) -> Iterator[tuple[str, Any, str]]:
    """(how it is stored, the source, why it may differ)."""
    image = volume()
    values = np.asarray(image.dataobj, dtype=np.float32)
    yield "as it came", image, ""
    for axes in ("LAS", "RPS", "LPI", "PIR", "SAR"):
        yield f"voxels along {axes}", turned(image, axes), "axes are swapped and flipped back, never resampled"
    nibabel.save(nibabel.Nifti2Image(values, image.affine), folder / "a.nii.gz")
    yield "NIfTI-2, float32, gzip", folder / "a.nii.gz", "the same numbers"
    scaled = nibabel.Nifti1Image(values, image.affine)
    scaled.set_data_dtype(np.int16)
    nibabel.save(scaled, folder / "b.nii")
    yield "NIfTI-1, int16 with slope", folder / "b.nii", "rounded to 16 bits when it was stored"
    series = folder / "series"
    series.mkdir()
    yield "DICOM series, shuffled", dicom(image, series), "rounded to 16 bits when it was stored"
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        for file in series.iterdir():
            archive.write(file, file.name)
    yield "the same in a zip", zipped.getvalue(), "rounded to 16 bits when it was stored"
    (folder / "frames.dcm").write_bytes(multi_frame(series))
    yield "one multi-frame DICOM file", folder / "frames.dcm", "rounded to 16 bits when it was stored"
    finer = torch.nn.functional.interpolate(torch.from_numpy(values)[None, None], scale_factor=2, mode="trilinear")
    affine = image.affine @ np.diag([0.5, 0.5, 0.5, 1])
    affine[:3, 3] = image.affine[:3, 3] + image.affine[:3, :3] @ np.full(3, -0.25)
    yield (
        "re-spaced to 1 mm",
        nibabel.Nifti1Image(finer[0, 0].numpy(), affine),
        "interpolated, then resampled anew",
    )
    sliced = nibabel.Nifti1Image(values[:, :, ::2], image.affine @ np.diag([1, 1, 2, 1]))
    yield "every second slice", sliced, "half of the data is gone"


def main() -> None:
    processor = RadFMImageProcessor(image_size=96, max_slices=32, num_channels=1, keep_aspect=True)
    wanted = processor.preprocess(volume())
    print("| stored as | largest difference | mean | why |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, source, why in ways(Path(folder)):
            got = processor.preprocess(source)
            if got.shape != wanted.shape:
                got = torch.nn.functional.interpolate(got[None], wanted.shape[1:], mode="trilinear")[0]
                why += f"; depth {processor.preprocess(source).shape[-1]} instead of {wanted.shape[-1]}"
            difference = (got - wanted).abs()
            print(f"| {name} | {difference.max():.2g} | {difference.mean():.2g} | {why} |")


if __name__ == "__main__":
    main()
