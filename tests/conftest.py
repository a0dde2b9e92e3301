"""Fixtures: a small model, real scans, the published code's numbers. A test whose data is missing skips with the reason."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import PUBLISHED_SMALL, ROOT, SHARED, small_model
from safetensors.torch import load_file
from series import write_series_zips

from radfm.modeling_radfm import RadFMForConditionalGeneration

# Tests that one worker of pytest-xdist runs one after another: the Space's share its files and ports, the server's share a
# server, and a measurement of memory must not compete with another.
ONE_WORKER = {"tests/space/": "space", "tests/serving/": "serving", "tests/conversion/test_memory.py": "memory"}

# The Space as it runs: seconds to start, and it loads the model.
SLOW_FIXTURES = {"served"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        path = item.path.relative_to(ROOT).as_posix()
        for start, group in ONE_WORKER.items():
            if path.startswith(start):
                item.add_marker(pytest.mark.xdist_group(group))
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def model() -> RadFMForConditionalGeneration:
    return small_model()


@pytest.fixture(scope="session")
def packs() -> Path:
    """The folder of labelled packs that the demo checkpoint was trained on; only tests of that training need it."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the labelled packs in {folder}, or RADFM_SHARED: see training/demo/README.md")
    return folder


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Path:
    """The published code's numbers at a small size, with the weights as safetensors and as a pickle."""
    folder = tmp_path_factory.mktemp("published-small")
    for file in PUBLISHED_SMALL.iterdir():
        shutil.copy(file, folder)
    weights = load_file(folder / "model.safetensors")
    # The published pickle holds each pair of tied names as one tensor.
    for tied, original in json.loads((folder / "cases.json").read_text())["ties"]:
        weights[tied] = weights[original]
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


@pytest.fixture(scope="session")
def dicom_files() -> Path:
    """The DICOM files that pydicom's wheel brings."""
    import pydicom

    return Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.fixture(scope="session")
def nifti_files() -> Path:
    """The NIfTI files that nibabel's wheel brings."""
    import nibabel

    return Path(nibabel.__file__).parent / "tests" / "data"


@pytest.fixture(scope="session")
def series_zips(dicom_files, nifti_files, tmp_path_factory) -> Path:
    """A folder with `dicom_series_ct.zip` and `dicom_series_mr.zip`, 20 slices each: see tests/series.py."""
    folder = tmp_path_factory.mktemp("series")
    write_series_zips(folder, dicom_files, nifti_files)
    return folder
