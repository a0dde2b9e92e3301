"""A new user's way (docs/publishing.md): a fresh environment, `pip install transformers torch pillow`, load by id, ask.

pip fetches the versions of this environment, so these tests need a package index.
"""

import subprocess
import sys
from importlib.metadata import version

import pytest
from helpers import ROOT
from packaging.version import Version
from strangers import environment, python_block

# pip installs PyTorch.
pytestmark = [pytest.mark.slow, pytest.mark.long]

MODEL = "me/radfm-of-a-stranger"
PACKAGES = ("transformers", "torch", "pillow")
DICOM_PACKAGES = ("pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg")


@pytest.fixture(scope="module")
def example(push) -> str:
    """`ask.py` of docs/publishing.md, about a model that was pushed."""
    push("model", ROOT, MODEL)
    return python_block((ROOT / "docs" / "publishing.md").read_text()).replace("me/radfm-liver", MODEL)


class Environment:
    """A virtual environment with nothing but what pip installs, and a cache of the Hub of its own."""

    def __init__(self, folder, hub):
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        self._python = folder / "bin" / "python"
        self._variables = environment(hub, folder / "huggingface")

    def install(self, *packages: str) -> None:
        """pip install, in the versions of the environment that runs the tests."""
        # A version such as 2.13.0+cpu is of no package index.
        pinned = [f"{package}=={Version(version(package)).public}" for package in packages]
        command = [self._python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *pinned]
        subprocess.run(command, check=True, env=self._variables)

    def run(self, code: str, folder) -> "subprocess.CompletedProcess[str]":
        """Run code in a folder."""
        command = [self._python, "-c", code]
        return subprocess.run(command, cwd=folder, env=self._variables, capture_output=True, text=True)


@pytest.fixture(scope="module")
def new_environment(hub, tmp_path_factory) -> Environment:
    created = Environment(tmp_path_factory.mktemp("environment"), hub)
    created.install(*PACKAGES)
    return created


def test_a_new_user_asks_about_a_picture_and_after_another_install_about_dicom(
    new_environment, example, scan_folder, dicom_files
):
    about_picture = new_environment.run(example, scan_folder)
    assert about_picture.returncode == 0, about_picture.stderr
    assert "CT" in about_picture.stdout

    about_dicom = example.replace("scan.png", str(dicom_files / "693_J2KI.dcm"))
    refused = new_environment.run(about_dicom, scan_folder)
    assert refused.returncode == 1
    assert "pip install pydicom" in refused.stderr.splitlines()[-1]

    new_environment.install(*DICOM_PACKAGES)
    answered = new_environment.run(about_dicom, scan_folder)
    assert answered.returncode == 0, answered.stderr
    assert "CT" in answered.stdout
