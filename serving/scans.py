"""Parts of a request → scans: data URLs and uploaded files, read in child processes. No path or address is ever opened."""

import asyncio
import base64
import binascii
import hashlib
import json
import shutil
import signal
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import limits, read_child
from .errors import ApiError
from .protocol import FilePart, ImagePart, ReadChoice
from .read_child import OUTCOME, PIXELS, ReadJob

TOO_LONG = (-signal.SIGALRM, -signal.SIGXCPU)


class ScanRefusedError(Exception):
    """Why a source is no scan, as the end of a sentence that begins with its place in the request."""


@dataclass(frozen=True)
class Source:
    """The bytes of a scan, or the uploaded file that holds them, and their SHA-256."""

    content: bytes | Path
    digest: str

    @classmethod
    def from_bytes(cls, content: bytes) -> "Source":
        """The source of bytes that came with a request."""
        return cls(content, hashlib.sha256(content).hexdigest())


def inline_source(part: FilePart | ImagePart) -> Source | None:
    """The bytes in a part; None where it names an uploaded file. Takes a second for a large part: call it in a thread.

    Raises:
        ScanRefusedError: the part holds no base64, or names a path or an address.
    """
    if isinstance(part, ImagePart):
        if not part.image_url.url.startswith("data:"):
            raise ScanRefusedError("is no data URL, and no path or address is opened here: send the scan itself.")
        return Source.from_bytes(_decode(part.image_url.url))
    return None if part.file.file_data is None else Source.from_bytes(_decode(part.file.file_data))


def _decode(text: str) -> bytes:
    """The bytes of base64, alone or in a data URL (RFC 2397)."""
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise ScanRefusedError("is no data URL with base64 in it (RFC 2397).")
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ScanRefusedError("holds no valid base64.") from None
    if not content:
        raise ScanRefusedError("is empty.")
    return content


def read_choice(part: FilePart | ImagePart) -> ReadChoice:
    """The part's choice of series and volume."""
    return part.file if isinstance(part, FilePart) else part.image_url


def read_options(choice: ReadChoice) -> dict[str, Any]:
    """The arguments of `load_scan`."""
    return {"series": choice.series, "volume": choice.volume, "allow_missing": choice.allow_missing}


def cache_key(source: Source, options: dict[str, Any]) -> str:
    """Tells scans apart whose image tokens may differ."""
    return source.digest + json.dumps(options, sort_keys=True)


class ScanReader:
    """Reads scans in child processes, `limits.READERS` at once.

    Args:
        settings: of the image processor, as its `to_dict` gives them.
        work: folder for sources and results, which are deleted when a scan is read.
        count: called with "read", "refused" or "killed" for each scan.
    """

    def __init__(self, settings: dict[str, Any], work: Path, count: Callable[[str], None] = lambda outcome: None):
        self._settings, self._work, self._count = settings, work, count
        self._slots = asyncio.Semaphore(limits.READERS)
        # Forked from a process that has imported the readers and holds no model, no threads and no connection.
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload(["__main__", read_child.__name__])
        # Starting a child also looks after the others. In two threads both may read a child's exit status from its pipe,
        # and the second finds the pipe empty and takes it for 255.
        self._children = ThreadPoolExecutor(1, "radfm-children", initializer=_leave_signals_to_server)

    async def start(self) -> None:
        """Start the process that the children are forked from; returns when it has imported the readers."""
        loop = asyncio.get_running_loop()
        process = self._context.Process(target=read_child.do_nothing, daemon=True)
        await loop.run_in_executor(self._children, process.start)
        await loop.run_in_executor(self._children, process.join)

    async def read(self, source: Source, options: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
        """`pixel_values` (C, H, W, D) of a scan, and its description.

        Raises:
            ScanRefusedError: it is no scan, or reading it took more than a child may take.
        """
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=self._work))
        try:
            path = folder / "scan"
            if isinstance(source.content, bytes):
                await asyncio.to_thread(path.write_bytes, source.content)
            else:
                path.hardlink_to(source.content)  # who deletes the uploaded file does not delete it here
            async with self._slots:
                status = await self._run(ReadJob(path, folder, options, self._settings))
            if status:
                self._count("killed")
                raise ScanRefusedError(_reason(status))
            outcome = json.loads((folder / OUTCOME).read_text())
            if "refused" in outcome:
                self._count("refused")
                raise ScanRefusedError(outcome["refused"])
            self._count("read")
            pixels = await asyncio.to_thread(np.load, folder / PIXELS)
            return torch.from_numpy(pixels), outcome["description"]
        except OSError as error:
            raise ApiError(503, "The disk of this server is full; try again later.", retry_after=60) from error
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))

    async def _run(self, job: ReadJob) -> int:
        """The exit status of the child that reads; it is killed where nobody waits for it any more."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        process = self._context.Process(target=read_child.read, args=(job,), daemon=True)
        starting = loop.run_in_executor(self._children, process.start)
        try:
            await asyncio.shield(starting)
            loop.add_reader(process.sentinel, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(process.sentinel)
        finally:
            # The one thread has started the child by then, also where the request was given up meanwhile.
            await asyncio.shield(loop.run_in_executor(self._children, _end, process))
        return process.exitcode or 0


def _end(process: BaseProcess) -> None:
    """Wait for a child that has ended, and kill one that nobody waits for any more."""
    if process.is_alive():
        process.kill()
    if process.pid is not None:  # it could be started
        process.join()


def _leave_signals_to_server() -> None:
    """Block the signals that stop the server in this thread, and so in the fork server and the children it starts.

    A terminal sends Ctrl-C, and a service manager SIGTERM, to all processes of the server; scans that are being read then
    have to be read to their end.
    """
    resource_tracker.ensure_running()  # started later, it would clear the mask
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))


def _reason(status: int) -> str:
    if status in TOO_LONG:
        return f"took longer than {limits.READ_SECONDS} seconds to read and was given up."
    if status == -signal.SIGKILL:
        return "was being read when the reading process was killed: it may need more memory than there is."
    return "is damaged in a way that its decoder did not survive."
