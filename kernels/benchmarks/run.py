"""Every kernel at RadFM's sizes on a card: time, rates, share of what the card can do, and ratios to its rivals.

    python kernels/benchmarks/run.py --json kernels/benchmarks/results.json --plot kernels/benchmarks/results.png

All of a row is measured in one run, in turn. A time is the median of calls from Python, one after the other; "busy" is what
the card itself worked of it, and small shapes are bound by the rest, the launches. Ratios above 1 say that the kernel is
faster than its rival, first by time, then by what the card worked. Rates are those of the busy card.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent / "torch-ext"))
packed, perceiver, patches, entropy = (
    import_module(f"radfm_kernels.{name}")
    for name in ("packed_attention", "perceiver_attention", "patch_embedding", "weighted_cross_entropy")
)

HEADS, HEAD_DIM, FEATURES, LATENTS = 8, 64, 768, 32
# 28 X-rays of 512×512 and 4 CTs of 512×512×64, in patches of 32×32×4.
MIX = (*[256] * 28, *[4096] * 4)
# 12 CTs of 512×512, each with another number of slices.
DEPTHS = tuple(256 * (8 + depth) for depth in range(12))
SHAPES = {
    "256": (256,),
    "1,024": (1024,),
    "4,096": (4096,),
    "32,768": (32_768,),
    "28 X-rays and 4 CTs": MIX,
    "12 CTs of 32 to 76 slices": DEPTHS,
}
MOST_PADDED = 1 << 15
DTYPE = torch.bfloat16
PROFILED = 10
VARLEN = (
    ("varlen_attn", "torch.nn.attention.varlen", "varlen_attn"),
    ("flash-attn", "flash_attn", "flash_attn_varlen_func"),
)


@dataclass
class Time:
    """Milliseconds of a call, and of the card in it."""

    ms: float
    busy_ms: float


@dataclass
class Row:
    """One kernel at one shape: time, floating-point operations, bytes that must move, and the times of rivals."""

    kernel: str
    shape: str
    time: Time
    flop: float
    bytes: float
    rivals: dict[str, Time] = field(default_factory=dict)
    megabytes: float = 0.0
    rival_megabytes: float = 0.0


def measure(work: Callable[[], object]) -> Time:
    import triton

    ms = triton.testing.do_bench(work, warmup=30, rep=100, return_mode="median")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(PROFILED):
            work()
        torch.cuda.synchronize()
    return Time(ms, sum(event.self_device_time_total for event in profile.key_averages()) / PROFILED / 1e3)


def megabytes(work: Callable[[], object]) -> float:
    """Peak memory of a run, beyond what was allocated before it."""
    work()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def random(*shape: int, grad: bool = False) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=DTYPE).requires_grad_(grad)


def cu_seqlens_of(lengths: tuple[int, ...]) -> torch.Tensor:
    return F.pad(torch.tensor(lengths, device="cuda").cumsum(0), (1, 0)).to(torch.int32)


def with_backward(work: Callable[[], torch.Tensor], leaves: list[torch.Tensor]) -> Callable[[], object]:
    gradient = torch.randn_like(work())
    return lambda: torch.autograd.grad(work(), leaves, gradient)


def optional(module: str, name: str) -> Any:
    """A function of a package, where that is installed."""
    try:
        return getattr(import_module(module), name)
    except ImportError:
        return None


def packed_rows() -> Iterator[Row]:
    for name, lengths in SHAPES.items():
        total, max_seqlen, cu_seqlens = sum(lengths), max(lengths), cu_seqlens_of(lengths)
        leaves = [random(total, HEADS, HEAD_DIM, grad=True) for _ in range(3)]
        padded = [random(len(lengths), HEADS, max_seqlen, HEAD_DIM, grad=True) for _ in range(3)]
        key_mask = torch.arange(max_seqlen, device="cuda") < torch.tensor(lengths, device="cuda")[:, None]
        mask = None if len(set(lengths)) == 1 else key_mask[:, None, None]
        arguments = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)

        def kernel(leaves=leaves, arguments=arguments) -> torch.Tensor:
            return packed.packed_attention(*leaves, *arguments)

        def sdpa(padded=padded, mask=mask) -> torch.Tensor:
            q, k, v = padded
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

        def grouped(leaves=leaves, lengths=lengths) -> torch.Tensor:
            """What the model does without the kernels: neighbours of one length as one batch."""
            groups = [list(group) for _, group in groupby(lengths)]
            outputs: list[torch.Tensor] = []
            for q, k, v in zip(*(leaf.split([sum(group) for group in groups]) for leaf in leaves), strict=True):
                scans = len(groups[len(outputs)])
                batch = (t.view(scans, -1, HEADS, HEAD_DIM).transpose(1, 2) for t in (q, k, v))
                outputs.append(F.scaled_dot_product_attention(*batch).transpose(1, 2).flatten(0, 1))
            return torch.cat(outputs)

        rivals: dict[str, tuple[Any, Any]] = {"SDPA of equal lengths": (grouped, leaves)}
        if mask is not None and len(lengths) * max_seqlen < MOST_PADDED:
            rivals["padded SDPA"] = (sdpa, padded)
        for rival, module, function in VARLEN:
            varlen = optional(module, function)
            if varlen is not None:
                rivals[rival] = (lambda f=varlen: f(*leaves, *arguments), leaves)  # noqa: B023
        flop = 4 * HEADS * HEAD_DIM * sum(n * n for n in lengths)
        moved = 4 * total * HEADS * HEAD_DIM * 2
        with torch.no_grad():
            times = {rival: measure(work) for rival, (work, _) in rivals.items()}
            yield Row("packed attention", name, measure(kernel), flop, moved, times)
        times = {rival: measure(with_backward(work, of)) for rival, (work, of) in rivals.items()}
        both = measure(with_backward(kernel, leaves))
        yield Row("packed attention, with backward", name, both, 3.5 * flop, 3 * moved, times)


def perceiver_rows() -> Iterator[Row]:
    for name, lengths in SHAPES.items():
        total, rows, cu_seqlens, max_seqlen = sum(lengths), len(lengths) * LATENTS, cu_seqlens_of(lengths), max(lengths)
        q, latent_k, latent_v = (random(rows, HEADS, HEAD_DIM) for _ in range(3))
        k, v = (random(total, HEADS, HEAD_DIM) for _ in range(2))
        of_latents = [t.split(LATENTS) for t in (q, latent_k, latent_v)]
        scans = list(zip(*of_latents, k.split(lengths), v.split(lengths), strict=True))

        def concatenated(scans=scans) -> torch.Tensor:
            outputs = []
            for scan_q, scan_latent_k, scan_latent_v, scan_k, scan_v in scans:
                parts = (scan_q, torch.cat([scan_k, scan_latent_k]), torch.cat([scan_v, scan_latent_v]))
                outputs.append(F.scaled_dot_product_attention(*(part.transpose(0, 1)[None] for part in parts)))
            return torch.cat(outputs, 2)

        def kernel(tensors=(q, k, v, latent_k, latent_v), cu_seqlens=cu_seqlens, max_seqlen=max_seqlen) -> torch.Tensor:
            return perceiver.perceiver_attention(*tensors, cu_seqlens, max_seqlen)

        flop = 4 * HEADS * HEAD_DIM * LATENTS * (total + rows)
        rivals = {"SDPA of a concatenation": measure(concatenated)}
        yield Row("Perceiver attention", name, measure(kernel), flop, 2 * total * HEADS * HEAD_DIM * 2, rivals)


def patch_rows() -> Iterator[Row]:
    for name, shape in {"512×512×64": (1, 1, 512, 512, 64), "28 X-rays": (28, 1, 512, 512, 1)}.items():
        voxels = random(*shape)
        patch_size = (32, 32, min(shape[-1], 4))
        count, values = shape[0] * 256 * (shape[-1] // patch_size[2]), 1024 * patch_size[2]
        vector, third = (FEATURES,), FEATURES // 3
        shapes = ((FEATURES, values), vector, vector, vector, (16, third), (16, third), (128, third))
        parameters = [random(*s) for s in shapes]
        full = [random(12_288), random(12_288), random(FEATURES, 12_288), random(FEATURES)]

        def published(voxels=voxels, full=full, parameters=parameters) -> torch.Tensor:
            """Three equal channels, four equal slices, the matrix of patches written out, LayerNorm and Linear apart."""
            slices = voxels.expand(-1, -1, -1, -1, 4) if voxels.shape[-1] == 1 else voxels
            channels = slices.expand(-1, 3, -1, -1, -1)
            n, c, h, w, d = channels.shape
            matrix = channels.reshape(n, c, h // 32, 32, w // 32, 32, d // 4, 4).permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4)
            normed = F.layer_norm(matrix.flatten(0, 3), (12_288,), full[0], full[1])
            return F.layer_norm(F.linear(normed, full[2], full[3]), (FEATURES,), parameters[2], parameters[3])

        def kernel(voxels=voxels, parameters=parameters, patch_size=patch_size) -> torch.Tensor:
            return patches.patch_embedding(voxels, *parameters, patch_size)

        def folded(voxels=voxels, parameters=parameters, patch_size=patch_size) -> torch.Tensor:
            return patches.reference(voxels, *parameters, patch_size=patch_size, eps=1e-5)

        moved = voxels.numel() * 2 + parameters[0].numel() * 2 + count * FEATURES * 2
        times = {"published": measure(published), "folded": measure(folded)}
        times["folded, compiled"] = measure(torch.compile(folded))
        yield Row("patch embedding", name, measure(kernel), 2 * count * values * FEATURES, moved, times)


def entropy_rows() -> Iterator[Row]:
    tokens, vocab_size, hidden_size = 16_384, 32_000, 5120
    leaves = [random(tokens, hidden_size, grad=True), random(vocab_size, hidden_size, grad=True)]
    labels = torch.randint(0, vocab_size, (tokens,), device="cuda")
    for name, share in {"all rows weigh": 1.0, "a tenth weighs": 0.1}.items():
        weights = (torch.rand(tokens, device="cuda") < share).float()

        def plain(weights=weights) -> torch.Tensor:
            nll = F.cross_entropy(F.linear(*leaves).float(), labels, reduction="none")
            return (nll * weights).sum() / weights.sum()

        def kernel(weights=weights) -> torch.Tensor:
            return entropy.weighted_cross_entropy(*leaves, labels, weights)

        for trained, products in (("", 6), (", head frozen", 4)):
            leaves[1].requires_grad_(not trained)

            def both(loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
                return lambda: torch.autograd.grad(loss(), [leaf for leaf in leaves if leaf.requires_grad])

            flop = products * tokens * share * vocab_size * hidden_size
            moved = 2 * (tokens + vocab_size) * hidden_size * 2
            time, rivals = measure(both(kernel)), {"plain": measure(both(plain))}
            memory = megabytes(both(kernel)), megabytes(both(plain))
            yield Row("weighted cross-entropy, with backward", name + trained, time, flop, moved, rivals, *memory)


def card() -> tuple[float, float]:
    """Measured copy rate in TB/s, and rate of matrix products in TFLOP/s."""
    block = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    copied = 2 * block.numel() / measure(lambda: block.clone()).ms / 1e9
    a, b = random(8192, 8192), random(8192, 8192)
    return copied, 2 * 8192**3 / measure(lambda: a @ b).ms / 1e9


def plot(rows: list[Row], file: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 0.4 * len(rows) + 1.2))
    for offset, name, field_name, color in (
        (-0.2, "card", "busy_ms", "#4477aa"),
        (0.2, "call from Python", "ms", "#bbccee"),
    ):
        ratios = [
            min(getattr(rival, field_name) for rival in row.rivals.values()) / getattr(row.time, field_name) for row in rows
        ]
        axes.barh([i + offset for i in range(len(rows))], [r - 1 for r in ratios], 0.4, left=1, color=color, label=name)
    axes.set_yticks(range(len(rows)), [f"{row.kernel}, {row.shape}" for row in rows])
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks([0.25, 0.5, 1, 2, 4, 8], ["¼", "½", "1", "2", "4", "8"])
    axes.minorticks_off()
    axes.set_xlabel("times as fast as the fastest rival")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=100)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write all that was measured")
    parser.add_argument("--plot", type=Path, help="draw the ratios (needs matplotlib)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA card to time the kernels on. compile_ahead.py needs none.", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    copied, multiplied = card()
    device = torch.cuda.get_device_name()
    print(
        f"{device}: copies {copied:.2f} TB/s, multiplies {multiplied:.0f} TFLOP/s in bfloat16; torch {torch.__version__}\n"
    )
    print("| kernel | shape | ms | busy | TB/s (of copy) | TFLOP/s (of matmul) | memory MB (rival) | times as fast as |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for row in (*packed_rows(), *perceiver_rows(), *patch_rows(), *entropy_rows()):
        rows.append(row)
        ms, busy = row.time.ms, row.time.busy_ms
        moved, work = row.bytes / busy / 1e9, row.flop / busy / 1e9
        rivals = ", ".join(f"{name} {of.ms / ms:.2f}, {of.busy_ms / busy:.2f}" for name, of in row.rivals.items())
        memory = f"{row.megabytes:.0f} ({row.rival_megabytes:.0f})" if row.megabytes else ""
        print(f"| {row.kernel} | {row.shape} | {ms:.3f} | {busy:.3f} | {moved:.2f} ({moved / copied:.0%}) "
              f"| {work:.0f} ({work / multiplied:.0%}) | {memory} | {rivals} |", flush=True)  # fmt: skip
    if options.json is not None:
        found = {"device": device, "copy_tb_s": copied, "matmul_tflop_s": multiplied, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.plot is not None:
        plot(rows, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
