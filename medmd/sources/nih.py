"""NIH ChestX-ray14, and what was made of its images: RSNA pneumonia, SIIM-ACR pneumothorax, COVIDx CXR-2.

Their patients share the namespace `nih`. RSNA and COVIDx renamed the images: where RSNA's mapping file lies in the
folder the patients are known, else `radfm data filter` finds the shared images by their hashes.
"""

from collections import defaultdict
from typing import Any

from ..folder import Folder, read_json
from ..labels import boxes, mentioned
from ..source import Rows, Source, Study

NIH_NAMES = {"Pleural_Thickening": "pleural thickening", "Infiltrate": "infiltration"}
VIEWS = {"PA": "frontal", "AP": "frontal"}


def read_nih(folder: Folder) -> Rows:
    """Data_Entry_2017*.csv, train_val_list.txt, test_list.txt, BBox_List_2017.csv where there, images_001/ … _012/.

    Labels were mined from reports: a finding that is not listed was not mentioned, which is not "absent", so it is
    never the "no" of a question. "No Finding" is taken for normal. The table's header names columns with commas
    inside; only columns before them are read.
    """
    test = _names(folder, "test_list.txt")
    train = _names(folder, "train_val_list.txt")
    found_boxes = _nih_boxes(folder)
    columns = {"image": "Image Index", "labels": "Finding Labels", "patient": "Patient ID", "view": "View Position"}
    for row in folder.table("Data_Entry_2017*.csv", **columns):
        name = row["image"]
        labels = [NIH_NAMES.get(label, label.lower()) for label in row["labels"].split("|") if label != "No Finding"]
        yield Study(
            key=name,
            images=(folder.locate(name),),
            findings=mentioned(labels),
            normal=not labels,
            modality="X-ray",
            body_part="chest",
            plane=VIEWS.get(row["view"]),
            patient=str(int(row["patient"])),
            split="test" if name in test else "train" if name in train else None,
            identities=(f"nih:{name}",),
            extra={"boxes": found_boxes[name]} if name in found_boxes else {},
        )


def _names(folder: Folder, pattern: str) -> set[str]:
    found = folder.find_all(pattern)
    return {line.strip() for line in found[0].read_text().splitlines()} if found else set()


def _nih_boxes(folder: Folder) -> dict[str, list[dict[str, Any]]]:
    """Boxes by image. The header reads `Bbox [x,y,w,h],,,`: the four numbers stand in the columns behind the finding."""
    if not folder.find_all("BBox_List_2017.csv"):
        return {}
    from ..folder import open_text

    rows = defaultdict(list)
    with open_text(folder.find("BBox_List_2017.csv")) as text:
        next(text)
        for line in text:
            name, finding, *box = line.rstrip("\r\n").split(",")
            rows[name].append((NIH_NAMES.get(finding, finding.lower()), box[:4]))
    return {name: boxes(entries) for name, entries in rows.items()}


def read_rsna(folder: Folder) -> Rows:
    """stage_2_train_images/*.dcm, stage_2_train_labels.csv (a row a box), stage_2_detailed_class_info.csv.

    Target 0 is not normal: only the class "Normal" is; "No Lung Opacity / Not Normal" has something else wrong with
    it. Lung opacity suspicious for pneumonia was looked for in every image.
    """
    classes = {row["patientId"]: row["class"] for row in folder.table("stage_2_detailed_class_info.csv", kind="class")}
    patients = _rsna_patients(folder)
    found: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)
    order: dict[str, int] = {}
    for row in folder.table("stage_2_train_labels.csv", image="patientId", target="Target"):
        order[row["image"]] = max(order.get(row["image"], 0), int(row["target"]))
        if int(row["target"]):
            found[row["image"]].append(("lung opacity", [row[name] for name in ("x", "y", "width", "height")]))
    for image, target in order.items():
        yield Study(
            key=image,
            images=(f"stage_2_train_images/{image}.dcm",),
            findings={"lung opacity": target},
            normal=classes[image] == "Normal",
            modality="X-ray",
            body_part="chest",
            plane="frontal",
            patient=patients.get(image, (image, ""))[0],
            identities=(f"nih:{patients[image][1]}",) if image in patients else (f"rsna:{image}",),
            extra={"boxes": boxes(found[image])} if image in found else {},
        )


def _rsna_patients(folder: Folder) -> dict[str, tuple[str, str]]:
    """RSNA's image → NIH's patient and image, of the organisers' mapping file; its keys are not confirmed."""
    paths = folder.find_all("pneumonia-challenge-dataset-mappings*.json")
    if not paths:
        return {}
    return {row["subset_img_id"]: (str(int(row["img_id"].split("_")[0])), row["img_id"]) for row in read_json(paths[0])}


def read_siim(folder: Folder) -> Rows:
    """train-rle.csv (ImageId, " EncodedPixels" with a blank in front; "-1" is none), dicom-images-train/**/IMAGE.dcm.

    Several rows of one image are several regions. Pneumothorax was looked for in every image; an image without it is
    not called normal.
    """
    masks: dict[str, int] = {}
    for row in folder.table("train-rle.csv", "stage_2_train.csv", image="ImageId", pixels="EncodedPixels"):
        regions = 0 if row["pixels"].strip() == "-1" else 1
        masks[row["image"]] = masks.get(row["image"], 0) + regions
    for image, regions in masks.items():
        yield Study(
            key=image,
            images=(folder.locate(f"{image}.dcm"),),
            findings={"pneumothorax": int(regions > 0)},
            normal=False if regions else None,
            modality="X-ray",
            body_part="chest",
            plane="frontal",
            identities=(f"siim:{image}",),
            extra={"regions": regions},
        )


def read_covidx(folder: Folder) -> Rows:
    """train.txt, test.txt: `patient file label source` between blanks; train/, test/.

    Patients of the source rsna (once spelt rnsa) are NIH's under RSNA's names: they share the namespace. A negative
    image is not called normal: it may show another pneumonia.
    """
    for split in ("train", "test"):
        for line in folder.find(f"{split}.txt", f"{split}_*.txt").read_text().splitlines():
            if not line.strip():
                continue
            patient, name, label, source = line.split()
            source = {"rnsa": "rsna"}.get(source.lower(), source.lower())
            yield Study(
                key=f"{split}-{name}",
                images=(f"{split}/{name}",),
                findings={"COVID-19": int(label == "positive")},
                normal=False if label == "positive" else None,
                modality="X-ray",
                body_part="chest",
                plane="frontal",
                patient=patient if source == "rsna" else f"covidx {source} {patient}",
                split=split,
                identities=(f"rsna:{patient}",) if source == "rsna" else (),
                extra={"origin": source},
            )


SOURCES = (
    Source(
        name="nih",
        title="NIH ChestX-ray14",
        size="112,120 images of 30,805 patients; 45 GB",
        url="https://nihcc.app.box.com/v/ChestXray-NIHCC",
        licence="open (NIH Clinical Center asks for attribution)",
        access="open",
        tasks=("diagnosis",),
        layout="Data_Entry_2017*.csv, train_val_list.txt, test_list.txt and the images",
        read=read_nih,
        patients="nih",
    ),
    Source(
        name="rsna",
        title="RSNA Pneumonia Detection Challenge",
        size="26,684 images",
        url="https://www.kaggle.com/c/rsna-pneumonia-detection-challenge",
        licence="challenge terms",
        access="form",
        tasks=("diagnosis",),
        layout="stage_2_train_labels.csv, stage_2_detailed_class_info.csv and stage_2_train_images/",
        read=read_rsna,
        patients="nih",
    ),
    Source(
        name="siim-acr",
        title="SIIM-ACR Pneumothorax Segmentation",
        size="12,047 images",
        url="https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation",
        licence="challenge terms",
        access="form",
        tasks=("diagnosis",),
        layout="train-rle.csv and dicom-images-train/",
        read=read_siim,
        patients="nih",
    ),
    Source(
        name="covidx",
        title="COVIDx CXR-2",
        size="30,882 images",
        url="https://www.kaggle.com/datasets/andyczhao/covidx-cxr2",
        licence="as its sources say",
        access="form",
        tasks=("diagnosis",),
        layout="train.txt, test.txt, train/ and test/",
        read=read_covidx,
        patients="nih",
    ),
)
