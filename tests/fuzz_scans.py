"""Change bytes of real files at random and read them: a Scan or a one-line ScanError, in bounded time, and nothing else.

    python tests/fuzz_scans.py --minutes 10 --seed 0

What ends otherwise is written to `build/fuzz/` and named; the regression tests in `test_scans.py` keep what was found.
"""

import argparse
import io
import random
import resource
import signal
import sys
import time
import traceback
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pydicom

from radfm.scans_radfm import ScanError, load_scan

LIMIT_SECONDS, MAX_BYTES = 20, 64 << 20
INTERESTING = [
    b"\x00",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff",
    b"\xfe\xff\x00\xe0",
    b"\xfe\xff\xdd\xe0",
    b"SQ",
    b"\x00\x80",
]


def seeds() -> list[tuple[str, bytes]]:
    """Small real files of every kind."""
    dicom = Path(pydicom.__file__).parent / "data" / "test_files"
    nifti = Path(nibabel.__file__).parent / "tests" / "data"
    files = [p for folder in (dicom, nifti) for p in folder.iterdir() if p.is_file() and p.stat().st_size < 300_000]
    found = [(p.name, p.read_bytes()) for p in files if p.suffix not in (".py", ".md", ".txt")]
    array = io.BytesIO()
    np.save(array, np.arange(24, dtype=np.float32).reshape(4, 6))
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", (dicom / "MR_small.dcm").read_bytes())
    return [*found, ("array.npy", array.getvalue()), ("zipped.zip", zipped.getvalue())]


def mutated(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """The content with a few changes, most of them in its first kilobytes, where headers are."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(max(len(data), 1)) if rng.random() < 0.3 else rng.randrange(max(min(len(data), 3000), 1))
        kind = rng.random()
        if kind < 0.45:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind < 0.7:
            value = rng.choice(INTERESTING)
            data[at : at + len(value)] = value
        elif kind < 0.8:
            del data[at : at + rng.choice((1, 2, 4, 100))]
        elif kind < 0.9:
            start = rng.randrange(max(len(other), 1))
            data[at:at] = other[start : start + rng.choice((4, 32, 500))]
        else:
            del data[rng.randrange(max(len(data), 1)) :]
    return bytes(data)


def too_slow(*_):
    raise TimeoutError(f"took longer than {LIMIT_SECONDS} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, files = random.Random(options.seed), seeds()
    signal.signal(signal.SIGALRM, too_slow)
    end, tried, scans, found = time.time() + options.minutes * 60, 0, 0, 0
    folder = Path("build/fuzz")
    while time.time() < end:
        name, content = rng.choice(files)
        data = mutated(content, rng.choice(files)[1], rng)
        tried += 1
        started = time.time()
        signal.alarm(2 * LIMIT_SECONDS)
        try:
            scan = load_scan(data, max_bytes=MAX_BYTES)
            assert np.isfinite(scan.voxels).all(), "voxels that are not finite"
            assert scan.voxels.ndim == 4 and scan.voxels.size > 0, f"shape {scan.voxels.shape}"
            repr(scan)
            scans += 1
        except ScanError as error:
            if "\n" in str(error):
                found += report(folder, name, data, error)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            found += report(folder, name, data, error)
        finally:
            signal.alarm(0)
        if time.time() - started > LIMIT_SECONDS:
            found += report(folder, name, data, TimeoutError(f"took {time.time() - started:.0f} s"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{tried} files, {scans} scans, {tried - scans - found} clear errors, {found} others; peak memory {peak:.1f} GB")
    return int(found > 0)


def report(folder: Path, name: str, data: bytes, error: BaseException) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"{abs(hash(data)):x}_{name}"
    kept.write_bytes(data)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    print(f"{kept}: {type(error).__name__}: {str(error)[:100]}{where}", flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
