"""Questions of RadBench in batches, where each scan is encoded once for all its questions, against one at a time.

    python benchmarks/bench_batching.py

Asks the demo checkpoint four questions about each of 20 scans on one thread, and prints a Markdown table of CPU time.
"""

import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from radfm.cli.bench import register_radfm
from radfm.medmd.schema import Message, Part
from radfm.radbench.conditions import Request, ScanKey
from radfm.radbench.models.load import LoadOptions, load_model
from radfm.radbench.models.local import LocalModel
from radfm.radbench.predictions import SCAN
from radfm.scan_radfm import Scan

ROOT = Path(__file__).parents[1]
QUESTIONS = (
    "Which imaging modality is this?",
    "Which body part is shown?",
    "Is this scan 2D or 3D?",
    "What is the finding?",
)
SCANS, REPEATS = 20, 3


def make_scans() -> dict[ScanKey, Scan]:
    """Slices of the brain in nibabel's wheel."""
    image: Any = nibabel.load(Path(nibabel.__file__).parent / "tests" / "data" / "anatomical.nii")
    volume = np.asarray(image.dataobj)
    slices = np.linspace(5, volume.shape[2] - 5, SCANS).round().astype(int)
    return {
        ScanKey(f"slice {number}", 0): Scan(volume[None, :, :, slice_, None].astype(np.float32))
        for number, slice_ in enumerate(slices)
    }


def ask(model: LocalModel, requests: list[Request], scans: dict[ScanKey, Scan], size: int) -> tuple[list[str], float]:
    """All answers, and the CPU seconds, in batches of `size`."""
    start = time.process_time()
    answers = []
    for first in range(0, len(requests), size):
        batch = requests[first : first + size]
        needed = {key: scans[key] for request in batch for key in request.scans}
        answers += [answer.text for answer in model.answer(model.prepare(batch, needed))]
    return answers, time.process_time() - start


def main() -> None:
    torch.set_num_threads(1)
    register_radfm()
    model = load_model(str(ROOT), LoadOptions(device="cpu", max_new_tokens=32))
    scans = make_scans()
    requests = [
        Request(
            f"{key.record}, {question}",
            SCAN,
            (Message("user", (Part("image"), Part("text", question))),),
            (key,),
            (),
            (),
            True,
        )
        for key in scans
        for question in QUESTIONS
    ]
    ask(model, requests[:16], scans, 16)  # warm
    alone, alone_seconds = min((ask(model, requests, scans, 1) for _ in range(REPEATS)), key=lambda found: found[1])
    print("| batch | CPU ms a question | ratio | equal answers |\n|---|---|---|---|")
    print(f"| 1 | {1000 * alone_seconds / len(requests):.1f} | 1 | – |")
    for size in (16, 64):
        answers, seconds = min((ask(model, requests, scans, size) for _ in range(REPEATS)), key=lambda found: found[1])
        equal = sum(one == other for one, other in zip(alone, answers, strict=True))
        milliseconds = 1000 * seconds / len(requests)
        print(f"| {size} | {milliseconds:.1f} | {alone_seconds / seconds:.1f} | {equal} of {len(requests)} |")


if __name__ == "__main__":
    main()
