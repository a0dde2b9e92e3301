"""MetaImage (`.mha`, `.mhd`) and NRRD (`.nrrd`, `.nhdr`), read with SimpleITK → `Scan`.

MetaImage: https://itk.org/Wiki/MetaIO/Documentation. NRRD: https://teem.sourceforge.net/nrrd/format.html.
"""

import re
import shutil
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from .affine_radfm import LPS_TO_RAS, is_affine, spacing_from_affine
from .archive_radfm import SourceFile
from .hounsfield_radfm import recognise_ct
from .scan_radfm import ReadContext, Scan, ScanError, replace_nonfinite

# MetaImage has no mark: it is text whose first lines are among these.
METAIMAGE = re.compile(rb"\s*(ObjectType\s*=\s*Image|NDims\s*=\s*\d)", re.IGNORECASE)
NRRD = re.compile(rb"NRRD000\d")
# Headers are text; the longest, of a diffusion NRRD with a gradient a line, are below 64 KiB.
HEADER_BYTES = 1 << 16
# Where the voxels lie, in each format's header, and what says so if they follow in the same file.
DATA_FILE = {
    "MetaImage": re.compile(rb"^\s*ElementDataFile\s*=\s*(.+?)\s*$", re.IGNORECASE | re.MULTILINE),
    "NRRD": re.compile(rb"^\s*data ?file\s*:=?\s*(.+?)\s*$", re.IGNORECASE | re.MULTILINE),
}
# Which fields state an orientation; without one ITK takes the identity, which the file does not say.
ORIENTATION = {
    "MetaImage": re.compile(rb"^\s*(TransformMatrix|Orientation|Rotation)\s*=", re.IGNORECASE | re.MULTILINE),
    "NRRD": re.compile(rb"^\s*space\s*:\s*\S", re.IGNORECASE | re.MULTILINE),
}
SUFFIXES = {("MetaImage", False): ".mha", ("MetaImage", True): ".mhd", ("NRRD", False): ".nrrd", ("NRRD", True): ".nhdr"}
VOXEL_BYTES = 4


@dataclass
class _Header:
    """What has to be known before SimpleITK sees the file."""

    kind: str
    data_file: str | None  # None: the voxels follow in the same file
    has_orientation: bool


def is_metaimage(head: bytes) -> bool:
    """Whether a file starts as a MetaImage."""
    return METAIMAGE.match(head) is not None and b"NDims" in head[:1024]


def is_nrrd(head: bytes) -> bool:
    """Whether a file starts as NRRD."""
    return NRRD.match(head) is not None


def read_itk(file: SourceFile, context: ReadContext) -> Scan:
    """Read one volume of a MetaImage or NRRD file. Raises `ScanError`."""
    reader, header, folder = _open(file, context)
    try:
        size = tuple(reader.GetSize())
        components = reader.GetNumberOfComponents()
        count = int(np.prod(size[3:], dtype=float)) * (1 if components in (1, 3) else components)
        if not 2 <= len(size) <= 4 or min(size) < 1:
            raise context.error(f"has size {size}, which is no image and no volume.")
        channels = components if components in (1, 3) else 1
        bytes_read = np.prod(size[:3], dtype=float) * VOXEL_BYTES * (channels if channels == components else components)
        context.require_bytes(float(bytes_read), f"a volume of size {size[:3]}")
        index = context.volume_index(count)
        if count > 1:
            context.warnings.append(f"Only volume {index} of {count} was read, of size {size}.")
        if len(size) == 4:
            reader.SetExtractIndex([0, 0, 0, index])
            reader.SetExtractSize([*size[:3], 0])
        image = reader.Execute()
        values = import_module("SimpleITK").GetArrayViewFromImage(image)
        if components == 1:
            voxels = values[None]
        else:
            voxels = np.moveaxis(values[..., index : index + 1] if channels == 1 else values, -1, 0)
        scan = _scan(voxels, image, header, context)
    except (ScanError, MemoryError):
        raise
    except Exception as error:  # SimpleITK raises RuntimeError with the C++ code's place in it
        raise context.error("is damaged or cut short: SimpleITK cannot read its voxels.") from error
    finally:
        folder.cleanup()
    scan = replace_nonfinite(scan, context.name)
    recognise_ct(scan)
    return scan


def count_itk_volumes(file: SourceFile, context: ReadContext) -> int:
    """How many volumes a MetaImage or NRRD file holds. Raises `ScanError`."""
    reader, _, folder = _open(file, context)
    with folder:
        components = reader.GetNumberOfComponents()
        return int(np.prod(reader.GetSize()[3:], dtype=float)) * (1 if components in (1, 3) else components)


def _scan(voxels: np.ndarray, image: Any, header: _Header, context: ReadContext) -> Scan:
    """Voxels (channels, [slices,] rows, columns) of an ITK image as a scan."""
    if voxels.ndim == 3:
        # An image: rows and columns as it is displayed, as with other pictures.
        columns_mm, rows_mm = image.GetSpacing()
        return Scan(voxels[..., None].astype(np.float32), spacing=(rows_mm, columns_mm, 1.0), warnings=context.warnings)
    voxels = voxels.transpose(0, 3, 2, 1)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    affine = LPS_TO_RAS @ affine
    spacing = spacing_from_affine(affine)
    if not header.has_orientation or not is_affine(affine):
        context.warnings.append(f"{header.kind} without an orientation: left and right are unknown.")
        return Scan(voxels.astype(np.float32), spacing=spacing, warnings=context.warnings)
    return Scan(voxels.astype(np.float32), affine, spacing, warnings=context.warnings)


def _open(file: SourceFile, context: ReadContext) -> tuple[Any, _Header, tempfile.TemporaryDirectory[str]]:
    """SimpleITK's reader of a file, its header read, and the folder to delete afterwards."""
    header = _parse_header(file)
    kind = header.kind
    try:
        simple_itk = import_module("SimpleITK")
    except ImportError as error:
        raise context.error(f"is a {kind} file, and reading it needs SimpleITK: pip install SimpleITK.") from error
    data = None
    if header.data_file is not None:
        # A header may name any file of this machine: only one in the same folder is opened.
        data = file.sibling(header.data_file)
        if data is None:
            location = header.data_file if "/" not in header.data_file else "another folder"
            raise context.error(
                f"is a {kind} header whose voxels lie elsewhere ({location}), and that is no file of the same folder; "
                "write header and voxels as one file."
            )
    folder = tempfile.TemporaryDirectory(prefix="radfm-")
    try:
        # SimpleITK reads paths, and tells formats apart by their suffix.
        suffix = SUFFIXES[kind, data is not None]
        path = _on_disk(file, Path(folder.name), f"scan{suffix}", keep_path=suffix, alone=data is None)
        if data is not None:
            _on_disk(data, path.parent, data.base_name, keep_path=None, alone=True)
        reader = simple_itk.ImageFileReader()
        reader.SetImageIO(f"{'Meta' if kind == 'MetaImage' else 'Nrrd'}ImageIO")
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
    except (RuntimeError, OSError) as error:
        folder.cleanup()
        raise context.error(f"is no readable {kind} file: its header is damaged.") from error
    return reader, header, folder


def _parse_header(file: SourceFile) -> _Header:
    with file.open() as stream:
        head = stream.read(HEADER_BYTES)
    kind = "NRRD" if is_nrrd(head) else "MetaImage"
    if kind == "NRRD":
        # A blank line ends the header where the voxels follow.
        head = re.split(rb"\r?\n\r?\n", head, maxsplit=1)[0]
    found = DATA_FILE[kind].search(head)
    if found is not None and kind == "MetaImage":
        # ElementDataFile is the last line of a header.
        head = head[: found.end()]
    data_file = None if found is None else found[1].decode("utf-8", "replace")
    if kind == "MetaImage" and data_file is not None and data_file.upper() == "LOCAL":
        data_file = None
    return _Header(kind, data_file, ORIENTATION[kind].search(head) is not None)


def _on_disk(file: SourceFile, folder: Path, name: str, keep_path: str | None, alone: bool) -> Path:
    """A path at which SimpleITK finds the file: its own, if its suffix is right and it needs no other file, or a copy."""
    if isinstance(file.content, Path):
        if alone and keep_path is not None and file.content.suffix.lower() == keep_path:
            return file.content
        shutil.copyfile(file.content, folder / name)
    else:
        (folder / name).write_bytes(file.content)
    return folder / name
