"""Reads and prepares one scan, in a child process with limits: a codec that crashes, hangs or eats memory ends nothing else.

The children are forked by multiprocessing's fork server, which has imported this module once.
"""

import json
import os
import re
import resource
import signal
import sys
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.load_scan_radfm import ScanError, load_scan
from radfm.scan_radfm import Scan

from . import limits

# What the child leaves in its folder.
PIXELS, OUTCOME = "pixel_values.npy", "outcome.json"
# Shorter names of files are parts of other words.
SHORTEST_NAME = 3


@dataclass(frozen=True)
class ReadJob:
    """A source on the disk, how to read it, and the folder for the result.

    Args:
        options: series, volume and allow_missing of `load_scan`.
        settings: of the image processor, as its `to_dict` gives them.
    """

    source: Path
    folder: Path
    options: dict[str, Any]
    settings: dict[str, Any]


def read(job: ReadJob) -> NoReturn:
    """Write `pixel_values.npy` and `outcome.json` ({"description"} or {"refused": why it is no scan}), and exit."""
    _set_limits()
    status = 1
    try:
        _write(job, _outcome(job))
        status = 0
    except BaseException:
        if limits.DEBUG:
            raise
    finally:
        os._exit(status)


def do_nothing() -> None:
    """The first child: it ends when the fork server is ready."""


def _set_limits() -> None:
    # Data and not address space: libraries map gigabytes that they never touch.
    resource.setrlimit(resource.RLIMIT_DATA, (limits.READ_MEMORY, limits.READ_MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.READ_SECONDS, limits.READ_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The default action of this signal ends a process even where it hangs in a codec.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(limits.READ_SECONDS)
    if not limits.DEBUG:
        # What codecs print may have a patient's name in it.
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.dup2(nothing, sys.stderr.fileno())


def _outcome(job: ReadJob) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    try:
        scan = load_scan(str(job.source), max_bytes=limits.READ_UNPACKED, **job.options)
        pixels = RadFMImageProcessor.from_dict(job.settings).preprocess(scan)
        np.save(job.folder / PIXELS, pixels.numpy())
        warnings = [without_names(warning, job.source) for warning in scan.warnings]
        return {"description": {**describe(scan), "warnings": warnings}}
    except ScanError as error:
        return {"refused": without_names(str(error), job.source)}
    except MemoryError:
        return {"refused": f"needs more memory than the {limits.READ_MEMORY / 1e9:.0f} GB that reading a scan may take."}


def _write(job: ReadJob, outcome: dict[str, Any]) -> None:
    (job.folder / OUTCOME).write_text(json.dumps(outcome))


def describe(scan: Scan) -> dict[str, Any]:
    """What a response says about a scan that it used; nothing about the patient."""
    return {
        "modality": scan.modality,
        "shape": list(scan.voxels.shape),
        "spacing_mm": None if scan.spacing is None else [round(float(mm), 4) for mm in scan.spacing],
        "series": scan.series,
    }


def without_names(sentence: str, source: Path) -> str:
    """A sentence of the readers without the path of the source and the names of the files in it, which may name a patient.

    Files of an archive become "file 1", "file 2", …, in the order of the archive.
    """
    sentence = sentence.removeprefix(f"{source}: ").replace(str(source), "the scan")
    members = list(enumerate(_member_names(source), start=1))
    names = {name: f"file {i}" for i, name in members} | {name.rsplit("/", 1)[-1]: f"file {i}" for i, name in members}
    for name in sorted(names, key=len, reverse=True):
        if len(name) >= SHORTEST_NAME:
            sentence = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", names[name], sentence)
    return sentence.removeprefix("the scan: ")


def _member_names(source: Path) -> list[str]:
    try:
        if zipfile.is_zipfile(source):
            return [info.filename for info in zipfile.ZipFile(source).infolist() if not info.is_dir()]
        if tarfile.is_tarfile(source):
            return [info.name for info in tarfile.open(source) if info.isfile()]
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error):
        pass  # a damaged archive: the readers name none of its members either
    return []
