"""A new RadFM: the published vision tower and Perceiver in front of another causal decoder."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from radfm.configuration_radfm import RadFMConfig
from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.processing_radfm import IMAGE_END, IMAGE_START, IMAGE_TOKEN

from .checkpoint import Checkpoint
from .convert import DTYPES, VISION, infer_config, make_plans, save_processor, write_config
from .names import ConversionError
from .tokenizer import add_marks

SHARD = "2GB"


def with_decoder(source: str | Path, decoder: str, out: Path, dtype: str = "bfloat16") -> list[str]:
    """Write a model repository with the vision tower of `source` and the decoder of a folder or Hub id.

    The projector between the two and the rows of the image marks are fresh. The decoder is held in memory once.

    Returns:
        Lines that say what was written, and what training needs next.

    Raises:
        ConversionError: the source is no published checkpoint, or the decoder no causal language model that fits.
    """
    checkpoint = Checkpoint(source)
    published = infer_config(checkpoint, None)
    vision = [plan for plan in make_plans(checkpoint, published)[0] if plan.target.startswith(VISION)]
    language, tokenizer = _decoder(decoder, DTYPES[dtype])
    marks = {
        f"image{part}_token_id": tokenizer.convert_tokens_to_ids(mark)
        for part, mark in (("_start", IMAGE_START), ("_end", IMAGE_END), ("", IMAGE_TOKEN))
    }
    config = RadFMConfig(vision_config=published.vision_config.to_dict(), text_config=language.config.to_dict(), **marks)
    with torch.device("meta"):
        model: Any = RadFMForConditionalGeneration(config)
    model.model.language_model = language.base_model
    model.lm_head.weight = language.get_output_embeddings().weight
    model.load_state_dict({p.target: p.read(checkpoint).to(DTYPES[dtype]) for p in vision}, strict=False, assign=True)
    width = model.model.projector.weight.shape
    model.model.projector = _fresh_projector(width[1], width[0], DTYPES[dtype])
    left = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if left:
        raise ConversionError(f"{decoder}: gives no {left[0]}; is it a causal language model of transformers?")
    model.save_pretrained(out, max_shard_size=SHARD)
    write_config(config, RadFMForConditionalGeneration, dtype, out)
    _generation(language, tokenizer).save_pretrained(out)
    save_processor(config, tokenizer, out)
    origin = {"vision_tower": checkpoint.source.name, "decoder": Path(decoder).name, "dtype": dtype, "fresh": ["projector"]}
    (out / "conversion.json").write_text(json.dumps(origin, indent=1) + "\n")
    return [
        f"vision tower of {checkpoint.source.name} and decoder {Path(decoder).name} in {dtype} written to {out}",
        f"fresh: the projector ({width[1]} → {width[0]}) and the rows of {IMAGE_START} and {IMAGE_END}; "
        "until they are trained the model sees nothing",
        "train them first, on captions or reports, with everything else frozen; then the decoder too, or adapters on it",
    ]


def _decoder(source: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """The decoder, with a row for each image mark, and its tokenizer."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        language = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConversionError(f"{source}: is no causal language model with a tokenizer ({reason}).") from error
    if getattr(language.get_output_embeddings(), "bias", None) is not None:
        raise ConversionError(f"{source}: its head has a bias, which RadFM's has not; take another decoder.")
    add_marks(tokenizer)
    rows = language.config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        language.resize_token_embeddings(len(tokenizer))
    return language, tokenizer


def _fresh_projector(inputs: int, outputs: int, dtype: torch.dtype) -> nn.Linear:
    """As small as a decoder's word embeddings usually are."""
    projector = nn.Linear(inputs, outputs)
    nn.init.normal_(projector.weight, std=0.02)
    nn.init.zeros_(projector.bias)
    return projector.to(dtype)


def _generation(language: Any, tokenizer: Any) -> GenerationConfig:
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    stops = language.generation_config.eos_token_id
    return GenerationConfig(**{**ids, "eos_token_id": ids["eos_token_id"] if stops is None else stops}, max_new_tokens=200)
