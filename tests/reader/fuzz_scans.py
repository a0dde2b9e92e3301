"""Change bytes of real files at random and read them: a Scan or a one-line ScanError, in bounded time, and nothing else.

    python tests/reader/fuzz_scans.py --minutes 10 --seed 0

What ends otherwise is written to `build/fuzz/` and named. A file that does not end at all ends the run, and lies there as
`current_NAME`.
"""

import argparse
import faulthandler
import hashlib
import io
import random
import resource
import sys
import time
import traceback
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import odd_inputs
import pydicom

from radfm.load_scan_radfm import ScanError, load_scan

# Of a core, so that a busy machine changes nothing; and on the clock, after which a file is taken to hang.
LIMIT_SECONDS, HANGING_SECONDS = 5, 120
MAX_BYTES = 64 << 20
PIXEL_TAG = b"\xe0\x7f\x10\x00"
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
    return [*found, ("array.npy", array.getvalue()), ("zipped.zip", zipped.getvalue()), *made()]


def made() -> list[tuple[str, bytes]]:
    """Objects that no wheel brings: frames with diffusion, a dose, reconstructed nuclear slices, a mosaic, PET, a series."""
    frames = np.stack([odd_inputs.pixels(k) for k in range(6)])
    groups = [
        {"position": (0, 0, 5 * (k % 3)), "MRDiffusionSequence": odd_inputs.item(DiffusionBValue=float(k // 3))}
        for k in range(6)
    ]
    place = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": odd_inputs.AXIAL, "PixelSpacing": [4, 4]}
    mosaic = odd_inputs.image(frames[0], ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"], SliceThickness=5, **place)
    mosaic.private_block(0x19, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 4)
    kind = ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"]
    datasets = {
        "diffusion.dcm": odd_inputs.enhanced(groups, frames),
        "dose.dcm": odd_inputs.image(
            frames, odd_inputs.RT_DOSE, GridFrameOffsetVector=[5.0 * k for k in range(6)], DoseGridScaling=0.5, **place
        ),
        "nuclear.dcm": odd_inputs.image(frames, odd_inputs.NUCLEAR, ImageType=kind, SpacingBetweenSlices=5, **place),
        "mosaic.dcm": mosaic,
        "pet.dcm": odd_inputs.pet(),
    }
    series = io.BytesIO()
    with zipfile.ZipFile(series, "w") as archive:
        for k, dataset in enumerate(odd_inputs.stack(6, change=lambda k: {"EchoTime": float(k % 2)})):
            archive.writestr(f"{k}.dcm", odd_inputs.to_bytes(dataset))
    return [*((name, odd_inputs.to_bytes(dataset)) for name, dataset in datasets.items()), ("series.zip", series.getvalue())]


def mutated(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """The content with a few changes, most where headers are: its first kilobytes, and where DICOM's pixels start."""
    data = bytearray(content)
    pixels = max(content.rfind(PIXEL_TAG), 0)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        start, length = rng.choice(((0, len(data)), (0, 3000), (0, 3000), (pixels, 300)))
        at = min(start + rng.randrange(max(length, 1)), max(len(data) - 1, 0))
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, files = random.Random(options.seed), seeds()
    end, tried, scans, found = time.time() + options.minutes * 60, 0, 0, 0
    folder = Path("build/fuzz")
    folder.mkdir(parents=True, exist_ok=True)
    while time.time() < end:
        name, content = rng.choice(files)
        data = mutated(content, rng.choice(files)[1], rng)
        tried += 1
        started = time.process_time()
        current = folder / f"current_{name}"
        current.write_bytes(data)
        # No signal reaches Python while a codec runs: the run ends, and shows where.
        faulthandler.dump_traceback_later(HANGING_SECONDS, exit=True)
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
            faulthandler.cancel_dump_traceback_later()
            current.unlink()
        if (spent := time.process_time() - started) > LIMIT_SECONDS:
            found += report(folder, name, data, TimeoutError(f"took {spent:.0f} s of a core"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{tried} files, {scans} scans, {tried - scans - found} clear errors, {found} others; peak memory {peak:.1f} GB")
    return int(found > 0)


def report(folder: Path, name: str, data: bytes, error: BaseException) -> int:
    kept = folder / f"{hashlib.sha256(data).hexdigest()[:12]}_{name}"
    kept.write_bytes(data)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    print(f"{kept}: {type(error).__name__}: {str(error)[:100]}{where}", flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
