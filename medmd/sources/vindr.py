"""The VinDr sets: CXR, PCXR, SpineXR, Mammo. DICOM of PhysioNet, several readers in the training sets.

Readers agree by `labels.consensus`: present where most of the three saw it, absent where none did, else uncertain and
not asked. Where an image is "No finding" for most, it is normal. Box files have a row a box.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from ..folder import Folder
from ..labels import consensus, list_literal
from ..source import Rows, Source, Study

CORRECTED = {
    "brocho-pneumonia": "bronchopneumonia",
    "diagphramatic hernia": "diaphragmatic hernia",
    "spondylolysthesis": "spondylolisthesis",
    "other disease": "other disease",
    "other diseases": "other disease",
}
NOT_ASKED = ("other disease", "other diseases", "other lesion", "other lesions", "no finding")
NO_FINDING = "no finding"


def _finding(name: str) -> str:
    name = name.strip().lower()
    return CORRECTED.get(name, name)


def _agreement(readings: Iterable[set[str]], names: Iterable[str]) -> tuple[dict[str, int], bool | None]:
    """Findings and normality of an image that each reader described by a set of names."""
    readings = list(readings)
    states = {name: consensus([int(name in reading) for reading in readings]) for name in names}
    no_finding = states.get(NO_FINDING)
    findings = {name: state for name, state in states.items() if name not in NOT_ASKED}
    if any(state == 1 for name, state in states.items() if name != NO_FINDING):
        return findings, False
    return findings, True if no_finding == 1 else None


def _labels_table(folder: Folder, pattern: tuple[str, ...]) -> dict[str, list[set[str]]]:
    """Image → one set of findings for each reader, of a table with a column 0/1 for each finding. Empty cells are 0."""
    readings: dict[str, list[set[str]]] = defaultdict(list)
    for row in folder.table(*pattern, image="image_id"):
        names = {_finding(name) for name, value in row.items() if str(value).strip() in ("1", "1.0") and name not in _META}
        readings[row["image"]].append(names)
    return readings


_META = ("image_id", "image", "rad_id", "rad_ID", "rad_id ", "")


def _label_names(folder: Folder, pattern: tuple[str, ...]) -> list[str]:
    row = next(iter(folder.table(*pattern, image="image_id")), {})
    return sorted({_finding(name) for name in row if name not in _META})


def read_chest(folder: Folder) -> Rows:
    """CXR: {train,test}/ID.dicom, annotations/image_labels_{train,test}.csv; PCXR: the same tables in the root.

    The training table has a row for each of three readers, the test table one for each image. "Other diseases" of the
    one is "Other disease" of the other, and names no thing that is asked for.
    """
    for split in ("train", "test"):
        pattern = (f"annotations/image_labels_{split}.csv", f"image_labels_{split}.csv")
        names = _label_names(folder, pattern)
        for image, readings in _labels_table(folder, pattern).items():
            findings, normal = _agreement(readings, names)
            yield Study(
                key=image,
                images=(f"{split}/{image}.dicom",),
                findings=findings,
                normal=normal,
                modality="X-ray",
                body_part="chest",
                plane="frontal",
                split=split,
                extra={"readers": len(readings)},
            )


SPINE_LESIONS = (
    *(
        "disc space narrowing",
        "foraminal stenosis",
        "osteophytes",
        "spondylolisthesis",
        "surgical implant",
        "vertebral collapse",
    ),
    "other lesions",
)


def read_spine(folder: Folder) -> Rows:
    """annotations/{train,test}.csv with a row a box (study_id, image_id, rad_id, lesion_type), {train,test}_images/ID.dicom.

    The folders' names are not confirmed: train/ and test/ are tried as well.
    """
    for split in ("train", "test"):
        columns = {"image": "image_id", "study": "study_id", "reader": ("rad_id", "rad_ID"), "lesion": "lesion_type"}
        readings: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        studies: dict[str, str] = {}
        for row in folder.table(f"annotations/{split}.csv", f"{split}.csv", **columns):
            readings[row["image"]][row["reader"]].add(_finding(row["lesion"]))
            studies[row["image"]] = row["study"]
        for image, by_reader in readings.items():
            findings, normal = _agreement(by_reader.values(), (*SPINE_LESIONS, NO_FINDING))
            name = f"{split}_images/{image}.dicom"
            yield Study(
                key=image,
                images=(name if folder.has(name) else f"{split}/{image}.dicom",),
                findings=findings,
                normal=normal,
                modality="X-ray",
                body_part="spine",
                patient=f"study {studies[image]}",
                study=studies[image],
                split=split,
            )


MAMMO_FINDINGS = (
    *("mass", "suspicious calcification", "asymmetry", "focal asymmetry", "global asymmetry", "architectural distortion"),
    *("suspicious lymph node", "skin thickening", "skin retraction", "nipple retraction"),
)
VIEWS = {"CC": "craniocaudal", "MLO": "mediolateral oblique"}


def read_mammo(folder: Folder) -> Rows:
    """breast-level_annotations.csv (split training/test), finding_annotations.csv (a row a box), images/STUDY/IMAGE.dicom.

    BI-RADS 1 is normal, 2 benign; the categories of the boxes are complete for an image. A record is one image, its
    study the exam.
    """
    categories: dict[str, set[str]] = defaultdict(set)
    for row in folder.table("finding_annotations.csv", image="image_id", names="finding_categories"):
        categories[row["image"]].update(_finding(name) for name in list_literal(row["names"]))
    columns: dict[str, Any] = {
        "image": "image_id",
        "study": "study_id",
        "view": "view_position",
        "side": "laterality",
        "birads": "breast_birads",
        "density": "breast_density",
        "part": "split",
    }
    for row in folder.table("breast-level_annotations.csv", **columns):
        present = categories[row["image"]] - {NO_FINDING}
        yield Study(
            key=row["image"],
            images=(f"images/{row['study']}/{row['image']}.dicom",),
            findings={name: int(name in present) for name in (*MAMMO_FINDINGS, *sorted(present - set(MAMMO_FINDINGS)))},
            normal=False if present else True if row["birads"].strip().endswith("1") else None,
            modality="mammography",
            body_part="breast",
            plane=VIEWS.get(row["view"], row["view"]),
            patient=f"study {row['study']}",
            study=row["study"],
            split={"training": "train"}.get(row["part"], row["part"]),
            extra={"birads": row["birads"], "density": row["density"], "side": row["side"]},
        )


COMMON: dict[str, Any] = {
    "licence": "PhysioNet Credentialed Health Data License 1.5.0",
    "access": "credentialed",
    "tasks": ("diagnosis",),
}
SOURCES = (
    Source(
        name="vindr-cxr",
        title="VinDr-CXR: chest radiographs, 28 findings, three readers",
        size="18,000 images",
        url="https://physionet.org/content/vindr-cxr/",
        layout="annotations/image_labels_{train,test}.csv, train/ and test/",
        read=read_chest,
        **COMMON,
    ),
    Source(
        name="vindr-pcxr",
        title="VinDr-PCXR: chest radiographs of children, 15 diseases",
        size="9,125 images",
        url="https://physionet.org/content/vindr-pcxr/",
        layout="image_labels_{train,test}.csv, train/ and test/",
        read=read_chest,
        **COMMON,
    ),
    Source(
        name="vindr-spinexr",
        title="VinDr-SpineXR: spine radiographs, seven lesions",
        size="10,466 images",
        url="https://physionet.org/content/vindr-spinexr/",
        layout="annotations/{train,test}.csv, train_images/ and test_images/",
        read=read_spine,
        **COMMON,
    ),
    Source(
        name="vindr-mammo",
        title="VinDr-Mammo: mammograms with BI-RADS and findings",
        size="20,000 images of 5,000 exams",
        url="https://physionet.org/content/vindr-mammo/",
        layout="breast-level_annotations.csv, finding_annotations.csv and images/",
        read=read_mammo,
        **COMMON,
    ),
)
