"""How long `load_scan` takes for a series, against pydicom alone reading and decoding the same files, in turn in one run.

    python benchmarks/loading.py --slices 300

Prints the median of the ratios (below 1: faster than pydicom alone, though it also orders, rescales and checks the slices).
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
from pydicom.data import get_testdata_file
from pydicom.uid import JPEG2000Lossless, generate_uid

from radfm.load_scan_radfm import load_scan


def series(folder: Path, slices: int, side: int, compressed: bool) -> list[Path]:
    """A CT series under random names and instance numbers: noise, or a real slice enlarged, with noise, in JPEG 2000."""
    original = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    enlarged = original.pixel_array.repeat(side // original.Rows, axis=0).repeat(side // original.Columns, axis=1)
    uid, rng, files = generate_uid(), np.random.default_rng(0), []
    for k in range(slices):
        dataset = copy.deepcopy(original)
        dataset.Rows = dataset.Columns = side
        dataset.SeriesInstanceUID = uid
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.InstanceNumber = int(rng.integers(1, 10_000))
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, k * 1.25]
        if compressed:
            noisy = enlarged + rng.normal(0, 15, enlarged.shape)
            dataset.PixelData = noisy.astype(np.int16).tobytes()
            dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
        else:
            dataset.PixelData = rng.integers(0, 2000, (side, side), dtype=np.int16).tobytes()
        files.append(folder / f"{rng.integers(1 << 60)}.dcm")
        dataset.save_as(files[-1])
    return files


def pydicom_alone(files: list[Path]) -> np.ndarray:
    """Read, decode, stack."""
    return np.stack([pydicom.dcmread(file).pixel_array for file in files])


def ratios(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> list[float]:
    """Time of `ours` over time of `theirs`, one after the other, after one run of each that does not count."""
    measured = []
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        theirs()
        between = time.perf_counter()
        ours()
        if repeat:
            measured.append((time.perf_counter() - between) / (between - start))
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    for compressed, slices in ((False, options.slices), (True, max(options.slices // 10, 10))):
        with tempfile.TemporaryDirectory() as folder:
            files = series(Path(folder), slices, 512, compressed)
            found = ratios(partial(load_scan, folder), partial(pydicom_alone, files), options.repeats)
        kind = f"{JPEG2000Lossless.name.split('(')[0].strip()}" if compressed else "uncompressed"
        spread = ", ".join(f"{r:.2f}" for r in sorted(found))
        print(f"{slices} slices of 512×512, {kind}: load_scan / pydicom = {statistics.median(found):.2f} ({spread})")


if __name__ == "__main__":
    main()
