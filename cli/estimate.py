"""What would go into the model, told before any weight is loaded."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from radfm.configuration_radfm import RadFMConfig
from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.processing_radfm import RadFMProcessor
from radfm.scan_radfm import Scan


def plan(model: str, sources: Sequence[str], scans: Sequence[Scan], device: str, max_new_tokens: int) -> Iterator[str]:
    """Lines about each scan (what it is, what is left of it) and about the memory that all of it needs."""
    config = RadFMConfig.from_pretrained(model)
    processor = RadFMProcessor.from_pretrained(model)
    patches = []
    for source, scan in zip(sources, scans, strict=True):
        yield f"{source}: {scan.modality or 'modality unknown'}, {_shape(scan.voxels.shape[1:])} voxels{_mm(scan.spacing)}"
        yield from _resampling(processor.image_processor, processor.image_processor.orient_and_crop(scan))
        shape = _shape_in(processor.image_processor, processor.image_processor.orient_and_crop(scan))
        patches.append(_patches(config, shape))
        yield f"  into the model: {_shape(shape)}, {patches[-1]} patches, {config.num_image_tokens} image tokens"
    tokens = len(scans) * (config.num_image_tokens + 2) + max_new_tokens
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    yield _memory(config, where, patches, tokens)


def _resampling(processor: RadFMImageProcessor, scan: Scan) -> Iterator[str]:
    for low, high in processor.intensity_windows(scan):
        below, above = (scan.voxels < low).mean(), (scan.voxels > high).mean()
        unit = " HU" if scan.modality == "CT" else ""
        yield f"  grey values {low:g} to {high:g}{unit}: {below:.0%} of the voxels lie below and {above:.0%} above"
    size, before = processor.target_size(scan), scan.voxels.shape[1:]
    finer = [b / s for b, s in zip(before, size, strict=True)]
    line = f"  resampled to {_shape(size)}"
    if scan.spacing is not None:
        line += _mm(tuple(mm * times for mm, times in zip(scan.spacing, finer, strict=True)))
    lost = [
        f"{times:.1f} {axis} become one"
        for times, axis in zip(finer, ("rows", "columns", "slices"), strict=True)
        if times > 1
    ]
    yield line + (f"; {', '.join(lost)}" if lost else "; nothing is discarded")


def _shape_in(processor: RadFMImageProcessor, scan: Scan) -> tuple[int, int, int]:
    return processor.image_size, processor.image_size, processor.target_depth(processor.target_size(scan)[2])


def _patches(config: RadFMConfig, shape: tuple[int, int, int]) -> int:
    vision = config.vision_config
    return (shape[0] // vision.patch_size) * (shape[1] // vision.patch_size) * max(shape[2] // vision.patch_depth, 1)


def _memory(config: RadFMConfig, device: str, patches: list[int], tokens: int) -> str:
    """Weights, the widest hidden states of the vision tower, and the decoder's key-value cache and logits."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in RadFMForConditionalGeneration(config).parameters())
    size = 2 if device != "cpu" and config.dtype in (torch.float16, torch.bfloat16) else 4
    vision, decoder = config.vision_config, config.text_config.get_text_config()
    widest = vision.intermediate_size + 4 * vision.num_attention_heads * vision.head_dim + 4 * vision.hidden_size
    heads = getattr(decoder, "num_key_value_heads", decoder.num_attention_heads)
    head_dim = getattr(decoder, "head_dim", None) or decoder.hidden_size // decoder.num_attention_heads
    cache = 2 * decoder.num_hidden_layers * heads * head_dim * tokens
    working = sum(patches) * widest + cache + decoder.vocab_size * 2
    return (
        f"memory on {device}: {_bytes(parameters * size)} of weights ({parameters / 1e6:,.1f} M parameters of {size} bytes) "
        f"and about {_bytes(working * size)} to work with"
    )


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _mm(spacing: Sequence[float] | None) -> str:
    return "" if spacing is None else " of " + "×".join(f"{np.round(mm, 2):g}" for mm in spacing) + " mm"
