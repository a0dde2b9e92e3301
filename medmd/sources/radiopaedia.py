"""Sets from Radiopaedia: Rad3D (captions, questions, rationale, modality), M3D-Cap and M3D-VQA. For those who hold the data.

They show the same cases: the identity `radiopaedia:CASE` joins them where the source tells the case.
"""

import re
from typing import Any

from ..folder import Folder, read_json
from ..source import Draft, Rows, Source
from .vqa import choice_draft, kind_of_answer

MODALITIES = {"X-ray": "X-ray", "MRI": "MRI", "CT": "CT", "Ultrasound": "ultrasound", "Mammography": "mammography"}
# Modality values of Radiopaedia that name no modality.
NO_MODALITY = ("Annotated image", "Photo", "Pathology", "Diagram", "DSA (angiography)")


def tail(path: str, marks: tuple[str, ...]) -> str:
    """A path of the authors' cluster, from the last of the marks on; the file's name where none is in it.

    >>> tail("/gpfs/home/cs/leijiayu/data/all_images/npys_256/0/x.npy", ("npys_256",))
    'npys_256/0/x.npy'
    """
    for mark in marks:
        if f"/{mark}/" in path:
            return path[path.rindex(f"/{mark}/") + 1 :]
    return path.rsplit("/", 1)[-1]


def read_rad3d(folder: Folder) -> Rows:
    """radiology_article_npy_{train,test}.json (npy_path, pat, finding, impression, …), radiology_vqa_*.csv
    (image_path, question, answer), radio_modality_*.csv (image_path of a NIfTI file, answer).

    Keys as the published code reads them; a sample of the JSON was not at hand. The published faults are not
    repeated: modality is asked openly, so no "no" contradicts the question; a volume that cannot be read is named and
    left out; parts of an answer are joined with a blank.
    """
    for split in ("train", "test"):
        for path in folder.find_all(f"radiology_article_npy_{split}*.json"):
            for index, row in enumerate(read_json(path)):
                yield from _case_drafts(folder, row, f"{split}-{index}", split)
        for path in folder.find_all(f"radiology_vqa_{split}*.csv"):
            columns = {"image": "image_path", "q": "question", "answer": "answer"}
            for index, row in enumerate(folder.table(path.name, **columns)):
                reference = _npy(folder, row["image"])
                answer = str(row["answer"]).strip()
                yield Draft(
                    key=f"vqa-{split}-{index}",
                    images=(reference,),
                    task="vqa",
                    question=str(row["q"]).strip(),
                    answer=answer,
                    answer_type=kind_of_answer(answer),
                    split=split,
                    identities=_case_identity(reference),
                )
        for path in folder.find_all(f"radio_modality_{split}*.csv"):
            for index, row in enumerate(folder.table(path.name, image="image_path", answer="answer")):
                modality = row["answer"].split(",")[0].strip()
                if modality in NO_MODALITY or not modality:
                    continue
                reference = tail(row["image"], ("images", "nii", "volumes"))
                yield Draft(
                    key=f"modality-{split}-{index}",
                    images=(reference if folder.has(reference) else folder.locate(reference),),
                    task="modality",
                    answer=MODALITIES.get(modality, modality),
                    modality=MODALITIES.get(modality, modality),
                    split=split,
                    identities=_case_identity(reference),
                )


def _case_drafts(folder: Folder, row: dict[str, Any], key: str, split: str) -> Rows:
    """Report and rationale of a case."""
    paths = row["npy_path"] if isinstance(row["npy_path"], list) else [row["npy_path"]]
    images = tuple(_npy(folder, path) for path in paths)
    history = " ".join(str(row.get(name) or "").strip() for name in ("pat", "pre")).strip()
    common: dict[str, Any] = {"images": images, "split": split, "identities": _case_identity(images[0]), "context": history}
    finding, impression = (str(row.get(name) or "").strip() for name in ("finding", "impression"))
    if finding and impression:
        yield Draft(key=key, task="report", answer=f"Findings: {finding} Impression: {impression}", **common)
    features = row.get("radiographic_features")
    features = " ".join(features) if isinstance(features, list) else str(features or "").strip()
    title = row.get("title")
    title = ", ".join(title) if isinstance(title, list) else str(title or "").strip()
    if features and title:
        yield Draft(key=key, task="rationale", answer=f"{title}. {features}", **common)


def _npy(folder: Folder, path: str) -> str:
    reference = tail(path, ("npys_256", "all_images", "npy", "images"))
    return reference if folder.has(reference) else folder.locate(reference)


def _case_identity(reference: str) -> tuple[str, ...]:
    """The case number, where the file's name or folder has one of five digits or more."""
    numbers = re.findall(r"\d{5,}", reference)
    return (f"radiopaedia:{numbers[0]}",) if numbers else ()


def read_m3d_cap(folder: Folder) -> Rows:
    """M3D_Cap.json ({train, validation, test*: [{image, text}]}) beside ct_case/ or the .npy volumes that it names.

    The portal's folders hold slices as PNG; the authors' script makes one .npy (1, 32, 256, 256) of each. Slices
    stand first there and last in a scan: the volume is read as the authors wrote it, and its axes are not turned
    (they have no geometry).
    """
    content = read_json(folder.find("M3D_Cap.json", "**/M3D_Cap.json"))
    for name, rows in content.items():
        split = "train" if name == "train" else "validation" if name.startswith("val") else "test"
        for row in rows:
            text = row["text"]
            if (folder.root / text).is_file():
                text = (folder.root / text).read_text(encoding="utf-8", errors="replace")
            text = " ".join(text.split())
            if text:
                yield Draft(
                    key=f"{name}-{row['image']}",
                    images=(row["image"],),
                    task="report",
                    answer=text,
                    modality="CT",
                    split=split,
                    identities=_case_identity(row["image"]),
                )


QUESTION_TYPES = {"1": "plane", "2": "phase", "3": "organ", "4": "abnormality", "5": "location"}


def read_m3d_vqa(folder: Folder) -> Rows:
    """M3D_VQA_{train,val,test}.csv: Image Path, Question Type 1–5, Question, Choice A–D, Answer, Answer Choice.

    test5k is a part of test, yn_train a rewriting of train: neither is read again.
    """
    for name, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        columns: dict[str, Any] = {f"choice_{letter}": f"Choice {letter}" for letter in "ABCD"}
        columns |= {"image": "Image Path", "kind": "Question Type", "q": "Question", "letter": "Answer Choice"}
        for index, row in enumerate(folder.table(f"M3D_VQA_{name}.csv", **columns)):
            choices = tuple(str(row[f"choice_{letter}"]).strip() for letter in "ABCD")
            yield choice_draft(
                f"{name}-{index}",
                (tail(row["image"], ("M3D_Cap_npy",)) if not folder.has(row["image"]) else row["image"],),
                row["q"],
                choices,
                "ABCD".index(row["letter"].strip().upper()),
                modality="CT",
                split=split,
                identities=_case_identity(row["image"]),
                extra={"question_type": QUESTION_TYPES.get(str(row["kind"]).strip(), str(row["kind"]))},
            )


SOURCES = (
    Source(
        name="rad3d",
        title="Rad3D: Radiopaedia cases with reports, questions, rationale",
        size="about 400 GB",
        url="https://radiopaedia.org (ask there, then the authors of RadFM)",
        licence="Radiopaedia: written permission, non-commercial",
        access="form",
        tasks=("report", "vqa", "rationale", "modality"),
        layout="radiology_article_npy_*.json, radiology_vqa_*.csv, radio_modality_*.csv and the .npy files",
        read=read_rad3d,
        dimensions="both",
    ),
    Source(
        name="m3d-cap",
        title="M3D-Cap: CT volumes with reports",
        size="120K volumes",
        url="https://github.com/BAAI-DCAI/M3D (disabled on the Hub after a notice; for those who hold it)",
        licence="Radiopaedia's terms",
        access="form",
        tasks=("report",),
        layout="M3D_Cap.json and the volumes that it names",
        read=read_m3d_cap,
        dimensions="3D",
    ),
    Source(
        name="m3d-vqa",
        title="M3D-VQA: questions with choices about M3D-Cap's volumes",
        size="13.8K test questions",
        url="https://huggingface.co/datasets/GoodBaiBai88/M3D-VQA",
        licence="Radiopaedia's terms",
        access="form",
        tasks=("vqa",),
        layout="M3D_VQA_{train,val,test}.csv and M3D_Cap_npy/",
        read=read_m3d_vqa,
        dimensions="3D",
    ),
)
