"""The adapters over all rows of real label files, which torchxrayvision's wheel carries. Nothing of it is kept."""

import gzip
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from radfm.medmd.folder import Folder, read_table
from radfm.medmd.sources import find_source

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The folder of label files in the wheel."""
    folder = tmp_path_factory.mktemp("torchxrayvision")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "torchxrayvision==1.5.7", "-d", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("pip cannot download torchxrayvision")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(folder)
    return folder / "torchxrayvision" / "data"


def studies(name: str, folder: Path) -> list:
    return list(find_source(name).read(Folder(folder)))


def count(rows: list, finding: str) -> Counter:
    return Counter(row.findings.get(finding) for row in rows)


def test_nih_112120_images_of_30805_patients(wheel, tmp_path):
    for name in ("Data_Entry_2017_v2020.csv.gz", "BBox_List_2017.csv.gz"):
        shutil.copy(wheel / name, tmp_path / name)
    rows = studies("nih", tmp_path)
    assert len(rows) == 112_120
    assert len({row.patient for row in rows}) == 30_805
    assert sum(row.normal for row in rows) == 60_361
    assert count(rows, "pneumonia") == {None: 112_120 - 1_431, 1: 1_431}
    assert sum(len(row.extra.get("boxes", ())) for row in rows) == 984
    names = {name for row in rows for name in row.findings}
    assert len(names) == 14
    assert {box["name"] for row in rows for box in row.extra.get("boxes", ())} <= names


def test_chexpert_223414_images_of_64540_patients(wheel, tmp_path):
    with gzip.open(wheel / "chexpert_train.csv.gz", "rt") as source:
        (tmp_path / "train.csv").write_text(source.read())
    rows = studies("chexpert", tmp_path)
    assert len(rows) == 223_414
    assert len({row.patient for row in rows}) == 64_540
    assert {value for row in rows for value in row.findings.values()} == {1, 0, -1}
    raw = Counter(row["Pneumonia"] for row in read_table(tmp_path / "train.csv", {}))
    assert count(rows, "pneumonia") == {None: raw[""], 1: raw["1.0"], 0: raw["0.0"], -1: raw["-1.0"]}


def test_padchest_160861_rows(wheel, tmp_path):
    name = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz"
    shutil.copy(wheel / name, tmp_path / name)
    rows = studies("padchest", tmp_path)
    assert sum(1 for _ in read_table(tmp_path / name, {})) == 160_861
    assert 140_000 < len(rows) < 160_861
    names = {name for row in rows for name in row.findings}
    assert all(name == name.strip() and name for name in names)
    assert not names & {"exclude", "unchanged", "normal"}
    assert all(row.normal is (not row.findings) for row in rows)


def test_rsna_26684_images(wheel, tmp_path):
    """The class file is not in the wheel: every image without opacity is called not normal here."""
    shutil.copy(wheel / "kaggle_stage_2_train_labels.csv.zip", tmp_path / "stage_2_train_labels.csv.zip")
    images = dict.fromkeys(row["patientId"] for row in read_table(tmp_path / "stage_2_train_labels.csv.zip", {}))
    lines = ["patientId,class", *(f"{image},No Lung Opacity / Not Normal" for image in images)]
    (tmp_path / "stage_2_detailed_class_info.csv").write_text("\n".join(lines))
    rows = studies("rsna", tmp_path)
    assert len(rows) == 26_684
    assert count(rows, "lung opacity") == {0: 20_672, 1: 6_012}
    assert not any(row.normal for row in rows)


def test_siim_12047_images_2669_with_pneumothorax(wheel, tmp_path):
    shutil.copy(wheel / "siim-pneumothorax-train-rle.csv.gz", tmp_path / "train-rle.csv.gz")
    rows = studies("siim-acr", tmp_path)
    assert len(rows) == 12_047
    assert count(rows, "pneumothorax") == {0: 9_378, 1: 2_669}


def test_openi_3955_reports(wheel, tmp_path):
    with tarfile.open(wheel / "NLMCXR_reports.tgz") as archive:
        archive.extractall(tmp_path, filter="data")
    rows = studies("openi", tmp_path)
    assert 3_500 < len(rows) <= 3_955 - 104
    assert not any("XXXX" in row.answer for row in rows)
    assert 7_000 < sum(len(row.images) for row in rows) <= 7_470
