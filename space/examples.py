"""Scans that work at once: those that the wheels of pydicom and nibabel bring."""

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Example:
    """A scan, a question about it, where the scan comes from and under which licence, and what there is to see."""

    file: Path
    question: str
    source: str
    remark: str


def _package_file(package: str, *place: str) -> Path:
    spec = find_spec(package)
    return Path(spec.origin or "" if spec else package).parent.joinpath(*place)


NIFTI, DICOM = _package_file("nibabel", "tests", "data"), _package_file("pydicom", "data", "test_files")
NIBABEL, PYDICOM = "nibabel's test data, MIT licence", "pydicom's test data, MIT licence"
EXAMPLES = {
    "Brain, MR volume": Example(
        NIFTI / "example4d.nii.gz",
        "Which body part is shown?",
        NIBABEL,
        "A volume of a brain. Asked for a diagnosis, this Space refuses: the demo knows findings in single images alone.",
    ),
    "Head, CT": Example(
        DICOM / "693_J2KI.dcm", "Which imaging modality is this?", PYDICOM, "One slice through the head, 5 mm thick."
    ),
    "Abdomen, MR": Example(
        DICOM / "examples_overlay.dcm", "Which body part is shown?", PYDICOM, "One slice: liver, kidneys, spine."
    ),
    "Lymph node, ultrasound": Example(
        DICOM / "examples_rgb_color.dcm", "What kind of scan is this?", PYDICOM, "Colour Doppler of a lymph node."
    ),
    "Where it fails: skull base, CT": Example(
        DICOM / "J2K_pixelrep_mismatch.dcm",
        "Which imaging modality is this?",
        PYDICOM,
        "A slice through the skull base. The model's answer is wrong, and only the header of the file shows it.",
    ),
    "Where it fails: heart, ultrasound": Example(
        DICOM / "examples_ybr_color.dcm",
        "Which body part is shown?",
        PYDICOM,
        "A frame of a beating heart. The heart is none of the body parts that the model can name.",
    ),
    "Outside what it knows: bone scan": Example(
        DICOM / "JPGExtended.dcm",
        "Which imaging modality is this?",
        PYDICOM,
        "Nuclear medicine was not among the scans that the model was trained on.",
    ),
}
EXAMPLES = {label: example for label, example in EXAMPLES.items() if example.file.exists()}


def slug(label: str) -> str:
    """The name of an example's thumbnail, without its suffix: "brain-mr-volume"."""
    return "-".join(re.findall("[a-z0-9]+", label.lower()))
