"""Arrays, tensors, `.npy` files and pictures (PNG, JPEG, TIFF, WebP, BMP, GIF) → `Scan`."""

from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from .archive_radfm import SourceFile
from .scan_radfm import ReadContext, Scan, ScanError, replace_nonfinite

if TYPE_CHECKING:
    try:
        from PIL.Image import Image
        from PIL.ImageFile import ImageFile
    except ImportError:
        pass

NUMPY = b"\x93NUMPY"
# What a file of each kind starts with, and the class of Pillow that reads it. The class is called itself because
# `PIL.Image.open` would warn of large pictures, which `max_bytes` bounds here, and tries every format it knows.
PICTURES = {
    b"\x89PNG\r\n\x1a\n": "PngImagePlugin.PngImageFile",
    b"\xff\xd8\xff": "JpegImagePlugin.JpegImageFile",
    b"II*\0": "TiffImagePlugin.TiffImageFile",
    b"MM\0*": "TiffImagePlugin.TiffImageFile",
    b"RIFF": "WebPImagePlugin.WebPImageFile",
    b"BM": "BmpImagePlugin.BmpImageFile",
    b"GIF8": "GifImagePlugin.GifImageFile",
}
# Pillow's modes that are neither grey nor RGB but can be made RGB.
COLOUR_MODES = ("P", "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV")
# float32, and three channels of it.
GREY_BYTES, RGB_BYTES = 4, 12


def scan_from_array(array: np.ndarray, context: ReadContext) -> Scan:
    """An array as a scan in float32, never a view of it. Raises `ScanError`.

    Args:
        array: (height, width), (height, width, depth), RGB (height, width, 3) as uint8, or (channels, height, width, depth)
            with 1 or 3 channels.
        context: its warnings become the scan's.
    """
    if array.dtype.kind not in "biuf" or array.size == 0:
        raise context.error(f"an array of {array.dtype.name} values with shape {array.shape} holds no grey values.")
    context.require_bytes(array.size * GREY_BYTES, f"an array of shape {array.shape}")
    if array.ndim == 2:
        voxels = array[None, :, :, None]
    elif array.ndim == 3 and array.shape[-1] == 3 and array.dtype == np.uint8:
        voxels = array.transpose(2, 0, 1)[..., None]
    elif array.ndim == 3:
        voxels = array[None]
        if array.shape[0] == 3 or array.shape[-1] in (3, 4):
            context.warnings.append(
                f"Shape {array.shape} was read as a volume of {array.shape[-1]} slices (height, width, depth). "
                "A colour image is uint8 (height, width, 3) or, in any type, (3, height, width, 1)."
            )
    elif array.ndim == 4 and array.shape[0] in (1, 3):
        voxels = array
    else:
        raise context.error(
            f"shape {array.shape} is not (height, width), (height, width, depth), RGB (height, width, 3) as uint8, "
            "or (channels, height, width, depth) with 1 or 3 channels."
        )
    windows = [(0.0, 255.0)] if array.dtype == np.uint8 else []
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, which the next line replaces and counts
        scan = Scan(voxels.astype(np.float32), windows=windows, warnings=context.warnings)
    return replace_nonfinite(scan, context.name)


def read_npy(file: SourceFile, context: ReadContext) -> Scan:
    """A `.npy` file. Raises `ScanError`; a pickle in it is never run."""
    context.volume_index(1)
    try:
        with file.open() as stream:
            version = np.lib.format.read_magic(stream)
            read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read_header(stream)
            context.require_bytes(float(np.prod(shape, dtype=float)) * dtype.itemsize, f"an array of shape {shape}")
            stream.seek(0)
            if isinstance(file.content, Path):
                array = np.load(file.content, mmap_mode="r", allow_pickle=False)
            else:
                array = np.load(stream, allow_pickle=False)
    except (ScanError, MemoryError):
        raise
    except Exception as error:  # a damaged header is parsed as Python source, which fails in many ways
        raise context.error("is no readable NumPy array: damaged, cut short, or made of Python objects.") from error
    return scan_from_array(array, context)


def read_picture(file: SourceFile, context: ReadContext) -> Scan:
    """A picture, of several pages the chosen or the first one. Raises `ScanError`."""
    try:
        with file.open() as stream:
            image = _open_picture(file, stream, context)
            context.require_bytes(
                image.width * image.height * RGB_BYTES, f"a picture of {image.width} × {image.height} pixels"
            )
            pages = getattr(image, "n_frames", 1)
            page = context.volume_index(pages)
            if pages > 1:
                context.warnings.append(f"Only page {page} of {pages} was read (volume chooses, from 0).")
                image.seek(page)
            return scan_from_picture(image, context)
    except (ScanError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them raise
        raise context.error("the picture is damaged, cut short, or of a kind that Pillow does not decode.") from error


def count_pages(file: SourceFile, context: ReadContext) -> int:
    """How many pages a picture has. Raises `ScanError`."""
    try:
        with file.open() as stream:
            return int(getattr(_open_picture(file, stream, context), "n_frames", 1))
    except (ScanError, MemoryError):
        raise
    except Exception as error:
        raise context.error("the picture is damaged, cut short, or of a kind that Pillow does not decode.") from error


def _open_picture(file: SourceFile, stream: IO[bytes], context: ReadContext) -> "ImageFile":
    head = file.head()
    plugin, class_name = next(path for magic, path in PICTURES.items() if head.startswith(magic)).split(".")
    try:
        image_class = getattr(import_module(f"PIL.{plugin}"), class_name)
    except ImportError as error:
        raise context.error("is a picture, and reading one needs Pillow: pip install pillow.") from error
    return cast("ImageFile", image_class(stream))


def scan_from_picture(image: "Image", context: ReadContext) -> Scan:
    """A PIL image: grey where its channels are equal, or else RGB. Raises `ScanError`."""
    if image.mode in COLOUR_MODES:
        # By way of RGBA, because Pillow warns of palettes with transparency on the direct way.
        image = (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    array = np.asarray(cast(Any, image))
    if array.ndim == 3 and (array == array[..., :1]).all():
        array = array[..., 0]
    return scan_from_array(array, context)
