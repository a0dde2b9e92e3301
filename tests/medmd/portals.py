"""Downloads in the portals' layouts, made at test time: tables with the real ones' defects, small images.

Each function fills a folder and is named after its source, `-` written as `_`.
"""

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

PORTALS: dict[str, Callable[[Path], None]] = {}


def portal(make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Register a function under its source's name."""
    PORTALS[make.__name__.lstrip("_").replace("_", "-")] = make
    return make


def pixels(seed: int, shape: tuple[int, ...] = (40, 48)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def picture(path: Path, seed: int, mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels(seed))
    image.convert(mode).save(path)
    return path


def picture_bytes(seed: int, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed)).save(buffer, kind)
    return buffer.getvalue()


def dicom(path: Path, seed: int, photometric: str = "MONOCHROME2") -> Path:
    """A radiograph that names its patient, as real ones do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(seed)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Muster^Erika", f"P{seed}", "19500101"
    dataset.Modality, dataset.PhotometricInterpretation = "DX", photometric
    array = pixels(seed).astype(np.uint16) * 16
    dataset.Rows, dataset.Columns = array.shape
    dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelData = array.tobytes()
    dataset.save_as(path)
    return path


def volume(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = (pixels(seed, (12, 14, 8)).astype(np.int16) * 8) - 1024
    nibabel.save(nibabel.Nifti1Image(data, np.diag([1.0, 1.0, 3.0, 1.0])), path)
    return path


def table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.getvalue().encode()))
    else:
        path.write_text(text.getvalue(), encoding="utf-8")
    return path


def json_file(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


@portal
def vqa_rad(folder: Path) -> None:
    rows = []
    for qid, phrase, image, question, answer in (
        (1, "freeform", "synpic100.jpg", "Is there a mass?", "Yes"),
        (1, "para", "synpic100.jpg", "Is a mass seen?", "Yes"),
        (2, "test_freeform", "synpic200.jpg", "How many lesions are there?", 3),
        (3, "freeform", "synpic200.jpg", "Which organ is shown?", "Brain"),
    ):
        rows.append(
            {
                "qid": qid,
                "phrase_type": phrase,
                "image_name": image,
                "question": question,
                "answer": answer,
                "answer_type": "CLOSED ",
                "image_organ": "HEAD",
                "image_case_url": "https://medpix.nlm.nih.gov/case",
            }
        )
    json_file(folder / "VQA_RAD Dataset Public.json", rows)
    picture(folder / "VQA_RAD Image Folder" / "synpic100.jpg", 1)
    picture(folder / "VQA_RAD Image Folder" / "synpic200.jpg", 2)


@portal
def slake(folder: Path) -> None:
    def row(qid: int, image: int, question: str, answer: str, lang: str = "en") -> dict[str, Any]:
        return {
            **{"qid": qid, "img_id": image, "img_name": f"xmlab{image}/source.jpg", "question": question, "answer": answer},
            **{"q_lang": lang, "location": "Abdomen", "modality": "X-Ray", "answer_type": "OPEN", "base_type": "vqa"},
            **{"content_type": "Organ", "triple": ["vhead", "_", "_"]},
        }

    json_file(folder / "train.json", [row(1, 1, "What organ is this?", "Liver"), row(2, 1, "这是什么器官？", "肝", "zh")])
    json_file(folder / "validate.json", [row(3, 2, "Is the liver healthy?", "No")])
    json_file(folder / "test.json", [row(4, 3, "Which plane?", "Axial")])
    for image in (1, 2, 3):
        picture(folder / "imgs" / f"xmlab{image}" / "source.jpg", image)


@portal
def pmc_vqa(folder: Path) -> None:
    header = ("Figure_path", "Question", "Anwser", "Choice A", "Choice B", "Choice C", "Choice D", "Answer_label")
    rows = [
        ("PMC1_F1.jpg", "What is seen?", "Mass", " A:Mass ", " B:Cyst ", " C:Stone ", " D:Air ", "A"),
        ("PMC1_F2.jpg", "Which modality?", "MRI", "A:CT", "B:MRI", "C:CT", "D:US", "B"),
    ]
    table(folder / "train.csv", header, rows)
    table(
        folder / "test.csv", header, [("PMC2_F1.jpg", "Which side?", "Left", "A:Left", "B:Right", "C:Both", "D:None", "A")]
    )
    table(
        folder / "test_clean.csv",
        header,
        [("PMC2_F1.jpg", "Which side?", "Left", "A:Left", "B:Right", "C:Both", "D:None", "A")],
    )
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for seed, name in enumerate(("PMC1_F1", "PMC1_F2", "PMC2_F1")):
            archive.writestr(f"figures/{name}.jpg", picture_bytes(seed))


@portal
def medframeqa(folder: Path) -> None:
    def image(seed: int) -> dict[str, Any]:
        return {"bytes": picture_bytes(seed), "path": None}

    row = {
        "question": "What changes?",
        "options": ["A. Size", "B. Place"],
        "correct_answer": "B",
        "modality": "CT",
        "organ": "lung",
    }
    rows = [{**row, "video_id": "v1", "image_1": image(1), "image_2": image(2), "image_3": None}]
    rows.append({**row, "video_id": "v2", "image_1": image(3), "image_2": image(4), "image_3": image(5)})
    parquet(folder / "data" / "test-00000-of-00001.parquet", rows)


@portal
def radimagenet_vqa(folder: Path) -> None:
    rows = [
        {
            "image": {"bytes": picture_bytes(1), "path": None},
            "question": "Which modality?",
            "answer": "CT",
            "choices": ["CT", "MR"],
        },
        {"image": {"bytes": picture_bytes(2), "path": None}, "question": "Normal?", "answer": "no", "choices": None},
    ]
    parquet(folder / "data" / "train-00000-of-00001.parquet", rows)
    parquet(folder / "data" / "test-00000-of-00001.parquet", rows[:1])


@portal
def pmc_oa(folder: Path) -> None:
    rows = [
        {"image": "PMC1_F1_a.jpg", "caption": "CT of the chest.", "pmcid": "PMC1", "url_name": "PMC1_F1.jpg"},
        {"image": "PMC1_F2.jpg", "caption": "A bar chart.", "pmcid": "PMC1", "url_name": "PMC1_F2.jpg"},
    ]
    (folder / "pmc_oa_beta.jsonl").write_text("\n".join(map(json.dumps, rows)))
    picture(folder / "images" / "PMC1_F1_a.jpg", 1)
    picture(folder / "images" / "PMC1_F2.jpg", 2)


@portal
def pmc_casereport(folder: Path) -> None:
    row = {
        **{"PMC_id": "PMC7", "context": "A 40-year-old came. It hurt.", "question": "Q: What does the CT show?"},
        **{"answer": "A: A stone.", "inline": "", "img_ref": "['fig1', 'fig2']"},
    }
    parquet(folder / "data" / "train.parquet", [row, {**row, "img_ref": "[]"}])
    parquet(folder / "data" / "test.parquet", [{**row, "PMC_id": "PMC8", "img_ref": "['fig1']"}])
    for seed, name in enumerate(("PMC7_fig1", "PMC7_fig2", "PMC8_fig1")):
        picture(folder / "figures" / f"{name}.jpg", seed)


@portal
def pmc_inline(folder: Path) -> None:
    text = "The lung is clear. As Fig. 1 shows, it is large. More text stands here. Fig. 1 shows it again. The end."
    first, again = text.index("Fig. 1"), text.rindex("Fig. 1")
    references = [{"id": "F1", "start": again, "end": again + 6}, {"id": "F1", "start": first, "end": first + 6}]
    with zipfile.ZipFile(folder / "PMC-Inline_0.zip", "w") as archive:
        archive.writestr("0/PMC5.json", json.dumps({"info": {}, "text": text, "img_ref": references}))
    sentences = [
        {"text": "One sentence.", "img_ref": []},
        {"text": "Figure two.", "img_ref": ["F2"]},
        {"text": "Behind it.", "img_ref": []},
    ]
    json_file(folder / "papers" / "PMC6.json", sentences)
    picture(folder / "figures" / "PMC5_F1.jpg", 1)
    picture(folder / "figures" / "PMC6_F2.jpg", 2)


@portal
def rocov2(folder: Path) -> None:
    for split, name in (("train", "train"), ("valid", "valid"), ("test", "test")):
        table(folder / f"{name}_captions.csv", ("ID", "Caption"), [(f"ROCOv2_{name}_1", f"CT of the {split} set.")])
        picture(folder / name / f"ROCOv2_{name}_1.jpg", len(name))


@portal
def medpix(folder: Path) -> None:
    header = ("name", "type", "context")
    rows = [
        *(
            ("synpic200.jpg", "caption", "A mass."),
            ("synpic200.jpg", "modality", "CT - noncontrast"),
            ("synpic200.jpg", "plane", "Axial"),
        ),
        *(
            ("synpic300.jpg", "modality", "HE"),
            ("synpic300.jpg", "caption", "Cells."),
            ("synpic400.jpg", "plane", "Not Assigned"),
        ),
        ("synpic400.jpg", "modality", "MR"),
    ]
    table(folder / "MedPix_single_train.csv", header, rows)
    table(
        folder / "MedPix_muli_train.csv",
        (*header, "history"),
        [("synpic400.jpg,synpic500.jpg", "diagnosis", "Glioma", "Headache.")],
    )
    questions = ("name", "question", "answer", "explanation")
    table(folder / "MedPix_questions_test.csv", questions, [("synpic600.jpg", "What is it?", "A cyst", "Because.")])
    with zipfile.ZipFile(folder / "MedPix-Images.zip", "w") as archive:
        for number in range(200, 700, 100):
            archive.writestr(f"images/synpic{number}.jpg", picture_bytes(number))


@portal
def rad3d(folder: Path) -> None:
    cluster = "/gpfs/data/npys_256"
    case = {
        **{
            "pre": "Cough.",
            "pat": "Age: 40",
            "npy_path": f"{cluster}/10001/1.npy",
            "finding": "A mass.",
            "impression": "Cancer.",
        },
        **{"radiographic_features": ["Spiculated margin."], "articles": ["lung-cancer"], "title": ["Lung cancer"]},
    }
    json_file(folder / "radiology_article_npy_train.json", [case])
    header = ("image_path", "question", "answer")
    table(folder / "radiology_vqa_test.csv", header, [(f"{cluster}/10002/1.npy", "Is it CT?", "Yes")])
    rows = [("/gpfs/images/10003/a.nii.gz", "CT"), ("/gpfs/images/10003/a.nii.gz", "Annotated image")]
    table(folder / "radio_modality_train.csv", ("image_path", "answer"), rows)
    for number in (10001, 10002):
        path = folder / "npys_256" / str(number) / "1.npy"
        path.parent.mkdir(parents=True)
        np.save(path, np.repeat(pixels(number, (1, 16, 16, 6)), 3, axis=0))
    volume(folder / "images" / "10003" / "a.nii.gz", 3)


@portal
def m3d_cap(folder: Path) -> None:
    rows = {
        "train": [{"image": "npy/12345.npy", "text": "ct_case/12345/text.txt"}],
        "test500": [{"image": "npy/54321.npy", "text": "Clear."}],
    }
    json_file(folder / "M3D_Cap.json", rows)
    (folder / "ct_case" / "12345").mkdir(parents=True)
    (folder / "ct_case" / "12345" / "text.txt").write_text("study_findings: A cyst.")
    (folder / "npy").mkdir()
    for number in (12345, 54321):
        np.save(folder / "npy" / f"{number}.npy", pixels(number, (1, 8, 16, 16)).astype(np.float32) / 255)


@portal
def m3d_vqa(folder: Path) -> None:
    header = (
        "Image Path",
        "Text",
        "Question Type",
        "Question",
        *(f"Choice {letter}" for letter in "ABCD"),
        "Answer",
        "Answer Choice",
    )
    for name, number in (("train", 12345), ("val", 22345), ("test", 54321)):
        row = (f"M3D_Cap_npy/{number}.npy", "…", 1, "Which plane?", "axial", "coronal", "sagittal", "oblique", "axial", "A")
        table(folder / f"M3D_VQA_{name}.csv", header, [row])
        (folder / "M3D_Cap_npy").mkdir(exist_ok=True)
        np.save(folder / "M3D_Cap_npy" / f"{number}.npy", pixels(number, (1, 8, 16, 16)).astype(np.float32) / 255)


REPORT = """                                 FINAL REPORT
 INDICATION:  Cough.

 COMPARISON:  ___.

 FINDINGS:

 The lungs are clear.  Compared to ___, no change.  No effusion.

 IMPRESSON:  No acute process.
"""


def _mimic(folder: Path, suffix: str, make: Callable[[Path, int], Path]) -> None:
    rows = [("10000032", "50414267", "aaaa-1"), ("10000032", "50414267", "aaaa-2"), ("10000084", "50000001", "bbbb-1")]
    for seed, (subject, study, image) in enumerate(rows):
        make(folder / f"files/p{subject[:2]}/p{subject}/s{study}/{image}{suffix}", seed)
    header = ("subject_id", "study_id", "dicom_id")
    table(folder / "cxr-record-list.csv.gz", header, rows)
    with zipfile.ZipFile(folder / "mimic-cxr-reports.zip", "w") as archive:
        archive.writestr("files/p10/p10000032/s50414267.txt", REPORT)
        archive.writestr(
            "files/p10/p10000084/s50000001.txt",
            "Addendum.\n __________________________________\n FINDINGS: Effusion is unchanged.\n",
        )


@portal
def mimic_cxr(folder: Path) -> None:
    _mimic(folder, ".dcm", dicom)


@portal
def mimic_cxr_jpg(folder: Path) -> None:
    _mimic(folder, ".jpg", picture)
    meta = ("dicom_id", "subject_id", "study_id", "ViewPosition")
    rows = [
        ("aaaa-1", "10000032", "50414267", "PA"),
        ("aaaa-2", "10000032", "50414267", "LATERAL"),
        ("bbbb-1", "10000084", "50000001", "AP"),
    ]
    table(folder / "mimic-cxr-2.0.0-metadata.csv", meta, rows)
    splits = [(d, st, su, "validate" if d == "bbbb-1" else "train") for d, su, st, _ in rows]
    table(folder / "mimic-cxr-2.0.0-split.csv.gz", ("dicom_id", "study_id", "subject_id", "split"), splits)
    labels = ("subject_id", "study_id", "Edema", "No Finding", "Pleural Effusion", "Lung Opacity")
    rows = [("10000032", "50414267", "0.0", "1.0", "", ""), ("10000084", "50000001", "-1.0", "", "1.0", "0.0")]
    table(folder / "mimic-cxr-2.0.0-chexpert.csv.gz", labels, rows)


def _vindr_labels(folder: Path, train_reader: str) -> None:
    common = ("Cardiomegaly", "Nodule/Mass", "Pneumonia")
    rows = [("t1", f"R{reader}", *labels, 0, 0) for reader, labels in enumerate(((1, 0, 0), (1, 1, 0), (0, 0, 0)))]
    rows += [("t2", f"R{reader}", 0, 0, 0, "", 1) for reader in range(3)]
    table(folder / "image_labels_train.csv", ("image_id", train_reader, *common, "Other diseases", "No finding"), rows)
    table(folder / "image_labels_test.csv", ("image_id", *common, "Other disease", "No finding"), [("v1", 0, 0, 1, 0, 0)])


@portal
def vindr_cxr(folder: Path) -> None:
    _vindr_labels(folder / "annotations", "rad_id") if (folder / "annotations").mkdir() is None else None
    for seed, name in enumerate(("train/t1", "train/t2", "test/v1")):
        dicom(folder / f"{name}.dicom", seed, "MONOCHROME1" if seed == 1 else "MONOCHROME2")


@portal
def vindr_pcxr(folder: Path) -> None:
    header = ("image_id", "rad_ID", "No finding", "Brocho-pneumonia", "Diagphramatic hernia")
    table(folder / "image_labels_train.csv", header, [("p1", "R1", 0, 1, 0), ("p2", "R1", 1, 0, 0)])
    table(folder / "image_labels_test.csv", header, [("p3", "R2", 0, 0, 1)])
    for seed, name in enumerate(("train/p1", "train/p2", "test/p3")):
        dicom(folder / f"{name}.dicom", seed)


@portal
def vindr_spinexr(folder: Path) -> None:
    header = ("study_id", "series_id", "image_id", "rad_id", "lesion_type", "xmin", "ymin", "xmax", "ymax")
    rows = [("s1", "x", "i1", "R1", "Osteophytes", 1, 2, 3, 4), ("s1", "x", "i1", "R1", "Spondylolysthesis", 1, 2, 3, 4)]
    table(folder / "annotations" / "train.csv", header, [*rows, ("s2", "x", "i2", "R1", "No finding", "", "", "", "")])
    table(folder / "annotations" / "test.csv", header, [("s3", "x", "i3", "R2", "Surgical implant", 1, 2, 3, 4)])
    for seed, name in enumerate(("train_images/i1", "train_images/i2", "test_images/i3")):
        dicom(folder / f"{name}.dicom", seed)


@portal
def vindr_mammo(folder: Path) -> None:
    header = ("study_id", "series_id", "image_id", "laterality", "view_position", "breast_birads", "breast_density", "split")
    rows = [
        ("e1", "x", "m1", "L", "CC", "BI-RADS 4", "DENSITY C", "training"),
        ("e2", "x", "m2", "R", "MLO", "BI-RADS 1", "DENSITY B", "test"),
    ]
    table(folder / "breast-level_annotations.csv", header, rows)
    boxes = ("study_id", "image_id", "finding_categories", "finding_birads", "xmin", "ymin", "xmax", "ymax")
    findings = [
        ("e1", "m1", "['Mass', 'Suspicious Calcification']", "BI-RADS 4", 1, 2, 3, 4),
        ("e2", "m2", "['No Finding']", "", "", "", "", ""),
    ]
    table(folder / "finding_annotations.csv", boxes, findings)
    dicom(folder / "images" / "e1" / "m1.dicom", 1)
    dicom(folder / "images" / "e2" / "m2.dicom", 2)


@portal
def nih(folder: Path) -> None:
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
    header += ",OriginalImage[Width,Height]"
    rows = [
        "00000001_000.png,Cardiomegaly|Pleural_Thickening,0,1,57,M,PA,2682,2749",
        "00000002_000.png,No Finding,0,2,80,F,AP,2500,2048",
    ]
    rows.append("00000003_000.png,Infiltration,0,3,80,F,AP,2500,2048")
    (folder / "Data_Entry_2017_v2020.csv").write_text("\n".join((header, *rows)))
    (folder / "BBox_List_2017.csv").write_text(
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n00000003_000.png,Infiltrate,225.08,547.02,86.78,79.19\n"
    )
    (folder / "train_val_list.txt").write_text("00000001_000.png\n00000002_000.png\n")
    (folder / "test_list.txt").write_text("00000003_000.png\n")
    picture(folder / "images_001" / "images" / "00000001_000.png", 1)
    picture(folder / "images_001" / "images" / "00000002_000.png", 2, "RGBA")
    picture(folder / "images_012" / "images" / "00000003_000.png", 3)


@portal
def rsna(folder: Path) -> None:
    rows = [("a", 1, 2, 3, 4, 1), ("a", 5, 6, 7, 8, 1), ("b", "", "", "", "", 0), ("c", "", "", "", "", 0)]
    table(folder / "stage_2_train_labels.csv", ("patientId", "x", "y", "width", "height", "Target"), rows)
    classes = [("a", "Lung Opacity"), ("a", "Lung Opacity"), ("b", "No Lung Opacity / Not Normal"), ("c", "Normal")]
    table(folder / "stage_2_detailed_class_info.csv", ("patientId", "class"), classes)
    mapping = [{"subset_img_id": "a", "img_id": "00000003_001.png"}]
    json_file(folder / "pneumonia-challenge-dataset-mappings_2018.json", mapping)
    for seed, name in enumerate("abc"):
        dicom(folder / "stage_2_train_images" / f"{name}.dcm", seed)


@portal
def siim_acr(folder: Path) -> None:
    (folder / "train-rle.csv").write_text("ImageId, EncodedPixels\n1.2.3,-1\n1.2.4,557 2 10 8\n1.2.4,900 3\n")
    dicom(folder / "dicom-images-train" / "1.2" / "1.2.0" / "1.2.3.dcm", 1)
    dicom(folder / "dicom-images-train" / "1.3" / "1.3.0" / "1.2.4.dcm", 2)


@portal
def covidx(folder: Path) -> None:
    (folder / "train.txt").write_text("1 a.png positive cohen\nrsna-id b.png negative rnsa\n")
    (folder / "test.txt").write_text("2 c.png positive bimcv\n")
    for seed, name in enumerate(("train/a", "train/b", "test/c")):
        picture(folder / f"{name}.png", seed)


@portal
def chexpert(folder: Path) -> None:
    header = (
        "Path",
        "Sex",
        "Age",
        "Frontal/Lateral",
        "AP/PA",
        "No Finding",
        "Edema",
        "Pneumonia",
        "Pleural Other",
        "Fracture",
    )
    small = "CheXpert-v1.0-small"
    rows = [
        (f"{small}/train/patient00001/study1/view1_frontal.jpg", "Female", 68, "Frontal", "AP", "1.0", "", "", "", "0.0"),
        (
            f"{small}/train/patient00002/study2/view1_frontal.jpg",
            "Female",
            87,
            "Frontal",
            "AP",
            "",
            "1.0",
            "-1.0",
            "1.0",
            "0.0",
        ),
        (f"{small}/train/patient00002/study3/view2_lateral.jpg", "Female", 87, "Lateral", "", "", "", "", "", "0.0"),
    ]
    root = folder / "CheXpert-v1.0"
    table(root / "train.csv", header, rows)
    table(
        root / "valid.csv",
        header,
        [(f"{small}/valid/patient64541/study1/view1_frontal.jpg", "Male", 73, "Frontal", "AP", 0, 1, 0, 0, 0)],
    )
    for seed, row in enumerate(rows):
        picture(root / row[0].split("/", 1)[1], seed)
    picture(root / "valid/patient64541/study1/view1_frontal.jpg", 9)


@portal
def nlm_tb(folder: Path) -> None:
    picture(folder / "MontgomerySet" / "CXR_png" / "MCUCXR_0001_0.png", 1)
    picture(folder / "ChinaSet_AllFiles" / "CXR_png" / "CHNCXR_0327_1.png", 2)
    (folder / "MontgomerySet" / "ClinicalReadings").mkdir()
    (folder / "MontgomerySet" / "ClinicalReadings" / "MCUCXR_0001_0.txt").write_text("Patient's Sex: F\n")


@portal
def object_cxr(folder: Path) -> None:
    table(folder / "train.csv", ("image_name", "annotation"), [("00001.jpg", "0 10 20 30 40;1 5 5 8 8"), ("00002.jpg", "")])
    table(folder / "dev.csv", ("image_name", "annotation"), [("08001.jpg", "")])
    picture(folder / "train" / "00001.jpg", 1)
    picture(folder / "train" / "00002.jpg", 2)
    picture(folder / "dev" / "08001.jpg", 3)


@portal
def padchest(folder: Path) -> None:
    header = ("", "ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "Report", "MethodLabel", "Labels")
    rows = [
        (0, "a.png", "0", "s1", "p1", "PA", " sin hallazg patolog .", "Physician", "['normal']"),
        (1, "b.png", "54", "s2", "p2", "L", " cifosis sever .", "RNN_model", "[' kyphosis', '', 'unchanged']"),
        (2, "c.png", "0", "s3", "p3", "PA", " sin cambi .", "RNN_model", "['unchanged']"),
        (3, "d.png", "0", "s4", "p4", "PA", "", "Physician", "['exclude', 'kyphosis']"),
        (4, "e.png", "0", "s5", "p5", "PA", "", "Physician", ""),
    ]
    table(folder / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz", header, rows)
    for name, directory in (("a", "0"), ("b", "54")):
        path = folder / directory / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels(ord(name)).astype(np.uint16) * 256).save(path)


@portal
def openi(folder: Path) -> None:
    def report(number: int, findings: str, impression: str, images: Sequence[str]) -> None:
        parts = "".join(
            f'<AbstractText Label="{label}">{text}</AbstractText>'
            for label, text in (
                ("COMPARISON", "None."),
                ("INDICATION", "Pain"),
                ("FINDINGS", findings),
                ("IMPRESSION", impression),
            )
        )
        nodes = "".join(f'<parentImage id="{name}"/>' for name in images)
        path = folder / "ecgen-radiology" / f"{number}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'<eCitation><uId id="CXR{number}"/><MedlineCitation>{parts}</MedlineCitation>{nodes}</eCitation>')

    report(
        1,
        "Clear lungs. There are no XXXX of effusion.",
        "Normal chest x-XXXX.",
        ["CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"],
    )
    report(2, "", "", ["CXR2_IM-0652-1001"])
    report(3, "Small effusion.", "Effusion.", [])
    for name in ("CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001", "CXR2_IM-0652-1001"):
        picture(folder / "NLMCXR_png" / f"{name}.png", len(name))


@portal
def rexgradient(folder: Path) -> None:
    row = {
        "PatientID": "p1",
        "ImagePath": ["../deid_png/p1/1.png", "../deid_png/p1/2.png"],
        "Findings": "Clear.",
        "Impression": "Normal.",
    }
    json_file(folder / "metadata" / "train_metadata.json", {"study1": {**row, "Indication": "Cough"}})
    json_file(
        folder / "metadata" / "test_metadata.json",
        {"study2": {**row, "PatientID": "p2", "ImagePath": ["../deid_png/p2/1.png"]}},
    )
    for seed, name in enumerate(("p1/1", "p1/2", "p2/1")):
        picture(folder / "deid_png" / f"{name}.png", seed)


@portal
def radchest_ct(folder: Path) -> None:
    header = ("NoteAcc_DEID", "lung_nodule*left_upper_lobe", "lung_nodule*right_lung", "calcification*heart")
    table(
        folder / "imgtrain_Abnormality_and_Location_Labels.csv",
        header,
        [("trn00001.npz", 1, 0, 0), ("trn00002.npz", 0, 0, 0)],
    )
    table(folder / "imgtest_Abnormality_and_Location_Labels.csv", header, [("tst00001", 0, 0, 1)])
    for seed, name in enumerate(("trn00001", "trn00002", "tst00001")):
        np.savez_compressed(folder / f"{name}.npz", ct=(pixels(seed, (8, 16, 16)).astype(np.int16) * 8) - 1024)


@portal
def ct_rate(folder: Path) -> None:
    header = ("VolumeName", "ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN")
    rows = [(f"train_1_a_{k}.nii.gz", "", "", "A nodule.", "Nodule.") for k in (1, 2)] + [
        ("train_2_a_1.nii.gz", "", "", "A brain.", "")
    ]
    table(folder / "radiology_text_reports" / "train_reports.csv", header, rows)
    table(
        folder / "radiology_text_reports" / "validation_reports.csv",
        header,
        [("valid_1_a_1.nii.gz", "", "", "Unchanged nodule.", "")],
    )
    labels = ("VolumeName", "Lung nodule", "Emphysema")
    table(folder / "multi_abnormality_labels" / "train_predicted_labels.csv", labels, [("train_1_a_1.nii.gz", 1, 0)])
    table(folder / "multi_abnormality_labels" / "valid_predicted_labels.csv", labels, [("valid_1_a_1.nii.gz", 0, 0)])
    (folder / "no_chest_train.txt").write_text("train_2_a_1.nii.gz\n")
    volume(folder / "dataset" / "train_fixed" / "train_1" / "train_1_a" / "train_1_a_1.nii.gz", 1)
    volume(folder / "dataset" / "valid_fixed" / "valid_1" / "valid_1_a" / "valid_1_a_1.nii.gz", 2)


@portal
def _3d_rad(folder: Path) -> None:
    header = ("VolumeName", "Question", "Answer", "A", "B", "C", "D")
    rows = [
        ("train_1_a_1", "Where is the nodule?", "left", "left", "right", "both", "none"),
        ("train_1_a_1", "Is it CT?", "Yes", "", "", "", ""),
    ]
    table(folder / "train" / "task2.csv", header, rows)
    table(folder / "train" / "task6_longitudinal.csv", header, [("train_1_a_1", "Did it grow?", "Yes", "", "", "", "")])
    table(folder / "test" / "task2.csv", header, [("valid_1_a_1", "Is it CT?", "Yes", "", "", "", "")])
    volume(folder / "dataset" / "train_fixed" / "train_1" / "train_1_a" / "train_1_a_1.nii.gz", 1)
    volume(folder / "dataset" / "valid_fixed" / "valid_1" / "valid_1_a" / "valid_1_a_1.nii.gz", 2)


@portal
def radfm_csv(folder: Path) -> None:
    cluster = "/gpfs/home/data"
    table(folder / "chestxray_balance_test.csv", ("image_path", "disease", "label"), [(f"{cluster}/x1.png", "Edema", 0)])
    table(folder / "mimic_caption_train.csv", ("image_path", "label"), [(f"{cluster}/x2.png", "Clear lungs.")])
    table(
        folder / "pmcvaq_train.csv",
        ("img_root_dir", "Figure_path", "Question", "Answer"),
        [(cluster, "x2.png", "What?", "Mass")],
    )
    table(folder / "pmcoa_train.csv", ("Figure_path", "Caption"), [(f"{cluster}/x2.png", "A CT.")])
    case = ("PMC_id", "img_ref", "context", "question", "answer")
    table(folder / "casa_report_train.csv", case, [("PMC9", "['f1']", "A man.", "Q: What?", "A: A cyst.")])
    table(folder / "unknown.csv", ("a", "b"), [(1, 2)])
    picture(folder / "images" / "x1.png", 1)
    picture(folder / "images" / "x2.png", 2)
    picture(folder / "images" / "PMC9_f1.jpg", 3)


@portal
def mednist(folder: Path) -> None:
    for seed, name in enumerate(("AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT")):
        picture(folder / name / f"00000{seed}.jpeg", seed)


@portal
def pneumonia_mnist(folder: Path) -> None:
    arrays = {}
    for seed, split in enumerate(("train", "val", "test")):
        arrays[f"{split}_images"] = pixels(seed, (2, 28, 28))
        arrays[f"{split}_labels"] = np.array([[1], [0]], dtype=np.uint8)
    np.savez(folder / "pneumoniamnist.npz", **arrays)


@portal
def busi(folder: Path) -> None:
    for seed, kind in enumerate(("benign", "malignant", "normal")):
        picture(folder / "Dataset_BUSI_with_GT" / kind / f"{kind} (1).png", seed)
        picture(folder / "Dataset_BUSI_with_GT" / kind / f"{kind} (1)_mask.png", seed)
