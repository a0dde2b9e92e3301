"""A server for the tests of this folder, and scans to ask it about."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from running_server import Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def client(server) -> openai.OpenAI:
    return server.client()


@pytest.fixture(scope="session")
def ct(dicom_files) -> bytes:
    return (dicom_files / "693_J2KI.dcm").read_bytes()


@pytest.fixture(scope="session")
def mr_zip(series_zips) -> Path:
    return series_zips / "dicom_series_mr.zip"
