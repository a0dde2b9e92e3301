"""The published RadFM → a model repository of this package, and back; tensor by tensor, so that 50 GB need little memory."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.dynamic_module_utils import get_relative_import_files

from radfm.configuration_radfm import PAPER_DECODER, RadFMConfig, RadFMVisionConfig, auto_map
from radfm.hub.cards import model_card
from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.modeling_radfm import RadFMForConditionalGeneration, RadFMVisionModel
from radfm.processing_radfm import RadFMProcessor

from .checkpoint import Checkpoint
from .memory import BYTES, count_parameters
from .names import EMBED_KEY, EMBEDDINGS, HEAD_KEY, LM_HEAD, MARK_KEY, ConversionError, to_published_name
from .parity import largest_errors
from .tensors import (
    DTYPES,
    IMAGE_TOKENS,
    LEARNED_MARKS,
    Progress,
    TargetTensor,
    plan_tensors,
    stored_shape,
    write_shards,
)
from .tokenizer import published_tokenizer

# Sizes that shapes do not tell (paper, Methods, and the published modules): of an attention head in the vision tower and in
# the decoder, of a patch in pixels and slices, and the channels.
HEAD_DIM, DECODER_HEAD_DIM, PATCH, PATCH_DEPTH, CHANNELS = 64, 128, 32, 4, 3
PUBLISHED_EOS, LLAMA_EOS = 1, 2
VISION = "model.vision_tower."


def convert(
    source: str | Path,
    out: Path,
    *,
    part: str = "all",
    text_config: dict[str, Any] | None = None,
    dtype: str = "float32",
    tokenizer: str | None = None,
    published_generation: bool = False,
    reference: Path | None = None,
    progress: Progress = lambda name, size: None,
) -> list[str]:
    """Write the published checkpoint as a model repository.

    Args:
        source: the `.bin`, a zip or a folder that holds it, safetensors, or a Hub id.
        out: the folder of the new repository. An interrupted conversion into the same folder is continued.
        part: "all", or "vision" for the 3D ViT and the Perceiver alone, as `RadFMVisionModel` loads them.
        text_config: settings of the decoder that shapes do not tell (heads, context length); the paper's by default.
        dtype: "float32", "bfloat16" or "float16".
        tokenizer: folder or Hub id of LLaMA's tokenizer.
        published_generation: stop at id 1, as the published code does, although its training texts end with id 2.
        reference: a folder with the published code's numbers for this checkpoint; the largest error at each stage goes
            into `conversion.json`.
        progress: called with the name and the bytes of each tensor that has been converted.

    Returns:
        Lines for a person: what was written, and what is missing.

    Raises:
        ConversionError: the source is no published checkpoint, is damaged, or does not fit `text_config`.

    Examples:
        >>> convert("pytorch_model.bin", Path("radfm-14b"), dtype="bfloat16")  # doctest: +SKIP
        ['514 tensors in bfloat16 written to radfm-14b', …]
    """
    checkpoint = Checkpoint(source)
    config = infer_config(checkpoint, text_config)
    targets, outcomes = plan_tensors(checkpoint, config)
    if part == "vision":
        targets, outcomes = _select_vision(targets, outcomes)
    out.mkdir(parents=True, exist_ok=True)
    checksums = write_shards(checkpoint, targets, out, DTYPES[dtype], progress)
    report: dict[str, Any] = {"source": checkpoint.source.name, "dtype": dtype, "tensors": outcomes, "sha256": checksums}
    lines = [f"{len(targets)} tensors in {dtype} written to {out}"]
    if part == "vision":
        write_config(config.vision_config, RadFMVisionModel, dtype, out)
        _image_processor(config).save_pretrained(out)
    else:
        write_config(config, RadFMForConditionalGeneration, dtype, out)
        eos = PUBLISHED_EOS if published_generation else LLAMA_EOS
        GenerationConfig(bos_token_id=1, eos_token_id=eos, pad_token_id=0, max_new_tokens=200).save_pretrained(out)
        lines += _write_processor(out, config, tokenizer)
        lines += describe_memory(config)
    if reference is not None:
        model = RadFMForConditionalGeneration.from_pretrained(out, dtype=torch.float32)
        report["largest_error"] = largest_errors(model.eval(), reference)
        lines += [f"largest error of {stage}: {error:.2g}" for stage, error in report["largest_error"].items()]
    (out / "conversion.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "README.md").write_text(model_card(out, f"OWNER/{out.name}"))
    return lines


def write_config(config: Any, model_class: Any, dtype: str, out: Path) -> None:
    """Write config.json, with the `auto_map` of the model's class, and the code that the Auto classes load."""
    config.dtype = DTYPES[dtype]
    config.architectures = [model_class.__name__]
    config.auto_map = auto_map(type(config).__name__, model_class.__name__)
    config.save_pretrained(out)
    root = Path(__file__).parents[1]
    for entry in (root / "modeling_radfm.py", root / "processing_radfm.py"):
        for file in (entry, *map(Path, get_relative_import_files(entry))):
            shutil.copyfile(file, out / file.name)


def infer_config(checkpoint: Checkpoint, text_config: dict[str, Any] | None) -> RadFMConfig:
    """The config of a checkpoint: sizes from the shapes, the rest from `text_config` or the paper.

    Raises:
        ConversionError: a tensor that tells a size is missing or has no such shape, or the sizes do not fit together.
    """
    vision, perceiver = "embedding_layer.vision_encoder.", "embedding_layer.perceiver."

    def rows(name: str, axes: int = 2) -> int:
        return stored_shape(checkpoint, name, axes)[0]

    patch_values = rows(f"{vision}to_patch_embedding.1.weight", axes=1)
    if patch_values != PATCH * PATCH * PATCH_DEPTH * CHANNELS:
        raise ConversionError(f"{checkpoint.source}: patches of {patch_values} values are not the published 32×32×4×3.")
    num_latents, width = stored_shape(checkpoint, f"{perceiver}latents", 2)
    vocab_size, hidden_size = stored_shape(checkpoint, EMBED_KEY, 2)
    decoder: dict[str, Any] = {
        **PAPER_DECODER,
        "hidden_size": hidden_size,
        "intermediate_size": rows("lang_model.model.layers.0.mlp.gate_proj.weight"),
        "num_hidden_layers": _count(checkpoint, "lang_model.model.layers."),
        "num_attention_heads": max(hidden_size // DECODER_HEAD_DIM, 1),
        **(text_config or {}),
        "vocab_size": vocab_size + IMAGE_TOKENS,
    }
    sizes: dict[str, Any] = {
        "image_size": rows(f"{vision}pos_embedding.row_embed.weight") * PATCH,
        "max_slices": rows(f"{vision}pos_embedding.dep_embed.weight") * PATCH_DEPTH,
        "hidden_size": width,
        "num_hidden_layers": _count(checkpoint, f"{vision}transformer.layers."),
        "num_attention_heads": rows(f"{vision}transformer.layers.0.0.fn.to_qkv.weight") // 3 // HEAD_DIM,
        "intermediate_size": rows(f"{vision}transformer.layers.0.1.fn.net.0.weight"),
        "num_image_tokens": num_latents,
        "perceiver_num_hidden_layers": _count(checkpoint, f"{perceiver}layers."),
        "perceiver_num_attention_heads": rows(f"{perceiver}layers.0.0.to_q.weight") // HEAD_DIM,
        "perceiver_intermediate_size": rows(f"{perceiver}layers.0.1.1.weight"),
    }
    try:
        return RadFMConfig(
            vision_config=RadFMVisionConfig(**sizes),
            text_config=decoder,
            image_start_token_id=vocab_size,
            image_end_token_id=vocab_size + 1,
            image_token_id=vocab_size + 2,
        )
    except (TypeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ConversionError(f"{checkpoint.source}: its sizes make no model ({reason}).") from error


def _select_vision(targets: list[TargetTensor], outcomes: dict[str, str]) -> tuple[list[TargetTensor], dict[str, str]]:
    """The tensors of the vision tower under the names that `RadFMVisionModel` has for them."""
    kept = [replace(target, name=target.name.removeprefix(VISION)) for target in targets if target.name.startswith(VISION)]
    vision_outcomes = {
        name: outcome.removeprefix(VISION)
        if outcome.startswith((VISION, "dropped"))
        else "left out: not of the vision tower"
        for name, outcome in outcomes.items()
    }
    return kept, vision_outcomes


def _count(checkpoint: Checkpoint, prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in checkpoint if name.startswith(prefix)})


def _image_processor(config: RadFMConfig) -> RadFMImageProcessor:
    return RadFMImageProcessor(image_size=config.vision_config.image_size, preset="published")


def _write_processor(out: Path, config: RadFMConfig, tokenizer: str | None) -> list[str]:
    if tokenizer is None:
        _image_processor(config).save_pretrained(out)
        return ["no tokenizer: to ask questions, convert again with --tokenizer and a folder or Hub id of LLaMA's tokenizer"]
    save_processor(config, published_tokenizer(tokenizer, config.image_start_token_id), out)
    return []


def save_processor(config: RadFMConfig, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Save the processor of a model; the tokenizer has the image tokens already."""
    RadFMProcessor(_image_processor(config), tokenizer, config.num_image_tokens).save_pretrained(out)


def describe_memory(config: RadFMConfig) -> Iterator[str]:
    """A line for each precision: the gigabytes that the weights take."""
    count = count_parameters(config)
    for precision in BYTES:
        yield f"weights in {precision}: {count.weight_bytes(precision) / 1e9:.2f} GB"


def to_published(folder: Path, out: Path) -> int:
    """Write a model repository as a state dict under the published names, as `torch.save` does; the number of tensors.

    Raises:
        ConversionError: the folder holds no model, or a tensor whose published name the table does not have.
    """
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ConversionError(f"{folder}: holds no safetensors.")
    vocab_size = RadFMConfig.from_pretrained(folder).image_start_token_id
    published: dict[str, torch.Tensor] = {}
    for file in files:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dictionary)
                tensor = tensors.get_tensor(name)
                if name == EMBEDDINGS:
                    published[EMBED_KEY] = published["embedding_layer.weight"] = tensor[:vocab_size].clone()
                    published[MARK_KEY] = tensor[vocab_size : vocab_size + LEARNED_MARKS].clone()
                elif name == LM_HEAD:
                    published[HEAD_KEY] = tensor[:vocab_size].clone()
                else:
                    published[to_published_name(name)] = tensor
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(published, out)
    return len(published)


__all__ = ["Checkpoint", "ConversionError", "convert", "infer_config", "to_published"]
