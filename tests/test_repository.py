"""The repository as others get it: import directions, declared dependencies, and a wheel that answers."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from graphlib import TopologicalSorter
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

import pytest
from helpers import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PACKAGES = PYPROJECT["tool"]["setuptools"]["packages"]
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", "venvs", "build", "checkpoints", "site", "__pycache__", ".*_cache", "*.egg-info"
)
# Rooms that need an extra of the package.
EXTRAS_OF = {
    "cli": ["serve"],
    "space": ["space"],
    "medmd": ["data", "ray"],
    "training": ["train", "data"],
    "radbench": ["bench", "data", "small", "space", "inspect", "terms"],
    "serving": ["serve"],
}
# Imported by tests, and installed with the distribution named here.
COMES_WITH = {"gradio_client": "gradio", "mcp": "gradio", "starlette": "gradio", "fastapi": "gradio", "uvicorn": "gradio"}


def distribution(requirement: str) -> str:
    """The normalised name of the distribution in a requirement like `gradio[mcp]>=6.31,<7`."""
    return re.split(r"[\s\[<>=!~;]", requirement)[0].lower().replace("_", "-")


def declared(*extras: str) -> set[str]:
    requirements = [*PROJECT["dependencies"]]
    for extra in extras:
        requirements += PROJECT["optional-dependencies"][extra]
    return {distribution(requirement) for requirement in requirements}


def imported(file: Path) -> set[str]:
    """Top-level names of the absolute imports of a file, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def copy_of_the_repository(folder: Path) -> Path:
    shutil.copytree(ROOT, folder / "radfm", ignore=NOT_COPIED)
    return folder / "radfm"


# Import directions ----------------------------------------------------------------------------------------------------


def lint_imports(repository: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(repository.parent), str(repository / "kernels" / "torch-ext")])
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache", "--no-logo"]
    return subprocess.run(command, capture_output=True, text=True, cwd=repository, env={**os.environ, "PYTHONPATH": path})


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    return copy_of_the_repository(tmp_path_factory.mktemp("copy"))


def test_the_import_contracts_are_kept(repository):
    linted = lint_imports(repository)
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("scan_radfm.py", "import torch", "scans are read without torch"),
        ("nifti_radfm.py", "def f():\n    import transformers", "scans are read without torch"),
        ("dicom_radfm.py", "from safetensors import safe_open", "scans are read without torch"),
        ("attention_radfm.py", "import radfm_kernels", "never imports them"),
        ("modeling_radfm.py", "import triton", "never imports them"),
        ("scan_radfm.py", "from radfm.cli import common", "root modules import root modules"),
        ("scan_radfm.py", "from . import processing_radfm", "root modules import root modules"),
        ("new_radfm.py", "import json", "root modules import root modules"),
        ("conversion/names.py", "from . import convert", "no circles"),
        ("space/viewer.py", "from radfm.load_scan_radfm import load_scan", "Auto classes alone"),
        ("kernels/torch-ext/radfm_kernels/common.py", "import transformers", "the kernels know torch and triton alone"),
    ],
)
def test_an_import_in_the_wrong_direction_is_refused(file, line, contract, repository):
    path = repository / file
    before = path.read_text() if path.exists() else None
    path.write_text(f"{before or ''}\n{line}\n")
    try:
        linted = lint_imports(repository)
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_text(before)
    assert linted.returncode == 1
    assert re.search(rf"{contract}[^\n]* BROKEN", re.sub(r"\n(?=[a-z])", "", linted.stdout)), linted.stdout


def space_imports() -> dict[str, set[str]]:
    """Which of the Space's modules each of them imports, by the bare names that they have on the Hub."""
    modules = {file.stem: file for file in (ROOT / "space").glob("*.py") if file.stem != "__init__"}
    return {name: imported(file) & set(modules) for name, file in modules.items()}


def test_the_modules_of_the_space_import_each_other_without_a_circle():
    graph = space_imports()
    assert any(graph.values()), "no import between the Space's modules was found"
    TopologicalSorter(graph).prepare()  # raises CycleError


# Dependencies and package data ----------------------------------------------------------------------------------------


def files_of(package: str) -> list[Path]:
    folders = PYPROJECT["tool"]["setuptools"]["package-dir"]
    if package in folders:
        return sorted((ROOT / folders[package]).glob("*.py"))
    return sorted(ROOT.joinpath(*package.split(".")[1:]).glob("*.py"))


@cache
def installed_distributions():
    return packages_distributions()  # takes seconds


def undeclared(files: list[Path], known: set[str]) -> dict[str, set[str]]:
    """Imported names whose distribution is not among `known`, with the files that import them."""
    own = {"radfm", "radfm_kernels", "kernels", *(file.stem for file in files)} | set(space_imports())
    distributions = installed_distributions()
    missing: dict[str, set[str]] = {}
    for file in files:
        for name in imported(file) - own - sys.stdlib_module_names:
            candidates = {distribution(name) for name in distributions.get(name, [name])} | {COMES_WITH.get(name, name)}
            if not candidates & known:
                missing.setdefault(name, set()).add(str(file.relative_to(ROOT)))
    return missing


@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_package_imports_is_declared(package):
    room = package.split(".")[1] if "." in package else package
    # Triton comes with PyTorch's builds for cards; without it the kernels' references run.
    known = {"torch", "triton"} if package == "radfm_kernels" else declared(*EXTRAS_OF.get(room, ()))
    assert undeclared(files_of(package), known) == {}


def test_what_the_tests_import_is_declared():
    files = [file for folder in ("tests", "kernels/tests", "scripts") for file in (ROOT / folder).rglob("*.py")]
    assert undeclared(files, declared(*setup_extras())) == {}


def test_every_package_of_the_repository_is_in_the_wheel():
    ignored = {".venv", ".cache", "venvs", "build", "tests", "docs", "benchmarks"}
    folders = {init.parent.relative_to(ROOT) for init in ROOT.rglob("__init__.py")}
    found = {folder for folder in folders if not ignored & set(folder.parts)} - {Path("kernels/torch-ext/radfm_kernels")}
    assert {".".join(["radfm", *folder.parts]) for folder in found} == set(PACKAGES) - {"radfm_kernels"}


def setup_extras() -> list[str]:
    """The extras that `make setup` installs: `dev`, and those that it names as `radfm[…]`."""
    nested = next(r for r in PROJECT["optional-dependencies"]["dev"] if distribution(r) == "radfm")
    return ["dev", *nested[nested.index("[") + 1 : nested.index("]")].split(",")]


def test_everything_that_make_setup_installs_is_pinned():
    pinned = {distribution(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert declared(*setup_extras()) - pinned == {"radfm"}


# https://huggingface.co/docs/hub/spaces-zerogpu, "Supported versions", in November 2026.
ZERO_GPU_TORCH = ("2.8.0", "2.9.1", "2.10.0", "2.11.0")
ZERO_GPU_PYTHON = ("3.10.13", "3.12.12")


def test_the_space_pins_the_versions_that_are_tested_and_torch_and_python_of_zerogpu():
    lines = [line for line in (ROOT / "space" / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = dict(re.sub(r"\[.*?\]", "", line).split("==") for line in lines)
    tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert pinned.pop("torch") in ZERO_GPU_TORCH
    assert pinned and pinned.items() <= tested.items()
    settings = (ROOT / "space" / "README.md").read_text().split("---")[1]
    assert any(f'python_version: "{version}"' in settings for version in ZERO_GPU_PYTHON)
    assert f"sdk_version: {pinned['gradio']}" in settings


def test_public_names_are_those_that_type_checkers_see():
    import radfm

    tree = ast.parse((ROOT / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == radfm._MODULE_OF
    assert set(radfm.__all__) == {*typed, "__version__"}
    assert all(getattr(radfm, name) is not None for name in radfm.__all__)


def test_every_fault_of_make_mutants_can_be_planted():
    checked = subprocess.run([sys.executable, ROOT / "scripts" / "mutants.py", "--check"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


# The wheel ------------------------------------------------------------------------------------------------------------


def can_build_without_a_network() -> bool:
    """Whether setuptools is installed, and new enough for pyproject.toml."""
    try:
        return int(version("setuptools").split(".")[0]) >= 77
    except PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    repository = copy_of_the_repository(folder)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--disable-pip-version-check", "--wheel-dir", folder]
    if can_build_without_a_network():
        command.append("--no-build-isolation")
    subprocess.run([*command, repository], check=True, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def bare_python(wheel, tmp_path_factory) -> Path:
    """Python of an environment with the wheel and its dependencies, and without this clone."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, wheel], check=True)
    # The dependencies of this environment: a .pth file adds a folder without running the .pth files in it, so that an
    # editable radfm stays outside.
    site = next((folder / "lib").glob("python*")) / "site-packages"
    dependencies = {str(Path(shutil.__file__).parent / "site-packages")} | {
        p for p in sys.path if p.endswith("site-packages")
    }
    (site / "dependencies.pth").write_text("\n".join(sorted(dependencies)))
    return python


def run_bare(python: Path, *words: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {"radfm/py.typed", "radfm/model.safetensors", "radfm/space/static/niivue.umd.js"} <= set(names)
    top = {name.split("/")[0] for name in names}
    assert top == {"radfm", "radfm_kernels", f"radfm-{PROJECT['version']}.dist-info"}
    folders = {name.split("/")[1] for name in names if name.startswith("radfm/") and name.count("/") > 1}
    assert folders == {package.split(".")[1] for package in PACKAGES if "." in package}


@pytest.mark.slow  # builds a wheel, makes an environment, loads the model: half a minute
def test_the_wheel_answers_about_a_dicom(bare_python, dicom_files, tmp_path):
    radfm = bare_python.parent / "radfm"
    question = "Which imaging modality is this?"
    assert run_bare(bare_python, radfm, "ask", dicom_files / "693_J2KI.dcm", question, cwd=tmp_path) == "CT"
    code = "import radfm, radfm_kernels; print(radfm.__version__, radfm.__file__, radfm_kernels.__file__, sep='\\n')"
    number, *files = run_bare(bare_python, bare_python, "-c", code, cwd=tmp_path).splitlines()
    assert number == PROJECT["version"]
    assert all(Path(file).is_relative_to(bare_python.parents[1]) for file in files)
