"""The open packs that the demo checkpoint is trained on: labelled subsets as `NAME.csv` beside `NAME.zip` or `NAME.npz`.

The CSV has a row for each member of the archive: file, split, subject, modality, body_part, plane, sequence, finding,
abnormal; an empty cell means not known. `url` is the portal of the whole data set. MedNIST and PneumoniaMNIST are
also read in their portals' layouts (class folders; `pneumoniamnist.npz` with its arrays), and BUSI in the one of its
authors.
"""

from collections.abc import Callable, Sequence
from typing import Any

from ..folder import MEMBER, Folder
from ..labels import complete, mentioned
from ..source import Rows, Source, Study

SPLITS = {"val": "validation"}
MODALITIES = {"MR": "MRI"}
MEDNIST = {
    "AbdomenCT": ("CT", "abdomen", "axial"),
    "BreastMRI": ("MRI", "breast", "axial"),
    "CXR": ("X-ray", "chest", "frontal"),
    "ChestCT": ("CT", "chest", "axial"),
    "Hand": ("X-ray", "hand", "frontal"),
    "HeadCT": ("CT", "head", "axial"),
}
BUSI = {"benign": "benign breast lesion", "malignant": "malignant breast tumor", "normal": "normal"}
ATTRIBUTES = ("modality", "body_part", "plane")


def pack_reader(
    pack: str, findings: Sequence[str] | None, ask: tuple[str, ...], archive: str = "zip"
) -> Callable[[Folder], Rows]:
    """A reader of `PACK.csv`. `findings` are all that its labels tell apart; None where a label tells of itself alone.

    `archive`: zip and npz hold a scan in each member; series is a zip that is one scan, a DICOM series.
    """

    def read(folder: Folder) -> Rows:
        columns = ("split", "modality", "body_part", "plane", "finding", "sequence", "subject", "abnormal")
        optional = {"block_": "block", "near_duplicate_": "near_duplicate_group", "licence_": "license"}
        seen = set()
        for row in folder.table(f"{pack}.csv", file="file", **{name: name for name in columns}, **optional):
            reference = _reference(pack, archive, row["file"])
            if reference in seen:
                continue
            seen.add(reference)
            finding = row["finding"].removesuffix(" volunteer")
            present = [finding] if finding and finding != "normal" else []
            group = row["near_duplicate"] or row["block"]
            yield Study(
                key=row["file"] if archive != "series" else pack,
                images=(reference,),
                findings=mentioned(present) if findings is None or not finding else complete(present, findings),
                normal={"yes": False, "no": True}.get(row["abnormal"]),
                ask=ask,
                modality=MODALITIES.get(row["modality"], row["modality"]) or None,
                body_part=row["body_part"] or None,
                plane=row["plane"] or None,
                sequence=row["sequence"] or None,
                patient=row["subject"] or (f"group {group}" if group else None),
                split=SPLITS.get(row["split"], row["split"]),
                extra={"licence": row["licence"]} if row["licence"] else {},
            )

    return read


def _reference(pack: str, archive: str, member: str) -> str:
    if archive == "npz":
        name, index = member.rstrip("]").split("[")
        return f"{pack}.npz{MEMBER}{name}{MEMBER}{index}"
    return f"{pack}.zip" if archive == "series" else f"{pack}.zip{MEMBER}{member}"


def read_mednist(folder: Folder) -> Rows:
    """The pack, or the portal's folder: `AbdomenCT/*.jpeg` and five more, no split, no patient."""
    if folder.find_all("mednist.csv"):
        yield from pack_reader("mednist", None, ATTRIBUTES)(folder)
        return
    for name, (modality, body_part, plane) in MEDNIST.items():
        for path in folder.find_all(f"{name}/*.jpeg", f"MedNIST/{name}/*.jpeg"):
            reference = path.relative_to(folder.root).as_posix()
            yield Study(reference, (reference,), ask=ATTRIBUTES, modality=modality, body_part=body_part, plane=plane)


def read_pneumonia_mnist(folder: Folder) -> Rows:
    """The pack, or the portal's `pneumoniamnist.npz`: {train,val,test}_{images,labels}, label 1 is pneumonia."""
    if folder.find_all("pneumoniamnist_28.csv"):
        yield from pack_reader("pneumoniamnist_28", ("pneumonia",), ("diagnosis", *ATTRIBUTES), "npz")(folder)
        return
    import numpy as np

    path = folder.find("pneumoniamnist.npz", "pneumoniamnist_*.npz")
    with np.load(path) as arrays:
        labels = {split: arrays[f"{split}_labels"].ravel() for split in ("train", "val", "test")}
    for split, values in labels.items():
        for index, value in enumerate(values):
            yield Study(
                key=f"{split}-{index}",
                images=(f"{path.name}{MEMBER}{split}_images{MEMBER}{index}",),
                findings={"pneumonia": int(value)},
                normal=not value,
                ask=("diagnosis", *ATTRIBUTES),
                modality="X-ray",
                body_part="chest",
                plane="frontal",
                split=SPLITS.get(split, split),
            )


def read_busi(folder: Folder) -> Rows:
    """The pack, or the authors' `Dataset_BUSI_with_GT/{benign,malignant,normal}/KIND (N).png`, masks left out."""
    kinds = tuple(name for name in BUSI.values() if name != "normal")
    if folder.find_all("busi_breast_us.csv"):
        yield from pack_reader("busi_breast_us", kinds, ("diagnosis", "modality", "body_part"))(folder)
        return
    for kind, name in BUSI.items():
        for path in folder.find_all(f"{kind}/*.png", f"Dataset_BUSI_with_GT/{kind}/*.png"):
            if "_mask" not in path.name:
                reference = path.relative_to(folder.root).as_posix()
                yield Study(
                    key=path.stem,
                    images=(reference,),
                    findings=complete([name] if kind != "normal" else [], kinds),
                    normal=kind == "normal",
                    ask=("diagnosis", "modality", "body_part"),
                    modality="ultrasound",
                    body_part="breast",
                )


TUMORS = ("glioma", "meningioma", "pituitary tumor")
VOLUME_TASKS = ("modality", "body_part", "plane", "sequence")
COMMON: dict[str, Any] = {"layout": "PACK.csv and PACK.zip", "access": "open", "public_keys": True}

SOURCES = (
    Source(
        name="mednist",
        title="MedNIST: small CT, MR and X-ray images in six classes",
        size="58,954 images; 9,000 in the pack",
        url="https://github.com/apolanco3225/Medical-MNIST-Classification",
        licence="CC BY-SA 4.0",
        tasks=ATTRIBUTES,
        read=read_mednist,
        **{**COMMON, "layout": "mednist.csv and mednist.zip, or a folder for each class"},
    ),
    Source(
        name="pneumonia-mnist",
        title="PneumoniaMNIST: chest radiographs of children, 28 × 28",
        size="5,856 images",
        url="https://medmnist.com",
        licence="CC BY 4.0",
        tasks=("diagnosis", *ATTRIBUTES),
        read=read_pneumonia_mnist,
        **{**COMMON, "layout": "pneumoniamnist.npz, or pneumoniamnist_28.csv and .npz"},
    ),
    Source(
        name="busi",
        title="Breast ultrasound images: benign, malignant, normal",
        size="780 images; 663 in the pack",
        url="https://scholar.cu.edu.eg/?q=afahmy/pages/dataset",
        licence="CC BY 4.0",
        tasks=("diagnosis", "modality", "body_part"),
        read=read_busi,
        **{**COMMON, "layout": "busi_breast_us.csv and .zip, or Dataset_BUSI_with_GT/"},
    ),
    Source(
        name="brain-tumor",
        title="Brain tumours on contrast-enhanced T1 (J. Cheng)",
        size="3,064 slices of 233 patients; 866 in the pack",
        url="https://doi.org/10.6084/m9.figshare.1512427",
        licence="CC BY 4.0",
        tasks=("diagnosis", "modality", "body_part", "sequence"),
        read=pack_reader("brain_tumor_t1ce", TUMORS, ("diagnosis", "modality", "body_part", "sequence")),
        **{**COMMON, "layout": "brain_tumor_t1ce.csv and .zip"},
    ),
    Source(
        name="ct-planes",
        title="CT slices in three planes (COVID-19-NY-SBU)",
        size="96 slices of 8 patients in the pack",
        url="https://www.cancerimagingarchive.net/collection/covid-19-ny-sbu/",
        licence="CC BY 4.0",
        tasks=ATTRIBUTES,
        read=pack_reader("ct_planes_nysbu", None, ATTRIBUTES),
        **{**COMMON, "layout": "ct_planes_nysbu.csv and .zip"},
    ),
    Source(
        name="mr-volumes",
        title="MR volumes: brain, spine, abdomen; T1, T2, FLAIR, DWI",
        size="47 volumes in the pack",
        url="https://github.com/muschellij2/open_ms_data",
        licence="as each row says",
        tasks=("diagnosis", *VOLUME_TASKS),
        read=pack_reader("mr_volumes", None, ("diagnosis", *VOLUME_TASKS)),
        dimensions="3D",
        **{**COMMON, "layout": "mr_volumes.csv and .zip"},
    ),
    Source(
        name="ct-volumes",
        title="CT volumes of the abdomen (TotalSegmentator's examples)",
        size="2 volumes in the pack",
        url="https://github.com/wasserth/TotalSegmentator",
        licence="Apache-2.0",
        tasks=ATTRIBUTES,
        read=pack_reader("ct_volumes", None, ATTRIBUTES),
        dimensions="3D",
        **{**COMMON, "layout": "ct_volumes.csv and .zip"},
    ),
    Source(
        name="dicom-series-ct",
        title="A CT series as DICOM (TotalSegmentator's example)",
        size="1 series of 20 slices",
        url="https://github.com/wasserth/TotalSegmentator",
        licence="Apache-2.0",
        tasks=ATTRIBUTES,
        read=pack_reader("dicom_series_ct", None, ATTRIBUTES, "series"),
        dimensions="3D",
        **{**COMMON, "layout": "dicom_series_ct.csv and .zip"},
    ),
    Source(
        name="dicom-series-mr",
        title="An MR series as DICOM (studyforrest, defaced)",
        size="1 series of 20 slices",
        url="https://github.com/datalad/example-dicom-structural",
        licence="PDDL 1.0",
        tasks=VOLUME_TASKS,
        read=pack_reader("dicom_series_mr", None, VOLUME_TASKS, "series"),
        dimensions="3D",
        **{**COMMON, "layout": "dicom_series_mr.csv and .zip"},
    ),
)
