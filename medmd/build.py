"""Build a dataset: plan → shards by worker processes → leaks removed → manifest, report, card. Interrupted, it goes on."""

import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .leaks import remove_shared_scans
from .plan import PlanOptions, make_plan
from .publish import write_documents
from .scans import StorageOptions
from .schema import DataError
from .sources import find_source
from .statistics import Statistics
from .task import STATE, ShardTask, too_many_broken, write_atomically


class Progress(Protocol):
    """Called with the number of rows that are done and that there are."""

    def __call__(self, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class BuildOptions:
    """How a dataset is built.

    Args:
        plan: seed and salt.
        storage: sizes of what is stored.
        workers: processes on this machine. The files do not depend on it.
        max_broken: share of rows whose scans may be unreadable before the build stops.
        runner: local, or ray: shards become tasks of a Ray cluster that sees the same folders.
    """

    plan: PlanOptions = field(default_factory=PlanOptions)
    storage: StorageOptions = field(default_factory=StorageOptions)
    workers: int = 1
    max_broken: float = 0.05
    runner: str = "local"


def build(
    inputs: Mapping[str, Path], out: Path, options: BuildOptions | None = None, progress: Progress = lambda done, total: None
) -> dict[str, Any]:
    """Build a dataset from downloads.

    Args:
        inputs: source name (`radfm data list`) → folder of its download, or table of own scans.
        out: the dataset's folder, new or with the same build unfinished. Of a finished one the report is returned.

    Returns:
        The report: records, what was dropped and why, scans that could not be read.

    Raises:
        DataError: an unknown source, a missing file, another dataset in `out`, too many unreadable scans.
    """
    options = options or BuildOptions()
    roots = {find_source(name): Path(folder).resolve() for name, folder in inputs.items()}
    state = out / STATE
    if out.exists() and any(out.iterdir()) and not state.exists() and not (out / "manifest.json").exists():
        raise DataError(f"{out}: is not empty and holds no build; choose a new folder with --out.")
    state.mkdir(parents=True, exist_ok=True)
    plan_file = state / "plan.sqlite"
    plan, dropped = make_plan(plan_file, roots, options.plan)
    fingerprint = plan.fingerprint(repr(options.plan), repr(options.storage))
    slices = plan.slices()
    plan.close()
    _check_same_build(out, fingerprint)
    if (out / "manifest.json").exists():
        shutil.rmtree(state)
        return json.loads((out / "report.json").read_text(encoding="utf-8"))
    total = sum(slice_.rows for slice_ in slices)
    limit = int(total * options.max_broken)
    folders = {source.name: root if root.is_dir() else root.parent for source, root in roots.items()}
    tasks = [ShardTask(out.resolve(), plan_file.resolve(), slice_, folders, options.storage, limit) for slice_ in slices]
    results = _run(tasks, options, progress)
    for source, reasons in remove_shared_scans(out, tasks, results).items():
        for reason, count in reasons.items():
            dropped.setdefault(source, {})[reason] = count
    report = _report(results, dropped)
    manifest = {
        "fingerprint": fingerprint,
        "seed": options.plan.seed,
        "storage": asdict(options.storage),
        "sources": sorted(folders),
        "files": {name: file for result in results for name, file in result["files"].items()},
    }
    write_documents(out, manifest, report)
    shutil.rmtree(state)
    return report


def _check_same_build(out: Path, fingerprint: str) -> None:
    """Refuse to go on with, or to write over, what was made of other rows or with other options."""
    earlier = [path for path in (out / "manifest.json", out / STATE / "build.json") if path.exists()]
    for path in earlier:
        if json.loads(path.read_text(encoding="utf-8"))["fingerprint"] != fingerprint:
            raise DataError(f"{out}: holds a build of other data or with other options; choose a new folder with --out.")
    write_atomically(out / STATE / "build.json", json.dumps({"fingerprint": fingerprint}))


def _run(tasks: list[ShardTask], options: BuildOptions, progress: Progress) -> list[dict[str, Any]]:
    """The results of all tasks in their order; those that an earlier run finished are not run again."""
    results = {task.slice.name: result for task in tasks if (result := task.finished()) is not None}
    todo = [task for task in tasks if task.slice.name not in results]
    total = sum(task.slice.rows for task in tasks)
    before = total - sum(task.slice.rows for task in todo)

    def report_rows(done: int) -> None:
        progress(before + done, total)

    report_rows(0)
    if options.runner == "ray":
        from .ray_runner import run_on_ray

        finished: Iterable[tuple[ShardTask, dict[str, Any]]] = run_on_ray(todo, report_rows)
    elif options.workers == 1:
        finished = _run_here(todo, report_rows)
    else:
        finished = _run_in_processes(todo, options.workers, report_rows)
    skipped = [entry for result in results.values() for entry in result["skipped"]]
    for task, result in finished:
        results[task.slice.name] = result
        skipped += result["skipped"]
        if len(skipped) > task.skip_limit:
            raise too_many_broken(skipped, task.skip_limit)
    return [results[task.slice.name] for task in tasks]


Finished = Iterator[tuple[ShardTask, dict[str, Any]]]


def _run_here(tasks: list[ShardTask], report_rows: Callable[[int], None]) -> Finished:
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        report_rows(done)

    for task in tasks:
        yield task, task.run(tick)


_rows_done: Any = None  # in a worker: the counter that all workers share


def _start_worker(counter: Any) -> None:
    global _rows_done
    _rows_done = counter


def _run_task(task: ShardTask) -> dict[str, Any]:
    def tick() -> None:
        with _rows_done.get_lock():
            _rows_done.value += 1

    return task.run(tick)


def _run_in_processes(tasks: list[ShardTask], workers: int, report_rows: Callable[[int], None]) -> Finished:
    """Shards one by one to whichever process is free; the largest first, so that none is left alone at the end."""
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    with ProcessPoolExecutor(workers, context, _start_worker, (counter,)) as pool:
        order = sorted(tasks, key=lambda task: (task.slice.expected != "3d", -task.slice.rows, task.slice.name))
        futures = {pool.submit(_run_task, task): task for task in order}
        try:
            while futures:
                done, _ = wait(futures, timeout=0.5, return_when=FIRST_COMPLETED)
                report_rows(counter.value)
                for future in done:
                    yield futures.pop(future), future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process was killed, perhaps for want of memory: run the same command again, with fewer --workers."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _report(results: list[dict[str, Any]], dropped: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    statistics = Statistics()
    for result in results:
        statistics.merge(result["statistics"])
    skipped = sorted((entry for result in results for entry in result["skipped"]), key=lambda entry: entry["id"])
    return {
        "records": sum(file["rows"] for result in results for file in result["files"].values()),
        "unreadable": {"count": len(skipped), "scans": skipped},
        "dropped": {source: dict(reasons) for source, reasons in sorted(dropped.items())},
        "statistics": statistics.to_json(),
    }
