"""Scans that are read in child processes: the exit status of each child is its own."""

import asyncio
import time
from multiprocessing import forkserver

import pytest

from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.serving import limits
from radfm.serving.protocol import ReadChoice
from radfm.serving.scans import ScanReader, Source, read_options

pytestmark = pytest.mark.slow  # the fork server imports torch

READERS, SCANS = 4, 24


def test_children_that_end_at_the_same_time_do_not_lose_their_exit_status(ct, tmp_path, monkeypatch):
    """Two threads that look after the same child used to take its status from each other: a good scan was "damaged"."""
    read_status = forkserver.read_signed

    def read_slowly(pipe: int) -> int:
        time.sleep(0.3)  # time for another thread to come to the same pipe
        return read_status(pipe)

    monkeypatch.setattr(forkserver, "read_signed", read_slowly)
    monkeypatch.setattr(limits, "READERS", READERS)
    outcomes = []

    async def read_all():
        reader = ScanReader(RadFMImageProcessor().to_dict(), tmp_path, outcomes.append)
        await reader.start()
        options = read_options(ReadChoice())
        return await asyncio.gather(*(reader.read(Source.from_bytes(ct), options) for _ in range(SCANS)))

    assert len(asyncio.run(read_all())) == SCANS
    assert outcomes == ["read"] * SCANS
