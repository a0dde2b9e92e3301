"""Files → scans, in a process of their own: a codec that crashes, hangs or eats memory takes nothing else with it.

The parent calls `read`; the child is this same file run as a script. Voxels come back as a file.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = int(os.environ.get("RADFM_READ_SECONDS", "90"))
MEMORY = int(os.environ.get("RADFM_READ_MEMORY", str(6 << 30)))
UNPACKED = int(os.environ.get("RADFM_READ_UNPACKED", str(1 << 30)))
AT_ONCE = threading.BoundedSemaphore(2)

# What is one scan each; everything else is taken for slices of DICOM series.
OWN_SUFFIXES = (".zip", ".nii", ".nii.gz", ".mgh", ".mgz", ".mnc", ".img", ".img.gz", ".npy", ".npz")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif")
HEADER_SUFFIXES = (".hdr",)


@dataclass
class Reader:
    """Where `load_scan` is: the folder to import from, and the name of its module."""

    folder: str
    module: str


@dataclass
class Stored:
    """A scan that was read: its name, and the folder that holds `voxels.npy`.

    `about` is everything but the voxels: shape, affine, spacing, modality, series, windows, warnings, description, and
    `key`, the hash of its content.
    """

    name: str
    folder: Path
    about: dict[str, Any]

    def load(self, scan_class: type) -> Any:
        """The `Scan`; its voxels stay on disk until they are looked at."""
        import numpy as np

        about = self.about
        affine = None if about["affine"] is None else np.array(about["affine"])
        spacing = None if about["spacing"] is None else tuple(about["spacing"])
        windows = [tuple(window) for window in about["windows"]]
        voxels = np.load(self.folder / "voxels.npy", mmap_mode="c")
        return scan_class(voxels, affine, spacing, about["modality"], about["series"], windows, about["warnings"])


def read(files: Sequence[Path], out: Path, reader: Reader) -> tuple[list[Stored], list[str]]:
    """The scans in some files of one folder, each in a folder below `out`, and a sentence for each that is none."""
    scans: list[Stored] = []
    refused: list[str] = []
    for number, job in enumerate(_jobs(files)):
        found, sentence = _read_apart(job, out / f"read-{number}", reader)
        scans += found
        refused += [sentence] if sentence else []
    return scans, refused


def _jobs(files: Sequence[Path]) -> Iterator[list[Path]]:
    """Each file that is a scan of its own, and all others together."""
    others = []
    for file in files:
        name = file.name.lower()
        if name.endswith((*OWN_SUFFIXES, *PICTURE_SUFFIXES)):
            yield [file]
        elif not (name.endswith(HEADER_SUFFIXES) and any(other.stem == file.stem for other in files if other != file)):
            others.append(file)
    if others:
        yield others


def _read_apart(files: list[Path], out: Path, reader: Reader) -> tuple[list[Stored], str]:
    """Read by a child; a sentence where it did not come back with scans."""
    name = _name(files)
    out.mkdir(parents=True)
    job = {"files": [str(file) for file in files], "out": str(out), "folder": reader.folder, "module": reader.module}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with AT_ONCE:
        # Standard error is thrown away: what codecs print may have a patient's name in it.
        child = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        try:
            said, _ = child.communicate(json.dumps(job).encode(), timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
            return [], f"{name}: reading it took longer than {SECONDS} seconds and was given up."
    if child.returncode in (-signal.SIGKILL, -signal.SIGXCPU):
        return [], f"{name}: reading it took too much time or memory and was stopped."
    if child.returncode != 0:
        return [], f"{name}: is damaged in a way that its decoder did not survive."
    answer = json.loads(said)
    stored = [Stored(scan["name"], Path(scan["folder"]), scan["about"]) for scan in answer["scans"]]
    return stored, answer["refused"].replace(f"{files[0].parent}{os.sep}", "")


def _name(files: Sequence[Path]) -> str:
    return files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"


def _child(job: dict[str, Any]) -> dict[str, Any]:
    """Read one job within the limits: the scans' folders, and why some files were refused."""
    import resource
    from importlib import import_module

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    sys.path.insert(0, job["folder"])
    module = import_module(job["module"])
    scans: list[dict[str, Any]] = []
    refused = []
    for number, files in enumerate(_series([Path(file) for file in job["files"]])):
        folder = Path(job["out"]) / str(number)
        try:
            scan = module.load_scan(str(files[0]) if len(files) == 1 else [str(f) for f in files], max_bytes=UNPACKED)
        except module.ScanError as error:
            refused.append(str(error))
        except MemoryError:
            refused.append(f"{_name(files)}: needs more memory than the {MEMORY / 1e9:.0f} GB that reading a scan may take.")
        else:
            scans.append({"name": _name(files), "folder": str(folder), "about": _store(scan, folder)})
    return {"scans": scans, "refused": " ".join(refused)}


def _series(files: list[Path]) -> list[list[Path]]:
    """Files by the DICOM series that they say they belong to; a file that says nothing stands alone."""
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


def _store(scan: Any, folder: Path) -> dict[str, Any]:
    """Write the voxels; everything else."""
    import hashlib

    import numpy as np

    folder.mkdir()
    voxels = np.ascontiguousarray(scan.voxels, dtype=np.float32)
    np.save(folder / "voxels.npy", voxels)
    about = {
        "shape": list(voxels.shape),
        "affine": None if scan.affine is None else np.asarray(scan.affine, dtype=float).tolist(),
        "spacing": None if scan.spacing is None else [float(mm) for mm in scan.spacing],
        "modality": scan.modality,
        "series": scan.series,
        "windows": [[float(low), float(high)] for low, high in scan.windows],
        "warnings": list(scan.warnings),
        "description": scan.describe(),
    }
    content = hashlib.sha256(voxels.data)
    content.update(json.dumps(about).encode())
    return {**about, "key": content.hexdigest()}


if __name__ == "__main__":
    print(json.dumps(_child(json.load(sys.stdin))))
