"""The tensors of the new model, how each is made of published ones, and the safetensors files that they are written to."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from radfm.configuration_radfm import RadFMConfig
from radfm.modeling_radfm import RadFMForConditionalGeneration

from .checkpoint import Checkpoint
from .names import (
    EMBED_KEY,
    EMBEDDINGS,
    HEAD_KEY,
    LM_HEAD,
    MARK_KEY,
    ConversionError,
    drop_reason,
    to_published_name,
    to_radfm_name,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHARD_BYTES = 2 << 30
# Rows that RadFM's vocabulary has beyond the published one: `<image>`, `</image>` and the placeholder.
IMAGE_TOKENS, LEARNED_MARKS = 3, 2
Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class TargetTensor:
    """A tensor of the new model: its name and shape, the published tensors that it is made of, and how it is read."""

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    read: Callable[[Checkpoint], torch.Tensor]

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Its size in a dtype."""
        return int(torch.Size(self.shape).numel()) * dtype.itemsize


def plan_tensors(checkpoint: Checkpoint, config: RadFMConfig) -> tuple[list[TargetTensor], dict[str, str]]:
    """The tensors of the new model in the order of the file, and the outcome of each published tensor.

    The word embeddings get three rows more: the two learned image marks, and a placeholder of zeros, whose place image
    tokens take. The head gets three rows of zeros, which the model excludes from its softmax.

    Raises:
        ConversionError: a tensor is missing or unknown, has another shape than a model of these sizes, or no real numbers.
    """
    targets: list[TargetTensor] = []
    outcomes: dict[str, str] = {}
    for name, stored in checkpoint.tensors.items():
        if name in (MARK_KEY, EMBED_KEY, HEAD_KEY):
            continue
        reason = drop_reason(name)
        if reason is not None:
            outcomes[name] = f"dropped: {reason}"
            continue
        outcomes[name] = to_radfm_name(name)
        targets.append(TargetTensor(outcomes[name], (name,), stored.shape, partial(_copy, name)))
    rows, width = stored_shape(checkpoint, EMBED_KEY, 2)
    _require_shape(checkpoint, MARK_KEY, (LEARNED_MARKS, width))
    _require_shape(checkpoint, HEAD_KEY, (rows, width))
    outcomes[EMBED_KEY] = outcomes[MARK_KEY] = EMBEDDINGS
    outcomes[HEAD_KEY] = LM_HEAD
    targets.insert(0, TargetTensor(EMBEDDINGS, (EMBED_KEY, MARK_KEY), (rows + IMAGE_TOKENS, width), _join_embeddings))
    targets.insert(1, TargetTensor(LM_HEAD, (HEAD_KEY,), (rows + IMAGE_TOKENS, width), _extend_head))
    for name in (source for target in targets for source in target.sources):
        if not checkpoint.tensors[name].dtype.is_floating_point:
            raise ConversionError(f"{checkpoint.source}: {name} holds {checkpoint.tensors[name].dtype}, no real numbers.")
    _compare_with_model(checkpoint, targets, config)
    return targets, outcomes


def stored_shape(checkpoint: Checkpoint, name: str, axes: int) -> tuple[int, ...]:
    """The shape of a published tensor. Raises `ConversionError` where it is missing or has another number of axes."""
    if name not in checkpoint:
        raise ConversionError(f"{checkpoint.source}: lacks {name}.")
    shape = checkpoint.tensors[name].shape
    if len(shape) != axes or 0 in shape:
        raise ConversionError(f"{checkpoint.source}: {name} has shape {shape}, and must have {axes} axes.")
    return shape


def write_shards(
    checkpoint: Checkpoint, targets: list[TargetTensor], out: Path, dtype: torch.dtype, progress: Progress
) -> dict[str, str]:
    """Write safetensors files of at most 2 GiB and their index; the SHA-256 of each file.

    Each file is written to NAME.part and then renamed atomically: a shard that exists is complete, and is kept when an
    interrupted conversion is started again.

    Raises:
        ConversionError: a tensor holds NaN or infinity.
    """
    shards = _group(targets, dtype)
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = ["model.safetensors"]
    weight_map, checksums = {}, {}
    for file_name, shard in zip(names, shards, strict=True):
        if not _is_complete(out / file_name, shard, dtype):
            tensors = {}
            for target in shard:
                tensors[target.name] = _read_in_dtype(checkpoint, target, dtype)
                progress(target.name, target.num_bytes(dtype))
            save_file(tensors, out / f"{file_name}.part", metadata={"format": "pt"})
            (out / f"{file_name}.part").replace(out / file_name)
            del tensors
        checksums[file_name] = _sha256(out / file_name)
        weight_map.update({target.name: file_name for target in shard})
    if len(shards) > 1:
        total = sum(target.num_bytes(dtype) for target in targets)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    return checksums


def _require_shape(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> None:
    stored = stored_shape(checkpoint, name, len(shape))
    if stored != shape:
        raise ConversionError(f"{checkpoint.source}: {name} has shape {stored}, not {shape}.")


def _compare_with_model(checkpoint: Checkpoint, targets: list[TargetTensor], config: RadFMConfig) -> None:
    """Raise `ConversionError` unless the targets are exactly the tensors of a model with this config."""
    with torch.device("meta"):
        model = {name: tuple(t.shape) for name, t in RadFMForConditionalGeneration(config).state_dict().items()}
    planned = {target.name: target.shape for target in targets}
    for name in sorted(model.keys() - planned.keys()):
        raise ConversionError(f"{checkpoint.source}: lacks {_published_name(name)}; nothing is left at its random start.")
    for name in sorted(planned.keys() - model.keys()):
        raise ConversionError(f"{checkpoint.source}: has {_published_name(name)}, which a model of these sizes has not.")
    for name, shape in planned.items():
        if shape != model[name]:
            raise ConversionError(f"{checkpoint.source}: {_published_name(name)} has shape {shape}, not {model[name]}.")


def _published_name(name: str) -> str:
    return {EMBEDDINGS: EMBED_KEY, LM_HEAD: HEAD_KEY}.get(name) or to_published_name(name)


def _copy(name: str, checkpoint: Checkpoint) -> torch.Tensor:
    return checkpoint.read(name)


def _join_embeddings(checkpoint: Checkpoint) -> torch.Tensor:
    words, marks = checkpoint.read(EMBED_KEY), checkpoint.read(MARK_KEY)
    return torch.cat([words, marks.to(words.dtype), torch.zeros_like(words[:1])])


def _extend_head(checkpoint: Checkpoint) -> torch.Tensor:
    head = checkpoint.read(HEAD_KEY)
    return torch.cat([head, head.new_zeros(IMAGE_TOKENS, head.shape[1])])


def _read_in_dtype(checkpoint: Checkpoint, target: TargetTensor, dtype: torch.dtype) -> torch.Tensor:
    """Read a target. Raises `ConversionError` where it is not finite, as stored or in the new dtype."""
    stored = target.read(checkpoint)
    converted = stored.to(dtype).contiguous().clone()
    if not _is_finite(converted):
        name = f"{checkpoint.source}: {target.sources[0]}"
        if not _is_finite(stored):
            raise ConversionError(f"{name} holds NaN or infinity; the file is damaged.")
        raise ConversionError(f"{name} has values too large for {dtype}; use --dtype bfloat16.")
    return converted


def _is_finite(tensor: torch.Tensor) -> bool:
    # The lowest and the highest value are NaN where any value is, and need no mask as large as the tensor.
    return tensor.numel() == 0 or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def _group(targets: list[TargetTensor], dtype: torch.dtype) -> list[list[TargetTensor]]:
    """The targets in order, in groups of at most `SHARD_BYTES`; a larger one has a group to itself."""
    shards: list[list[TargetTensor]] = [[]]
    size = 0
    for target in targets:
        if shards[-1] and size + target.num_bytes(dtype) > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(target)
        size += target.num_bytes(dtype)
    return shards


def _is_complete(file: Path, shard: list[TargetTensor], dtype: torch.dtype) -> bool:
    """Whether an earlier run wrote exactly this shard."""
    if not file.exists():
        return False
    try:
        with safe_open(file, "pt") as written:
            if set(written.keys()) != {target.name for target in shard}:
                return False
            same_dtype = written.get_tensor(shard[-1].name).dtype == dtype
            return same_dtype and all(tuple(written.get_slice(t.name).get_shape()) == t.shape for t in shard)
    except SafetensorError:
        return False


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
