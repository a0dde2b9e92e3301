"""Two zipped DICOM series for the tests, made of scans that come with pydicom's and nibabel's wheels.

`dicom_series_ct.zip`: 20 axial slices of 512×512, 0.9766×0.9766 mm, 2 mm apart, from one head CT slice (693_J2KI.dcm).
`dicom_series_mr.zip`: 20 oblique slices of 192×137, 1.3333×1.4 mm, 0.6667 mm apart, from a brain MR (example4d.nii.gz).
"""

import io
import zipfile
from copy import deepcopy
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

SLICES = 20


def write_series_zips(folder: Path, dicom_files: Path, nifti_files: Path) -> None:
    """Write both zips into `folder`."""
    _write_zip(folder / "dicom_series_ct.zip", ct_series(dicom_files / "693_J2KI.dcm"))
    _write_zip(folder / "dicom_series_mr.zip", mr_series(nifti_files / "example4d.nii.gz"))


def ct_series(file: Path) -> list[Dataset]:
    """A head CT: the slice of `file`, moved by one row from slice to slice, in 12 bits."""
    source = pydicom.dcmread(file)
    hounsfield = source.pixel_array * float(source.RescaleSlope) + float(source.RescaleIntercept)
    # Steps of 4 HU, so that the zip stays under 3 MB.
    stored = (np.clip(hounsfield + 1024, 0, 4095) // 4 * 4).astype(np.uint16)
    header = _header(CTImageStorage, "CT", number=1, description="CT body 3 mm")
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    header.PixelSpacing = [0.9765625, 0.9765625]
    header.SliceThickness = 3
    header.BitsStored, header.HighBit, header.PixelRepresentation = 12, 11, 0
    header.RescaleIntercept, header.RescaleSlope, header.RescaleType = -1024, 1, "HU"
    header.WindowCenter, header.WindowWidth = [40, 300], [300, 1500]
    positions = [[-249.51171875, -437.51171875, -766.5 + 2.0 * k] for k in range(SLICES)]
    return [_slice(header, k, np.roll(stored, k, axis=0), position) for k, position in enumerate(positions)]


def mr_series(file: Path) -> list[Dataset]:
    """A brain MR: 20 slices of the first volume of `file`, with an oblique orientation."""
    volume = np.asarray(nibabel.load(file).dataobj[..., 0])
    # Rows run to the back and columns to the left, as DICOM stores an axial slice.
    images = np.kron(volume[::-1, ::-1, 2 : 2 + SLICES].transpose(2, 1, 0), np.ones((1, 2, 2)))[:, :, :137]
    stored = np.clip(images, -32768, 32767).astype(np.int16)
    header = _header(MRImageStorage, "MR", number=401, description="anat-T1w")
    along_columns, along_rows, normal = nibabel.eulerangles.euler2mat(0.02, -0.04, 0.05).T
    header.ImageOrientationPatient = [round(float(x), 9) for x in (*along_columns, *along_rows)]
    header.PixelSpacing = [1.3333, 1.4]
    header.SliceThickness = header.SpacingBetweenSlices = 0.6667
    header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 15, 1
    header.RescaleIntercept, header.RescaleSlope = 0, 1
    corner = np.array([-95.5, -145.0, -26.9])
    return [
        _slice(header, k, image, [round(float(x), 6) for x in corner + 0.6667 * k * normal])
        for k, image in enumerate(stored)
    ]


def _header(sop_class: str, modality: str, number: int, description: str) -> Dataset:
    header = Dataset()
    header.SOPClassUID, header.Modality = sop_class, modality
    header.SeriesNumber, header.SeriesDescription = number, description
    header.StudyInstanceUID, header.SeriesInstanceUID = generate_uid(), generate_uid()
    header.FrameOfReferenceUID = generate_uid()
    header.PatientName, header.PatientID = "Test^Series", f"test-{modality.lower()}"
    header.AcquisitionNumber = 1
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = 16
    return header


def _slice(header: Dataset, k: int, pixels: np.ndarray, position: list[float]) -> Dataset:
    dataset = deepcopy(header)
    dataset.SOPInstanceUID = generate_uid()
    dataset.InstanceNumber = k + 1
    dataset.ImagePositionPatient = position
    dataset.SliceLocation = position[2]
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.add_new("PixelData", "OW", pixels.tobytes())
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def _write_zip(path: Path, series: list[Dataset]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for k, dataset in enumerate(series):
            file = io.BytesIO()
            dataset.save_as(file, enforce_file_format=True)
            archive.writestr(f"IM{(k * 7) % len(series):04}.dcm", file.getvalue())
