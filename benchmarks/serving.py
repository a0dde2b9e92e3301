"""`radfm serve` under load: latencies and throughput of many clients, against one at a time; batches; memory over time.

    python benchmarks/serving.py                          # demo checkpoint, 50 clients, 2,000 requests
    python benchmarks/serving.py --clients 8 --requests 100 --memory-requests 0
    python benchmarks/serving.py --model my-radfm --device cuda

Prints Markdown tables. Every request has a scan of its own, so that nothing comes from the cache; the questions about scans
that were encoded before are the last table.
"""

import argparse
import io
import os
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import torch
from PIL import Image

from radfm.cli.chat import load_model
from radfm.processing_radfm import RadFMProcessor

ROOT = Path(__file__).parent.parent
QUESTIONS = (
    "Which imaging modality is this?",
    "Is this scan 2D or 3D?",
    "Which body part is shown?",
    "What is the finding?",
)
BATCH = 32


class Server:
    """`radfm serve` on a free port."""

    def __init__(self, model: str, device: str):
        command = [sys.executable, "-m", "radfm.cli", "serve", "--port", "0", "--model", model, "--device", device]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT.parent)
        assert self.process.stderr is not None
        started = next(line for line in self.process.stderr if "is served at" in line)
        found = re.search(r"^(.+) is served at (\S+)/v1", started)
        assert found is not None
        self.model, self.url = found.groups()
        # Nobody reads its log: without this the pipe fills up and the server waits.
        self._log = ThreadPoolExecutor(1).submit(self.process.stderr.read)

    def memory(self) -> float:
        """Resident memory of the server itself in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1000  # type: ignore[index]

    def ask(self, scan: bytes, question: str) -> float:
        """Seconds until a request is answered."""
        from base64 import b64encode

        part = {"type": "file", "file": {"file_data": b64encode(scan).decode()}}
        content = [part, {"type": "text", "text": question}]
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], "max_tokens": 16}
        started = time.perf_counter()
        httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=600).raise_for_status()
        return time.perf_counter() - started


@dataclass
class Load:
    """What some clients met."""

    clients: int
    latencies: list[float]
    seconds: float

    def row(self, one_by_one: "Load") -> str:
        """A row of the table."""
        ordered = sorted(self.latencies)
        at = [ordered[min(int(len(ordered) * share), len(ordered) - 1)] for share in (0.5, 0.9, 0.99)]
        rate, rate_alone = (len(load.latencies) / load.seconds for load in (self, one_by_one))
        quantiles = " | ".join(f"{seconds:.2f} s" for seconds in at)
        return f"| {self.clients} | {len(ordered)} | {quantiles} | {rate:.1f} | {rate / rate_alone:.2f} |"


def new_scan(number: int) -> bytes:
    """A PNG that no other request has."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (256, 256), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def load(server: Server, clients: int, scans: list[bytes]) -> Load:
    """All scans, each in a request, by some clients at once."""
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        asked = [(scan, QUESTIONS[i % len(QUESTIONS)]) for i, scan in enumerate(scans)]
        latencies = list(pool.map(lambda each: server.ask(*each), asked))
    return Load(clients, latencies, time.perf_counter() - started)


def batch_ratio(model_name: str, device: str) -> tuple[float, float]:
    """Seconds for `BATCH` questions about encoded scans: one by one, and in one batch, medians of five."""
    model, processor = load_model(model_name, device, None), RadFMProcessor.from_pretrained(model_name)
    pixels = processor(images=np.zeros((64, 64)), text="<image>")["pixel_values"]
    with torch.inference_mode():
        encoded = model.get_image_features([each.to(model.device) for each in pixels]).pooler_output
        assert encoded is not None
        features = encoded[0]
        inputs = processor(
            text=[f"<image>{QUESTIONS[i % len(QUESTIONS)]}" for i in range(BATCH)],
            images_encoded=True,
            padding=True,
            return_tensors="pt",
        ).to(model.device)
        fixed = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False}
        alone, together = [], []
        for _ in range(5):
            started = time.perf_counter()
            for i in range(BATCH):
                row = {name: inputs[name][i : i + 1] for name in ("input_ids", "attention_mask")}
                model.generate(**row, image_features=[features], **fixed)
            alone.append(time.perf_counter() - started)
            started = time.perf_counter()
            model.generate(**inputs, image_features=[features] * BATCH, **fixed)
            together.append(time.perf_counter() - started)
    return statistics.median(alone), statistics.median(together)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=400, help="requests of each load")
    parser.add_argument("--memory-requests", type=int, default=2000)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start\n")

    server = Server(arguments.model, arguments.device)
    try:
        load(server, 1, [new_scan(10**9 + i) for i in range(5)])  # warm
        print("| clients | requests | median | 90 % | 99 % | answers/s | against one at a time |")
        print("|---|---|---|---|---|---|---|")
        alone = load(server, 1, [new_scan(i) for i in range(arguments.requests)])
        print(alone.row(alone))
        many = load(server, arguments.clients, [new_scan(10**6 + i) for i in range(arguments.requests)])
        print(many.row(alone))
        again = load(server, arguments.clients, [new_scan(0)] * arguments.requests)
        print(again.row(alone).rstrip("|") + "| (one scan, encoded before)")
        if arguments.memory_requests:
            print("\n| requests | memory of the server |\n|---|---|")
            for step in range(5):
                print(f"| {step * arguments.memory_requests // 4} | {server.memory():.0f} MB |", flush=True)
                if step < 4:
                    count, first = arguments.memory_requests // 4, 10**7 * (step + 1)
                    load(server, arguments.clients, [new_scan(first + i) for i in range(count)])
    finally:
        server.process.terminate()
        server.process.wait(60)

    one_by_one, batch = batch_ratio(arguments.model, arguments.device)
    ratio = one_by_one / batch
    print(
        f"\n{BATCH} answers of 16 tokens: one by one {one_by_one:.2f} s, one batch {batch:.2f} s: {ratio:.1f} times as fast"
    )


if __name__ == "__main__":
    main()
