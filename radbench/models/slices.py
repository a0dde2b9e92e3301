"""A scan as the 8-bit RGB images that models of other families take.

- Which slices: an image is one; of a volume so many at the middles of equal parts, in radiological view.
- Which grey values: those of RadFM's image processor (CT in the soft-tissue window, others in the window of the file or
  from the 0.5th to the 99.5th percentile of the whole scan), as 0 to 255.
"""

import numpy as np
from PIL import Image

from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.scan_radfm import Scan, to_radiological_view

CHOICE_OF_SLICES = "the middles of equal parts of the volume, 8-bit RGB"


def slice_images(scan: Scan, slices: int) -> list[Image.Image]:
    """At most `slices` slices of a scan. transformers' processors clip 16-bit images without a word; these have 8 bits.

    >>> scan = Scan(np.zeros((1, 32, 48, 20), np.float32))
    >>> [image.size for image in slice_images(scan, 4)]
    [(48, 32), (48, 32), (48, 32), (48, 32)]
    """
    scan = to_radiological_view(scan)
    low, high = RadFMImageProcessor().intensity_windows(scan)[0]
    depth = scan.voxels.shape[-1]
    count = min(slices, depth)
    images = []
    for number in range(count):
        voxels = scan.voxels[..., (2 * number + 1) * depth // (2 * count)]
        pixels = (((voxels - low) / max(high - low, 1e-6)).clip(0, 1) * 255).round().astype(np.uint8)
        images.append(Image.fromarray(pixels.transpose(1, 2, 0)[..., 0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)))
    return [image.convert("RGB") for image in images]
