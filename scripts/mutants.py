"""Plant one-line faults and run the tests that must notice them.

    python scripts/mutants.py                # every fault in scripts/mutants.toml
    python scripts/mutants.py suv window     # those whose names contain one of these words
    python scripts/mutants.py --check        # only look for each line in its file

Each fault is planted in a copy of the repository. A fault is caught if its tests fail; the run fails if one survives, or if
its line is no longer in its file. The same tests run on the unchanged copy first and must pass.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", "venvs", "build", "checkpoints", "site", "__pycache__", ".*_cache", "*.egg-info"
)
# Exit status of pytest (documented in "Exit codes"): 1 is a failed test; 2, 4 and 5 mean that no test ran.
PASSED, FAILED = 0, 1


@dataclass(frozen=True)
class Mutant:
    """A fault: in `file`, the text `old`, which must stand there once, becomes `new`; one of `tests` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def problem(self, repository: Path) -> str | None:
        """Why the fault cannot be planted, or None."""
        path = repository / self.file
        if not path.exists():
            return f"{self.file} does not exist"
        count = path.read_text().count(self.old)
        if count != 1:
            return f"{self.old!r} stands {count} times in {self.file}, not once"
        missing = [test for test in self.tests if not (repository / test.split("::")[0]).exists()]
        return f"{', '.join(missing)} does not exist" if missing else None


def read_mutants(file: Path) -> list[Mutant]:
    return [Mutant(**{**fields, "tests": tuple(fields["tests"])}) for fields in tomllib.loads(file.read_text())["mutant"]]


def copy_repository(folder: Path) -> Path:
    """A copy whose folder is named `radfm`, so that it imports as the package."""
    shutil.copytree(ROOT, folder / "radfm", ignore=NOT_COPIED)
    shared = os.environ.get("RADFM_SHARED", ROOT.parent / "shared")
    if Path(shared).is_dir():
        (folder / "shared").symlink_to(shared)
    return folder / "radfm"


def run_tests(repository: Path, tests: Iterable[str]) -> int:
    """Exit status of pytest."""
    path = os.pathsep.join([str(repository.parent), str(repository / "kernels" / "torch-ext")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=repository, env=environment, stdout=subprocess.DEVNULL).returncode


def run_mutant(mutant: Mutant) -> str:
    """ "caught", "survived", or what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        repository = copy_repository(Path(folder))
        path = repository / mutant.file
        text = path.read_text().replace(mutant.old, mutant.new)
        compile(text, mutant.file, "exec")
        path.write_text(text)
        status = run_tests(repository, mutant.tests)
    return {PASSED: "survived", FAILED: "caught"}.get(status, f"pytest ended with status {status}")


def clean_problems(mutants: list[Mutant]) -> list[str]:
    """The tests that fail, or do not run, without any fault."""
    suites: dict[str, set[str]] = {"tests": set(), "kernels": set()}
    for mutant in mutants:
        for test in mutant.tests:
            suites[test.split("/")[0]].add(test)
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        repository = copy_repository(Path(folder))
        # The kernels' tests need a process of their own: Triton chooses its interpreter when it is imported.
        for tests in filter(None, suites.values()):
            if run_tests(repository, sorted(tests)) != PASSED:
                problems += [test for test in sorted(tests) if run_tests(repository, [test]) != PASSED]
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="plant only faults whose names contain one of these words")
    parser.add_argument("--check", action="store_true", help="only look for each line in its file")
    parser.add_argument("--jobs", type=int, default=max((os.cpu_count() or 2) // 2, 1), help="faults tried at the same time")
    options = parser.parse_args()
    mutants = read_mutants(Path(__file__).with_suffix(".toml"))
    mutants = [m for m in mutants if not options.words or any(word in m.name for word in options.words)]

    outcomes = {mutant: problem for mutant in mutants if (problem := mutant.problem(ROOT))}
    planted = [mutant for mutant in mutants if mutant not in outcomes]
    if not options.check:
        for test in clean_problems(planted):
            print(f"{test} fails without any fault", flush=True)
            return 1
        start = time.monotonic()
        with ThreadPoolExecutor(options.jobs) as pool:
            for mutant, outcome in zip(planted, pool.map(run_mutant, planted), strict=True):
                print(f"{outcome:10} {mutant.name}  ({time.monotonic() - start:.0f} s)", flush=True)
                outcomes[mutant] = outcome
    for mutant, outcome in outcomes.items():
        if outcome != "caught":
            print(f"{mutant.name}: {outcome}")
    caught = sum(outcome == "caught" for outcome in outcomes.values())
    if options.check:
        print(f"{len(planted)} of {len(mutants)} faults can be planted")
        return int(len(planted) < len(mutants))
    print(f"{caught} of {len(mutants)} faults caught")
    return int(caught < len(mutants))


if __name__ == "__main__":
    sys.exit(main())
