"""One slice of a volume as an image: `volume.nii.gz::coronal::0.4` in a reference."""

from dataclasses import replace

import numpy as np
from PIL import Image

from radfm.affine_radfm import PLANES, closest_axes
from radfm.load_scan_radfm import Scan, ScanError
from radfm.scan_radfm import to_radiological_view

CT_SOFT_TISSUE = (-160.0, 240.0)  # HU


def cut_slice(scan: Scan, plane: str, position: float) -> Scan:
    """A slice of a volume, as a radiologist looks at it, with square pixels and the grey window of the whole volume.

    Args:
        plane: one of `PLANES`.
        position: 0 is the first slice along the axis across the plane, 1 the last.

    Raises:
        ScanError: no volume, or one that does not say how it lies in the patient.
    """
    if not scan.is_volume or scan.affine is None or scan.spacing is None:
        raise ScanError("is no volume with patient axes, so it has no slices in a plane.")
    axis = closest_axes(scan.affine).index(PLANES.index(plane))
    index = round(position * (scan.voxels.shape[axis + 1] - 1))
    order = [*(other for other in range(3) if other != axis), axis]
    voxels = np.take(scan.voxels, [index], axis + 1).transpose(0, *(other + 1 for other in order))
    affine = scan.affine[:, [*order, 3]].copy()
    affine[:, 3] += index * scan.affine[:, axis]
    low, high = CT_SOFT_TISSUE if scan.modality == "CT" else np.percentile(scan.voxels, (0.5, 99.5))
    spacing = (scan.spacing[order[0]], scan.spacing[order[1]], scan.spacing[axis])
    image = to_radiological_view(
        replace(scan, voxels=voxels, affine=affine, spacing=spacing, windows=[(float(low), float(high))])
    )
    return _with_square_pixels(image)


def _with_square_pixels(image: Scan) -> Scan:
    """The image with the finer of its two spacings along both axes, as a file without spacing is shown."""
    assert image.spacing is not None
    height, width = (
        max(round(size * spacing / min(image.spacing[:2])), 1)
        for size, spacing in zip(image.voxels.shape[1:3], image.spacing[:2], strict=True)
    )
    channels = [
        Image.fromarray(channel).resize((width, height), Image.Resampling.BILINEAR) for channel in image.voxels[..., 0]
    ]
    voxels = np.stack([np.asarray(channel) for channel in channels])[..., None]
    return replace(image, voxels=voxels, affine=None, spacing=None)
