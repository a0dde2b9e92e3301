"""Reads and prepares scans: a server process that forks one limited child for each job. Run as a script, never imported.

A codec that crashes, hangs or eats memory kills the child of one job and nothing else. The server itself only waits: it has
imported the readers and torch once, so that a child starts in milliseconds.

Jobs come on standard input and events go to standard output, one JSON object a line:

    {"setup": {…}}      once: the fields of a `ReaderModule`, which say where the model's code is
    {"read": {"files", "folder", "series", "volume"}}    → {"scan": {…}, "complete": bool}, {"refused": sentence}, …
    {"draw": {"scan", "low", "high", "folder"}}          → {"pictures": [file, …]}
    each job ends with {"end": exit status as `os.waitstatus_to_exitcode` gives it}
"""

import errno
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import limits
import prepare
import viewer
from model_code import ModelCode, load_model_code

# What is one scan each; all other files of a drop are taken for slices of DICOM series.
SCAN_SUFFIXES = (".zip", ".nii", ".nii.gz", ".mgh", ".mgz", ".mnc", ".img", ".img.gz", ".npy", ".npz")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif")
HEADER_SUFFIXES = (".hdr",)


def serve(events: Any) -> None:
    """Fork a child for each job until standard input ends."""
    code = load_model_code(json.loads(sys.stdin.readline())["setup"])
    _emit(events, {"end": 0})
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _run_limited(json.loads(line), code, events)
        _, status = os.waitpid(child, 0)
        _emit(events, {"end": os.waitstatus_to_exitcode(status)})


def _emit(events: Any, event: dict[str, Any]) -> None:
    events.write(json.dumps(event) + "\n")
    events.flush()


def _run_limited(job: dict[str, Any], code: ModelCode, events: Any) -> None:
    """The child: set the limits, run the job, exit."""
    # Data and not address space: libraries map gigabytes that they never touch.
    resource.setrlimit(resource.RLIMIT_DATA, (limits.READ_MEMORY, limits.READ_MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.READ_SECONDS, limits.READ_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.STORE_BYTES, limits.STORE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The default action of this signal ends a process even where it hangs in a codec.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(limits.READ_SECONDS)
    status = 1
    try:
        for event in _read(job["read"], code) if "read" in job else _draw(job["draw"], code):
            _emit(events, event)
        status = 0
    except Exception as error:
        if limits.DEBUG:
            raise
        _emit(events, {"refused": f"reading failed ({type(error).__name__})."})
    finally:
        os._exit(status)


def _read(job: dict[str, Any], code: ModelCode) -> Iterator[dict[str, Any]]:
    """Every scan among some files of one folder, and a sentence for each that is none."""
    groups = [group for files in _jobs([Path(file) for file in job["files"]]) for group in _series(files)]
    for number, files in enumerate(groups):
        name = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"
        folder = Path(job["folder"]) / str(number)
        try:
            options = {key: job[key] for key in ("series", "volume") if job.get(key) is not None}
            source = str(files[0]) if len(files) == 1 else [str(file) for file in files]
            scan = code.reader.load_scan(source, max_bytes=limits.READ_UNPACKED, **options)
            for about in prepare.prepare(scan, folder, code):
                yield {"scan": {"name": name, "folder": str(folder), "about": about}, "complete": False}
            choices = {
                "series_choices": _series_choices(code.reader, files),
                "volume_choices": _volume_choices(code.reader, files, job.get("series")),
            }
            yield {"scan": {"name": name, "folder": str(folder), "about": {**about, **choices}}, "complete": True}
        except code.reader.ScanError as error:
            yield {"refused": str(error).replace(f"{files[0].parent}{os.sep}", "")}
        except MemoryError:
            limit = limits.READ_MEMORY / 1e9
            yield {"refused": f"{name}: needs more memory than the {limit:.0f} GB that reading a scan may take."}
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            yield {"refused": f"{name}: the disk of this Space is full. Try again later."}


def _jobs(files: list[Path]) -> Iterator[list[Path]]:
    """Each file that is a scan by itself, and all others together."""
    others = []
    for file in files:
        name = file.name.lower()
        if name.endswith((*SCAN_SUFFIXES, *IMAGE_SUFFIXES)):
            yield [file]
        elif not (name.endswith(HEADER_SUFFIXES) and any(other.stem == file.stem for other in files if other != file)):
            others.append(file)
    if others:
        yield others


def _series(files: list[Path]) -> list[list[Path]]:
    """Files grouped by their SeriesInstanceUID; a file that has none stands alone."""
    if len(files) == 1:
        return [files]
    import pydicom
    from pydicom.errors import InvalidDicomError

    groups: dict[str, list[Path]] = {}
    for file in files:
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
            groups.setdefault(str(header.get("SeriesInstanceUID", file)), []).append(file)
        except (InvalidDicomError, OSError, ValueError):
            groups[str(file)] = [file]
    return list(groups.values())


def _series_choices(reader: Any, files: list[Path]) -> list[dict[str, str]]:
    """The DICOM series of a zip, as {"value": UID, "label": number and description}; empty where there is one alone."""
    if len(files) > 1 or not files[0].name.lower().endswith(".zip"):
        return []
    try:
        lines = [line.split(" · ", 1) for line in reader.list_series(files[0], max_bytes=limits.READ_UNPACKED)]
    except reader.ScanError:
        return []
    return [{"value": uid, "label": label} for uid, label in lines] if len(lines) > 1 else []


def _volume_choices(reader: Any, files: list[Path], series: str | None) -> list[dict[str, Any]]:
    """The volumes or frames that `load_scan(volume=…)` chooses from; empty where there is one alone.

    A model's repository from before `list_volumes` offers no choice.
    """
    if len(files) > 1 or not hasattr(reader, "list_volumes"):
        return []
    try:
        volumes = reader.list_volumes(str(files[0]), series=series, max_bytes=limits.READ_UNPACKED)
    except reader.ScanError:
        return []
    return [{"value": i, "label": label} for i, label in enumerate(volumes)] if len(volumes) > 1 else []


def _draw(job: dict[str, Any], code: ModelCode) -> Iterator[dict[str, Any]]:
    """Slices of a stored scan as PNGs with one grey window."""
    about = job["scan"]["about"]
    voxels = np.load(Path(job["scan"]["folder"]) / "voxels.npy", mmap_mode="r")
    affine = None if about["affine"] is None else np.array(about["affine"])
    scan = code.scans.Scan(voxels, affine, None if about["spacing"] is None else tuple(about["spacing"]))
    pictures = viewer.draw_slices(code.scans.to_radiological_view(scan), (job["low"], job["high"]), Path(job["folder"]))
    yield {"pictures": [str(file) for file in pictures]}


if __name__ == "__main__":
    # What libraries print must not get among the events.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(channel)
