"""Shards as tasks of a Ray cluster: each through the same writer as on one machine, so the files are the same.

The cluster's machines have to see the folders of downloads and output under the same paths (a network file system).
"""

from collections.abc import Callable, Iterator
from typing import Any

from .schema import DataError
from .task import ShardTask


def run_on_ray(tasks: list[ShardTask], report_rows: Callable[[int], None]) -> Iterator[tuple[ShardTask, dict[str, Any]]]:
    """Run tasks on the cluster of `RAY_ADDRESS`, or on one that is started on this machine.

    Yields:
        Each task with its result, as it is finished.

    Raises:
        DataError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise DataError("--runner ray needs Ray: pip install 'radfm[ray]'.") from error
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False)
    run = ray.remote(_run)
    pending = {run.remote(task): task for task in tasks}
    rows = 0
    try:
        while pending:
            (reference,), _ = ray.wait(list(pending), num_returns=1)
            task = pending.pop(reference)
            try:
                result = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            rows += task.slice.rows
            report_rows(rows)
            yield task, result
    finally:
        for reference in pending:
            ray.cancel(reference)
        if started:
            ray.shutdown()


def _run(task: ShardTask) -> dict[str, Any]:
    return task.run()
