"""MedPix (MPx): single images, cases of several, questions. Images are on the Hub, tables in RadFM's CSV set.

Its modality column has about seventy values, some of which are no radiology (histology, photographs, ECG): rows of
these are left out.
"""

from typing import Any

from ..folder import Folder
from ..source import Draft, Rows, Source
from .vqa import kind_of_answer

NOT_RADIOLOGY = {
    *(
        "HE",
        "EM",
        "OPHTH",
        "DERM",
        "DERMATOLOGY",
        "PHOTOGRAPH",
        "ECG",
        "EKG",
        "LOGO",
        "GROSS",
        "HISTO",
        "HISTOLOGY",
        "PATHOLOGY",
    ),
    *("ENDOSCOPY", "SURGERY", "DRAWING", "NOT ASSIGNED", "MONTAGE", "GRAPH", "OTHER", "BRONCHOSCOPY", "IHC", "FUNDUS"),
}
MODALITIES = {"MR": "MRI", "XR": "X-ray", "CR": "X-ray", "US": "ultrasound", "MAMMOGRAM": "mammography"}
NO_PLANE = {"", "NOT ASSIGNED", "N/A", "NA", "PHOTOGRAPH", "OTHER", "MONTAGE", "NONE"}
MAX_IMAGES = 10  # the published code draws ten at random; here the first ten in the table's order
# Type of a row in the table of cases → task and wording.
TYPES = {
    "diagnosis": ("diagnosis", "diagnosis"),
    "findings": ("report", "findings_section"),
    "ddx": ("vqa", "ddx"),
    "dxHow": ("vqa", "dx_how"),
    "exam": ("vqa", "exam"),
    "txFollowup": ("vqa", "treatment"),
    "discussion": ("vqa", "discussion"),
}


def read(folder: Folder) -> Rows:
    """MedPix_{single,multi,questions}_{train,test}.csv (also spelt MedPix_muli_…), images packed or in a folder."""
    for split in ("train", "test"):
        yield from _single(folder, split)
        yield from _multi(folder, split)
        yield from _questions(folder, split)


def _tables(folder: Folder, split: str, *kinds: str) -> list[str]:
    found = folder.find_all(*(f"**/MedPix_{kind}_{split}*.csv" for kind in kinds))
    return [path.relative_to(folder.root).as_posix() for path in found]


def _single(folder: Folder, split: str) -> Rows:
    """Rows (name, type caption | modality | plane, context): one image each.

    All rows are kept; the published code drops four of five.
    """
    for table in _tables(folder, split, "single"):
        skipped = {
            row["image"]
            for row in folder.table(table, image="name", kind="type", context="context")
            if row["kind"] == "modality" and _modality(row["context"]) is None
        }
        for row in folder.table(table, image="name", kind="type", context="context"):
            context = " ".join(str(row["context"] or "").split())
            if row["image"] in skipped or not context:
                continue
            more: dict[str, Any] = {}
            if row["kind"] == "modality":
                context = _modality(context) or ""
                more["modality"] = context
            elif row["kind"] == "plane":
                if context.upper() in NO_PLANE:
                    continue
                context = more["plane"] = context.lower()
            images = (row["image"],)
            yield _draft(folder, images, f"{row['image']}-{row['kind']}", split, task=row["kind"], answer=context, **more)


def _modality(value: str | None) -> str | None:
    """The modality in our words: `CT - noncontrast` → CT. None where the value names none."""
    name = (value or "").split(" - ")[0].split("(")[0].strip()
    if not name or name.upper() in NOT_RADIOLOGY:
        return None
    return MODALITIES.get(name.upper(), name)


def _multi(folder: Folder, split: str) -> Rows:
    """Rows (name: comma list, type, context, history): a case's images. A history stands before the question.

    The published code cuts sizes (mm, cm) out of findings and shows the history half of the time: neither is done here.
    """
    columns = {"image": "name", "kind": "type", "context": "context", "history_": "history"}
    for table in _tables(folder, split, "multi", "muli"):
        for index, row in enumerate(folder.table(table, **columns)):
            context = " ".join(str(row["context"] or "").split())
            if not context or row["kind"] not in TYPES:
                continue
            task, wording = TYPES[row["kind"]]
            images = tuple(name.strip() for name in row["image"].split(",") if name.strip())[:MAX_IMAGES]
            key = f"case-{split}-{index}-{row['kind']}"
            history = " ".join(str(row["history"] or "").split())
            yield _draft(folder, images, key, split, task=task, wording=wording, context=history, answer=context)


def _questions(folder: Folder, split: str) -> Rows:
    """Rows (name, question, answer, explanation): the explanation stays in extra."""
    columns = {"image": "name", "q": "question", "answer": "answer", "explanation_": "explanation"}
    for table in _tables(folder, split, "questions", "QA"):
        for index, row in enumerate(folder.table(table, **columns)):
            images = tuple(name.strip() for name in row["image"].split(",") if name.strip())[:MAX_IMAGES]
            answer = str(row["answer"] or "").strip()
            if answer and images:
                yield _draft(
                    folder,
                    images,
                    f"question-{split}-{index}",
                    split,
                    task="vqa",
                    question=str(row["q"]).strip(),
                    answer=answer,
                    answer_type=kind_of_answer(answer),
                    extra={"explanation": str(row["explanation"] or "")},
                )


def _draft(folder: Folder, images: tuple[str, ...], key: str, split: str, **more: Any) -> Draft:
    return Draft(
        key=key,
        images=tuple(folder.locate(image.rsplit("/", 1)[-1]) for image in images),
        split=split,
        identities=tuple(f"medpix:{image.rsplit('/', 1)[-1].rsplit('.', 1)[0]}" for image in images),
        **more,
    )


SOURCES = (
    Source(
        name="medpix",
        title="MedPix: teaching cases (MPx-Single, MPx-Multi, questions)",
        size="38,862 images; 2.15 GB",
        url="https://huggingface.co/datasets/chaoyi-wu/MedPix-Images",
        licence="MedPix terms (not confirmed)",
        access="form",
        tasks=("caption", "modality", "plane", "diagnosis", "report", "vqa"),
        layout="MedPix_{single,multi,questions}_{train,test}.csv and the images",
        read=read,
        public_keys=True,
        radiology=False,
    ),
)
