"""Chest CT volumes: RadChest-CT, CT-RATE, and 3D-RAD's questions about CT-RATE."""

from typing import Any

from ..folder import MEMBER, Folder
from ..labels import complete
from ..reports import compose, mentions_prior, without_removed_words
from ..source import Draft, Rows, Source, Study
from .vqa import choice_draft, kind_of_answer

SPLITS = {"train": "train", "valid": "validation", "test": "test"}
CT: dict[str, Any] = {"modality": "CT", "body_part": "chest", "plane": "axial"}


def read_radchest(folder: Folder) -> Rows:
    """{trn,val,tst}NNNNN.npz with the array `ct`, img{train,valid,test}_Abnormality_and_Location_Labels.csv.

    Columns are `finding*location` with 0 or 1: a finding is present where it is 1 at any place. The labeller looked
    for each finding of the table, so a finding that is 0 everywhere is absent. The arrays have no geometry.
    """
    for name, split in SPLITS.items():
        pattern = f"img{name}_Abnormality_and_Location_Labels.csv"
        if not folder.find_all(pattern):
            continue
        for row in folder.table(pattern, volume="NoteAcc_DEID"):
            states: dict[str, int] = {}
            for column, value in row.items():
                if "*" in column:
                    finding = column.split("*")[0].strip().replace("_", " ").lower()
                    states[finding] = max(states.get(finding, 0), int(float(value or 0)))
            volume = row["volume"].removesuffix(".npz")
            yield Study(
                key=volume,
                images=(f"{volume}.npz{MEMBER}ct",),
                findings=complete([name for name, state in states.items() if state], states),
                normal=False if any(states.values()) else None,
                patient=volume,
                split=split,
                **CT,
            )


def read_ct_rate(folder: Folder) -> Rows:
    """dataset/{train,valid}[_fixed]/train_1/train_1_a/train_1_a_1.nii.gz, reports, and predicted labels.

    Files of the first release hold raw values that need the metadata's RescaleSlope and RescaleIntercept, those of
    `_fixed` hold HU: only `_fixed` is taken, because nothing in a file tells which it is. Reconstructions of one scan
    repeat its report: the first of each scan (`train_1_a_1`) is taken. Volumes listed in no_chest_*.txt show no chest
    and are left out. Reports are in *validation_reports.csv*, labels in *valid_predicted_labels.csv*.
    """
    for split, report_name, label_name in (("train", "train", "train"), ("valid", "validation", "valid")):
        columns = {"volume": "VolumeName", "findings": "Findings_EN", "impression": ("Impressions_EN", "Impression_EN")}
        excluded = _excluded(folder, split)
        labels = _predicted_labels(folder, label_name)
        for row in folder.table(f"**/{report_name}_reports.csv", **columns):
            volume = row["volume"]
            patient, scan = _ct_rate_names(volume)
            if not volume.removesuffix(".nii.gz").endswith("_1") or volume in excluded or scan in excluded:
                continue
            common: dict[str, Any] = {
                "images": (ct_rate_reference(split, volume),),
                "patient": patient,
                "study": scan,
                "split": SPLITS[split],
                "identities": (f"ct-rate:{volume}",),
                **CT,
            }
            findings = labels.get(volume, {})
            if findings:
                yield Study(key=scan, findings=findings, normal=False if any(findings.values()) else None, **common)
            parts = (without_removed_words(row[name]) for name in ("findings", "impression"))
            answer, wording = compose(*parts)
            if answer:
                extra = {"mentions_prior": mentions_prior(answer)}
                yield Draft(
                    key=scan, task="report", answer=answer, wording=wording, findings=findings, extra=extra, **common
                )


def _ct_rate_names(volume: str) -> tuple[str, str]:
    """Patient and scan of `train_1_a_1.nii.gz`."""
    split, patient, scan, _ = volume.removesuffix(".nii.gz").split("_")
    return f"{split}_{patient}", f"{split}_{patient}_{scan}"


def ct_rate_reference(split: str, volume: str) -> str:
    patient, scan = _ct_rate_names(volume)
    return f"dataset/{split}_fixed/{patient}/{scan}/{volume}"


def _excluded(folder: Folder, split: str) -> set[str]:
    found = folder.find_all(f"**/no_chest_{split}.txt")
    return {line.strip() for line in found[0].read_text().splitlines()} if found else set()


def _predicted_labels(folder: Folder, name: str) -> dict[str, dict[str, int]]:
    if not folder.find_all(f"**/{name}_predicted_labels.csv"):
        return {}
    labels = {}
    for row in folder.table(f"**/{name}_predicted_labels.csv", volume="VolumeName"):
        volume = row.pop("volume")
        labels[volume] = {key.strip().lower(): int(float(value)) for key, value in row.items() if key != "VolumeName"}
    return labels


def read_3d_rad(folder: Folder) -> Rows:
    """CSV files of six tasks below train/ and test/, volumes of CT-RATE in dataset/ of the same folder.

    Columns: VolumeName, Question, Answer, and Choice A–D where there are choices; their spelling is not confirmed.
    Questions that compare with an earlier scan (tasks 5 and 6) are asked about the last scan alone in the tables, and
    are left out.
    """
    for split in ("train", "test"):
        for path in folder.find_all(f"{split}/**/*.csv"):
            relative = path.relative_to(folder.root).as_posix()
            if any(mark in path.stem.lower() for mark in ("task5", "task6", "temporal", "longitudinal")):
                continue
            columns: dict[str, Any] = {f"choice_{letter}_": (f"Choice {letter}", letter) for letter in "ABCD"}
            columns |= {"volume": ("VolumeName", "Volume", "Image"), "q": "Question", "answer": "Answer"}
            columns |= {"letter_": ("AnswerChoice", "Answer_Choice")}
            for index, row in enumerate(folder.table(relative, **columns)):
                volume = row["volume"] if row["volume"].endswith(".nii.gz") else f"{row['volume']}.nii.gz"
                patient, scan = _ct_rate_names(volume)
                part = "train" if volume.startswith("train") else "valid"
                choices = tuple(row[f"choice_{letter}"] for letter in "ABCD" if row[f"choice_{letter}"])
                answer = str(row["answer"]).strip()
                more: dict[str, Any] = {
                    "patient": patient,
                    "study": scan,
                    "split": split,
                    "identities": (f"ct-rate:{volume}",),
                    "extra": {"table": path.stem},
                    **CT,
                }
                key, images = f"{path.stem}-{split}-{index}", (ct_rate_reference(part, volume),)
                if choices and answer in choices:
                    yield choice_draft(key, images, row["q"], choices, choices.index(answer), **more)
                else:
                    yield Draft(key, images, "vqa", answer, row["q"], answer_type=kind_of_answer(answer), **more)


SOURCES = (
    Source(
        name="radchest-ct",
        title="RadChest-CT: chest CT with 83 abnormalities at 52 places",
        size="3,630 public volumes of 35,747",
        url="https://zenodo.org/records/6406114",
        licence="CC BY-NC-ND 4.0",
        access="nc",
        tasks=("diagnosis",),
        layout="the .npz volumes and img{train,valid,test}_Abnormality_and_Location_Labels.csv",
        read=read_radchest,
        dimensions="3D",
    ),
    Source(
        name="ct-rate",
        title="CT-RATE: chest CT with reports and 18 abnormalities",
        size="50,188 reconstructions of 25,692 scans",
        url="https://huggingface.co/datasets/ibrahimhamamci/CT-RATE",
        licence="CC BY-NC-SA 4.0",
        access="form",
        tasks=("report", "diagnosis"),
        layout="dataset/{train,valid}_fixed/, radiology_text_reports/, multi_abnormality_labels/",
        read=read_ct_rate,
        patients="ct-rate",
        dimensions="3D",
    ),
    Source(
        name="3d-rad",
        title="3D-RAD: questions about CT-RATE's volumes",
        size="170K questions",
        url="https://huggingface.co/datasets/Tang-xiaoxiao/3D-RAD",
        licence="CC BY-NC-SA 4.0",
        access="form",
        tasks=("vqa",),
        layout="train/, test/ with the CSV files, and CT-RATE's dataset/",
        read=read_3d_rad,
        patients="ct-rate",
        dimensions="3D",
    ),
)
