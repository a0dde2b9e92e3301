"""The published model's sizes on a GPU, in bfloat16 with random weights: encoding and training steps, kernels on and off.

    python benchmarks/gpu.py --json gpu.json    # two minutes; 80 GB of GPU memory
    python benchmarks/gpu.py --only vision      # or steps

"On" is what a user gets on a GPU. "Off" is RADFM_KERNELS=0: PyTorch's attention of neighbouring scans of equal length, and
all logits written out. Each side is a process of its own, one after the other. Times are medians; "busy" is what the GPU
itself worked in one run, the rest is Python. FLOP are those that PyTorch counts with the kernels off, without what
checkpointing computes twice; the utilisation divides them by the rate of a large matrix product on the same GPU.
`kernels/benchmarks/run.py` times each kernel alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from radfm.configuration_radfm import PAPER_DECODER, RadFMConfig, RadFMVisionConfig
from radfm.modeling_radfm import RadFMForConditionalGeneration, RadFMVisionModel

IMAGE, VOLUME = (512, 512, 1), (512, 512, 64)
ENCODED = {
    "one CT, 512×512×64": [VOLUME],
    "12 CTs of 32 to 76 slices": [(512, 512, 32 + 4 * depth) for depth in range(12)],
    "28 X-rays of 512×512": [IMAGE] * 28,
    "28 X-rays and 4 CTs": [IMAGE] * 28 + [VOLUME] * 4,
}
STEP_SCANS = [IMAGE] * 12 + [VOLUME] * 4
STEP_WORDS = 268  # beside the 32 tokens of the scan and its two marks
SIDES: dict[str, dict[str, str]] = {"off": {"RADFM_KERNELS": "0"}, "on": {}}
MATRIX = 8192


@dataclass
class Row:
    """One measurement: seconds, what was done in them, and the peak of allocated memory with the weights, in GB."""

    name: str
    seconds: float
    busy_seconds: float
    scans: int
    tokens: int
    flop: float
    peak_gb: float


def median_seconds(work: Callable[[], object], runs: int) -> float:
    for _ in range(2):  # compiles and tunes the kernels
        work()
    times = []
    for _ in range(runs):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(name: str, work: Callable[[], object], scans: int, tokens: int, flop: float, runs: int) -> Row:
    torch.cuda.reset_peak_memory_stats()
    seconds = median_seconds(work, runs)
    peak_gb = torch.cuda.max_memory_allocated() / 1e9
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        torch.cuda.synchronize()
    busy = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
    return Row(name, seconds, busy, scans, tokens, flop, peak_gb)


def count_flop(work: Callable[[], object]) -> float:
    """FLOP of PyTorch's operators; 0 with the kernels on, whose operators it does not know."""
    if os.environ.get("RADFM_KERNELS") != "0":
        return 0.0
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return float(counter.get_total_flops())


def make_scans(shapes: list[tuple[int, int, int]]) -> list[torch.Tensor]:
    return [torch.rand(1, *shape, device="cuda", dtype=torch.bfloat16) for shape in shapes]


def make_model() -> Any:
    """The published model's sizes, 13.0 B parameters in the decoder; without dropout, which the kernels do not have."""
    vision = RadFMVisionConfig(attention_dropout=0.0, hidden_dropout=0.0)
    torch.manual_seed(0)
    config = RadFMConfig(text_config=PAPER_DECODER, vision_config=vision)
    with torch.device("cuda"):
        return RadFMForConditionalGeneration._from_config(config, dtype=torch.bfloat16)


def vision() -> list[Row]:
    torch.manual_seed(0)
    with torch.device("cuda"):
        model: Any = RadFMVisionModel._from_config(RadFMVisionConfig(), dtype=torch.bfloat16).eval()
    rows = []
    for name, shapes in ENCODED.items():
        scans = make_scans(shapes)

        @torch.no_grad()
        def encode(scans: list[torch.Tensor] = scans) -> None:
            model(scans)

        rows.append(measure(name, encode, len(scans), 0, count_flop(encode), runs=10))
    return rows


def make_batch(config: RadFMConfig) -> dict[str, Any]:
    scans = len(STEP_SCANS)
    image = [config.image_start_token_id, *[config.image_token_id] * config.num_image_tokens, config.image_end_token_id]
    words = torch.randint(100, 30_000, (scans, STEP_WORDS))
    ids = torch.cat([torch.tensor(image).expand(scans, -1), words], 1).cuda()
    labels = ids.where(ids < config.image_start_token_id, -100)
    return {"input_ids": ids, "labels": labels, "pixel_values": make_scans(STEP_SCANS)}


def steps() -> list[Row]:
    from radfm.training.parts import set_trainable_parts
    from radfm.training.recipe import load_recipe

    model = make_model().train()
    batch = make_batch(model.config)
    scans, tokens = batch["input_ids"].shape[0], batch["input_ids"].numel()
    forward = count_flop(lambda: model(**batch))
    model.gradient_checkpointing_enable()

    def full() -> None:
        model(**batch).loss.backward()
        model.zero_grad(set_to_none=True)

    rows = [measure("all parameters, checkpointed, no optimiser", full, scans, tokens, 3 * forward, runs=5)]
    adapted: Any = set_trainable_parts(model, load_recipe("finetune-lora", []))
    adapted.enable_input_require_grads()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-6, fused=True)

    def lora() -> None:
        with torch.autocast("cuda", torch.bfloat16):  # adapters are float32
            loss = adapted(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    # The gradient of the frozen weights is not computed: 2 of 3 products.
    rows.append(measure("finetune-lora, checkpointed, AdamW", lora, scans, tokens, 2 * forward, runs=5))
    return rows


PARTS: dict[str, Callable[[], list[Row]]] = {"vision": vision, "steps": steps}


def matrix_rate() -> float:
    """FLOP a second of a large product in bfloat16."""
    a, b = (torch.randn(MATRIX, MATRIX, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * MATRIX**3 / median_seconds(lambda: a @ b, 20)


def run_side(part: str, side: str) -> list[Row]:
    environment = {name: value for name, value in os.environ.items() if name != "RADFM_KERNELS"} | SIDES[side]
    command = [sys.executable, __file__, "--part", part]
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [Row(**row) for row in json.loads(output.splitlines()[-1])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    parser.add_argument("--json", type=Path, help="write all that was measured")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py needs a CUDA GPU; benchmarks/model.py and benchmarks/training.py run on a CPU.")
    if options.part:
        print(json.dumps([asdict(row) for row in PARTS[options.part]()]))
        return
    rate, device = matrix_rate(), torch.cuda.get_device_name()
    print(f"{device}, {rate / 1e12:.0f} TFLOP/s of matrix products in bfloat16, torch {torch.__version__}")
    found: dict[str, Any] = {"device": device, "matmul_tflop_s": rate / 1e12, "torch": torch.__version__}
    for part in PARTS:
        if options.only not in (None, part):
            continue
        sides = {side: run_side(part, side) for side in SIDES}
        found[part] = {side: [asdict(row) for row in rows] for side, rows in sides.items()}
        print(f"\n| {part} | off, ms | busy | on, ms | busy | times as fast, busy | scans/s on | tokens/s on "
              "| utilisation off, on | GB off, on |\n|---|---|---|---|---|---|---|---|---|---|")  # fmt: skip
        for off, on in zip(*sides.values(), strict=True):
            shares = [f"{off.flop / row.seconds / rate:.0%}" if off.flop else "" for row in (off, on)]
            print(
                f"| {on.name} | {off.seconds * 1e3:.1f} | {off.busy_seconds * 1e3:.1f} | {on.seconds * 1e3:.1f} "
                f"| {on.busy_seconds * 1e3:.1f} | {off.seconds / on.seconds:.2f}, {off.busy_seconds / on.busy_seconds:.2f} "
                f"| {on.scans / on.seconds:.1f} | {on.tokens / on.seconds:.0f} | {', '.join(shares)} "
                f"| {off.peak_gb:.1f}, {on.peak_gb:.1f} |",
                flush=True,
            )
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
