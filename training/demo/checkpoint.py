"""The sizes of the demo checkpoint, and writing it as a model repository."""

import shutil
from pathlib import Path
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast

from radfm.configuration_radfm import RadFMConfig
from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.processing_radfm import IMAGE_END, IMAGE_START, IMAGE_TOKEN, RadFMProcessor

VISION: dict[str, Any] = {
    "image_size": 96,
    "max_slices": 32,
    "patch_size": 24,
    "patch_depth": 4,
    "num_channels": 1,
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "head_dim": 32,
    "intermediate_size": 768,
    "attention_dropout": 0.0,
    "perceiver_num_hidden_layers": 2,
    "perceiver_num_attention_heads": 6,
    "perceiver_head_dim": 32,
    "perceiver_intermediate_size": 768,
}
DECODER: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def image_processor() -> RadFMImageProcessor:
    """Square grey images of the size of the tower; the aspect ratio of a scan is kept."""
    sizes = {name: VISION[name] for name in ("image_size", "max_slices", "patch_depth", "num_channels")}
    return RadFMImageProcessor(**sizes, keep_aspect=True)


def new_model(tokenizer: PreTrainedTokenizerFast) -> RadFMForConditionalGeneration:
    """The whole model with newly initialised weights."""
    torch.manual_seed(2)
    start, end, token = cast(list[int], tokenizer.convert_tokens_to_ids([IMAGE_START, IMAGE_END, IMAGE_TOKEN]))
    config = RadFMConfig(
        vision_config=dict(VISION),
        text_config={**DECODER, "vocab_size": len(tokenizer)},
        image_start_token_id=start,
        image_end_token_id=end,
        image_token_id=token,
    )
    model = RadFMForConditionalGeneration(config)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0, max_new_tokens=64)
    return model


def write(model: RadFMForConditionalGeneration, processor: RadFMProcessor, out: Path) -> None:
    """Write a model repository to `out`: weights in half precision, configs, tokenizer and code."""
    model.save_pretrained(out, state_dict={name: weight.half() for name, weight in model.state_dict().items()})
    processor.save_pretrained(out)


def publish(trained: Path, out: Path) -> None:
    """Copy a model repository to `out`, code only where it is missing there."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("*.json", "*.safetensors", "*.jinja", "*.py"):
        for file in trained.glob(name):
            if file.suffix != ".py" or not (out / file.name).exists():
                shutil.copy(file, out / file.name)
