"""A data set for the tests of the benchmark: pictures that differ by kind, and volumes, built by `radfm.medmd`."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

from radfm.medmd.build import build
from radfm.medmd.schema import Finding, Message, Part, Record, Stored

COLUMNS = ("image", "question", "answer", "group", "split", "task", "modality", "findings", "note")
NOTE = "the reference is composed from labels"
KINDS = {"CT": "abdomen", "MRI": "brain", "X-ray": "chest"}


def build_data(folder: Path, patients: int = 6, volumes: int = 2, held_out: str = "test") -> Path:
    """A data set below `folder` with all five tasks; half of the patients are in the train split, half in `held_out`.

    Each patient has a picture, of a kind that its grey values show, and questions about it; some have a volume.
    """
    random = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for split in ("train", held_out):
        for patient in range(patients):
            modality = tuple(KINDS)[patient % 3]
            sick = patient % 2
            common = {"group": f"{split}{patient}", "split": split, "modality": modality}
            common["findings"] = f"pneumonia={sick};effusion={1 - sick}"
            name = f"{split}{patient}.png"
            pixels = random.integers(0, 80, (40, 48)) + 50 * (patient % 3)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
            finding = "pneumonia" if sick else "effusion"
            report = f"There is {finding}. Otherwise the {KINDS[modality]} is normal on picture {patient}."
            rows += [
                _row(name, "Which imaging modality is this?", modality, "modality", common),
                _row(name, "What is the diagnosis?", finding, "diagnosis", common),
                _row(name, "Is there pneumonia?", "yes" if sick else "no", "diagnosis", common),
                _row(name, "Male, 50 years, cough. Write the radiology report.", report, "report", common),
                _row(
                    name,
                    "State the diagnosis and the radiological reasons for it.",
                    f"{finding}. Opacity.",
                    "rationale",
                    {**common, "note": NOTE},
                ),
            ]
            if patient < volumes:
                volume = nibabel.Nifti1Image(
                    random.integers(-500, 500, (20, 24, 12)).astype(np.int16), np.diag([2, 2, 5, 1])
                )
                nibabel.save(volume, folder / f"{split}{patient}.nii.gz")
                common["modality"] = "CT"
                rows.append(_row(f"{split}{patient}.nii.gz", "Where is the lesion?", f"liver {patient}", "vqa", common))
    table = folder / "rows.csv"
    with open(table, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    build({"csv": table}, folder / "data")
    return folder / "data"


def _row(image: str, question: str, answer: str, task: str, common: dict[str, Any]) -> dict[str, Any]:
    return {**common, "image": image, "question": question, "answer": answer, "task": task}


def make_record(
    number: int, task: str, answer: str, question: str = "What is it?", findings: Sequence[tuple[str, int]] = (), **more: Any
) -> Record:
    """A record of patient `number` with one picture that is not stored."""
    record_id = more.pop("id", f"test/{number}/{task}/0")
    values: dict[str, Any] = {
        "answer_type": "closed" if answer in ("yes", "no") else "open",
        "source": "test",
        "licence": "CC0",
        "access": "open",
        "split": "test",
        "split_origin": "ours",
        "group": f"{number:04x}",
        "image_sha256": (f"{number:064x}",),
        "image_hash": (f"{number:064x}",),
        "shapes": ((64, 64),),
    }
    messages = (
        Message("user", (Part("image"), Part("text", question))),
        Message("assistant", (Part("text", answer),)),
    )
    return Record(
        id=record_id,
        images=(Stored(b"", "none.png"),),
        messages=messages,
        task=task,
        findings=tuple(Finding(name, value) for name, value in findings),
        **{**values, **more},
    )
