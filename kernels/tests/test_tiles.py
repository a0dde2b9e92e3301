"""What `benchmarks/compile_ahead.py` compiled for cards that are not here."""

import csv
import importlib
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
# Consumer cards of compute capability 8.6, 8.9 and 12.0 have the least: 99 KB for a program.
SHARED_BYTES = 99 << 10


def test_the_smallest_tiles_fit_every_card(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    kernel_specs = importlib.import_module("compile_ahead").kernel_specs
    with (BENCHMARKS / "compiled.csv").open() as file:
        compiled = list(csv.DictReader(file))
    for spec in kernel_specs():
        tiles = ["x".join(str(n) for n in blocks.values()) for blocks, *_ in spec.configs]
        for dtype in ("bf16", "fp32"):
            rows = [row for row in compiled if row["kernel"] == spec.name and row["dtype"] == dtype]
            assert {row["blocks"] for row in rows} == set(tiles), f"{spec.name}: run compile_ahead.py again"
            smallest = [int(row["shared_bytes"]) for row in rows if row["blocks"] == tiles[-1]]
            assert max(smallest) <= SHARED_BYTES, f"{spec.name} in {dtype}: {max(smallest)} bytes of shared memory"
