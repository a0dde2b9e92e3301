"""Fixtures: a small model and real scans; what needs data that is not here says so when it skips."""

from pathlib import Path

import pytest
from helpers import SHARED, small_model

from radfm.modeling_radfm import RadFMForConditionalGeneration


@pytest.fixture
def model() -> RadFMForConditionalGeneration:
    return small_model()


@pytest.fixture(scope="session")
def packs() -> Path:
    """The folder of labelled packs of real scans."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the packs of real scans in {folder} (or set RADFM_SHARED)")
    return folder


@pytest.fixture(scope="session")
def published() -> Path:
    """The folder with the published code's numbers at a small size."""
    folder = SHARED / "reference" / "published-small"
    if not folder.is_dir():
        pytest.skip(f"needs the published numbers in {folder} (or set RADFM_SHARED)")
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
