"""Starts the Space in a child process, for benchmarks and recordings."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass
class Space:
    """A running Space: its address, its process, and the folder in which it keeps everything."""

    address: str
    process: psutil.Process
    folder: Path

    def level(self) -> str:
        """Resident memory and disk space."""
        rss = [p.memory_info().rss for p in (self.process, *self.process.children(recursive=True))]
        disk = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
        return (
            f"{rss[0] / 2**20:.0f} MiB of memory, {sum(rss[1:]) / 2**20:.0f} in child processes, {disk / 2**20:.0f} on disk"
        )

    def visitors(self) -> int:
        """How many visitors have a folder."""
        return len(list(self.folder.glob("radfm-space-*/sessions/*")))


@contextmanager
def running_space() -> Iterator[Space]:
    """Start the Space in a temporary folder; stop it afterwards."""
    app = Path(__file__).parents[1] / "space" / "app.py"
    folder = Path(tempfile.mkdtemp())
    environment = {**os.environ, "TMPDIR": str(folder)}
    server = subprocess.Popen([sys.executable, "-u", str(app)], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None
        address = next(line.split()[-1] for line in server.stdout if line.startswith("RadFM is at"))
        yield Space(address.rstrip("/"), psutil.Process(server.pid), folder)
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)
