"""The model on a CPU against a plain rendering of the published computation, at the paper's sizes.

    python benchmarks/model.py               # everything, some minutes
    python benchmarks/model.py --only scans  # or lookup, growth, generation

"Plain" is what the published code computes: three equal channels, every scan padded to the deepest of a batch, LayerNorm and
Linear apart, attention with its matrix written out, and word embeddings as one-hot rows times a table that is copied. Both
run in one process, in turn; ratios are medians of pairs. Peak memory is measured by a process of its own for each side.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from radfm.configuration_radfm import PAPER_DECODER, RadFMConfig, RadFMVisionConfig
from radfm.modeling_radfm import RadFMForConditionalGeneration, RadFMVisionModel

X_RAY: tuple[int, ...] = (1, 512, 512, 1)
CT: tuple[int, ...] = (1, 512, 512, 64)
CASES = {
    "one CT, 512×512×64": [CT],
    "one X-ray, 512×512": [X_RAY],
    "three X-rays and a CT": [X_RAY, X_RAY, X_RAY, CT],
}
DEPTHS = (4, 16, 64, 128, 256, 512)
PAIRS = 3
WORDS, TOKENS, SCANS = 32_000, 2048, 2


class Plain:
    """The published vision tower and Perceiver on a model's own weights."""

    def __init__(self, model: RadFMVisionModel):
        self.model: Any = model

    def __call__(self, scans: list[torch.Tensor]) -> torch.Tensor:
        deepest = max(max(scan.shape[-1] for scan in scans), 4)
        deep = [scan.expand(-1, -1, -1, deepest) if scan.shape[-1] == 1 else scan for scan in scans]
        batch = torch.stack([scan.expand(3, -1, -1, -1).contiguous() for scan in deep])
        x = self.patches(batch)
        for layer in self.model.layers:
            x = x + self.attention(layer.attention, layer.attention_norm(x))
            x = x + layer.mlp(layer.mlp_norm(x))
        perceiver = self.model.perceiver
        latents = perceiver.latents.repeat(len(scans), 1, 1)
        for layer in perceiver.layers:
            a = layer.attention
            normed = a.latents_norm(latents)
            both = torch.cat([a.patches_norm(x), normed], 1)
            key, value = a.key_value(both).chunk(2, -1)
            latents = latents + a.output(self.attend(a, a.query(normed), key, value))
            latents = latents + layer.mlp(layer.mlp_norm(latents))
        return perceiver.norm(latents)

    def patches(self, batch: torch.Tensor) -> torch.Tensor:
        embedding = self.model.patch_embedding
        n, c, h, w, d = batch.shape
        cut = batch.view(n, c, h // 32, 32, w // 32, 32, d // 4, 4).permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4).flatten(1, 3)
        tokens = embedding.output_norm(embedding.projection(embedding.patch_norm(cut)))
        return tokens + embedding.positions((h // 32, w // 32, d // 4))

    def attention(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        query, key, value = module.qkv(x).chunk(3, -1)
        return module.output(self.attend(module, query, key, value))

    @staticmethod
    def attend(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.view(*t.shape[:2], module.heads, module.head_dim).transpose(1, 2) for t in (query, key, value))
        weights = (q @ k.transpose(-1, -2) * module.scaling).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)


def vision_model() -> Any:
    torch.manual_seed(0)
    return RadFMVisionModel(RadFMVisionConfig()).eval()


def scans_of(shapes: list[tuple[int, ...]]) -> list[torch.Tensor]:
    return [torch.rand(shape) for shape in shapes]


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(plain: Callable[[], object], ours: Callable[[], object], pairs: int = PAIRS) -> tuple[float, float, float]:
    """Medians of the plain time, of ours, and of their ratio in each pair of runs."""
    plain(), ours()
    found = [(seconds(plain), seconds(ours)) for _ in range(pairs)]
    theirs, own = (statistics.median(side) for side in zip(*found, strict=True))
    return theirs, own, statistics.median(a / b for a, b in found)


def matmul_rate() -> float:
    """What this machine multiplies: float32 operations a second, at the tower's own widths."""
    a, b = torch.rand(4096, 768), torch.rand(768, 2048)
    F.linear(a, b.t())
    return 2 * a.numel() * b.shape[1] / statistics.median(seconds(lambda: a @ b) for _ in range(15))


def tower_operations(patches: int, config: RadFMVisionConfig, values: int) -> float:
    """Multiplications and additions of a scan's way through tower and Perceiver."""
    width, inner, mlp = config.hidden_size, config.num_attention_heads * config.head_dim, config.intermediate_size
    layer = patches * (4 * width * inner + 2 * width * mlp) + 2 * patches**2 * inner
    latents, own = config.num_image_tokens, config.perceiver_num_attention_heads * config.perceiver_head_dim
    asked = patches + latents
    perceiver = asked * 2 * width * own + latents * (2 * width * own + 2 * width * config.perceiver_intermediate_size)
    perceiver += 2 * latents * asked * own
    both = config.num_hidden_layers * layer + config.perceiver_num_hidden_layers * perceiver
    return 2 * (patches * values * width + both)


def peak_gb(side: str, case: str) -> float:
    """Peak memory of a process that does one forward pass, beyond the loaded model's."""
    command = [sys.executable, __file__, "--measure", side, case]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@torch.inference_mode()
def measure(side: str, case: str) -> None:
    model, scans = vision_model(), scans_of(CASES[case])
    # Linux: forget the peak so far, which holds that of the process that started this one.
    Path("/proc/self/clear_refs").write_text("5")
    before = highest_kb()
    model(scans) if side == "ours" else Plain(model)(scans)
    print((highest_kb() - before) / 1e6)


def highest_kb() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


@torch.inference_mode()
def scans() -> None:
    model, rate = vision_model(), matmul_rate()
    plain = Plain(model)
    print(f"This machine multiplies {rate / 1e9:.0f} GFLOP/s in float32 on {torch.get_num_threads()} threads.\n")
    print("| scans | plain s | ours s | times as fast | plain GB | ours GB | share of the matmul rate |")
    print("|---|---|---|---|---|---|---|")
    for name, shapes in CASES.items():
        batch = scans_of(shapes)
        wanted, got = plain(batch), torch.stack(list(model(batch).pooler_output))
        if len(shapes) == 1:
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-3)
        theirs, own, times = ratio(lambda: plain(batch), lambda: model(batch))  # noqa: B023
        work = sum((tower_operations(256 * max(s[-1] // 4, 1), model.config, 1024 * min(s[-1], 4)) for s in shapes), 0.0)
        memory = [peak_gb(side, name) for side in ("plain", "ours")]
        print(f"| {name} | {theirs:.2f} | {own:.2f} | {times:.1f} | {memory[0]:.2f} | {memory[1]:.2f} "
              f"| {work / own / rate:.0%} |", flush=True)  # fmt: skip


@torch.inference_mode()
def lookup() -> None:
    """Embeddings of a text of 2,048 tokens with two scans, at the paper's width."""
    width: Any = PAPER_DECODER["hidden_size"]
    table, images = torch.rand(WORDS + 2, width), torch.rand(SCANS * 32, width)
    ids = torch.randint(0, WORDS, (1, TOKENS))
    ids[0, 100 : 100 + len(images)] = torch.arange(WORDS + 2, WORDS + 2 + len(images))

    def plain() -> torch.Tensor:
        whole = torch.cat([table, images])[None]
        return F.one_hot(ids, len(table) + len(images)).to(whole.dtype) @ whole

    def ours() -> torch.Tensor:
        words = F.embedding(ids.clamp(max=WORDS + 1), table)
        return words.index_put_((ids >= WORDS + 2).nonzero(as_tuple=True), images)

    assert torch.equal(plain(), ours())
    theirs, own, times = ratio(plain, ours)
    print(f"\nembedding lookup, {TOKENS} tokens: plain {theirs:.2f} s, ours {own * 1e3:.1f} ms, {times:.0f} times as fast")


@torch.inference_mode()
def growth() -> None:
    """How time grows with the slices of a volume of 512×512."""
    model = vision_model()
    print("\n| slices | patches | seconds | seconds a slice |\n|---|---|---|---|")
    for depth in DEPTHS:
        batch = scans_of([(1, 512, 512, depth)])
        model(batch) if depth <= 64 else None
        took = min(seconds(lambda: model(batch)) for _ in range(2 if depth <= 128 else 1))  # noqa: B023
        print(f"| {depth} | {256 * depth // 4:,} | {took:.2f} | {took / depth:.3f} |", flush=True)


def generation() -> None:
    """A whole model, a small decoder behind the paper's tower: forward, training step, generation."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4, "num_attention_heads": 8}
    model = RadFMForConditionalGeneration(RadFMConfig(text_config={**PAPER_DECODER, **sizes})).eval()
    config = model.config
    scan = torch.rand(1, 256, 256, 64)
    ids = [1, config.image_start_token_id, *[config.image_token_id] * 32, config.image_end_token_id, *range(100, 160)]
    text = torch.tensor([ids])
    with torch.inference_mode():
        forward = statistics.median(seconds(lambda: model(input_ids=text, pixel_values=[scan])) for _ in range(PAIRS))
        features = model.get_image_features([scan]).pooler_output
        options: dict[str, Any] = {"attention_mask": torch.ones_like(text), "max_new_tokens": 16, "do_sample": False}
        first = seconds(lambda: model.generate(input_ids=text, pixel_values=[scan], **options))
        again = seconds(lambda: model.generate(input_ids=text, image_features=features, **options))
    model.train()
    weights = torch.ones_like(text, dtype=torch.float32)

    def step() -> None:
        model(input_ids=text, pixel_values=[scan], labels=text, loss_weights=weights).loss.backward()
        model.zero_grad()

    step()
    training = statistics.median(seconds(step) for _ in range(3))
    print(
        f"\nthe paper's tower, a volume of 256×256×64, a decoder of 4 layers of 1,024: forward {forward:.2f} s, "
        f"training step {training:.2f} s, 16 words {first:.2f} s, 16 more about the encoded scan {again:.2f} s"
    )


def main() -> None:
    parts = {"scans": scans, "lookup": lookup, "growth": growth, "generation": generation}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=parts, help="one part alone")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
        return
    for name, part in parts.items():
        if options.only in (None, name):
            part()


if __name__ == "__main__":
    main()
