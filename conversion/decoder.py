"""A new RadFM of the published vision tower and Perceiver and another causal decoder."""

import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from radfm.configuration_radfm import RadFMConfig
from radfm.hub.cards import model_card
from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.processing_radfm import IMAGE_END, IMAGE_START

from .checkpoint import Checkpoint
from .convert import VISION, infer_config, save_processor, write_config
from .names import ConversionError
from .tensors import DTYPES, SHARD_BYTES, plan_tensors
from .tokenizer import add_image_tokens, image_token_ids

# The spread of the word embeddings of most decoders, which the fresh projector writes into.
PROJECTOR_STD = 0.02


def with_decoder(source: str | Path, decoder: str, out: Path, dtype: str = "bfloat16") -> list[str]:
    """Write a model repository with the vision tower of `source` and the decoder of a folder or Hub id.

    The projector between the two and the embeddings of the image tokens have fresh weights and need training. The decoder is
    held in memory once.

    Args:
        source: the published checkpoint, as for `convert`.
        decoder: folder or Hub id of a causal language model of transformers, with its tokenizer.
        out: the folder of the new repository.
        dtype: "float32", "bfloat16" or "float16".

    Returns:
        Lines for a person: what was written, and what training needs next.

    Raises:
        ConversionError: the source is no published checkpoint, or the decoder no causal language model that fits.
    """
    checkpoint = Checkpoint(source)
    published = infer_config(checkpoint, None)
    vision = [target for target in plan_tensors(checkpoint, published)[0] if target.name.startswith(VISION)]
    language, tokenizer = _load_decoder(decoder, DTYPES[dtype])
    config = RadFMConfig(
        vision_config=published.vision_config.to_dict(),
        text_config=language.config.to_dict(),
        **cast(dict[str, Any], image_token_ids(tokenizer)),
    )
    with torch.device("meta"):
        model = RadFMForConditionalGeneration(config)
    model.model.language_model = language.base_model
    model.lm_head.weight = language.get_output_embeddings().weight
    tower = {target.name: target.read(checkpoint).to(DTYPES[dtype]) for target in vision}
    model.load_state_dict(tower, strict=False, assign=True)
    width, vision_width = model.model.projector.weight.shape
    model.model.projector = _fresh_projector(vision_width, width, DTYPES[dtype])
    missing = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if missing:
        raise ConversionError(f"{decoder}: gives no {missing[0]}; is it a causal language model of transformers?")
    model.save_pretrained(out, max_shard_size=SHARD_BYTES)
    write_config(config, RadFMForConditionalGeneration, dtype, out)
    _generation_config(language, tokenizer).save_pretrained(out)
    save_processor(config, tokenizer, out)
    report = {"vision_tower": checkpoint.source.name, "decoder": Path(decoder).name, "dtype": dtype, "fresh": ["projector"]}
    (out / "conversion.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "README.md").write_text(model_card(out, f"OWNER/{out.name}"))
    return [
        f"vision tower of {checkpoint.source.name} and decoder {Path(decoder).name} in {dtype} written to {out}",
        f"fresh: the projector ({vision_width} → {width}) and the embeddings of {IMAGE_START} and {IMAGE_END}; "
        "until they are trained the model cannot use its scans",
        "train them first, on captions or reports, with everything else frozen; then the decoder too, or adapters on it",
    ]


def _load_decoder(source: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The decoder, with a row of embeddings for each image token, and its tokenizer."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        language = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConversionError(f"{source}: is no causal language model with a tokenizer ({reason}).") from error
    if getattr(language.get_output_embeddings(), "bias", None) is not None:
        raise ConversionError(f"{source}: its head has a bias, which RadFM's has not; take another decoder.")
    add_image_tokens(tokenizer)
    rows = language.config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        language.resize_token_embeddings(len(tokenizer))
    return language, tokenizer


def _fresh_projector(inputs: int, outputs: int, dtype: torch.dtype) -> nn.Linear:
    projector = nn.Linear(inputs, outputs)
    nn.init.normal_(projector.weight, std=PROJECTOR_STD)
    nn.init.zeros_(projector.bias)
    return projector.to(dtype)


def _generation_config(language: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """The decoder's own stop tokens, or else the tokenizer's."""
    eos = language.generation_config.eos_token_id
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id if eos is None else eos,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=200,
    )
