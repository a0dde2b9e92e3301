"""How the portals here make files: a registry by source, images, DICOM, volumes, tables."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

PORTALS: dict[str, Callable[[Path], None]] = {}


def portal(make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Register a function under its source's name."""
    PORTALS[make.__name__.lstrip("_").replace("_", "-")] = make
    return make


def pixels(seed: int, shape: tuple[int, ...] = (40, 48)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def picture(path: Path, seed: int, mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels(seed))
    image.convert(mode).save(path)
    return path


def picture_bytes(seed: int, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed)).save(buffer, kind)
    return buffer.getvalue()


def dicom(path: Path, seed: int, photometric: str = "MONOCHROME2") -> Path:
    """A radiograph that names its patient, as real ones do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(seed)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Muster^Erika", f"P{seed}", "19500101"
    dataset.Modality, dataset.PhotometricInterpretation = "DX", photometric
    array = pixels(seed).astype(np.uint16) * 16
    dataset.Rows, dataset.Columns = array.shape
    dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelData = array.tobytes()
    dataset.save_as(path)
    return path


def volume(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = (pixels(seed, (12, 14, 8)).astype(np.int16) * 8) - 1024
    nibabel.save(nibabel.Nifti1Image(data, np.diag([1.0, 1.0, 3.0, 1.0])), path)
    return path


def table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.getvalue().encode()))
    else:
        path.write_text(text.getvalue(), encoding="utf-8")
    return path


def json_file(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path
