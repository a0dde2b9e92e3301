"""The source `demo`: slices lie right, composed texts say what the labels say, and what no label knows stays uncertain."""

import nibabel
import numpy as np
import pytest

from radfm.load_scan_radfm import ScanError
from radfm.medmd.scans import StorageOptions, store_scans
from radfm.medmd.slices import cut_slice
from radfm.medmd.source import Draft, Study
from radfm.medmd.sources.demo import COMPOSED, FINDINGS, SIGNS, TYPICAL, UNKNOWN, PackScan, _ask, _cut
from radfm.scan_radfm import Scan

FULL = StorageOptions(volume_size=None)
TUMOUR = Study(
    key="brain-tumor/1", images=("a.jpg",), findings={"glioma": 1, "meningioma": 0, "pituitary tumor": 0}, normal=False,
    ask=("diagnosis",), modality="MRI", body_part="brain", sequence="T1",
)  # fmt: skip
HAND = Study(key="mednist/1", images=("h.jpg",), ask=("modality",), modality="X-ray", body_part="hand", plane="frontal")


def volume() -> Scan:
    """RAS+: 20 voxels to the right, 30 to the front, 10 to the head, of 2, 2 and 5 mm; one bright voxel."""
    voxels = np.zeros((1, 20, 30, 10), np.float32)
    voxels[0, 15, 25, 8] = 100
    return Scan(voxels, np.diag([2.0, 2.0, 5.0, 1.0]), (2.0, 2.0, 5.0), "MR")


@pytest.mark.parametrize(
    ("plane", "position", "place"),
    [("axial", 8 / 9, (30 - 1 - 25, 20 - 1 - 15)), ("coronal", 25 / 29, (3, 4)), ("sagittal", 15 / 19, (3, 4))],
)
def test_a_slice_is_what_a_radiologist_sees(plane, position, place):
    """Rows run to the back or the feet, columns to the patient's left or back; pixels are square."""
    image = cut_slice(volume(), plane, position)
    assert image.voxels.shape == {"axial": (1, 30, 20, 1), "coronal": (1, 25, 20, 1), "sagittal": (1, 25, 30, 1)}[plane]
    row, column = np.unravel_index(image.voxels[0, ..., 0].argmax(), image.voxels.shape[1:3])
    assert (row, column) == place
    assert cut_slice(volume(), plane, 0.0).voxels.max() == 0


def test_an_image_has_no_slices():
    with pytest.raises(ScanError, match="is no volume"):
        cut_slice(Scan(np.zeros((1, 8, 8, 1), np.float32)), "axial", 0.5)


def test_a_reference_names_a_slice(tmp_path):
    scan = volume()
    nibabel.save(nibabel.Nifti1Image(scan.voxels[0], scan.affine), tmp_path / "v.nii.gz")
    row = store_scans(tmp_path, ["v.nii.gz::axial::0.889"], FULL)[0]
    assert row.shape == (30, 20) and row.stored.path.endswith(".png")


def drafts(scan: PackScan) -> list[Draft]:
    return [row for row in _ask(scan) if isinstance(row, Draft)]


def test_composed_texts_name_the_finding_of_the_label_and_say_that_they_are_composed():
    rows = {row.task: row for row in drafts(PackScan("brain-tumor", TUMOUR, is_volume=False))}
    assert rows["report"].answer.startswith("2D T1 MRI of the brain. Findings: a mass inside the brain")
    assert rows["report"].answer.endswith("Impression: glioma.") and rows["rationale"].answer.startswith("glioma: ")
    assert {rows[task].extra["note"] for task in ("report", "rationale")} == {TYPICAL}
    assert rows["caption"].extra["note"] == COMPOSED and "note" not in rows["modality"].extra
    assert set(SIGNS) == {(pack, name) for pack, names in FINDINGS.items() for name in names}


def test_findings_that_no_label_knows_are_uncertain():
    many = [PackScan("mednist", Study(**{**vars(HAND), "key": f"mednist/{k}"}), is_volume=False) for k in range(200)]
    about = [row for scan in many for row in drafts(scan) if row.task in ("diagnosis", "report", "rationale")]
    assert {row.task for row in about} == {"diagnosis", "report", "rationale"}
    assert all(UNKNOWN in row.answer and row.extra["unlabelled"] for row in about)
    assert any("pneumonia" in str(row.question) for row in about)  # asked for by name, and not denied


def test_yes_and_no_are_true():
    rows = [row for row in drafts(PackScan("brain-tumor", TUMOUR, is_volume=False)) if row.answer_type == "closed"]
    assert {row.answer for row in rows} == {"yes", "no"}
    for row in rows:
        value = row.topic.split(": ")[1]
        assert (row.answer == "yes") == (value in ("glioma", "MRI")) and value in row.question


def test_slices_keep_patient_and_split():
    study = Study(key="mr-volumes/1", images=("v.nii.gz",), modality="MRI", patient="7", split="validation", plane="axial")
    slices = list(_cut(study))
    assert len(slices) == 20 and {(s.patient, s.split) for s in slices} == {("7", "validation")}
    assert {s.images[0].split("::")[1] for s in slices} == {"axial", "coronal", "sagittal"} == {s.plane for s in slices}
