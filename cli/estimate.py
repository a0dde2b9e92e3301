"""`radfm ask --plan`: what would go into the model, and the memory that it takes, without loading weights."""

from collections.abc import Iterator, Sequence

import torch

from radfm.configuration_radfm import RadFMConfig
from radfm.conversion.memory import count_parameters
from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.processing_radfm import RadFMProcessor
from radfm.scan_radfm import Scan

from .common import default_device

Shape = tuple[int, int, int]


def estimate(model: str, sources: Sequence[str], scans: Sequence[Scan], device: str, max_new_tokens: int) -> Iterator[str]:
    """Lines about each scan (what it is, what resampling leaves of it) and about the memory for all of them."""
    config = RadFMConfig.from_pretrained(model)
    image_processor = RadFMProcessor.from_pretrained(model).image_processor
    num_patches = 0
    for source, scan in zip(sources, scans, strict=True):
        yield f"{source}: {scan.modality or 'modality unknown'}, {_times(scan.voxels.shape[1:])} voxels{_mm(scan.spacing)}"
        view = image_processor.orient_and_crop(scan)
        if image_processor.preset == "radfm":
            yield from _describe_windows(image_processor, view)
            yield _describe_resampling(image_processor, view)
        shape = _shape_in_model(image_processor, view)
        patches = _count_patches(config, shape)
        num_patches += patches
        yield f"  into the model: {_times(shape)}, {patches} patches, {config.num_image_tokens} image tokens"
    # Each scan also has a start and an end mark.
    num_tokens = len(scans) * (config.num_image_tokens + 2) + max_new_tokens
    yield _describe_memory(config, device or default_device(), num_patches, num_tokens)


def _describe_windows(image_processor: RadFMImageProcessor, view: Scan) -> Iterator[str]:
    for low, high in image_processor.intensity_windows(view):
        below, above = (view.voxels < low).mean(), (view.voxels > high).mean()
        unit = " HU" if view.modality == "CT" else ""
        yield f"  grey values {low:g} to {high:g}{unit}: {below:.0%} of the voxels lie below and {above:.0%} above"


def _describe_resampling(image_processor: RadFMImageProcessor, view: Scan) -> str:
    size, shape = image_processor.target_size(view), view.voxels.shape[1:]
    factors = [before / after for before, after in zip(shape, size, strict=True)]
    line = f"  resampled to {_times(size)}"
    if view.spacing is not None:
        line += _mm([mm * factor for mm, factor in zip(view.spacing, factors, strict=True)])
    axes = zip(factors, ("rows", "columns", "slices"), strict=True)
    lost = [f"{factor:.1f} {axis} become one" for factor, axis in axes if factor > 1]
    return f"{line}; {', '.join(lost) or 'nothing is discarded'}"


def _shape_in_model(image_processor: RadFMImageProcessor, view: Scan) -> Shape:
    depth = view.voxels.shape[-1] if image_processor.preset == "published" else image_processor.target_size(view)[2]
    return image_processor.image_size, image_processor.image_size, image_processor.target_depth(depth)


def _count_patches(config: RadFMConfig, shape: Shape) -> int:
    vision = config.vision_config
    return (shape[0] // vision.patch_size) * (shape[1] // vision.patch_size) * max(shape[2] // vision.patch_depth, 1)


def _describe_memory(config: RadFMConfig, device: str, num_patches: int, num_tokens: int) -> str:
    """The weights; then the widest hidden states of the vision tower, and the decoder's key-value cache and logits."""
    parameters = count_parameters(config).total
    bytes_per_value = 2 if device != "cpu" and config.dtype in (torch.float16, torch.bfloat16) else 4
    vision, decoder = config.vision_config, config.text_config.get_text_config()
    # Of each patch at once: the MLP's hidden state, queries, keys, values and outputs, and four hidden states.
    per_patch = vision.intermediate_size + 4 * vision.num_attention_heads * vision.head_dim + 4 * vision.hidden_size
    heads = getattr(decoder, "num_key_value_heads", decoder.num_attention_heads)
    head_dim = getattr(decoder, "head_dim", None) or decoder.hidden_size // decoder.num_attention_heads
    key_value_cache = 2 * decoder.num_hidden_layers * heads * head_dim * num_tokens
    logits = 2 * decoder.vocab_size
    working = num_patches * per_patch + key_value_cache + logits
    return (
        f"memory on {device}: {_bytes(parameters * bytes_per_value)} of weights ({parameters / 1e6:,.1f} M parameters of "
        f"{bytes_per_value} bytes) and about {_bytes(working * bytes_per_value)} to work with"
    )


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _times(numbers: Sequence[int]) -> str:
    return "×".join(map(str, numbers))


def _mm(spacing: Sequence[float] | None) -> str:
    return "" if spacing is None else " of " + "×".join(f"{round(mm, 2):g}" for mm in spacing) + " mm"
