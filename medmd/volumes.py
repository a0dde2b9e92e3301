"""A `Scan` as the bytes of a NIfTI file, at a storage size, and without a word in its header."""

import nibabel
import numpy as np

from radfm.load_scan_radfm import Scan


def to_nifti(scan: Scan, size: tuple[int, int] | None) -> bytes:
    """Uncompressed NIfTI-1: voxels in native units (HU, raw), the scan's affine, and no other header field filled in.

    Args:
        scan: an image or volume; an image becomes a volume of one slice.
        size: at most so many voxels (along the longer axis in plane, along the slices); None keeps all. Longer axes are
            averaged down, the two in plane by one factor, and the affine follows; none is enlarged. The slices lie along the
            axis of the widest spacing, or else of the fewest voxels.

    A scan without an affine gets voxels of 1 mm and the codes 0 ("unknown") in the header. Values are stored as uint8 or
    int16 where they are whole numbers that fit, CT always as whole HU, all else as int16 with a slope.
    """
    voxels, affine = scan.voxels, scan.affine
    if size is not None:
        voxels, affine = _shrink(scan, size)
    data, slope, intercept = _quantise(voxels, scan.modality == "CT")
    image = nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine)
    code = 0 if affine is None else 1
    image.header.set_sform(image.affine, code)
    image.header.set_qform(image.affine, code)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(slope, intercept)
    return _to_bytes(image, data)


def _to_bytes(image: nibabel.Nifti1Image, data: np.ndarray) -> bytes:
    """Header, four zero bytes ("no extensions") and voxels: `image.to_bytes` would choose its own slope."""
    header = image.header.copy()
    header.set_data_dtype(data.dtype)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    return header.binaryblock + b"\0\0\0\0" + data.tobytes(order="F")


def _shrink(scan: Scan, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
    voxels, affine = scan.voxels, None if scan.affine is None else scan.affine.copy()
    slices = _slice_axis(scan)
    counts = voxels.shape[1:]
    largest = max(counts[axis] for axis in range(3) if axis != slices)
    for axis, count in enumerate(counts):
        limit = size[1] if axis == slices else max(round(count * size[0] / max(size[0], largest)), 1)
        if count <= limit:
            continue
        voxels = average(voxels, axis + 1, limit)
        if affine is not None:
            step = count / limit
            affine[:3, 3] += (
                affine[:3, axis] * (step - 1) / 2
            )  # the first new voxel's centre is that of the old ones it covers
            affine[:3, axis] *= step
    return voxels, affine


def _slice_axis(scan: Scan) -> int:
    shape = scan.voxels.shape[1:]
    spacing = scan.spacing or (1.0, 1.0, 1.0)
    widest = max(range(3), key=spacing.__getitem__)
    if spacing[widest] > 1.2 * sorted(spacing)[1]:
        return widest
    return min((2, 1, 0), key=shape.__getitem__)


def average(voxels: np.ndarray, axis: int, count: int) -> np.ndarray:
    """The voxels with `count` of them along an axis: each is the mean of the old ones that it covers, in part or wholly.

    The terms are added one after the other, and not by a matrix product, whose last bit depends on the processor and on the
    number of threads: the same scan has to give the same bytes everywhere.
    """
    old = voxels.shape[axis]
    edges = np.linspace(0, old, count + 1)
    first = np.floor(edges[:-1]).astype(int)
    covered = int((np.ceil(edges[1:]) - first).max())
    along_axis = [-1 if a == axis else 1 for a in range(voxels.ndim)]
    total: np.ndarray = np.zeros((), np.float32)
    for index in range(covered):
        places = np.minimum(first + index, old - 1)
        overlap = np.clip(np.minimum(edges[1:], first + index + 1) - np.maximum(edges[:-1], first + index), 0, None)
        share = (overlap / np.diff(edges)).astype(np.float32)
        total = total + np.take(voxels, places, axis) * share.reshape(along_axis)
    return total


def _quantise(voxels: np.ndarray, whole: bool) -> tuple[np.ndarray, float, float]:
    """Values as they are stored, with slope and intercept."""
    if len(voxels) == 3:
        rgb = np.clip(voxels.round(), 0, 255).astype(np.uint8)
        data = np.empty(voxels.shape[1:], dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
        for channel, name in zip(rgb, "RGB", strict=True):
            data[name] = channel
        return data, 1.0, 0.0
    values = voxels[0].round() if whole else voxels[0]
    low, high = float(values.min()), float(values.max())
    if np.array_equal(values, values.round()):
        for dtype in (np.uint8, np.int16):
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return values.astype(dtype), 1.0, 0.0
    slope = max(high - low, 1e-6) / 65535
    intercept = low + 32768 * slope
    return ((values - intercept) / slope).round().clip(-32768, 32767).astype(np.int16), slope, intercept
