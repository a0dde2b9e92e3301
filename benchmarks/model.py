"""The model on a CPU against a plain PyTorch implementation of the published model, at the paper's sizes.

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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from radfm.configuration_radfm import PAPER_DECODER, RadFMConfig, RadFMVisionConfig
from radfm.modeling_radfm import RadFMForConditionalGeneration, RadFMVisionModel

# Slices of the scans of a batch, each 512×512.
CASES = {"one CT, 512×512×64": (64,), "one X-ray, 512×512": (1,), "three X-rays and a CT": (1, 1, 1, 64)}
DEPTHS = (4, 16, 64, 128, 256, 512)
PAIRS, LONG_SECONDS = 5, 30
SHORT_PAIRS, SHORT_SECONDS = 25, 1
WORDS, TOKENS, SCANS = 32_000, 2048, 2
SIDES = ("plain", "ours")
TASKS = {
    "forward": "full forward",
    "training": "training step",
    "answer": "16 words about a scan",
    "next_answer": "16 more about the same scan",
}


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
            x = x + layer.dropout(self.attention(layer.attention, layer.attention_norm(x)))
            x = x + layer.dropout(self.mlp(layer.mlp, layer.mlp_norm(x)))
        perceiver = self.model.perceiver
        latents = perceiver.latents.repeat(len(scans), 1, 1)
        for layer in perceiver.layers:
            a = layer.attention
            normed = a.latents_norm(latents)
            both = torch.cat([a.patches_norm(x), normed], 1)
            key, value = self.linear(a.key_value, both).chunk(2, -1)
            latents = latents + self.linear(a.output, self.attend(a, self.linear(a.query, normed), key, value))
            latents = latents + self.mlp(layer.mlp, layer.mlp_norm(latents))
        return perceiver.norm(latents)

    def patches(self, batch: torch.Tensor) -> torch.Tensor:
        embedding = self.model.patch_embedding
        n, c, h, w, d = batch.shape
        cut = batch.view(n, c, h // 32, 32, w // 32, 32, d // 4, 4).permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4).flatten(1, 3)
        tokens = embedding.output_norm(embedding.projection(embedding.patch_norm(cut)))
        return embedding.dropout(tokens + embedding.positions((h // 32, w // 32, d // 4), tokens.device))

    def attention(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.linear(module.qkv, x).chunk(3, -1)
        return self.linear(module.output, self.attend(module, query, key, value))

    def mlp(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        return self.linear(module.down, module.act(self.linear(module.up, x)))

    @staticmethod
    def linear(module: Any, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, module.weight, module.bias)

    @staticmethod
    def attend(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.view(*t.shape[:2], module.heads, module.head_dim).transpose(1, 2) for t in (query, key, value))
        weights = (q @ k.transpose(-1, -2) * module.scaling).softmax(-1)
        weights = F.dropout(weights, module.dropout, module.training)
        return (weights @ v).transpose(1, 2).flatten(2)


def vision_model() -> Any:
    torch.manual_seed(0)
    return RadFMVisionModel(RadFMVisionConfig()).eval()


def scans_of(depths: Sequence[int]) -> list[torch.Tensor]:
    return [torch.rand(1, 512, 512, depth) for depth in depths]


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(plain: Callable[[], object], ours: Callable[[], object]) -> tuple[float, float, float]:
    """Medians of the plain time, of ours, and of their ratio in each pair of runs; a single pair of what takes long."""
    first = seconds(plain), seconds(ours)
    pairs = SHORT_PAIRS if first[0] < SHORT_SECONDS else PAIRS
    found = [first] if first[0] > LONG_SECONDS else [(seconds(plain), seconds(ours)) for _ in range(pairs)]
    plain_seconds, radfm_seconds = (statistics.median(side) for side in zip(*found, strict=True))
    return plain_seconds, radfm_seconds, statistics.median(a / b for a, b in found)


def matmul_rate() -> float:
    """What this machine multiplies: float32 operations a second, at the tower's own widths."""
    a, b = torch.rand(4096, 768), torch.rand(768, 2048)
    F.linear(a, b.t())
    return 2 * a.numel() * b.shape[1] / statistics.median(seconds(lambda: a @ b) for _ in range(15))


def tower_operations(patches: int, config: RadFMVisionConfig, values: int) -> float:
    """Multiplications and additions of a scan's way through tower and Perceiver."""
    width, inner = config.hidden_size, config.num_attention_heads * int(config.head_dim or 0)
    mlp = config.intermediate_size
    layer = patches * (4 * width * inner + 2 * width * mlp) + 2 * patches**2 * inner
    latents, latent_inner = config.num_image_tokens, config.perceiver_num_attention_heads * config.perceiver_head_dim
    keys = patches + latents
    perceiver = keys * 2 * width * latent_inner + latents * (
        2 * width * latent_inner + 2 * width * config.perceiver_intermediate_size
    )
    perceiver += 2 * latents * keys * latent_inner
    both = config.num_hidden_layers * layer + config.perceiver_num_hidden_layers * perceiver
    return 2 * (patches * values * width + both)


def measured(side: str, task: str) -> tuple[float, float]:
    """Seconds and peak GB, beyond the loaded model's, of one run in a process of its own."""
    command = [sys.executable, __file__, "--measure", side, task]
    took, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(took), float(peak)


def measure(side: str, task: str) -> None:
    """A task is a batch's depths with commas between, or one of `Whole`'s."""
    if task[0].isdigit():
        model, scans = vision_model(), scans_of([int(depth) for depth in task.split(",")])
        whole = torch.inference_mode()(lambda: model(scans) if side == "ours" else Plain(model)(scans))
    else:
        whole = getattr(Whole(), task)[side]
    # Linux: forget the peak so far, which holds that of the process that started this one.
    Path("/proc/self/clear_refs").write_text("5")
    before = highest_kb()
    print(seconds(whole), (highest_kb() - before) / 1e6)


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
    for name, depths in CASES.items():
        batch = scans_of(depths)
        if len(depths) == 1:
            torch.testing.assert_close(torch.stack(model(batch).pooler_output), plain(batch), rtol=0, atol=1e-3)
        plain_seconds, radfm_seconds, times = ratio(lambda: plain(batch), lambda: model(batch))  # noqa: B023
        work = sum(tower_operations(256 * max(depth // 4, 1), model.config, 1024 * min(depth, 4)) for depth in depths)
        memory = [measured(side, ",".join(map(str, depths)))[1] for side in SIDES]
        print(f"| {name} | {plain_seconds:.2f} | {radfm_seconds:.2f} | {times:.2f} | {memory[0]:.2f} | {memory[1]:.2f} "
              f"| {work / radfm_seconds / rate:.0%} |", flush=True)  # fmt: skip


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
        embeddings = F.embedding(ids.clamp(max=WORDS + 1), table)
        return embeddings.masked_scatter((ids >= WORDS + 2).unsqueeze(-1), images)

    assert torch.equal(plain(), ours())
    plain_seconds, radfm_seconds, times = ratio(plain, ours)
    print(
        f"\nembedding lookup, {TOKENS} tokens: plain {plain_seconds:.2f} s, ours {radfm_seconds * 1e3:.1f} ms, "
        f"{times:.0f} times as fast"
    )


def growth() -> None:
    """How time and memory grow with the slices of a volume of 512×512."""
    print("\n| slices | patches | seconds | seconds a slice | peak GB |\n|---|---|---|---|---|")
    for depth in DEPTHS:
        took, peak = measured("ours", str(depth))
        print(f"| {depth} | {256 * depth // 4:,} | {took:.2f} | {took / depth:.3f} | {peak:.2f} |", flush=True)


class Whole:
    """A whole model, the paper's tower before a small decoder, and what is done with it, each the plain way and ours.

    The plain way encodes the scan anew for every question, and looks words and image tokens up as one-hot rows; the
    decoder and the loss are the same on both sides.
    """

    def __init__(self) -> None:
        torch.manual_seed(0)
        sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4, "num_attention_heads": 8}
        self.model: Any = RadFMForConditionalGeneration(RadFMConfig(text_config={**PAPER_DECODER, **sizes})).eval()
        config = self.model.config
        self.scan = torch.rand(1, 256, 256, 64)
        image = [config.image_start_token_id, *[config.image_token_id] * 32, config.image_end_token_id]
        self.text = torch.tensor([[1, *image, *range(100, 160)]])
        self.ours: dict[str, Any] = {"input_ids": self.text, "pixel_values": [self.scan]}
        self.plain_tower = Plain(self.model.model.vision_tower)
        with torch.inference_mode():
            self.encoded = self.model.get_image_features([self.scan]).pooler_output
        known = {"input_ids": self.text, "image_features": self.encoded}
        self.forward = {"plain": lambda: self.run(self.plain), "ours": lambda: self.run(lambda: self.ours)}
        self.training = {"plain": lambda: self.step(self.plain), "ours": lambda: self.step(lambda: self.ours)}
        self.answer = {"plain": lambda: self.generate(self.plain), "ours": lambda: self.generate(lambda: self.ours)}
        self.next_answer = {"plain": lambda: self.generate(self.plain), "ours": lambda: self.generate(lambda: known)}

    def plain(self) -> dict[str, Any]:
        table = self.model.get_input_embeddings().weight
        features = Plain.linear(self.model.model.projector, self.plain_tower([self.scan]))[0]
        whole, ids = torch.cat([table, features]), self.text.clone()
        ids[ids == self.model.config.image_token_id] = torch.arange(len(table), len(whole))
        return {"inputs_embeds": F.one_hot(ids, len(whole)).to(whole.dtype) @ whole}

    @torch.inference_mode()
    def run(self, inputs: Callable[[], dict[str, Any]]) -> torch.Tensor:
        return self.model(**inputs()).logits

    @torch.inference_mode()
    def generate(self, inputs: Callable[[], dict[str, Any]]) -> torch.Tensor:
        return self.model.generate(
            **inputs(), attention_mask=torch.ones_like(self.text), max_new_tokens=16, min_new_tokens=16, do_sample=False
        )

    def step(self, inputs: Callable[[], dict[str, Any]]) -> None:
        self.model.train()
        weights = torch.ones_like(self.text, dtype=torch.float32)
        self.model(**inputs(), labels=self.text, loss_weights=weights).loss.backward()
        self.model.zero_grad()
        self.model.eval()


def generation() -> None:
    whole = Whole()
    with torch.inference_mode():
        torch.testing.assert_close(whole.forward["plain"](), whole.forward["ours"](), rtol=0, atol=1e-3)
    print("\nA volume of 256×256×64, 95 tokens, the paper's tower before a decoder of 4 layers of 1,024:\n")
    print("| | plain s | ours s | times as fast | plain GB | ours GB |\n|---|---|---|---|---|---|")
    for task, name in TASKS.items():
        plain_seconds, radfm_seconds, times = ratio(*(getattr(whole, task)[side] for side in SIDES))
        memory = [measured(side, task)[1] for side in SIDES]
        print(
            f"| {name} | {plain_seconds:.2f} | {radfm_seconds:.2f} | {times:.1f} | {memory[0]:.2f} | {memory[1]:.2f} |",
            flush=True,
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
