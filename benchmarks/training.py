"""Training on a CPU: a step against the published way, LoRA and full steps, padding, cached patches, the term matcher.

    python benchmarks/training.py                    # everything, about half an hour on an idle machine
    python benchmarks/training.py --only step        # or rates, padding, cache, matcher
    python benchmarks/training.py --only step --decoder-layers 1 --vision-layers 4 --pairs 1    # what a busy machine can do

One thread and its CPU seconds, so that other work on the machine counts little; medians, and ratios of runs in turn.
"Published" is the computation of the published code, written plainly (`benchmarks/model.py`): three channels, every scan
padded to the deepest of a batch, texts padded to 2,048 tokens, one-hot rows times a table, all logits for the loss.
"""

import argparse
import copy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from model import Plain, highest_kb

from radfm.configuration_radfm import PAPER_DECODER, RadFMConfig, RadFMVisionConfig
from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.training.parts import set_trainable_parts
from radfm.training.recipe import load_recipe
from radfm.training.token_weights import TermMatcher, shipped_terms

ROOT = Path(__file__).parents[1]  # with the demo checkpoint
PUBLISHED_TOKENS, IMAGE_TOKENS = 2048, 32
ANSWER_TOKENS = 60  # of each text, beside its image tokens: 95 tokens a row
STEP_SCANS = ((256, 256, 1),) * 3 + ((256, 256, 64),)  # three X-rays and a CT
LOSS_TOLERANCE = 1e-4  # float32, other orders of summation
IMAGE, VOLUME = (96, 96, 1), (96, 96, 32)  # scans of the demo checkpoint


class Step:
    """One training step (forward and backward) on three X-rays and one CT, a text of 95 tokens for each."""

    def __init__(self, decoder_layers: int, vision_layers: int):
        torch.manual_seed(0)
        text = {**PAPER_DECODER, "num_hidden_layers": decoder_layers}
        vision = RadFMVisionConfig(num_hidden_layers=vision_layers, attention_dropout=0.0, hidden_dropout=0.0)
        self.model: Any = RadFMForConditionalGeneration(RadFMConfig(text_config=text, vision_config=vision)).train()
        config = self.model.config
        image = [config.image_start_token_id, *[config.image_token_id] * IMAGE_TOKENS, config.image_end_token_id]
        self.ids = torch.tensor([[1, *image, *range(100, 100 + ANSWER_TOKENS)]] * len(STEP_SCANS))
        self.scans = [torch.rand(1, *shape) for shape in STEP_SCANS]
        self.labels = self.ids.where(self.ids < config.image_start_token_id, -100)
        self.weights = (self.labels != -100).float()

    def ours(self) -> torch.Tensor:
        batch = {"input_ids": self.ids, "labels": self.labels, "loss_weights": self.weights}
        return self._backward(self.model(**batch, pixel_values=self.scans).loss)

    def published(self) -> torch.Tensor:
        model, config = self.model, self.model.config
        length = self.ids.shape[1]
        ids = F.pad(self.ids, (0, PUBLISHED_TOKENS - length))
        labels = F.pad(self.labels, (0, PUBLISHED_TOKENS - length), value=-100)
        tokens = Plain.linear(model.model.projector, Plain(model.model.vision_tower)(self.scans))  # (N, I, E)
        table = model.get_input_embeddings().weight
        embedded = []
        for row, of_scan in zip(ids, tokens, strict=True):
            whole, row = torch.cat([table, of_scan]), row.clone()
            row[row == config.image_token_id] = torch.arange(len(table), len(whole))
            embedded.append(F.one_hot(row, len(whole)).to(whole.dtype) @ whole)
        mask = F.pad(torch.ones_like(self.ids), (0, PUBLISHED_TOKENS - length))
        outputs = model(inputs_embeds=torch.stack(embedded), attention_mask=mask)
        logits = outputs.logits[:, :-1].flatten(0, 1)
        nll = F.cross_entropy(logits, labels[:, 1:].flatten(), reduction="none", ignore_index=-100)
        weights = (labels[:, 1:] != -100).float().flatten()
        return self._backward((nll * weights).sum() / weights.sum())

    def on_images(self) -> "Step":
        """The same step on the X-rays alone, where the published way pads no scan and both ways have the same loss."""
        images, rows = copy.copy(self), len(STEP_SCANS) - 1
        images.ids, images.labels, images.weights = self.ids[:rows], self.labels[:rows], self.weights[:rows]
        images.scans = self.scans[:rows]
        return images

    def _backward(self, loss: torch.Tensor) -> torch.Tensor:
        loss.backward()
        self.model.zero_grad()
        return loss.detach()


def step(options: argparse.Namespace) -> None:
    work = Step(options.decoder_layers, options.vision_layers)
    parameters = sum(p.numel() for p in work.model.parameters())
    pairs = []
    for _ in range(options.pairs):
        pair = []
        for side in ("published", "ours"):
            start = time.process_time()
            getattr(work, side)()
            pair.append(time.process_time() - start)
        pairs.append(pair)
        print(f"published {pair[0]:.1f} s, ours {pair[1]:.1f} s", flush=True)
    images = work.on_images()
    losses = float(images.published()), float(images.ours())
    assert abs(losses[0] - losses[1]) < LOSS_TOLERANCE * losses[0], losses
    del work, images
    published, ours = (statistics.median(side) for side in zip(*pairs, strict=True))
    sizes = ["--decoder-layers", str(options.decoder_layers), "--vision-layers", str(options.vision_layers)]
    peak = {}
    for side in ("published", "ours"):  # in a process of its own
        command = [sys.executable, __file__, "--peak", side, *sizes]
        peak[side] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(
        "\nA step on three X-rays of 256×256 and a CT of 256×256×64 at the paper's widths, "
        f"{options.decoder_layers} decoder and {options.vision_layers} vision layers "
        f"({parameters / 1e9:.2f} B parameters), {options.pairs} pairs:\n"
    )
    print("| | seconds | peak GB beyond the weights |\n|---|---|---|")
    print(f"| published | {published:.1f} | {peak['published']:.2f} |\n| ours | {ours:.1f} | {peak['ours']:.2f} |")
    times = statistics.median(a / b for a, b in pairs)
    saved = peak["published"] / peak["ours"]
    print(
        f"\n{times:.1f} times as fast, {saved:.1f} times less memory; losses on the X-rays equal to {LOSS_TOLERANCE}.",
        flush=True,
    )


def print_peak(side: str, options: argparse.Namespace) -> None:
    """GB that one step takes beyond the loaded model."""
    work = Step(options.decoder_layers, options.vision_layers)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
    before = highest_kb()
    getattr(work, side)()
    print((highest_kb() - before) / 1e6)


def demo_batch(scans: Sequence[tuple[int, ...]], config: Any, answers: list[int]) -> dict[str, Any]:
    """A batch of the demo checkpoint, a scan and a text for each row, padded to the longest text."""
    image = [config.image_start_token_id, *[config.image_token_id] * config.num_image_tokens, config.image_end_token_id]
    rows = [torch.tensor([1, *image, *range(10, 10 + answer)]) for answer in answers]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
    labels = ids.where((ids >= 10) & (ids < 10 + max(answers)), -100)
    return {
        "input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels, "loss_weights": (labels != -100).float(),
        "pixel_values": [torch.rand(1, *shape) for shape in scans],
    }  # fmt: skip


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def median_seconds(work: Callable[[], object], runs: int) -> float:
    work()
    return statistics.median(seconds(work) for _ in range(runs))


def train_step(model: Any, batch: dict[str, Any]) -> Callable[[], object]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6)

    def work() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return work


def rates(options: argparse.Namespace) -> None:
    """Scans and tokens a second of the demo checkpoint."""
    full = ["parts.decoder=full", "parts.vision_tower=full", "parts.perceiver=full"]
    kinds = {
        "full": ("projector-only", full),
        "LoRA, recipe finetune-lora": ("finetune-lora", []),
        "projector alone": ("projector-only", []),
    }
    mixes = {"24 images": [IMAGE] * 24, "20 images, 4 volumes of 32": [IMAGE] * 20 + [VOLUME] * 4}
    print("\nThe demo checkpoint, forward, backward and AdamW:\n\n| trained | batch | scans/s | tokens/s |")
    print("|---|---|---|---|")
    for name, (recipe, overrides) in kinds.items():
        model = RadFMForConditionalGeneration.from_pretrained(ROOT, dtype=torch.float32).train()
        model = set_trainable_parts(model, load_recipe(recipe, overrides))
        for mix, scans in mixes.items():
            batch = demo_batch(scans, model.config, [8] * len(scans))
            took = median_seconds(train_step(model, batch), options.runs)
            tokens = int(batch["attention_mask"].sum())
            print(f"| {name} | {mix} | {len(scans) / took:.0f} | {tokens / took:.0f} |", flush=True)


def padding(options: argparse.Namespace) -> None:
    """Scans packed against scans padded to the deepest of the batch."""
    model = RadFMForConditionalGeneration.from_pretrained(ROOT, dtype=torch.float32).train()
    scans, padded = [IMAGE] * 21 + [VOLUME] * 3, [VOLUME] * 24
    times = [median_seconds(train_step(model, demo_batch(s, model.config, [8] * 24)), options.runs) for s in (padded, scans)]
    print(f"\n21 images and 3 volumes of 32 slices, full step: padded {times[0]:.2f} s, padding-free {times[1]:.2f} s, "
          f"{times[0] / times[1]:.1f} times as fast", flush=True)  # fmt: skip


def cache(options: argparse.Namespace) -> None:
    """A step of the projector and the Perceiver on volumes, whose tower is frozen, from pixel values and from the disk."""
    from radfm.training.patch_cache import take_cached_patches

    recipe = load_recipe("projector-only", ["parts.perceiver=full"])
    model: Any = RadFMForConditionalGeneration.from_pretrained(ROOT, dtype=torch.float32).train()
    tower = set_trainable_parts(model, recipe).model.vision_tower
    batch = demo_batch([VOLUME] * 8, model.config, [8] * 8)
    encoded = median_seconds(train_step(model, batch), options.runs)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        patches, pack = tower.eval().encode_patches(batch["pixel_values"])
        files = [Path(folder) / f"{number}.npy" for number in range(8)]
        for file, of_scan in zip(files, patches.split(pack.lengths), strict=True):
            np.save(file, of_scan.numpy())
        take_cached_patches(tower)

        def from_disk() -> None:
            with torch.enable_grad():
                train({**batch, "pixel_values": [torch.from_numpy(np.load(file)) for file in files]})

        def train(inputs: dict[str, Any]) -> None:
            train_step(model, inputs)()

        cached = median_seconds(from_disk, options.runs)
    size_mb = patches.numel() * 4 / 8 / 1e6
    print(f"\n8 volumes, Perceiver and projector trained, tower frozen: {encoded:.3f} s a step, from cached patches "
          f"{cached:.3f} s, {encoded / cached:.1f} times as fast ({size_mb:.2f} MB a volume)", flush=True)  # fmt: skip


def matcher(options: argparse.Namespace) -> None:
    """MB a second of the matcher over report-like text."""
    terms = shipped_terms()
    start = time.process_time()
    automaton = TermMatcher(terms)
    built = time.process_time() - start
    rng = np.random.default_rng(0)
    plain = (
        "there",
        "is",
        "no",
        "evidence",
        "of",
        "the",
        "with",
        "in",
        "right",
        "left",
        "small",
        "unchanged",
        "seen",
        "and",
    )
    words = [terms[i] if rng.random() < 0.2 else plain[i % len(plain)] for i in rng.integers(len(terms), size=400_000)]
    texts = [" ".join(words[i : i + 40]) + "." for i in range(0, len(words), 40)]
    size = sum(len(text.encode()) for text in texts) / 1e6
    took = min(seconds(lambda: [automaton.spans(text) for text in texts]) for _ in range(3))
    print(f"\nmatcher: {len(terms):,} terms, built in {built:.1f} s; {size / took:.1f} MB/s over {len(texts):,} texts, "
          "word edges and longest term included", flush=True)  # fmt: skip


def main() -> None:
    parts = {"step": step, "rates": rates, "padding": padding, "cache": cache, "matcher": matcher}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=parts, help="one part alone")
    parser.add_argument("--decoder-layers", type=int, default=2, help="24 GB hold 2 layers with the published way's logits")
    parser.add_argument("--vision-layers", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--peak", choices=["published", "ours"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print_peak(options.peak, options)
        return
    print(f"{torch.get_num_threads()} thread, torch {torch.__version__}, float32")
    for name, part in parts.items():
        if options.only in (None, name):
            part(options)


if __name__ == "__main__":
    main()
