"""Every kernel at RadFM's sizes on a card: time, rates, share of what the card can do, and ratios to its rivals.

    python kernels/benchmarks/run.py --json kernels/benchmarks/results.json --plot kernels/benchmarks/results.png

All of a row is measured in one run, in turn; times are medians. Ratios above 1 say that the kernel is faster than its rival.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent / "torch-ext"))
attention, neighbourhood, perceiver, patches, entropy = (
    import_module(f"radfm_kernels.{name}")
    for name in (
        "packed_attention",
        "neighbourhood_attention",
        "perceiver_attention",
        "patch_embedding",
        "weighted_cross_entropy",
    )
)

HEADS, WIDTH, HIDDEN, LATENTS = 8, 64, 768, 32
# 28 X-rays of 512×512 and 4 CTs of 512×512×64, in patches of 32×32×4.
MIX = (*[256] * 28, *[4096] * 4)
SHAPES = {"256": (256,), "1,024": (1024,), "4,096": (4096,), "32,768": (32_768,), "28 X-rays and 4 CTs": MIX}
DTYPE = torch.bfloat16
VARLEN = (
    ("varlen_attn", "torch.nn.attention.varlen", "varlen_attn"),
    ("flash-attn", "flash_attn", "flash_attn_varlen_func"),
)


@dataclass
class Row:
    """One kernel at one shape: milliseconds, floating-point operations, bytes that must move, and rivals' milliseconds."""

    kernel: str
    shape: str
    ms: float
    flop: float
    bytes: float
    rivals: dict[str, float] = field(default_factory=dict)
    megabytes: float = 0.0
    rival_megabytes: float = 0.0


def milliseconds(work: Callable[[], object]) -> float:
    """Median of a run's time on the card."""
    import triton

    return triton.testing.do_bench(work, warmup=50, rep=200, return_mode="median")


def megabytes(work: Callable[[], object]) -> float:
    """Most memory that a run takes beyond what was there."""
    work()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def random(*shape: int, grad: bool = False) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=DTYPE).requires_grad_(grad)


def starts(lengths: tuple[int, ...]) -> torch.Tensor:
    return F.pad(torch.tensor(lengths, device="cuda").cumsum(0), (1, 0)).to(torch.int32)


def with_backward(work: Callable[[], torch.Tensor], leaves: list[torch.Tensor]) -> Callable[[], object]:
    gradient = torch.randn_like(work())
    return lambda: torch.autograd.grad(work(), leaves, gradient)


def optional(module: str, name: str) -> Any:
    """A rival, where it is installed."""
    try:
        return getattr(import_module(module), name)
    except ImportError:
        return None


def packed_rows() -> Iterator[Row]:
    for name, lengths in SHAPES.items():
        total, longest, at = sum(lengths), max(lengths), starts(lengths)
        leaves = [random(total, HEADS, WIDTH, grad=True) for _ in range(3)]
        padded = [random(len(lengths), HEADS, longest, WIDTH, grad=True) for _ in range(3)]
        here = torch.arange(longest, device="cuda") < torch.tensor(lengths, device="cuda")[:, None]
        mask = None if len(set(lengths)) == 1 else here[:, None, None]

        def ours(leaves=leaves, at=at, longest=longest) -> torch.Tensor:
            return attention.packed_attention(*leaves, at, at, longest, longest)

        def sdpa(padded=padded, mask=mask) -> torch.Tensor:
            query, key, value = padded
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

        rivals: dict[str, tuple[Any, Any]] = {"padded SDPA": (sdpa, padded)}
        for rival, module, function in VARLEN:
            varlen = optional(module, function)
            if varlen is not None:
                rivals[rival] = (lambda f=varlen: f(*leaves, at, at, longest, longest), leaves)  # noqa: B023
        flop = 4 * HEADS * WIDTH * sum(n * n for n in lengths)
        moved = 4 * total * HEADS * WIDTH * 2
        with torch.no_grad():
            times = {rival: milliseconds(work) for rival, (work, _) in rivals.items()}
            yield Row("packed attention", name, milliseconds(ours), flop, moved, times)
        times = {rival: milliseconds(with_backward(work, of)) for rival, (work, of) in rivals.items()}
        yield Row(
            "packed attention, with backward", name, milliseconds(with_backward(ours, leaves)), 3.5 * flop, 3 * moved, times
        )


def neighbourhood_rows() -> Iterator[Row]:
    for grid in ((16, 16, 16), (16, 16, 128)):
        total = grid[0] * grid[1] * grid[2]
        leaves = [random(total, HEADS, WIDTH, grad=True) for _ in range(3)]
        batch = [t.detach().transpose(0, 1)[None] for t in leaves]

        def ours(leaves=leaves, grid=grid) -> torch.Tensor:
            return neighbourhood.neighbourhood_attention(*leaves, [grid], (5, 5, 5))

        flop = 4 * HEADS * WIDTH * total * 125
        with torch.no_grad():
            whole = milliseconds(lambda: F.scaled_dot_product_attention(*batch))  # noqa: B023
            yield Row("neighbourhood attention 5×5×5", f"{total:,}", milliseconds(ours), flop, 4 * total * HEADS * WIDTH * 2,
                      {"SDPA over all": whole})  # fmt: skip


def perceiver_rows() -> Iterator[Row]:
    for name, lengths in SHAPES.items():
        total, rows, at, longest = sum(lengths), len(lengths) * LATENTS, starts(lengths), max(lengths)
        query, latent_key, latent_value = (random(rows, HEADS, WIDTH) for _ in range(3))
        key, value = (random(total, HEADS, WIDTH) for _ in range(2))
        scans = list(
            zip(
                key.split(lengths), latent_key.split(LATENTS), value.split(lengths), latent_value.split(LATENTS), strict=True
            )
        )

        def concatenated(scans=scans, query=query) -> torch.Tensor:
            found = []
            for (k, own_k, v, own_v), q in zip(scans, query.split(LATENTS), strict=True):
                parts = (q, torch.cat([k, own_k]), torch.cat([v, own_v]))
                found.append(F.scaled_dot_product_attention(*(part.transpose(0, 1)[None] for part in parts)))
            return torch.cat(found, 2)

        def ours(tensors=(query, key, value, latent_key, latent_value), at=at, longest=longest) -> torch.Tensor:
            return perceiver.perceiver_attention(*tensors, at, longest)

        flop = 4 * HEADS * WIDTH * LATENTS * (total + rows)
        yield Row("Perceiver attention", name, milliseconds(ours), flop, 2 * total * HEADS * WIDTH * 2,
                  {"SDPA of a concatenation": milliseconds(concatenated)})  # fmt: skip


def patch_rows() -> Iterator[Row]:
    for name, shape in {"512×512×64 int16": (1, 1, 512, 512, 64), "28 X-rays": (28, 1, 512, 512, 1)}.items():
        voxels = torch.randint(-1024, 2000, shape, device="cuda", dtype=torch.int16)
        patch = patches.Patch(32, 32, min(shape[-1], 4))
        count, values = shape[0] * 256 * (shape[-1] // patch.slices), 1024 * patch.slices
        third = HIDDEN // 3
        given = [
            random(*s) for s in ((HIDDEN, values), (HIDDEN,), (HIDDEN,), (HIDDEN,), (16, third), (16, third), (128, third))
        ]
        full = [random(12_288), random(12_288), random(HIDDEN, 12_288), random(HIDDEN)]
        window = torch.tensor([[-160.0, 240.0]] * shape[0], device="cuda")

        def published(voxels=voxels, full=full, given=given) -> torch.Tensor:
            """Three equal channels, four equal slices, the matrix of patches written out, norm and Linear apart."""
            grey = ((voxels.to(DTYPE) + 160) / 400).clamp(0, 1)
            deep = grey.expand(-1, -1, -1, -1, 4) if grey.shape[-1] == 1 else grey
            three = deep.expand(-1, 3, -1, -1, -1)
            n, c, h, w, d = three.shape
            cut = three.reshape(n, c, h // 32, 32, w // 32, 32, d // 4, 4).permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4)
            normed = F.layer_norm(cut.flatten(0, 3), (12_288,), full[0], full[1])
            return F.layer_norm(F.linear(normed, full[2], full[3]), (HIDDEN,), given[2], given[3])

        def ours(voxels=voxels, given=given, patch=patch, window=window) -> torch.Tensor:
            return patches.patch_embedding(voxels, *given, patch, window)

        def folded(voxels=voxels, given=given, patch=patch, window=window) -> torch.Tensor:
            return patches.reference(voxels, *given, patch, window, 1e-5)

        moved = voxels.numel() * 2 + given[0].numel() * 2 + count * HIDDEN * 2
        times = {"published": milliseconds(published), "folded": milliseconds(folded)}
        times["folded, compiled"] = milliseconds(torch.compile(folded))
        yield Row("patch embedding", name, milliseconds(ours), 2 * count * values * HIDDEN, moved, times)


def entropy_rows() -> Iterator[Row]:
    tokens, words, width = 16_384, 32_000, 5120
    hidden, head = random(tokens, width, grad=True), random(words, width, grad=True)
    labels = torch.randint(0, words, (tokens,), device="cuda")
    for name, share in {"all rows weigh": 1.0, "a tenth weighs": 0.1}.items():
        weights = (torch.rand(tokens, device="cuda") < share).float()

        def plain(weights=weights) -> torch.Tensor:
            nll = F.cross_entropy(F.linear(hidden, head).float(), labels, reduction="none")
            return (nll * weights).sum() / weights.sum()

        def ours(weights=weights) -> torch.Tensor:
            return entropy.weighted_cross_entropy(hidden, head, labels, weights)

        def both(loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
            return lambda: torch.autograd.grad(loss(), [hidden, head])

        yield Row("weighted cross-entropy, with backward", name, milliseconds(both(ours)),
                  6 * tokens * share * words * width, 2 * (tokens + words) * width * 2, {"plain": milliseconds(both(plain))},
                  megabytes(both(ours)), megabytes(both(plain)))  # fmt: skip


def card() -> tuple[float, float]:
    """What the card copies and multiplies: TB/s and TFLOP/s, measured."""
    block = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    copied = 2 * block.numel() / milliseconds(lambda: block.clone()) / 1e9
    a, b = random(8192, 8192), random(8192, 8192)
    return copied, 2 * 8192**3 / milliseconds(lambda: a @ b) / 1e9


def plot(rows: list[Row], file: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 0.35 * len(rows) + 1.5))
    names = [f"{row.kernel}, {row.shape}" for row in rows]
    axes.barh(names, [min(row.rivals.values()) / row.ms for row in rows], color="#4477aa")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("times as fast as the fastest rival")
    axes.invert_yaxis()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write all that was measured")
    parser.add_argument("--plot", type=Path, help="draw the ratios (needs matplotlib)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("The kernels are measured on a CUDA card, and here is none; compile_ahead.py needs no card.", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    copied, multiplied = card()
    device = torch.cuda.get_device_name()
    print(
        f"{device}: copies {copied:.2f} TB/s, multiplies {multiplied:.0f} TFLOP/s in bfloat16; torch {torch.__version__}\n"
    )
    print("| kernel | shape | ms | TB/s (of copy) | TFLOP/s (of matmul) | memory MB (rival) | times as fast as |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for row in (*packed_rows(), *neighbourhood_rows(), *perceiver_rows(), *patch_rows(), *entropy_rows()):
        rows.append(row)
        moved, work = row.bytes / row.ms / 1e9, row.flop / row.ms / 1e9
        rivals = ", ".join(f"{name} {ms / row.ms:.2f}" for name, ms in row.rivals.items())
        memory = f"{row.megabytes:.0f} ({row.rival_megabytes:.0f})" if row.megabytes else ""
        print(f"| {row.kernel} | {row.shape} | {row.ms:.3f} | {moved:.2f} ({moved / copied:.0%}) "
              f"| {work:.0f} ({work / multiplied:.0%}) | {memory} | {rivals} |", flush=True)  # fmt: skip
    if options.json is not None:
        found = {"device": device, "copy_tb_s": copied, "matmul_tflop_s": multiplied, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.plot is not None:
        plot(rows, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
