"""Run transformers' own test suites on RadFM.

    python scripts/transformers_tests.py               all of them, some minutes on two cores
    python scripts/transformers_tests.py -k attention  further arguments go to pytest

The suites are mixins in the `tests` folder of transformers. Its wheel does not have them, so they are taken out of the sdist
of the installed version, once, into `.cache/`. `tests/transformers/` has the test classes, and the list of the tests that
cannot apply. Without a network and without a cache the script says so and ends with status 0.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers

ROOT = Path(__file__).parent.parent
VERSION = transformers.__version__
CACHE = ROOT / ".cache" / f"transformers-{VERSION}"
# The name under which test classes import the mixins; `tests` is taken by the tests of this repository.
PACKAGE = "transformers_tests"
# What the mixins import and the sdist lacks.
STAND_INS = {
    f"{PACKAGE}/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    f"{PACKAGE}/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    f"{PACKAGE}/exporters/__init__.py": "",
    f"{PACKAGE}/generation/__init__.py": "",
    f"{PACKAGE}/__init__.py": "",
    "utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return url\n",
}


def fetch() -> str | None:
    """Fill the cache. Returns why that failed, or None."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", folder]
        run = subprocess.run([*command, f"transformers=={VERSION}"], capture_output=True, text=True)
        sdists = list(Path(folder).glob("*.tar.gz"))
        if run.returncode or not sdists:
            return run.stderr.strip().splitlines()[-1] if run.stderr.strip() else "pip gave no sdist"
        with tarfile.open(sdists[0]) as sdist:
            for member in sdist:
                parts = Path(member.name).parts  # transformers-VERSION/tests/NAME.py
                if len(parts) == 3 and parts[1] == "tests" and member.isfile() and parts[2].endswith(".py"):
                    stream = sdist.extractfile(member)
                    assert stream is not None
                    write(f"{PACKAGE}/{parts[2]}", stream.read().decode())
    for name, text in STAND_INS.items():
        write(name, text)
    (CACHE / "complete").touch()
    return None


def write(name: str, text: str) -> None:
    file = CACHE / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def main() -> int:
    if not (CACHE / "complete").exists():
        reason = fetch()
        if reason is not None:
            print(f"Skipped: the sdist of transformers {VERSION}, which holds its tests, cannot be fetched ({reason}).")
            return 0
    tests = ROOT / "tests" / "transformers"
    paths = [str(CACHE), str(tests), os.environ.get("PYTHONPATH", "")]
    # The mixins have markers of their own, which this repository's strict settings would refuse.
    settings = ["-o", "python_files=mixin_*.py", "-o", "addopts=--import-mode=importlib", "-o", "filterwarnings=ignore"]
    command = [sys.executable, "-m", "pytest", "-q", *settings, str(tests)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([*command, *sys.argv[1:]], cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
