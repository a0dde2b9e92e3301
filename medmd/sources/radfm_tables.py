"""The CSV files that RadFM's authors published (chaoyi-wu/RadFM_data_csv), matched by their columns.

File names differ between the README, the card and the code, paths are absolute on the authors' cluster: a table is
known by its columns, an image by its file name below the folder. Tables of sets with an adapter of their own are
better read by that.
"""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..folder import Folder, open_text, read_table
from ..source import Draft, Rows, Source
from .pmc import shorten
from .vqa import kind_of_answer


def read(folder: Folder) -> Rows:
    """Every table below the folder whose columns are known; the split is in its name (train, test)."""
    for path in sorted(folder.root.rglob("*.csv")):
        with open_text(path) as text:
            header = {name.strip().lower() for name in next(csv.reader(text), [])}
        reader = _reader_of(header)
        if reader is not None:
            split = "test" if "test" in path.stem.lower() else "train" if "train" in path.stem.lower() else None
            for index, row in enumerate(read_table(path, {})):
                plain = {name.lower(): value for name, value in row.items()}
                draft = reader(folder, plain, f"{path.stem}-{index}", split)
                if draft is not None:
                    yield draft


Row = Mapping[str, Any]
Reader = Callable[[Folder, Row, str, str | None], Draft | None]


def _reader_of(header: set[str]) -> Reader | None:
    for columns, reader in READERS:
        if columns <= header:
            return reader
    return None


def _binary(folder: Folder, row: Row, key: str, split: str | None) -> Draft:
    """image_path, disease, label 0/1: a yes/no question about the disease, known to be there or not."""
    from ..prompts import closed_question

    present = int(float(row["label"]))
    disease = str(row["disease"]).strip().lower()
    answer = "yes" if present else "no"
    return Draft(
        key=key,
        images=(_locate(folder, row["image_path"]),),
        task="diagnosis",
        question=closed_question("diagnosis", disease, 0, key),
        answer=answer,
        answer_type="closed",
        findings={disease: present},
        split=split,
    )


def _labels(folder: Folder, row: Row, key: str, split: str | None) -> Draft | None:
    """image_path, label: a diagnosis in words, or the text of a report (mimic_caption)."""
    label = " ".join(str(row["label"] or "").split())
    if not label:
        return None
    report = "caption" in key.lower() or "report" in key.lower()
    return Draft(key, (_locate(folder, row["image_path"]),), "report" if report else "diagnosis", label, split=split)


def _question(folder: Folder, row: Row, key: str, split: str | None) -> Draft:
    """Figure_path, Question, Answer."""
    answer = str(row["answer"]).strip()
    images = (_locate(folder, row["figure_path"]),)
    return Draft(key, images, "vqa", answer, str(row["question"]).strip(), answer_type=kind_of_answer(answer), split=split)


def _volume_question(folder: Folder, row: Row, key: str, split: str | None) -> Draft:
    """image_path (.npy), question, answer."""
    return _question(folder, {**row, "figure_path": row["image_path"]}, key, split)


def _caption(folder: Folder, row: Row, key: str, split: str | None) -> Draft | None:
    """Figure_path, Caption."""
    caption = " ".join(str(row["caption"] or "").split())
    return Draft(key, (_locate(folder, row["figure_path"]),), "caption", caption, split=split) if caption else None


def _case_report(folder: Folder, row: Row, key: str, split: str | None) -> Draft | None:
    """PMC_id, img_ref, context, question, answer, with "Q:" and "A:" in front."""
    from ..labels import list_literal

    names = [f"{row['pmc_id']}_{figure}.jpg" for figure in list_literal(row["img_ref"])]
    answer = str(row["answer"] or "").strip().removeprefix("A:").strip()
    if not names or not answer:
        return None
    question = f"{shorten(row['context'])} {str(row['question']).strip().removeprefix('Q:').strip()}".strip()
    images = tuple(folder.locate(name) for name in names)
    return Draft(key, images, "vqa", answer, question, patient=row["pmc_id"], split=split)


def _locate(folder: Folder, path: Any) -> str:
    return folder.locate(Path(str(path)).name)


# From the most special columns to the most common ones.
READERS: tuple[tuple[set[str], Reader], ...] = (
    ({"pmc_id", "img_ref", "context", "question", "answer"}, _case_report),
    ({"image_path", "disease", "label"}, _binary),
    ({"figure_path", "question", "answer"}, _question),
    ({"image_path", "question", "answer"}, _volume_question),
    ({"figure_path", "caption"}, _caption),
    ({"image_path", "label"}, _labels),
)

SOURCES = (
    Source(
        name="radfm-csv",
        title="The tables that RadFM's authors published",
        size="2.38M rows",
        url="https://huggingface.co/datasets/chaoyi-wu/RadFM_data_csv",
        licence="as the sources of its images say",
        access="credentialed",
        tasks=("vqa", "diagnosis", "report", "caption"),
        layout="the CSV files and, anywhere below the folder, the images that they name",
        read=read,
        dimensions="both",
        radiology=False,
    ),
)
