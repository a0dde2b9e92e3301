"""A Hub of the tests, and Python processes that use it: with this package to push, without it to load."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from offline_hub import OfflineHub
from PIL import Image
from strangers import environment

from radfm.load_scan_radfm import load_scan


@pytest.fixture(scope="session")
def hub() -> Iterator[OfflineHub]:
    with OfflineHub() as server:
        yield server


@pytest.fixture
def empty_hub() -> Iterator[OfflineHub]:
    """A Hub of one test, which may stop it or make it fail."""
    with OfflineHub() as server:
        yield server


@pytest.fixture(scope="session")
def stranger(tmp_path_factory) -> Path:
    """Python of an environment with this environment's libraries and without radfm.

    A .pth file adds a folder and does not run the .pth files in it, so an editable radfm stays outside.
    """
    folder = tmp_path_factory.mktemp("stranger")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next((folder / "lib").glob("python*")) / "site-packages"
    (site / "libraries.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    return folder / "bin" / "python"


@pytest.fixture(scope="session")
def scan_folder(dicom_files, tmp_path_factory) -> Path:
    """A folder with scan.png, an axial CT."""
    folder = tmp_path_factory.mktemp("scans")
    voxels = load_scan(dicom_files / "693_J2KI.dcm").voxels[0, :, :, 0]
    Image.fromarray(np.interp(voxels, (-160, 240), (0, 255)).astype(np.uint8)).save(folder / "scan.png")
    return folder


@pytest.fixture(scope="session")
def run_as_stranger(hub, stranger, scan_folder, tmp_path_factory) -> Callable[..., str]:
    """Run code in a fresh process without radfm, with a cache of its own, beside scan.png; what it prints."""

    def run(code: str, home: Path | None = None, **variables: str) -> str:
        home = home or tmp_path_factory.mktemp("home")
        done = subprocess.run(
            [stranger, "-c", NO_RADFM + code],
            cwd=scan_folder,
            env=environment(hub, home, **variables),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


NO_RADFM = "import importlib.util\nassert importlib.util.find_spec('radfm') is None\n"


@pytest.fixture(scope="session")
def push(hub, run_as_owner) -> Callable[..., str]:
    """`radfm push` in a process, to the Hub of all tests; what it prints."""
    return lambda *words: run_as_owner(hub, "-m", "radfm.cli", "push", *words)


@pytest.fixture(scope="session")
def run_as_owner(tmp_path_factory) -> Callable[..., str]:
    """Run Python in a process that has radfm; what it prints."""
    parent = tmp_path_factory.mktemp("parent")
    (parent / "radfm").symlink_to(ROOT)
    path = os.pathsep.join([str(parent), str(ROOT / "tests"), str(ROOT / "kernels" / "torch-ext")])

    def run(hub: OfflineHub, *arguments: object, **variables: str) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=parent,
            env=environment(hub, parent / "home", PYTHONPATH=path, **variables),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    return run
