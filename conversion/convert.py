"""The published RadFM → a model repository of this package, and back; tensor by tensor, so that 50 GB need little memory."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import GenerationConfig

from radfm.configuration_radfm import PAPER_DECODER, RadFMConfig, RadFMVisionConfig
from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.modeling_radfm import RadFMForConditionalGeneration, RadFMVisionModel
from radfm.processing_radfm import RadFMProcessor

from .checkpoint import Checkpoint
from .names import (
    EMBEDDINGS,
    HEAD,
    LM_HEAD,
    MARKS,
    WORDS,
    ConversionError,
    new_name,
    old_name,
    why_dropped,
)
from .parity import largest_errors
from .tokenizer import published_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHARD_BYTES = 2 << 30
# What shapes do not tell (paper, Methods, and the published modules).
HEAD_DIM, PATCH, PATCH_DEPTH, CHANNELS, DECODER_HEAD_DIM = 64, 32, 4, 3, 128
CODE = (
    "configuration_radfm.py", "linear_radfm.py", "attention_radfm.py", "modeling_radfm.py",
    "processing_radfm.py", "image_processing_radfm.py", "load_scan_radfm.py",
    "scan_radfm.py", "dicom_radfm.py", "dicom_volume_radfm.py", "dicom_grouping_radfm.py", "dicom_plane_radfm.py",
    "dicom_keys_radfm.py", "dicom_tolerances_radfm.py", "dicom_suv_radfm.py", "dicom_values_radfm.py",
    "dicom_frames_radfm.py", "dicom_decode_radfm.py", "dicom_codestream_radfm.py", "dicom_file_radfm.py",
    "dicom_header_radfm.py", "dicom_elements_radfm.py",
    "nifti_radfm.py", "itk_radfm.py", "array_radfm.py", "archive_radfm.py", "hounsfield_radfm.py", "affine_radfm.py",
)  # fmt: skip
VISION = "model.vision_tower."
AUTO_CLASSES = ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class Plan:
    """A tensor of the new model: what it is made of, its shape, and how it is read."""

    target: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    read: Callable[[Checkpoint], torch.Tensor]


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
        source: the `.bin`, the zip that it comes in (its other parts beside it), a folder with one of them, safetensors, or
            a Hub id.
        out: the folder of the new repository. What an interrupted conversion left there is gone on with.
        part: "all", or "vision" for the 3D transformer and the Perceiver alone, as `RadFMVisionModel` loads them.
        text_config: what the tensors do not tell of the decoder (heads, context); the paper's where it is left out.
        dtype: "float32", "bfloat16" or "float16".
        tokenizer: folder or Hub id of LLaMA's tokenizer.
        published_generation: keep the published stopping rule (id 1), which its training text contradicts (it ends with 2).
        reference: a folder with the published code's numbers for this checkpoint; the largest error at each stage goes
            into `conversion.json`.

    Returns:
        Lines that say what was written, and what is missing.

    Raises:
        ConversionError: a tensor is missing, unknown, or of a shape that does not fit; or the file is no checkpoint.
    """
    checkpoint = Checkpoint(source)
    config = infer_config(checkpoint, text_config)
    plans, report = make_plans(checkpoint, config)
    if part == "vision":
        plans, report = _vision_alone(plans, report)
    out.mkdir(parents=True, exist_ok=True)
    checksums = _write_weights(checkpoint, plans, out, DTYPES[dtype], progress)
    certificate: dict[str, Any] = {"source": checkpoint.source.name, "dtype": dtype, "tensors": report, "sha256": checksums}
    lines = [f"{len(plans)} tensors in {dtype} written to {out}"]
    if part == "vision":
        write_config(config.vision_config, RadFMVisionModel, dtype, out)
        _image_processor(config).save_pretrained(out)
    else:
        write_config(config, RadFMForConditionalGeneration, dtype, out)
        stop = 1 if published_generation else 2
        GenerationConfig(bos_token_id=1, eos_token_id=stop, pad_token_id=0, max_new_tokens=200).save_pretrained(out)
        lines += _write_processor(out, config, tokenizer)
        lines += memory_needed(config)
    if reference is not None:
        model = RadFMForConditionalGeneration.from_pretrained(out, dtype=torch.float32)
        certificate["largest_error"] = largest_errors(model.eval(), reference)
        lines += [f"largest error of {stage}: {error:.2g}" for stage, error in certificate["largest_error"].items()]
    (out / "conversion.json").write_text(json.dumps(certificate, indent=1) + "\n")
    (out / "README.md").write_text(_card(checkpoint.source.name, dtype, part))
    return lines


def write_config(config: Any, model_class: Any, dtype: str, out: Path) -> None:
    """The config, through which the Auto classes find the model's class, and the code that they load."""
    config.dtype = DTYPES[dtype]
    config.architectures = [model_class.__name__]
    config.auto_map = {"AutoConfig": f"configuration_radfm.{type(config).__name__}"}
    autos = AUTO_CLASSES if model_class is RadFMForConditionalGeneration else AUTO_CLASSES[:1]
    config.auto_map.update({name: f"modeling_radfm.{model_class.__name__}" for name in autos})
    config.save_pretrained(out)
    for name in CODE:
        shutil.copyfile(Path(__file__).parents[1] / name, out / name)


def _vision_alone(plans: list[Plan], report: dict[str, str]) -> tuple[list[Plan], dict[str, str]]:
    kept = [replace(plan, target=plan.target.removeprefix(VISION)) for plan in plans if plan.target.startswith(VISION)]
    fates = {
        name: fate.removeprefix(VISION) if fate.startswith((VISION, "dropped")) else "left out: not of the vision tower"
        for name, fate in report.items()
    }
    return kept, fates


def infer_config(checkpoint: Checkpoint, text_config: dict[str, Any] | None) -> RadFMConfig:
    """Sizes from the shapes; what they do not tell from `text_config` or the paper."""
    vision = "embedding_layer.vision_encoder."
    perceiver = "embedding_layer.perceiver."

    def shape(name: str) -> tuple[int, ...]:
        if name not in checkpoint:
            raise ConversionError(f"{checkpoint.source}: lacks {name}.")
        return checkpoint.tensors[name].shape

    values = shape(f"{vision}to_patch_embedding.1.weight")[0]
    if values != PATCH * PATCH * PATCH_DEPTH * CHANNELS:
        raise ConversionError(f"{checkpoint.source}: patches of {values} values are not the published 32×32×4×3.")
    width = shape(f"{perceiver}latents")[1]
    words, hidden = shape(WORDS)
    decoder: dict[str, Any] = {
        **{k: v for k, v in PAPER_DECODER.items() if k not in ("num_attention_heads",)},
        "hidden_size": hidden,
        "intermediate_size": shape("lang_model.model.layers.0.mlp.gate_proj.weight")[0],
        "num_hidden_layers": _count(checkpoint, "lang_model.model.layers."),
        "num_attention_heads": max(hidden // DECODER_HEAD_DIM, 1),
        **(text_config or {}),
        "vocab_size": words + 3,
    }
    return RadFMConfig(
        vision_config=RadFMVisionConfig(
            image_size=shape(f"{vision}pos_embedding.row_embed.weight")[0] * PATCH,
            max_slices=shape(f"{vision}pos_embedding.dep_embed.weight")[0] * PATCH_DEPTH,
            hidden_size=width,
            num_hidden_layers=_count(checkpoint, f"{vision}transformer.layers."),
            num_attention_heads=shape(f"{vision}transformer.layers.0.0.fn.to_qkv.weight")[0] // 3 // HEAD_DIM,
            intermediate_size=shape(f"{vision}transformer.layers.0.1.fn.net.0.weight")[0],
            num_image_tokens=shape(f"{perceiver}latents")[0],
            perceiver_num_hidden_layers=_count(checkpoint, f"{perceiver}layers."),
            perceiver_num_attention_heads=shape(f"{perceiver}layers.0.0.to_q.weight")[0] // HEAD_DIM,
            perceiver_intermediate_size=shape(f"{perceiver}layers.0.1.1.weight")[0],
        ),
        text_config=decoder,
        image_start_token_id=words,
        image_end_token_id=words + 1,
        image_token_id=words + 2,
    )


def _count(checkpoint: Checkpoint, prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in checkpoint if name.startswith(prefix)})


def make_plans(checkpoint: Checkpoint, config: RadFMConfig) -> tuple[list[Plan], dict[str, str]]:
    """How each tensor of the model is made, in the order of the file, and what became of each published one.

    The decoder's words get three rows: the two learned marks, and a placeholder of zeros that image tokens take the place
    of. The head gets three of zeros, which are never spoken.
    """
    plans, report = [], {}
    for name, stored in checkpoint.tensors.items():
        if name in (MARKS, WORDS, HEAD):
            continue
        reason = why_dropped(name)
        if reason is not None:
            report[name] = f"dropped: {reason}"
            continue
        target = report[name] = new_name(name)
        plans.append(Plan(target, (name,), stored.shape, partial(_as_it_is, name)))
    for name in (MARKS, HEAD):
        if name not in checkpoint:
            raise ConversionError(f"{checkpoint.source}: lacks {name}.")
    report[WORDS] = report[MARKS] = EMBEDDINGS
    report[HEAD] = LM_HEAD
    rows, width = checkpoint.tensors[WORDS].shape
    plans.insert(0, Plan(EMBEDDINGS, (WORDS, MARKS), (rows + 3, width), _words_and_marks))
    plans.insert(1, Plan(LM_HEAD, (HEAD,), (rows + 3, width), _head_with_silent_rows))
    with torch.device("meta"):
        wanted = {name: tuple(t.shape) for name, t in RadFMForConditionalGeneration(config).state_dict().items()}
    have = {plan.target: plan.shape for plan in plans}
    for name in sorted(wanted.keys() - have.keys()):
        raise ConversionError(f"{checkpoint.source}: lacks {_published_or(name)}; nothing is left at its random start.")
    for name in sorted(have.keys() - wanted.keys()):
        raise ConversionError(f"{checkpoint.source}: has {_published_or(name)}, which a model of these sizes has not.")
    for name, shape in have.items():
        if shape != wanted[name]:
            raise ConversionError(f"{checkpoint.source}: {_published_or(name)} has shape {shape}, not {wanted[name]}.")
    return plans, report


def _published_or(name: str) -> str:
    return {EMBEDDINGS: WORDS, LM_HEAD: HEAD}.get(name) or old_name(name)


def _as_it_is(name: str, checkpoint: Checkpoint) -> torch.Tensor:
    return checkpoint.read(name)


def _words_and_marks(checkpoint: Checkpoint) -> torch.Tensor:
    words, marks = checkpoint.read(WORDS), checkpoint.read(MARKS)
    return torch.cat([words, marks.to(words.dtype), torch.zeros_like(words[:1])])


def _head_with_silent_rows(checkpoint: Checkpoint) -> torch.Tensor:
    head = checkpoint.read(HEAD)
    return torch.cat([head, torch.zeros_like(head[:3])])


def _shards(plans: list[Plan], dtype: torch.dtype) -> list[list[Plan]]:
    shards: list[list[Plan]] = [[]]
    size = 0
    for plan in plans:
        needed = int(torch.Size(plan.shape).numel()) * dtype.itemsize
        if shards[-1] and size + needed > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(plan)
        size += needed
    return shards


def _write_weights(
    checkpoint: Checkpoint, plans: list[Plan], out: Path, dtype: torch.dtype, progress: Progress
) -> dict[str, str]:
    """Shards of at most 2 GiB, each written beside its name and then renamed, so that a whole one is never half."""
    shards = _shards(plans, dtype)
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = ["model.safetensors"]
    places, total, checksums = {}, 0, {}
    for name, shard in zip(names, shards, strict=True):
        if not _is_whole(out / name, shard, dtype):
            tensors = {}
            for plan in shard:
                tensors[plan.target] = plan.read(checkpoint).to(dtype).contiguous().clone()
                progress(plan.target, int(torch.Size(plan.shape).numel()) * dtype.itemsize)
            save_file(tensors, out / f"{name}.part", metadata={"format": "pt"})
            (out / f"{name}.part").replace(out / name)
            del tensors
        checksums[name] = _sha256(out / name)
        for plan in shard:
            places[plan.target] = name
            total += int(torch.Size(plan.shape).numel()) * dtype.itemsize
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    return checksums


def _is_whole(file: Path, shard: list[Plan], dtype: torch.dtype) -> bool:
    """Whether an earlier run wrote this shard."""
    if not file.exists():
        return False
    with safe_open(file, "pt") as written:
        names = set(written.keys())
        same = names == {plan.target for plan in shard} and written.get_tensor(shard[-1].target).dtype == dtype
        return same and all(tuple(written.get_slice(plan.target).get_shape()) == plan.shape for plan in shard)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _image_processor(config: RadFMConfig) -> RadFMImageProcessor:
    RadFMImageProcessor.register_for_auto_class("AutoImageProcessor")
    return RadFMImageProcessor(image_size=config.vision_config.image_size, preset="published")


def _write_processor(out: Path, config: RadFMConfig, tokenizer: str | None) -> list[str]:
    if tokenizer is None:
        _image_processor(config).save_pretrained(out)
        return ["no tokenizer was given: convert again with --tokenizer, a folder or Hub id of LLaMA's, to ask in words"]
    save_processor(config, published_tokenizer(tokenizer, config.image_start_token_id), out)
    return []


def save_processor(config: RadFMConfig, tokenizer: Any, out: Path) -> None:
    """The processor of a model, with a tokenizer that has the image marks."""
    RadFMProcessor.register_for_auto_class("AutoProcessor")
    RadFMProcessor(_image_processor(config), tokenizer, config.num_image_tokens).save_pretrained(out)


def memory_needed(config: RadFMConfig) -> Iterator[str]:
    """What the weights need in each way of loading, from the sizes; all but the decoder's matrices stays in 16 bits."""
    with torch.device("meta"):
        model = RadFMForConditionalGeneration(config)
    everything = sum(p.numel() for p in model.parameters())
    linear = sum(
        module.weight.numel() for module in model.model.language_model.modules() if isinstance(module, torch.nn.Linear)
    )
    for way, size in (("float32", 4.0), ("bfloat16", 2.0), ("8 bits", 1.0), ("4 bits", 0.5)):
        rest = (everything - linear) * max(size, 2.0)
        yield f"weights in {way}: {(linear * size + rest) / 1e9:.2f} GB"


def _card(source: str, dtype: str, part: str) -> str:
    task, what = (
        ("image-feature-extraction", "Vision tower and Perceiver of the")
        if part == "vision"
        else ("image-text-to-text", "The")
    )
    return f"""---
library_name: transformers
pipeline_tag: {task}
tags: [radiology, medical, ct, mri, x-ray]
---

# RadFM

{what} published RadFM (arXiv 2308.02463), converted from `{source}` to {dtype} safetensors.
`conversion.json` says what became of each tensor.

The licence of the published weights is not stated; LLaMA's and the data sets' terms may restrict their use.
For research, no medical device.
"""


def to_published(folder: Path, out: Path) -> int:
    """A model repository as a state dict under the published names, as `torch.save` writes it; how many tensors.

    Raises:
        ConversionError: a tensor whose published name no rule knows.
    """
    config = RadFMConfig.from_pretrained(folder)
    words = config.image_start_token_id
    published: dict[str, torch.Tensor] = {}
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ConversionError(f"{folder}: holds no safetensors.")
    for file in files:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dictionary)
                tensor = tensors.get_tensor(name)
                if name == EMBEDDINGS:
                    published[WORDS] = published["embedding_layer.weight"] = tensor[:words].clone()
                    published[MARKS] = tensor[words : words + 2].clone()
                elif name == LM_HEAD:
                    published[HEAD] = tensor[:words].clone()
                else:
                    published[old_name(name)] = tensor
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(published, out)
    return len(published)


__all__ = ["Checkpoint", "ConversionError", "convert", "infer_config", "to_published"]
