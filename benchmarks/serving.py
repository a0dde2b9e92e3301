"""`radfm serve` under load: latencies and throughput of many clients against one, batches of the decoder, memory over time.

    python benchmarks/serving.py            # all parts with the demo checkpoint
    python benchmarks/serving.py clients --requests 100 --clients 8
    python benchmarks/serving.py batch --model my-radfm --device cuda

Prints a Markdown table for each part: `clients`, `batch`, `memory`. Every request has a DICOM slice that no other has,
except in the row that says so.
"""

import argparse
import base64
import io
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pydicom
import torch
from pydicom.data import get_testdata_file

from radfm.cli.chat import load_model
from radfm.processing_radfm import RadFMProcessor

ROOT = Path(__file__).parent.parent
PARTS = ("clients", "batch", "memory")
QUESTIONS = (
    "Which imaging modality is this?",
    "Is this scan 2D or 3D?",
    "Which body part is shown?",
    "What is the finding?",
)
SLICES = ("CT_small.dcm", "MR_small.dcm")
NEW_TOKENS = 16
BATCH = 32
WARM_UP = 10
MEMORY_STEPS = 4


def new_slice(number: int) -> str:
    """A CT or MR slice of pydicom's with noise added by a seed, as base64 of a DICOM file."""
    dataset = pydicom.dcmread(str(get_testdata_file(SLICES[number % 2])))
    noise = np.random.default_rng(number).integers(-3, 4, dataset.pixel_array.shape)
    dataset.PixelData = (dataset.pixel_array + noise).astype(dataset.pixel_array.dtype).tobytes()
    stream = io.BytesIO()
    dataset.save_as(stream)
    return base64.b64encode(stream.getvalue()).decode()


@dataclass
class Load:
    """What some clients met: an answer and its seconds for each request."""

    clients: int
    answers: list[str]
    latencies: list[float]
    seconds: float

    def row(self, alone: "Load") -> str:
        """A row of the table."""
        quantiles = " | ".join(f"{np.quantile(self.latencies, share):.2f} s" for share in (0.5, 0.9, 0.99))
        rate, rate_alone = (len(load.latencies) / load.seconds for load in (self, alone))
        return f"{self.clients} | {len(self.latencies)} | {quantiles} | {rate:.1f} | {rate / rate_alone:.2f}"


class Server:
    """`radfm serve` on a free port, and one client of it."""

    def __init__(self, model: str, device: str):
        command = [sys.executable, "-m", "radfm.cli", "serve", "--port", "0", "--model", model, "--device", device]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT.parent)
        assert self._process.stderr is not None
        started = next(line for line in self._process.stderr if "is served at" in line)
        found = re.search(r"^(.+) is served at (\S+)/v1", started)
        assert found is not None
        self._model, url = found.groups()
        # A pipe that nobody reads fills up, and the server waits.
        self._log = ThreadPoolExecutor(1).submit(self._process.stderr.read)
        self._client = httpx.Client(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None))

    def ask(self, scan: str, question: str) -> tuple[str, float]:
        """The answer to a question, and the seconds until it came."""
        parts = [{"type": "file", "file": {"file_data": scan}}, {"type": "text", "text": question}]
        body = {"model": self._model, "messages": [{"role": "user", "content": parts}], "max_tokens": NEW_TOKENS}
        started = time.perf_counter()
        response = self._client.post("/v1/chat/completions", json=body)
        seconds = time.perf_counter() - started
        assert response.is_success, response.text
        return response.json()["choices"][0]["message"]["content"], seconds

    def load(self, clients: int, scans: Sequence[str]) -> Load:
        """All scans, each in a request, by some clients at once."""
        started = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            replies = list(pool.map(self.ask, scans, (QUESTIONS[i // 2 % len(QUESTIONS)] for i in range(len(scans)))))
        return Load(clients, [answer for answer, _ in replies], [each for _, each in replies], time.perf_counter() - started)

    def metric(self, name: str) -> float:
        """A number of /metrics."""
        found = re.search(rf"^{name} (\S+)$", self._client.get("/metrics").text, re.MULTILINE)
        assert found is not None
        return float(found[1])

    def stop(self) -> None:
        """End the server."""
        self._client.close()
        self._process.terminate()
        self._process.wait(60)


@contextmanager
def running(arguments: argparse.Namespace) -> Iterator[Server]:
    """A server that has answered some requests."""
    server = Server(arguments.model, arguments.device)
    try:
        server.load(2, [new_slice(10**9 + i) for i in range(WARM_UP)])
        yield server
    finally:
        server.stop()


def measure_clients(arguments: argparse.Namespace) -> None:
    """The same requests by one client and by many, each at a server that knows none of the scans."""
    print("| | clients | requests | median | 90 % | 99 % | answers/s | against one at a time | other answers |")
    print("|---|---|---|---|---|---|---|---|---|")
    scans = [new_slice(i) for i in range(arguments.requests)]
    with running(arguments) as server:
        alone = server.load(1, scans)
        print(f"| one at a time | {alone.row(alone)} | |", flush=True)
    with running(arguments) as server:
        many = server.load(arguments.clients, scans)
        rows, batches = (server.metric(f"radfm_decode_batch_rows_{name}") for name in ("sum", "count"))
        different = sum(a != b for a, b in zip(many.answers, alone.answers, strict=True))
        print(f"| many clients | {many.row(alone)} | {different} |", flush=True)
        again = server.load(arguments.clients, [scans[0]] * arguments.requests)
        print(f"| one scan, encoded before | {again.row(alone)} | |")
    print(f"\n{len(set(alone.answers))} different answers; {rows / batches:.1f} answers in a batch of the decoder")


def measure_batch(arguments: argparse.Namespace) -> None:
    """Questions about an encoded scan, one by one and in one batch, in turn: medians of five."""
    model = load_model(arguments.model, arguments.device, None)
    processor = RadFMProcessor.from_pretrained(arguments.model)
    pixels = processor(images=np.zeros((64, 64)), text="<image>")["pixel_values"]
    text = [f"<image>{QUESTIONS[i % len(QUESTIONS)]}" for i in range(BATCH)]
    inputs = processor(text=text, images_encoded=True, padding=True, return_tensors="pt").to(model.device)
    fixed = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    alone, together = [], []
    with torch.inference_mode():
        encoded = model.get_image_features([each.to(model.device) for each in pixels]).pooler_output
        assert encoded is not None
        for _ in range(5):
            started = time.perf_counter()
            for i in range(BATCH):
                row = {name: inputs[name][i : i + 1] for name in ("input_ids", "attention_mask")}
                model.generate(**row, image_features=[encoded[0]], **fixed)
            alone.append(time.perf_counter() - started)
            started = time.perf_counter()
            model.generate(**inputs, image_features=[encoded[0]] * BATCH, **fixed)
            together.append(time.perf_counter() - started)
    ratios = [one_by_one / batch for one_by_one, batch in zip(alone, together, strict=True)]
    print(f"| {BATCH} answers of {NEW_TOKENS} tokens | one by one | one batch | times as fast |\n|---|---|---|---|")
    medians = f"{statistics.median(alone):.2f} s | {statistics.median(together):.2f} s | {statistics.median(ratios):.1f}"
    print(f"| medians of five | {medians} ({min(ratios):.1f}–{max(ratios):.1f}) |")


def measure_memory(arguments: argparse.Namespace) -> None:
    """Resident memory of the server, without the reading children, and the bytes of its cache of encoded scans."""
    print("| requests | memory | of which encoded scans |\n|---|---|---|")
    count = arguments.memory_requests // MEMORY_STEPS
    with running(arguments) as server:
        for step in range(MEMORY_STEPS + 1):
            if step:
                server.load(arguments.clients, [new_slice(10**7 * step + i) for i in range(count)])
            memory, cache = (
                server.metric(name) / 1e6 for name in ("process_resident_memory_bytes", "radfm_feature_cache_bytes")
            )
            print(f"| {step * count} | {memory:.0f} MB | {cache:.0f} MB |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--model", default=str(ROOT))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=400, help="of each row of `clients`")
    parser.add_argument("--memory-requests", type=int, default=2000)
    arguments = parser.parse_args()
    measures = {"clients": measure_clients, "batch": measure_batch, "memory": measure_memory}
    for part in PARTS if arguments.part == "all" else [arguments.part]:
        print(f"\n{part}: {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start\n", flush=True)
        measures[part](arguments)


if __name__ == "__main__":
    main()
