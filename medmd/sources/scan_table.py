"""People's own scans: a CSV or JSON lines file with a row for each question.

Columns: `image` (a path relative to the file, `;` between several; anything that `load_scan` reads), `question`, `answer`;
and, where known, `group` (patient), `study`, `split` (train, validation, test), `task`, `modality`, `body_part`, `plane`,
`findings` (`pneumonia=1;effusion=0`, or a JSON object), `note` (what a reader of a score must know of the answer, such as
"composed from labels"; `radfm bench` prints it). Without `question` a wording for the task is chosen.
"""

import json
from collections.abc import Mapping
from typing import Any

from ..folder import Folder, read_table
from ..groups import digest
from ..schema import SPLITS, TASKS, DataError
from ..source import Draft, Rows, Source

OPTIONAL = ("question", "group", "study", "split", "task", "modality", "body_part", "plane", "findings", "note")
SPLIT_NAMES = {"val": "validation", "valid": "validation", "dev": "validation", "training": "train"}


def read(folder: Folder) -> Rows:
    """One draft a row. The root is the table itself, or a folder that holds one table."""
    table = folder.root if folder.root.is_file() else folder.find("*.csv", "*.jsonl")
    columns = {
        "image": ("image", "images", "image_path", "path"),
        "answer": "answer",
        **{f"{name}_": name for name in OPTIONAL},
    }
    for number, row in enumerate(read_table(table, columns), start=2):
        yield _draft(row, f"{table.name}, row {number}")


def _draft(row: Mapping[str, Any], place: str) -> Draft:
    names = row["image"] if isinstance(row["image"], list) else str(row["image"] or "").split(";")
    images = tuple(name.strip() for name in names if name.strip())
    if not images:
        raise DataError(f"{place}: the column image is empty.")
    answer = str(row["answer"] if row["answer"] is not None else "").strip()
    if not answer:
        raise DataError(f"{place}: the column answer is empty.")
    task = (row["task"] or "vqa").strip()
    if task not in TASKS:
        raise DataError(f"{place}: task {task!r} is none of {', '.join(TASKS)}.")
    question = (row["question"] or "").strip()
    if not question and task == "vqa":
        raise DataError(f"{place}: the column question is empty; only other tasks than vqa have questions of ours.")
    split = (row["split"] or "").strip().lower()
    split = SPLIT_NAMES.get(split, split)
    if split and split not in SPLITS:
        raise DataError(f"{place}: split {row['split']!r} is none of {', '.join(SPLITS)}.")
    note = str(row["note"] or "").strip()
    return Draft(
        key=digest(*images, question, answer).hex()[:16],
        images=images,
        task=task,
        question=question,
        answer=answer,
        answer_type="closed" if answer.lower().rstrip(".") in ("yes", "no") else "open",
        findings=_findings(row["findings"], place),
        modality=row["modality"] or None,
        body_part=row["body_part"] or None,
        plane=row["plane"] or None,
        patient=row["group"] or None,
        study=row["study"] or None,
        split=split or None,
        extra={"note": note} if note else {},
    )


def _findings(value: Any, place: str) -> dict[str, int]:
    if not value:
        return {}
    try:
        if isinstance(value, str):
            pairs = (
                json.loads(value) if value.lstrip().startswith("{") else dict(item.split("=") for item in value.split(";"))
            )
        else:
            pairs = value
        findings = {str(name).strip(): int(state) for name, state in pairs.items()}
        if not set(findings.values()) <= {1, 0, -1}:
            raise ValueError
    except (ValueError, AttributeError) as error:
        raise DataError(
            f"{place}: findings are written as `pneumonia=1;effusion=0` (1 present, 0 absent, -1 unsure)."
        ) from error
    return findings


def _source(name: str, title: str) -> Source:
    return Source(
        name=name,
        title=title,
        size="as you have",
        url="your own files",
        licence="other",
        access="form",
        tasks=TASKS,
        layout="a table with the columns image, question, answer",
        read=read,
        dimensions="both",
    )


SOURCES = (
    _source("csv", "Your own scans, listed in a CSV file"),
    _source("jsonl", "Your own scans, listed in a JSON lines file"),
)
