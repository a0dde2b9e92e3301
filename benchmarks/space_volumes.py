"""How long a large volume takes in the Space: until it is seen, until all voxels are there, until the overlay is shown.

    python benchmarks/space_volumes.py              # 512×512×300 NIfTI and 1,000 slices DICOM; needs Chromium

The volumes are noise on a ramp, so that they compress as badly as a scan with noise does. `load_scan` is timed in a process
of its own in the same run, before and after the page; the page is timed in Chromium from the end of the upload on, each
volume in a page of its own. Chromium draws without a graphics card here, which takes both cores for half a minute a volume.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from io import BytesIO
from pathlib import Path

import nibabel
import numpy as np
from playwright.sync_api import sync_playwright
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from running_space import running_space

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "space"))

from visitor import CHROMIUM, NEXT_FRAME, SCREENS, WEBGL, Visitor  # noqa: E402

LOAD = "import sys, time; from radfm.load_scan_radfm import load_scan; start = time.monotonic(); load_scan(sys.argv[1]); "
LOAD += "print(time.monotonic() - start)"
ROWS = COLUMNS = 512


def slice_of_noise(number: int) -> np.ndarray:
    """(512, 512) int16: air at the left, bone at the right, noise of 20 HU."""
    ramp = np.linspace(-1000, 1500, COLUMNS) + number
    return (ramp + np.random.default_rng(number).normal(0, 20, (ROWS, COLUMNS))).astype(np.int16)


def write_nifti(file: Path, slices: int) -> None:
    """A volume as compressed NIfTI."""
    voxels = np.stack([slice_of_noise(number) for number in range(slices)], axis=-1)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-0.8, -0.8, 1.0, 1.0])), file)


def write_dicom(file: Path, slices: int) -> None:
    """A CT series in a zip, one file a slice."""
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number in range(slices):
            dataset = Dataset()
            dataset.file_meta = FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
            dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = "CT", 1, number + 1
            dataset.ImagePositionPatient = [-204.8, -204.8, 0.6 * number]
            dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
            dataset.PixelSpacing, dataset.SliceThickness = [0.8, 0.8], 0.6
            dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = ROWS, COLUMNS, 1
            dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 1
            dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
            dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "HU"
            dataset.PixelData = slice_of_noise(number).tobytes()
            buffer = BytesIO()
            dataset.save_as(buffer, enforce_file_format=True)
            archive.writestr(f"{number:04d}.dcm", buffer.getvalue())


def time_load_scan(file: Path) -> float:
    """Seconds that `load_scan` takes in a new process, without its imports."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(file)], cwd=ROOT.parent, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def time_page(visitor: Visitor, file: Path) -> dict[str, float]:
    """Drop a file → seconds of the upload, then until it is seen and until all its voxels are; and of the overlay."""
    page, seconds = visitor.page, {}
    number = 2  # the page opens with an example
    start = time.monotonic()
    with page.expect_response("**/upload?*"):
        visitor.drop(file)
    seconds["upload"] = time.monotonic() - start
    start = time.monotonic()
    page.wait_for_selector(f'[data-part=viewer][data-shows="{number}"]')
    page.evaluate(NEXT_FRAME)
    seconds["seen"] = time.monotonic() - start
    visitor.sees(number)
    page.evaluate(NEXT_FRAME)
    seconds["all voxels"] = time.monotonic() - start
    start = time.monotonic()
    page.click("#where")
    page.wait_for_selector(f'[data-part=viewer][data-overlay="{number}"]')
    seconds["overlay"] = time.monotonic() - start
    return seconds


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nifti-slices", type=int, default=300)
    parser.add_argument("--dicom-slices", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_space() as space, sync_playwright() as playwright:
        nifti, dicom = Path(folder) / "volume.nii.gz", Path(folder) / "series.zip"
        write_nifti(nifti, options.nifti_slices)
        write_dicom(dicom, options.dicom_slices)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=WEBGL)
        print(
            "| | MB | load_scan | upload | seen | at most (2 × + 3 s) | all voxels | overlay |",
            "|---|---|---|---|---|---|---|---|",
            sep="\n",
            flush=True,
        )
        for name, file in ((f"NIfTI, {options.nifti_slices}", nifti), (f"DICOM, {options.dicom_slices}", dicom)):
            before = time_load_scan(file)
            visitor = Visitor(browser, space.address, **SCREENS["wide-light"])
            page = time_page(visitor, file)
            visitor.close()
            load = statistics.mean([before, time_load_scan(file)])
            cells = [load, page["upload"], page["seen"], 2 * load + 3, page["all voxels"], page["overlay"]]
            print(
                f"| {name} | {file.stat().st_size / 1e6:.0f} | {' | '.join(f'{cell:.1f} s' for cell in cells)} |", flush=True
            )


if __name__ == "__main__":
    main()
