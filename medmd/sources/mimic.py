"""MIMIC-CXR, as DICOM and as JPG: reports by their sections, and CheXpert's labels of each study.

Reports of JPG stand in a download of their own (`mimic-cxr-reports.zip`), which has to lie in the folder, unpacked or
not. Labels are of a study: 1, 0, -1, blank. Addenda are left out, sentences with removed words (`___`) too; a report
that compares with an earlier study has extra.mentions_prior.
"""

import zipfile
from collections.abc import Callable, Iterator
from typing import Any

from ..folder import Folder
from ..labels import four_states
from ..reports import compose, mentions_prior, sections, without_removed_words
from ..source import Draft, Rows, Source, Study
from .chexpert import FINDINGS, NO_FINDING

SPLITS = {"validate": "validation"}
LABELS_OF_TEST = {"Airspace Opacity": "Lung Opacity"}  # the name in mimic-cxr-2.1.0-test-set-labeled.csv
VIEWS = {"PA": "frontal", "AP": "frontal", "LATERAL": "lateral", "LL": "lateral"}


def reader(suffix: str) -> Callable[[Folder], Rows]:
    """A reader of the tree `files/p10/p10000032/s50414267/NAME` with images of one kind (`.dcm`, `.jpg`)."""

    def read(folder: Folder) -> Rows:
        splits, views = _splits(folder), _views(folder)
        labels = _labels(folder)
        report = _reports(folder)
        for (subject, study), images in _studies(folder):
            stem = f"files/p{subject[:2]}/p{subject}/s{study}"
            views_of_study = {VIEWS.get(views.get(image, "")) for image in images}
            common: dict[str, Any] = {
                "images": tuple(f"{stem}/{image}{suffix}" for image in images),
                "modality": "X-ray",
                "body_part": "chest",
                "plane": views_of_study.pop() if len(views_of_study) == 1 else None,
                "patient": subject,
                "study": study,
                "split": splits.get(images[0]),
            }
            findings = labels.get(study)
            if findings:
                normal = findings.pop(NO_FINDING, None)
                yield Study(
                    key=study,
                    findings=findings,
                    normal=True if normal == 1 else None if not any_present(findings) else False,
                    **common,
                )
            text = report(f"{stem}.txt")
            parts = {name: without_removed_words(body) for name, body in sections(text or "").items()}
            answer, wording = compose(parts.get("findings", ""), parts.get("impression", ""))
            if answer:
                extra: dict[str, Any] = {"mentions_prior": mentions_prior(answer)}
                if parts.get("indication"):
                    extra["indication"] = parts["indication"]
                yield Draft(
                    key=study, task="report", answer=answer, wording=wording, findings=findings or {}, extra=extra, **common
                )

    return read


def any_present(findings: dict[str, int]) -> bool:
    return any(value == 1 for value in findings.values())


def _studies(folder: Folder) -> Iterator[tuple[tuple[str, str], list[str]]]:
    """Images of each study, in the order of the record list, or of the metadata where that is missing."""
    columns = {"subject": "subject_id", "study": "study_id", "image": "dicom_id"}
    grouped: dict[tuple[str, str], list[str]] = {}
    for row in folder.table("cxr-record-list.csv", "mimic-cxr-2.*-metadata.csv", "mimic-cxr-2.*-split.csv", **columns):
        grouped.setdefault((str(row["subject"]), str(row["study"])), []).append(row["image"])
    yield from grouped.items()


def _splits(folder: Folder) -> dict[str, str]:
    """Image → published split; empty where the file, which belongs to the JPG release, is missing."""
    if not folder.find_all("mimic-cxr-2.*-split.csv"):
        return {}
    rows = folder.table("mimic-cxr-2.*-split.csv", image="dicom_id", part="split")
    return {row["image"]: SPLITS.get(row["part"], row["part"]) for row in rows}


def _views(folder: Folder) -> dict[str, str]:
    if not folder.find_all("mimic-cxr-2.*-metadata.csv"):
        return {}
    rows = folder.table("mimic-cxr-2.*-metadata.csv", image="dicom_id", view="ViewPosition")
    return {row["image"]: row["view"] for row in rows}


def _labels(folder: Folder) -> dict[str, dict[str, int]]:
    """Study → findings: of the labeller, and over them the radiologists' of the test set where that file is there."""
    names = {**FINDINGS, "No Finding": NO_FINDING}
    labels: dict[str, dict[str, int]] = {}
    for pattern in ("mimic-cxr-2.*-chexpert.csv", "mimic-cxr-2.*-test-set-labeled.csv"):
        if folder.find_all(pattern):
            for row in folder.table(pattern, study="study_id"):
                row = {LABELS_OF_TEST.get(name, name): value for name, value in row.items()}
                labels[str(row["study"])] = four_states(row, names)
    return labels


def _reports(folder: Folder) -> Callable[[str], str | None]:
    """A function from a report's path in the tree to its text, None where there is no report."""
    archives = [zipfile.ZipFile(path) for path in folder.find_all("mimic-cxr-reports.zip")]
    members = {name: archive for archive in archives for name in archive.namelist()}

    def text(path: str) -> str | None:
        for place in (path, f"mimic-cxr-reports/{path}"):
            if place in members:
                return members[place].read(place).decode("utf-8", "replace")
            if (folder.root / place).is_file():
                return (folder.root / place).read_text(encoding="utf-8", errors="replace")
        return None

    return text


COMMON: dict[str, Any] = {
    "size": "377,110 images of 227,835 studies",
    "licence": "PhysioNet Credentialed Health Data License 1.5.0",
    "access": "credentialed",
    "tasks": ("report", "diagnosis"),
    "patients": "mimic",
}
SOURCES = (
    Source(
        name="mimic-cxr",
        title="MIMIC-CXR: chest radiographs with reports, DICOM",
        url="https://physionet.org/content/mimic-cxr/",
        layout="cxr-record-list.csv.gz, mimic-cxr-reports.zip and files/; splits and labels of the JPG release where wanted",
        read=reader(".dcm"),
        **COMMON,
    ),
    Source(
        name="mimic-cxr-jpg",
        title="MIMIC-CXR-JPG: the same as JPEG, with labels and splits",
        url="https://physionet.org/content/mimic-cxr-jpg/",
        layout="mimic-cxr-2.0.0-{metadata,split,chexpert}.csv.gz (or .csv), mimic-cxr-reports.zip and files/",
        read=reader(".jpg"),
        **COMMON,
    ),
)
