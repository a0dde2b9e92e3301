"""Scans that work at once: real ones, which pydicom's and nibabel's wheels bring."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Example:
    """A scan, and a question about it."""

    file: Path
    question: str


def _of(package: str, *place: str) -> Path:
    spec = find_spec(package)
    return Path(spec.origin or "" if spec else package).parent.joinpath(*place)


NIFTI, DICOM = _of("nibabel", "tests", "data"), _of("pydicom", "data", "test_files")
EXAMPLES = {
    "Example: brain MR, NIfTI": Example(NIFTI / "example4d.nii.gz", "Which body part is shown?"),
    "Example: head CT, DICOM": Example(DICOM / "693_J2KI.dcm", "Which imaging modality is this?"),
    "Example: abdominal MR, DICOM": Example(DICOM / "examples_overlay.dcm", "Is this an MRI scan? Answer yes or no."),
}
