"""The Space for its tests: as it runs, its reader process, and what a test may leave behind."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import ROOT

pytest.importorskip("gradio", reason="needs gradio: pip install -e '.[space]'")

import app
import limits
from reader_process import Reader
from remote_code import Repository
from scan_store import ScanStore


@pytest.fixture(scope="session")
def repository() -> Repository:
    """The clone as a model's repository."""
    if not (ROOT / "model.safetensors").exists():
        pytest.skip("needs the demo checkpoint in the root")
    return Repository(str(ROOT))


@pytest.fixture(scope="session")
def reader(repository) -> Iterator[Reader]:
    """One reader process for all tests, as in the Space."""
    reader = Reader(lambda: repository.reader)
    yield reader
    reader.close()


@pytest.fixture
def store(reader, tmp_path) -> ScanStore:
    """An empty store of scans."""
    return ScanStore(tmp_path / "scans", reader)


@pytest.fixture
def read(store) -> Callable:
    """Files → the last `Read` of them."""

    def read(*files: Path, **choice):
        *_, last = store.read([Path(file) for file in files], choice)
        return last

    return read


@pytest.fixture(scope="module")
def served(repository) -> Iterator[str]:
    """The address of the Space as it runs, with uploads and idle scans that are deleted after two seconds."""
    before = limits.UPLOAD_KEPT_SECONDS, limits.SWEEP_SECONDS, limits.STORE_IDLE_SECONDS
    limits.UPLOAD_KEPT_SECONDS, limits.SWEEP_SECONDS, limits.STORE_IDLE_SECONDS = 10, 0.5, 2
    blocks, address = app.serve(wait=False)
    yield address
    blocks.close()
    limits.UPLOAD_KEPT_SECONDS, limits.SWEEP_SECONDS, limits.STORE_IDLE_SECONDS = before


@pytest.fixture
def ask(served) -> Callable:
    """Files and a question → what the API answers."""
    from gradio_client import Client, handle_file

    client = Client(served, verbose=False)
    return lambda files, question: client.predict([handle_file(str(file)) for file in files], question, api_name="/ask")
