"""The parent's end of the reader: starts `reader_child.py`, sends it jobs one at a time, turns its end into a sentence."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import limits

CHILD = Path(__file__).parent / "reader_child.py"
TOO_LONG = (-signal.SIGALRM, -signal.SIGXCPU)


@dataclass
class ReaderModule:
    """Where the model's code for scans is: a folder to import from, names of modules in it, and the processor's settings."""

    folder: str
    reader: str
    scans: str
    image_processor: str
    image_processor_class: str
    settings: dict[str, Any]


class Reader:
    """One reader process for everybody. Jobs wait for each other: a scan may need gigabytes."""

    def __init__(self, module: Callable[[], ReaderModule]):
        """`module` is called when the first scan is read, which may be before the model's code is there."""
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None
        self._one_job = threading.Lock()

    def run(self, job: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
        """The events of one job; where the child died of it, the last is {"refused": a sentence about `name`}."""
        with self._one_job:
            process = self._process if self._process and self._process.poll() is None else self._start()
            try:
                status = yield from self._exchange(process, job)
            except GeneratorExit:
                # Nobody listens any more; a new process has no events of this job left over.
                self.close()
                raise
        if status:
            yield {"refused": f"{name}: {_reason(status)}"}

    def _start(self) -> subprocess.Popen[bytes]:
        setup = {"setup": asdict(self._module())}
        self._process = subprocess.Popen(
            [sys.executable, str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # What codecs print may have a patient's name in it.
            stderr=None if limits.DEBUG else subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
        for _ in self._exchange(self._process, setup):
            pass
        return self._process

    def _exchange(self, process: subprocess.Popen[bytes], job: dict[str, Any]) -> Generator[dict[str, Any], None, int]:
        """Send a job, yield its events, return the status of its end."""
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
            for line in process.stdout:
                event = json.loads(line)
                if "end" in event:
                    return event["end"]
                yield event
        except BrokenPipeError:
            pass
        return process.wait()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def _reason(status: int) -> str:
    if status in TOO_LONG:
        return f"reading it took longer than {limits.READ_SECONDS} seconds and was given up."
    if status == -signal.SIGKILL:
        return "reading it took too much memory and was stopped."
    return "is damaged in a way that its decoder did not survive."
