"""Scans that are read in child processes: each exit status belongs to one child, and no child outlives the request."""

import asyncio
import signal
import threading
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


def test_a_request_that_is_given_up_while_its_child_starts_ends_the_child(ct, tmp_path, monkeypatch):
    """The child used to read on, and to hold its memory, until READ_SECONDS were over."""

    async def give_up_while_starting():
        reader = ScanReader(RadFMImageProcessor().to_dict(), tmp_path)
        await reader.start()
        begun, go_on, children = threading.Event(), threading.Event(), []
        start = reader._context.Process.start

        def start_when_told(process):
            children.append(process)
            begun.set()
            go_on.wait()
            start(process)

        monkeypatch.setattr(reader._context.Process, "start", start_when_told)
        request = asyncio.create_task(reader.read(Source.from_bytes(ct), read_options(ReadChoice())))
        await asyncio.to_thread(begun.wait)
        request.cancel()
        go_on.set()
        await asyncio.gather(request, return_exceptions=True)
        return request.cancelled(), [child.exitcode for child in children]

    assert asyncio.run(give_up_while_starting()) == (True, [-signal.SIGKILL])
    assert not list(tmp_path.iterdir())


def test_a_request_that_is_given_up_while_its_child_reads_leaves_no_watch_on_the_child(ct, tmp_path, monkeypatch):
    """Its descriptor is closed and used again: the next child with the same number could not be watched."""

    async def give_up_while_reading():
        reader, loop, watched = ScanReader(RadFMImageProcessor().to_dict(), tmp_path), asyncio.get_running_loop(), []
        await reader.start()
        add_reader, begun = loop.add_reader, asyncio.Event()

        def add_and_tell(descriptor, *callback):
            add_reader(descriptor, *callback)
            watched.append(descriptor)
            begun.set()

        monkeypatch.setattr(loop, "add_reader", add_and_tell)
        request = asyncio.create_task(reader.read(Source.from_bytes(ct), read_options(ReadChoice())))
        await begun.wait()
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        return [loop.remove_reader(descriptor) for descriptor in watched]

    assert asyncio.run(give_up_while_reading()) == [False]
