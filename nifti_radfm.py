"""NIfTI, Analyze, MGH and MINC, read with nibabel → `Scan`.

NIfTI is defined by https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h; the names of header fields are that file's.
"""

import logging
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from .affine_radfm import is_affine, spacing_from_affine
from .archive_radfm import SourceFile
from .hounsfield_radfm import recognise_ct
from .scan_radfm import ReadContext, Scan, ScanError, replace_nonfinite

# sizeof_hdr, the first field: of NIfTI-1 and Analyze, and of NIfTI-2.
HEADER_1, HEADER_2 = 348, 540
SINGLE_FILE, PAIR = (b"n+1\0", b"n+2\0"), (b"ni1\0", b"ni2\0")
# xyzt_units & 7 → mm. Files that leave it 0 are in mm in practice, as FSL, SPM and FreeSurfer write them.
SPACE_UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
# xyzt_units & 56 → seconds.
TIME_UNITS_S = {8: 1.0, 16: 1e-3, 24: 1e-6}
# intent_code of CIFTI-2: matrices between points of the cortex.
CIFTI_INTENTS = range(3000, 3100)
# sform and qform of one file may differ by the rounding of a quaternion in float32; half a voxel moves a finding.
MOST_DISAGREEMENT_VOXELS = 0.5
# Voxels are scaled in float64 and stored as float32, so many bytes of float64 at a time.
SLAB_BYTES = 32 << 20
# float32
VOXEL_BYTES = 4
# Volumes of one file are numbered in an int32.
MOST_VOLUMES = 2**31 - 1
MGH_VERSION = b"\0\0\0\1"
MINC1, HDF5 = (b"CDF\x01", b"CDF\x02"), b"\x89HDF\r\n\x1a\n"
DAMAGED = "is damaged or cut short: its voxels cannot be read. Copy or download it again."

# nibabel reports what it mends in a header to the logger that it is handed; this one is known to nobody and keeps nothing.
_SILENT = logging.Logger("radfm.nifti", logging.CRITICAL + 1)
_SILENT.addHandler(logging.NullHandler())


@dataclass
class _Placement:
    """Where a header says that voxels lie."""

    affine: np.ndarray | None
    spacing: tuple[float, float, float] | None
    warnings: list[str]


def is_nifti(head: bytes) -> bool:
    """Whether a file starts as NIfTI, single or the header of a pair."""
    return head[344:348] in (SINGLE_FILE[0], PAIR[0]) or head[4:8] in (SINGLE_FILE[1], PAIR[1])


def is_analyze(head: bytes) -> bool:
    """Whether a file starts as an Analyze 7.5 header: its size, and one to seven dimensions in the same byte order."""
    for order in "<>":
        if len(head) >= HEADER_1 and struct.unpack_from(f"{order}i", head)[0] == HEADER_1:
            return 1 <= int(struct.unpack_from(f"{order}h", head, 40)[0]) <= 7
    return False


def is_mgh(head: bytes) -> bool:
    """Whether a file starts as FreeSurfer's MGH: version 1, four sizes of at least 1, and a type from 0 to 10."""
    if len(head) < 284 or head[:4] != MGH_VERSION:
        return False
    *sizes, kind = struct.unpack_from(">5i", head, 4)
    return bool(min(sizes) > 0 and 0 <= kind <= 10)


def read_nifti(file: SourceFile, context: ReadContext) -> Scan:
    """Read one volume of a NIfTI-1, NIfTI-2 or Analyze file, single or a pair, gzipped or not. Raises `ScanError`."""
    header, voxel_file = _header(file, context)
    with voxel_file.open_unpacked() as stream:
        try:
            proxy = import_module("nibabel.arrayproxy").ArrayProxy(stream, header)
            shape, dtype, placement = tuple(header.get_data_shape()), header.get_data_dtype(), _placement(header)
        except Exception as error:  # HeaderDataError for a slope without an intercept, ValueError, KeyError, …
            raise context.error("is no readable NIfTI or Analyze file: its header is damaged.") from error
        return _scan(proxy, shape, dtype, placement, context)


def list_nifti_volumes(file: SourceFile, context: ReadContext) -> list[str]:
    """One line for each volume: its index, its size, and its time where the header has one. Raises `ScanError`."""
    header, _ = _header(file, context)
    shape = tuple(int(n) for n in header.get_data_shape())
    count = _volume_count(shape, context)
    units = int(header["xyzt_units"]) & 56 if "xyzt_units" in header.keys() else 0  # noqa: SIM118 (a header is no mapping)
    step = float(header["pixdim"][4]) * TIME_UNITS_S.get(units, 0.0)
    size = " × ".join(map(str, shape[:3]))
    return [f"{index} · {size}" + (f" · {index * step:g} s" if step > 0 and count > 1 else "") for index in range(count)]


def read_mgh(file: SourceFile, context: ReadContext) -> Scan:
    """Read one volume of an MGH or MGZ file. Raises `ScanError`."""
    return _read_image("MGHImage", file, context)


def read_minc(file: SourceFile, context: ReadContext) -> Scan:
    """Read a MINC file: version 1, which is NetCDF, or version 2, which is HDF5 and needs h5py. Raises `ScanError`."""
    if file.head().startswith(HDF5):
        try:
            import_module("h5py")
        except ImportError as error:
            raise context.error("is HDF5; reading it as MINC 2 needs h5py: pip install h5py.") from error
        return _read_image("Minc2Image", file, context)
    return _read_image("Minc1Image", file, context)


def scan_from_nibabel(image: Any, context: ReadContext) -> Scan:
    """A nibabel image, its scaling applied; of several volumes the chosen or the first one. Raises `ScanError`."""
    if getattr(image, "affine", None) is None and not hasattr(image.header, "get_sform"):
        raise context.error(f"is a {type(image).__name__} and no volume of voxels.")
    header = image.header
    return _scan(image.dataobj, tuple(image.shape), header.get_data_dtype(), _image_placement(image), context)


def _nibabel(context: ReadContext) -> Any:
    try:
        return import_module("nibabel")
    except ImportError as error:
        raise context.error("reading NIfTI, Analyze, MGH and MINC needs nibabel: pip install nibabel.") from error


def _header(file: SourceFile, context: ReadContext) -> tuple[Any, SourceFile]:
    """nibabel's header of a file, checked and mended, and the file that holds its voxels."""
    nibabel = _nibabel(context)
    head = file.head()
    magic = head[4:8] if head[4:8] in (SINGLE_FILE[1], PAIR[1]) else head[344:348]
    kinds = {
        SINGLE_FILE[0]: nibabel.Nifti1Header,
        SINGLE_FILE[1]: nibabel.Nifti2Header,
        PAIR[0]: nibabel.nifti1.Nifti1PairHeader,
        PAIR[1]: nibabel.nifti2.Nifti2PairHeader,
    }
    kind = kinds.get(magic)
    head = head[: HEADER_2 if magic in (SINGLE_FILE[1], PAIR[1]) else HEADER_1]
    if kind is None:
        # SPM wrote a factor for the voxels into fields that Analyze leaves to its users.
        spm = (nibabel.spm2analyze.Spm2AnalyzeHeader, nibabel.spm99analyze.Spm99AnalyzeHeader)
        kind = next((kind for kind in spm if kind.may_contain_header(head)), nibabel.AnalyzeHeader)
    try:
        header = kind(head, check=False)
        header.check_fix(logger=_SILENT)
    except Exception as error:  # ValueError, HeaderDataError, KeyError: whatever a damaged field leads to
        raise context.error("is no readable NIfTI or Analyze file: its header is damaged or cut short.") from error
    if "intent_code" in header.keys() and int(header["intent_code"]) in CIFTI_INTENTS:  # noqa: SIM118
        raise context.error("is a CIFTI-2 file (values on the cortex) and no volume of voxels.")
    return header, file if magic in SINGLE_FILE else _voxels_of_pair(file, context)


def _voxels_of_pair(file: SourceFile, context: ReadContext) -> SourceFile:
    stem = file.base_name.removesuffix(".gz").rsplit(".", 1)[0]
    names = [f"{stem}{suffix}" for suffix in (".img", ".img.gz", ".IMG")]
    found = next((sibling for name in names if (sibling := file.sibling(name)) is not None), None)
    if found is None:
        raise context.error(f"is a header whose voxels lie in another file, and {names[0]} is not in the same folder.")
    return found


def _read_image(class_name: str, file: SourceFile, context: ReadContext) -> Scan:
    nibabel = _nibabel(context)
    with file.open_unpacked() as stream:
        try:
            image = getattr(nibabel, class_name).from_file_map({"image": nibabel.FileHolder(fileobj=stream)})
        except MemoryError:
            raise
        except Exception as error:  # nibabel's readers of damaged files raise whatever they stumble over
            raise context.error("is no readable MGH or MINC file: its header is damaged or cut short.") from error
        return scan_from_nibabel(image, context)


def _image_placement(image: Any) -> _Placement:
    header = image.header
    if hasattr(header, "get_sform") or not hasattr(image, "affine") or _is_analyze_header(header):
        return _placement(header)
    affine = np.asarray(image.affine, dtype=float)
    if not is_affine(affine):
        return _unplaced(header, "Its affine is singular, so nothing says how the voxels lie in the patient.")
    return _Placement(affine, spacing_from_affine(affine), [])


def _is_analyze_header(header: Any) -> bool:
    return isinstance(header, import_module("nibabel").AnalyzeHeader)


def _placement(header: Any) -> _Placement:
    """The affine of a NIfTI header by its sform, or else its qform (nifti1.h, methods 3 and 2); none by method 1."""
    if not hasattr(header, "get_sform"):
        return _unplaced(header, "Analyze does not state an orientation: left and right are unknown.")
    mm = SPACE_UNITS_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    forms: dict[str, np.ndarray] = {}
    warnings = []
    for name, code, read in (
        ("sform", "sform_code", header.get_sform),
        ("qform", "qform_code", header.get_qform),
    ):
        if int(header[code]) <= 0:
            continue
        try:
            affine = np.asarray(read(), dtype=float)
        except Exception:  # a quaternion longer than 1 is an error of one kind, a column of zeros of another
            affine = np.full((4, 4), np.nan)
        affine[:3] *= mm
        if is_affine(affine):
            forms[name] = affine
        else:
            warnings.append(f"The {name} is singular and was not used.")
    if not forms:
        reason = "NIfTI's sform and qform do not state an orientation: left and right are unknown."
        unplaced = _unplaced(header, reason, mm)
        return _Placement(None, unplaced.spacing, warnings + unplaced.warnings)
    affine = next(iter(forms.values()))
    if len(forms) == 2:
        off = _disagreement(forms["sform"], forms["qform"], header.get_data_shape())
        if off > MOST_DISAGREEMENT_VOXELS * min(spacing_from_affine(affine)):
            warnings.append(f"sform and qform place voxels up to {off:.3g} mm apart; the sform was used.")
    return _Placement(affine, spacing_from_affine(affine), warnings)


def _unplaced(header: Any, reason: str, mm: float = 1.0) -> _Placement:
    zooms = [abs(float(zoom)) * mm for zoom in header.get_zooms()[:3]]
    zooms += [1.0] * (3 - len(zooms))
    known = all(np.isfinite(zoom) and zoom > 0 for zoom in zooms)
    return _Placement(None, (zooms[0], zooms[1], zooms[2]) if known else None, [reason])


def _disagreement(one: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """The largest distance in mm between the places that two affines give to a corner of the volume."""
    last = [max(int(n) - 1, 0) for n in (*shape[:3], 1, 1, 1)[:3]]
    corners = np.array([[i, j, k, 1] for i in (0, last[0]) for j in (0, last[1]) for k in (0, last[2])], dtype=float)
    return float(np.linalg.norm((corners @ (one - other).T)[:, :3], axis=1).max())


def _volume_count(shape: tuple[int, ...], context: ReadContext) -> int:
    if len(shape) < 2 or min(shape) < 1:
        raise context.error(f"has shape {shape}, which is no image and no volume.")
    count = float(np.prod(shape[3:], dtype=float))
    if count > MOST_VOLUMES:
        raise context.error(f"shape {shape} has more volumes than any file holds: the header is damaged.")
    return int(count)


def _scan(values: Any, shape: tuple[int, ...], dtype: np.dtype, placement: _Placement, context: ReadContext) -> Scan:
    """The chosen volume of an array or of nibabel's array proxy as a scan."""
    shape = tuple(int(n) for n in shape)
    count = _volume_count(shape, context)
    size = (*shape[:3], 1)[:3]
    channels = min(len(dtype.names), 3) if dtype.names is not None else 1
    context.require_bytes(float(np.prod(size, dtype=float)) * channels * VOXEL_BYTES, f"a volume of shape {size}")
    if dtype.names is None and dtype.kind not in "biuf":
        raise context.error(f"values of type {dtype.name} are no grey values.")
    index = context.volume_index(count)
    if count > 1:
        context.warnings.append(f"Only volume {index} of {count} was read, of shape {shape}.")
    context.warnings.extend(placement.warnings)
    # The first of the further axes runs fastest, as in the file.
    which = tuple(int(i) for i in np.unravel_index(index, shape[3:], order="F")) if len(shape) > 3 else ()
    try:
        voxels = _read_voxels(values, (size[0], size[1], size[2]), which, dtype.names, len(shape))
    except (ScanError, MemoryError):
        raise
    except Exception as error:  # the stream ends, or gzip's checksum fails: nibabel, zlib and gzip have errors of their own
        raise context.error(DAMAGED) from error
    scan = replace_nonfinite(
        Scan(voxels, placement.affine, placement.spacing, warnings=context.warnings),
        context.name,
    )
    recognise_ct(scan)
    return scan


def _read_voxels(
    values: Any, size: tuple[int, int, int], which: tuple[int, ...], names: tuple[str, ...] | None, dimensions: int
) -> np.ndarray:
    """(channels, height, width, depth) float32, read and scaled a few slices at a time: no float64 copy of it all."""
    fields = list(names[:3]) if names is not None else [None]
    # In the file's order, in which the first axis runs fastest.
    voxels = np.empty((len(fields), *size), np.float32, order="F") if len(fields) == 1 else np.empty((3, *size), np.float32)
    slices = max(SLAB_BYTES // (8 * size[0] * size[1]), 1)
    for start in range(0, size[2], slices):
        stop = min(start + slices, size[2])
        place = (slice(None), slice(None), slice(start, stop), *which)[: max(dimensions, 2)]
        with np.errstate(all="ignore"):  # what is not finite afterwards is counted and replaced
            slab = np.asarray(values[place]).reshape(size[0], size[1], stop - start, order="F")
            for channel, name in enumerate(fields):
                voxels[channel, :, :, start:stop] = slab if name is None else slab[name]
    return voxels
