"""A reference in a draft → what is stored: a file passed through, an image rendered to 8 bits, or a volume as NIfTI."""

import functools
import gzip
import hashlib
import io
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from radfm.affine_radfm import PLANES
from radfm.load_scan_radfm import Scan, ScanError, load_scan

from .folder import MEMBER
from .hashing import array_sha256, difference_hash
from .image_metadata import JPEG, PNG, DamagedImageError, strip_metadata
from .schema import Stored
from .slices import cut_slice
from .volumes import to_nifti

PASSED_MODES = {"JPEG": ("L", "RGB"), "PNG": ("1", "L", "LA", "P", "RGB", "RGBA")}
# DICOM's codes (PS3.3 C.7.3.1.1.1) → the words of `schema.Record.modality`.
MODALITIES = {
    "CT": "CT",
    "MR": "MRI",
    "CR": "X-ray",
    "DX": "X-ray",
    "RG": "X-ray",
    "MG": "mammography",
    "US": "ultrasound",
    "RF": "fluoroscopy",
    "XA": "angiography",
    "PT": "PET",
    "NM": "nuclear medicine",
}
MAX_PIXELS = 2 << 27  # 268 million: four times Pillow's warning, below a whole-slide image


@dataclass(frozen=True)
class StorageOptions:
    """How scans are stored.

    Args:
        image_size: longest side in pixels of images that are rendered here (DICOM, 16-bit PNG, …). JPEG and 8-bit PNG are
            passed through as they are.
        volume_size: at most so many voxels (in plane, along the slices); None keeps the full size.
    """

    image_size: int = 1024
    volume_size: tuple[int, int] | None = (256, 64)


@dataclass(frozen=True)
class ScanRow:
    """What a record has of one scan."""

    stored: Stored
    sha256: str
    image_hash: str
    shape: tuple[int, ...]
    modality: str | None


@dataclass(frozen=True)
class _Passed:
    """A JPEG or PNG that is stored as it came, without metadata."""

    content: bytes
    suffix: str
    shape: tuple[int, int]
    image_hash: str


def store_scans(root: Path, references: Sequence[str], options: StorageOptions) -> list[ScanRow]:
    """Read the scans of one record. If one of them is a volume, all are stored as volumes.

    Raises:
        ScanError: one of them cannot be read; the message names it.
    """
    scans = [_read(root, reference) for reference in references]
    if not any(isinstance(scan, Scan) and scan.is_volume for scan in scans):
        return [_image_row(scan, options) for scan in scans]
    volumes = [load_scan(scan.content) if isinstance(scan, _Passed) else scan for scan in scans]
    return [_volume_row(volume, options) for volume in volumes]


def _read(root: Path, reference: str) -> "Scan | _Passed":
    try:
        volume, *plane = reference.rsplit(MEMBER, 2)
        if len(plane) == 2 and plane[0] in PLANES:
            return cut_slice(_volume(root, volume), plane[0], float(plane[1]))
        source = open_reference(root, reference)
        content = _picture_content(source)
        passed = None if content is None else _pass_through(content, reference)
        return load_scan(source) if passed is None else passed
    except ScanError as error:
        raise ScanError(f"{reference}: {_reason(str(error))}") from error
    except MemoryError as error:
        raise ScanError(f"{reference}: does not fit into memory.") from error


@functools.lru_cache(maxsize=64)
def _volume(root: Path, reference: str) -> Scan:
    """A volume of which many slices are records."""
    return load_scan(open_reference(root, reference))


def _reason(message: str) -> str:
    """The message of `load_scan` without the path in front of it, which differs from machine to machine."""
    return message.split(": ", 1)[-1]


def open_reference(root: Path, reference: str) -> Any:
    """What `load_scan` reads: a path, the bytes of an archive's member, or an array.

    References are relative to `root`: `a/b.png`, `images.zip::a/b.png`, `volume.npz::ct`, `arrays.npz::train_images::12`,
    `train.parquet::image::12`. `store_scans` also takes a slice of a volume, `a.nii.gz::coronal::0.4` (`medmd.slices`).

    Raises:
        ScanError: there is no such file, member or row.
    """
    name, *inside = reference.split(MEMBER)
    path = root / name
    if not path.exists():
        raise ScanError(f"{name}: there is no such file or folder.")
    if not inside:
        return path
    try:
        if name.endswith(".parquet"):
            value = _parquet_value(path, inside[0], int(inside[1]))
            return value["bytes"] if isinstance(value, dict) else value
        if name.endswith(".npz"):
            array = _npz(path)[inside[0]]
            return array if len(inside) == 1 else array[int(inside[1])]
        return _zip(path).read(inside[0])
    except (KeyError, IndexError, ValueError, OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ScanError(f"{name}: has no readable {MEMBER.join(inside)} ({error}).") from error


@functools.lru_cache(maxsize=8)
def _zip(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


@functools.lru_cache(maxsize=2)
def _npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _parquet_value(path: Path, column: str, row: int) -> Any:
    file = _parquet(path)
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if row < count:
            return _row_group(path, group, column)[row].as_py()
        row -= count
    raise IndexError("no such row")


@functools.lru_cache(maxsize=8)
def _parquet(path: Path) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path)


@functools.lru_cache(maxsize=2)
def _row_group(path: Path, group: int, column: str) -> Any:
    return _parquet(path).read_row_group(group, columns=[column]).column(column)


def _picture_content(source: Any) -> bytes | None:
    """The bytes of a JPEG or PNG, None for anything else."""
    if isinstance(source, bytes):
        return source if source.startswith((JPEG, PNG)) else None
    if isinstance(source, Path) and source.is_file():
        with open(source, "rb") as file:
            if file.read(8).startswith((JPEG, PNG)):
                file.seek(0)
                return file.read()
    return None


def _pass_through(content: bytes, name: str) -> _Passed | None:
    """The picture as it is stored, None where it has to be rendered (16 bits, CMYK). Decodes it to see that it is whole."""
    if content.startswith(PNG) and content[24:25] == b"\x10":
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content))
            if image.width * image.height > MAX_PIXELS:
                raise ScanError(f"{name}: {image.width}×{image.height} pixels are more than {MAX_PIXELS}.")
            orientation = image.getexif().get(0x0112, 1)
            if image.mode not in PASSED_MODES[image.format or ""]:
                return None
            shape = (image.height, image.width)
            image.draft("L", (256, 256))  # JPEGs decode at a fraction of their size, every byte of them read
            return _Passed(
                strip_metadata(content, orientation if orientation in range(1, 9) else 1),
                ".jpg" if image.format == "JPEG" else ".png",
                shape,
                difference_hash(image),
            )
    except (ScanError, KeyError):
        raise
    except DamagedImageError as error:
        raise ScanError(f"{name}: {error}.") from error
    except Exception as error:  # Pillow raises whatever its plugins meet: OSError, SyntaxError, struct.error, …
        raise ScanError(f"{name}: the picture is damaged.") from error


def _image_row(scan: "Scan | _Passed", options: StorageOptions) -> ScanRow:
    if isinstance(scan, _Passed):
        sha256 = hashlib.sha256(scan.content).hexdigest()
        return ScanRow(Stored(scan.content, sha256[:16] + scan.suffix), sha256, scan.image_hash, scan.shape, None)
    image = render(scan)
    if max(image.size) > options.image_size:
        scale = options.image_size / max(image.size)
        size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
        image = image.resize(size, Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    sha256 = array_sha256(np.asarray(image))
    stored = Stored(buffer.getvalue(), sha256[:16] + ".png")
    return ScanRow(stored, sha256, difference_hash(image), (image.height, image.width), MODALITIES.get(scan.modality or ""))


def render(scan: Scan, slice_index: int = 0) -> Image.Image:
    """One slice as an 8-bit image: in the scan's first window, or else between its 0.5th and 99.5th percentile."""
    pixels = scan.voxels[..., slice_index]
    low, high = scan.windows[0] if scan.windows else np.percentile(scan.voxels, (0.5, 99.5))
    grey = (np.clip((pixels - low) / max(high - low, 1e-6), 0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(grey[0] if len(grey) == 1 else grey.transpose(1, 2, 0))


def _volume_row(scan: Scan, options: StorageOptions) -> ScanRow:
    content = to_nifti(scan, options.volume_size)
    sha256 = hashlib.sha256(content).hexdigest()
    stored = Stored(gzip.compress(content, compresslevel=1, mtime=0), sha256[:16] + ".nii.gz")
    shape = tuple(int(size) for size in np.frombuffer(content[40:56], "<i2")[1:4])
    middle = render(scan, scan.voxels.shape[-1] // 2)
    return ScanRow(stored, sha256, difference_hash(middle), shape, MODALITIES.get(scan.modality or ""))
