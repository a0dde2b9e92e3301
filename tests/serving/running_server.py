"""Starts `radfm serve` in a child process, and asks it with OpenAI's client."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import nibabel
import numpy as np
import openai
from helpers import ROOT

KEY = "RADFM_API_KEY"


def start_process(*arguments: str, env: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    """`radfm serve` of the demo checkpoint, the leader of a process group."""
    command = [sys.executable, "-m", "radfm.cli", "serve", "--device", "cpu", *arguments]
    # A background job of a shell ignores SIGINT, and its processes with it; what a server does with it is tested.
    restore = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=ROOT.parent, env=env, process_group=0, preexec_fn=restore
    )


class Server:
    """A running `radfm serve` of the demo checkpoint on a free port."""

    def __init__(self, *arguments: str, **limits: object):
        environment = {name: value for name, value in os.environ.items() if name != KEY}
        environment |= {name: str(value) for name, value in limits.items()}
        self.process = start_process("--port", "0", *arguments, env=environment)
        self.log = ""
        self._is_up = threading.Event()
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        self._is_up.wait()
        found = re.search(r"^(.+) is served at (http://\S+)/v1", self.log, re.MULTILINE)
        assert found, self.log
        self.model, self.url = found.groups()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line
            if "is served at" in line:
                self._is_up.set()
        self._is_up.set()

    def client(self, **options: object) -> openai.OpenAI:
        """OpenAI's client, which does not repeat what failed."""
        return openai.OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, **options})  # type: ignore[arg-type]

    def stop(self) -> int:
        """Stop it; its exit status."""
        self.process.terminate()
        status = self.process.wait(30)
        self._reader.join()
        return status


def metric(client: openai.OpenAI, name: str) -> float:
    """A number of /metrics."""
    body = httpx.get(str(client.base_url.copy_with(path="/metrics"))).text
    found = re.search(rf"^{re.escape(name)} (\S+)$", body, re.MULTILINE)
    assert found, body
    return float(found[1])


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for a condition; a minute is a failure."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "the condition did not come to hold within a minute"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """The processes that a process has started, by Linux' /proc."""
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


def reading_children(server: Server) -> list[int]:
    """The children of the fork server, which is a child of the server."""
    return [grandchild for child in children(server.process.pid) for grandchild in children(child)]


def slow_scan(folder: Path) -> bytes:
    """A volume that takes seconds to prepare and few bytes to send."""
    path = folder / "slow.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((400, 400, 400), np.int16), np.eye(4)), path)
    return path.read_bytes()
