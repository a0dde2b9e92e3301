"""What a training would do, before a weight is loaded: steps, scans, patches, tokens, memory and time."""

import math
import time
from collections.abc import Iterator

import torch
from transformers import TrainingArguments

from radfm.configuration_radfm import RadFMConfig
from radfm.modeling_radfm import RadFMForConditionalGeneration

from .data import load_rows
from .parts import part_of
from .recipe import Recipe
from .run import load_base, make_arguments, make_plan, resolve_base
from .stream import Shards

ADAM_STATES = 2  # float32 numbers beside weight and gradient
# A product of this size takes milliseconds, on a GPU too: a shorter one would measure the launches.
MATMUL_SIZE, MATMUL_SIZE_ON_GPU, MATMUL_SECONDS = 1024, 8192, 0.5
# An assumption, not a measurement: the share of the rate of large matrix products that a training step reaches.
REACHED = 0.5


def describe_training(recipe: Recipe) -> Iterator[str]:
    """Lines about a training that `train` would run.

    Raises:
        RecipeError, DataError: as `train`.
    """
    if recipe.stages is not None:
        for name, stage in (("tower", recipe.stages.tower), ("language", recipe.stages.language)):
            yield f"{name}: {stage.training['max_steps']:,} steps of {sum(stage.scans.values())} scans"
        return
    recipe = resolve_base(recipe)
    args = make_arguments(recipe)
    config, processor = load_base(recipe)
    if recipe.streaming:
        shards = Shards(recipe.data, "train")
        yield f"data: {shards.rows:,} rows in {len(shards.groups):,} row groups, streamed"
        yield f"steps: {args.max_steps:,} ({args.gradient_accumulation_steps} micro-batches each on {args.world_size} ranks)"
        yield from _describe_memory(recipe, args, *_parameters(config, recipe))
        yield "time: not known for a stream, whose patches and tokens are not counted before; plan with streaming=false"
        return
    rows = load_rows(recipe.data, "train")
    plan = make_plan(recipe, args, rows, processor, config)
    steps_per_epoch = plan.batches_per_rank // args.gradient_accumulation_steps
    steps = args.max_steps if args.max_steps > 0 else math.ceil(steps_per_epoch * args.num_train_epochs)
    patches, tokens = plan.sums(0)
    scans, accumulation = sum(map(len, rows["shapes"])), args.gradient_accumulation_steps
    yield f"data: {len(rows):,} rows, {scans:,} scans; an epoch has {patches:,} patches and {tokens:,} tokens"
    yield f"steps: {steps:,} ({steps_per_epoch:,} an epoch, {accumulation} micro-batches each on {args.world_size} ranks)"
    sizes, trained, frozen_matrices = _parameters(config, recipe)
    yield from _describe_memory(recipe, args, sizes, trained, frozen_matrices)
    flops = _flops_of_epoch(sizes, trained, patches, tokens, args) * steps / max(steps_per_epoch, 1)
    rate = _matmul_rate(args)
    seconds = flops / (rate * REACHED * args.world_size)
    rate_text = f"{rate / 1e9:,.0f} GFLOP/s of matrix products measured here"
    yield f"time: about {_duration(seconds)} if half of the {rate_text} is reached"


def _describe_memory(
    recipe: Recipe, args: TrainingArguments, sizes: dict[str, int], trained: dict[str, int], frozen_matrices: int
) -> Iterator[str]:
    total, learning = sum(sizes.values()), sum(trained.values())
    yield f"parameters: {total / 1e6:,.1f} M, {learning / 1e6:,.1f} M of them trained"
    frozen_bits = recipe.bits or (16 if args.bf16 and recipe.parts.has_adapters else 32)
    adapters = sum(count for part, count in trained.items() if getattr(recipe.parts, part) == "lora")
    weights = (total + adapters - frozen_matrices) * 4 + frozen_matrices * frozen_bits / 8
    memory = weights + learning * 4 * (1 + ADAM_STATES)
    yield f"memory: {memory / 1e9:,.2f} GB for weights, gradients and optimiser on one device, and activations beside it"


def _parameters(config: RadFMConfig, recipe: Recipe) -> tuple[dict[str, int], dict[str, int], int]:
    """Parameters of each part; how many of each are trained, adapters by their rank; frozen matrices of the decoder.

    Those matrices are stored in `bits` or, below adapters, in bfloat16 (`parts.store_frozen_decoder_in_bfloat16`).
    """
    with torch.device("meta"):
        model = RadFMForConditionalGeneration(config)
    sizes = dict.fromkeys(("decoder", "vision_tower", "perceiver", "projector"), 0)
    trained = dict(sizes)
    frozen_matrices = 0
    for name, parameter in model.named_parameters():
        part = part_of(name)
        sizes[part] += parameter.numel()
        how = getattr(recipe.parts, part)
        if how == "full":
            trained[part] += parameter.numel()
        elif parameter.ndim == 2 and ".layers." in name:
            if how == "lora":
                trained[part] += recipe.lora.r * sum(parameter.shape)
            if part == "decoder":
                frozen_matrices += parameter.numel()
    return sizes, trained, frozen_matrices


def _flops_of_epoch(
    sizes: dict[str, int], trained: dict[str, int], patches: int, tokens: int, args: TrainingArguments
) -> float:
    """2 FLOP a weight and token forward, 2 for the gradient of the inputs, 2 for that of trained weights, 2 to recompute."""
    passes = 4 + (2 if args.gradient_checkpointing else 0)
    flops = 0.0
    for part, size in sizes.items():
        rows = tokens if part == "decoder" else patches
        share = trained[part] / size if size else 0.0
        # A frozen part below every trained one needs no gradient at all.
        backward = part == "decoder" or share > 0
        flops += size * rows * ((passes if backward else 2) + 2 * min(share, 1.0))
    return flops


def _matmul_rate(args: TrainingArguments) -> float:
    """FLOP a second of matrix products on the device of the training."""
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    size = MATMUL_SIZE_ON_GPU if args.device.type == "cuda" else MATMUL_SIZE
    matrix = torch.randn(size, size, device=args.device, dtype=dtype)
    float((matrix @ matrix)[0, 0])  # the first product also loads the library
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < MATMUL_SECONDS:
        float((matrix @ matrix)[0, 0])
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - start)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
