"""How long `load_scan` takes for series, against other readers of the same files, in turn in one run; and its peak memory.

    python benchmarks/loading.py --slices 300
    pip install SimpleITK dicomsdl     # two of the readers that it is compared with

Ratios below 1 are faster than the other reader, though `load_scan` also orders, rescales and checks the slices and returns
float32. Every ratio is the median of some repeats, each of which runs both readers one after the other.
"""

import argparse
import copy
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, generate_uid

from radfm.load_scan_radfm import load_scan

SIDE = 512
# Of a compressed series so many slices are different; encoding every one would take longer than the measurement.
DIFFERENT = 12
UNCOMPRESSED = ExplicitVRLittleEndian


def encode_jpeg_ls(values: np.ndarray) -> bytes:
    """One lossless JPEG-LS frame. `pip install pyjpegls` brings the encoder."""
    return bytes(importlib.import_module("jpeg_ls").encode_array(values.astype(np.uint16)))


def make_slices(count: int, syntax: str) -> list[Dataset]:
    """A CT series: a real slice, enlarged, with noise; slices at 1.25 mm, under instance numbers without order."""
    original = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    enlarged = original.pixel_array.repeat(SIDE // original.Rows, axis=0).repeat(SIDE // original.Columns, axis=1)
    uid, rng = generate_uid(), np.random.default_rng(0)
    encoded: list[bytes] = []
    slices: list[Dataset] = []
    for k in range(count):
        dataset = copy.deepcopy(original)
        dataset.Rows = dataset.Columns = SIDE
        dataset.PixelRepresentation, dataset.SeriesInstanceUID = 0, uid
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.InstanceNumber = int(rng.integers(1, 10_000))
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, k * 1.25]
        if len(encoded) < DIFFERENT or syntax == UNCOMPRESSED:
            values = np.clip(enlarged + rng.normal(0, 15, enlarged.shape), 0, 4000).astype(np.uint16)
            dataset.PixelData = values.tobytes()
            if syntax == JPEG2000Lossless:
                dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
            elif syntax == JPEGLSLossless:
                dataset.PixelData = encapsulate([encode_jpeg_ls(values)])
            encoded.append(dataset.PixelData)
        dataset.PixelData = encoded[k % len(encoded)]
        dataset["PixelData"].VR = "OW" if syntax == UNCOMPRESSED else "OB"
        dataset["PixelData"].is_undefined_length = syntax != UNCOMPRESSED
        dataset.file_meta.TransferSyntaxUID = UID(syntax)
        slices.append(dataset)
    return slices


def save_series(folder: Path, count: int, syntax: str) -> list[Path]:
    """The series as files with random names."""
    rng, files = np.random.default_rng(1), []
    for dataset in make_slices(count, syntax):
        files.append(folder / f"{rng.integers(1 << 60)}.dcm")
        dataset.save_as(files[-1])
    return files


def save_enhanced(file: Path, count: int, syntax: str) -> None:
    """The series as one enhanced CT file."""
    slices = make_slices(count, syntax)
    whole, groups = slices[0], []
    for dataset in slices:
        group, place = Dataset(), Dataset()
        place.ImagePositionPatient = dataset.ImagePositionPatient
        group.PlanePositionSequence = Sequence([place])
        groups.append(group)
    frames = [next(iter(generate_frames(dataset.PixelData, number_of_frames=1))) for dataset in slices]
    whole.PixelData, whole.NumberOfFrames = encapsulate(frames), count
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedCTImageStorage
    whole.PerFrameFunctionalGroupsSequence = Sequence(groups)
    del whole.ImagePositionPatient
    whole.save_as(file)


def read_with_pydicom(files: list[Path]) -> np.ndarray:
    """Read, decode, stack; nothing else."""
    return np.stack([pydicom.dcmread(file).pixel_array for file in files])


def read_with_simpleitk(files: list[Path]) -> Any:
    """The series reader, with the files as given, not ordered."""
    itk = importlib.import_module("SimpleITK")
    reader = itk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    return itk.GetArrayViewFromImage(reader.Execute())


def read_with_dicomsdl(files: list[Path]) -> np.ndarray:
    """Read, decode, stack."""
    return np.stack([importlib.import_module("dicomsdl").open(str(file)).pixelData() for file in files])


READERS = {"pydicom": read_with_pydicom, "SimpleITK": read_with_simpleitk, "dicomsdl": read_with_dicomsdl}


def seconds_of(read: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    read()
    return time.perf_counter() - start


def compare(name: str, source: Path, files: list[Path], repeats: int) -> None:
    """Print the time of `load_scan` and its ratio to each reader that is installed and can read the files."""
    rivals = {}
    for rival, read in READERS.items():
        try:
            read(files[:1])
        except (ImportError, RuntimeError, ValueError) as error:
            print(f"{name}: {rival} left out ({str(error).strip().splitlines()[-1][:80]})")
            continue
        rivals[rival] = partial(read, files)
    load_scan(source)
    ratios: dict[str, list[float]] = {rival: [] for rival in rivals}
    ours = []
    for _ in range(repeats):
        for rival, read in rivals.items():
            theirs = seconds_of(read)
            ours.append(seconds_of(partial(load_scan, source)))
            ratios[rival].append(ours[-1] / theirs)
    found = ", ".join(f"/ {rival} = {statistics.median(values):.2f}" for rival, values in ratios.items())
    print(f"{name}: load_scan {statistics.median(ours):.2f} s, {found}", flush=True)


def peak_memory(source: Path) -> float:
    """Peak resident memory of a fresh process that reads the source, without what it needs to start, per byte of voxels.

    Read from /proc (Linux): getrusage would count the parent's memory too.
    """
    script = (
        "import re, sys\nfrom radfm.load_scan_radfm import load_scan\nimport pydicom.pixels\n"
        "def kilobytes(word): return int(re.search(word + r':\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "before = kilobytes('VmRSS')\nscan = load_scan(sys.argv[1], max_bytes=1 << 34)\n"
        "print((kilobytes('VmHWM') - before) * 1024 / scan.voxels.nbytes)"
    )
    run = subprocess.run([sys.executable, "-c", script, str(source)], capture_output=True, text=True, check=True)
    return float(run.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--frames", type=int, default=60, help="of the smaller enhanced file; the larger has twice as many")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-slices", type=int, default=1000, help="0: memory is not measured")
    options = parser.parse_args()
    syntaxes = {"uncompressed": UNCOMPRESSED, "JPEG 2000": JPEG2000Lossless}
    if importlib.util.find_spec("jpeg_ls") is None:
        print("JPEG-LS is left out: encoding it needs pyjpegls (pip install pyjpegls)")
    else:
        syntaxes["JPEG-LS"] = JPEGLSLossless
    for name, syntax in syntaxes.items():
        with tempfile.TemporaryDirectory() as folder:
            files = save_series(Path(folder), options.slices, syntax)
            repeats = options.repeats if syntax == UNCOMPRESSED else max(options.repeats // 2, 1)
            compare(f"{options.slices} slices of {SIDE}×{SIDE}, {name}", Path(folder), files, repeats)
    for name, syntax in list(syntaxes.items())[1:]:
        with tempfile.TemporaryDirectory() as folder:
            seconds = []
            for count in (options.frames, 2 * options.frames):
                file = Path(folder) / f"{count}.dcm"
                save_enhanced(file, count, syntax)
                seconds.append(seconds_of(partial(load_scan, file)))
            print(
                f"enhanced CT, {name}: {options.frames} frames {seconds[0]:.2f} s, twice as many {seconds[1]:.2f} s, "
                f"ratio {seconds[1] / seconds[0]:.2f}",
                flush=True,
            )
    for name, syntax in syntaxes.items():
        if options.memory_slices:
            with tempfile.TemporaryDirectory() as folder:
                save_series(Path(folder), options.memory_slices, syntax)
                share = peak_memory(Path(folder))
            print(f"{options.memory_slices} slices, {name}: peak memory {share:.2f} times the float32 voxels", flush=True)


if __name__ == "__main__":
    main()
