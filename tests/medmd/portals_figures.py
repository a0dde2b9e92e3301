"""Portals of figures, questions and teaching cases."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from making import json_file, parquet, picture, picture_bytes, pixels, portal, table, volume


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
