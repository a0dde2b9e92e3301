"""The examples of README.md and of the documentation run: Python blocks, `radfm` commands, doctests of docstrings.

They run in a folder with a few scans under the names in `NAMES`, and with the repository as `radfm`. A block that cannot
run here follows a line `<!-- not run: the reason -->`.
"""

import doctest
import importlib
import re
import shlex
import shutil
import zipfile
from pathlib import Path

import pytest
from helpers import ROOT
from typer.testing import CliRunner

from radfm.cli.main import app

pytestmark = pytest.mark.slow  # loads the demo checkpoint once a command: a minute

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Names that the examples use for scans, by kind.
NAMES = {
    "dicom": ["ct.dcm", "chest.dcm", "scan.dcm"],
    "zip": ["ct.zip", "ct_series.zip", "study.zip"],
    "folder": ["ct_series", "study"],
    "nifti": ["brain.nii.gz", "before.nii.gz", "after.nii.gz", "mr.nii.gz"],
}
# Words of commands and blocks that need what is not here.
NEEDS_MORE = {
    "radfm demo": "serves until it is stopped",
    "radfm push": "needs an account of the Hub; tests/hub has a Hub of its own",
    "radfm train": "trains for minutes; tests/training does that",
    "radfm serve": "serves until it is stopped",
    "torchrun": "trains on several processes; tests/training does that",
    "radfm data": "needs the reader's own data; tests/medmd builds data sets",
    "radfm bench": "needs a data set; tests/radbench draws, runs and scores on one",
    "127.0.0.1": "needs a running `radfm demo`",
    "pytorch_model.bin": "needs the published weights",
    "radfm-14b": "needs the published weights",
    "owner/name": "needs a repository of the Hub",
    "my-radfm": "needs a model of the reader's own",
}


@pytest.fixture
def folder(tmp_path, monkeypatch, dicom_files, nifti_files, series_zips) -> Path:
    (tmp_path / "radfm").symlink_to(ROOT)
    for name in NAMES["dicom"]:
        shutil.copy(dicom_files / "693_J2KI.dcm", tmp_path / name)
    for name in NAMES["zip"]:
        shutil.copy(series_zips / "dicom_series_ct.zip", tmp_path / name)
    for name in NAMES["folder"]:
        zipfile.ZipFile(series_zips / "dicom_series_ct.zip").extractall(tmp_path / name)
    for name in NAMES["nifti"]:
        shutil.copy(nifti_files / "example4d.nii.gz", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(page: Path) -> list[tuple[str, str]]:
    """The code blocks of a page as (language, code): fenced ones, and indented ones without a language."""
    text = page.read_text()
    pattern = r"(<!-- not run: [^\n]+ -->\n+)?^```(\w*)[^\n]*\n(.*?)^```"
    fenced = re.finditer(pattern, text, re.MULTILINE | re.DOTALL)
    found = [(match[2], match[3]) for match in fenced if not match[1]]
    unfenced = re.sub(pattern, "", text, flags=re.MULTILINE | re.DOTALL)
    found += [
        ("", re.sub("^    ", "", code, flags=re.MULTILINE)) for code in re.findall(r"(?:^    .*\n)+", unfenced, re.MULTILINE)
    ]
    return [
        (language, code)
        for language, code in found
        if not any(words in code for words in NEEDS_MORE) or language != "python"
    ]


def commands(page: Path) -> list[str]:
    """The `radfm` commands in the blocks of a page, without comments and prompts."""
    lines = [
        line for language, code in blocks(page) if language in ("", "sh", "bash", "console") for line in code.splitlines()
    ]
    found = [line.removeprefix("$ ").split("  #")[0].strip() for line in lines if re.match(r"(\$ )?radfm [a-z]", line)]
    return [line for line in found if not any(words in line for words in NEEDS_MORE)]


def test_the_examples_are_found():
    assert any(language == "python" for page in PAGES for language, _ in blocks(page))
    assert any(commands(page) for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, folder):
    names: dict[str, object] = {"__name__": "example"}
    for language, code in blocks(page):
        if language != "python":
            continue
        if code.lstrip().startswith(">>>"):
            example = doctest.DocTestParser().get_doctest(code, names, page.name, str(page), 0)
            example.globs = names  # the blocks of a page share their names
            assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, clear_globs=False).failed == 0
        else:
            exec(compile(code, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_end_with_status_0(page, folder, dicom_files, nifti_files):
    # `make demo` shows its commands with the names that the scans have in the wheels.
    for file in ("693_J2KI.dcm", "examples_overlay.dcm", "MR_small.dcm"):
        shutil.copy(dicom_files / file, folder)
    shutil.copy(nifti_files / "example4d.nii.gz", folder)
    for command in commands(page):
        result = CliRunner().invoke(app, shlex.split(command)[1:], input="\n")
        assert result.exit_code == 0, f"{command}\n{result.output}"


@pytest.mark.parametrize("module", sorted(file.stem for file in ROOT.glob("*_radfm.py")))
def test_doctests_of_the_root_modules(module, folder):
    assert doctest.testmod(importlib.import_module(f"radfm.{module}"), optionflags=doctest.ELLIPSIS).failed == 0
