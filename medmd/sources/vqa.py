"""Question-answer sets over single images: VQA-RAD, SLAKE, PMC-VQA, MedFrameQA, RadImageNet-VQA."""

from typing import Any

from ..folder import MEMBER, Folder, read_json
from ..schema import DataError
from ..source import Draft, Rows, Source

ORGANS = {"HEAD": "head", "CHEST": "chest", "ABD": "abdomen"}
LETTERS = "ABCDEFGH"


def kind_of_answer(answer: str) -> str:
    """closed for yes and no, else open."""
    return "closed" if answer.strip().lower().rstrip(".") in ("yes", "no") else "open"


def read_vqa_rad(folder: Folder) -> Rows:
    """`VQA_RAD Dataset Public.json` with its image folder, or the Parquet files of the Hub copy.

    Rows of phrase_type test_* are the published test. Answers are sometimes numbers; answer_type sometimes ends in a
    blank. The published test shares images with the rest: the plan takes those out of training.
    """
    if not folder.find_all("*.json"):
        yield from _vqa_rad_from_parquet(folder)
        return
    for row in read_json(folder.find("VQA_RAD Dataset Public.json", "*.json")):
        name = str(row["image_name"])
        yield Draft(
            key=f"{row['qid']}-{row['phrase_type']}",
            images=(folder.locate(name),),
            task="vqa",
            question=str(row["question"]).strip(),
            answer=str(row["answer"]).strip(),
            answer_type=kind_of_answer(str(row["answer"])),
            body_part=ORGANS.get(str(row.get("image_organ", "")).strip().upper()),
            split="test" if str(row["phrase_type"]).startswith("test") else "train",
            identities=(f"medpix:{name.rsplit('.', 1)[0]}",),
        )


def _vqa_rad_from_parquet(folder: Folder) -> Rows:
    for split in ("train", "test"):
        for path in folder.find_all(f"data/{split}-*.parquet", f"{split}-*.parquet"):
            reference = path.relative_to(folder.root).as_posix()
            for index, row in enumerate(_parquet_rows(path, ["question", "answer"])):
                yield Draft(
                    key=f"{path.stem}-{index}",
                    images=(f"{reference}{MEMBER}image{MEMBER}{index}",),
                    task="vqa",
                    question=row["question"],
                    answer=str(row["answer"]),
                    answer_type=kind_of_answer(str(row["answer"])),
                    split=split,
                )


def _parquet_rows(path: Any, columns: list[str]) -> Any:
    """Rows without the columns that hold images."""
    import pyarrow.parquet

    for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1000, columns=columns):
        yield from batch.to_pylist()


def read_slake(folder: Folder) -> Rows:
    """train.json, validation.json (validate.json in older copies), test.json; `imgs/xmlabN/source.jpg`.

    Rows with q_lang zh, the Chinese half, are left out. A knowledge question (base_type kvqa) is kept:
    extra.base_type says so.
    """
    for split, names in (
        ("train", ["train.json"]),
        ("validation", ["validation.json", "validate.json"]),
        ("test", ["test.json"]),
    ):
        for row in read_json(folder.find(*names)):
            if row["q_lang"] != "en":
                continue
            answer = str(row["answer"]).strip()
            if not answer:
                continue
            yield Draft(
                key=f"{row['qid']}",
                images=(f"imgs/{row['img_name']}",),
                task="vqa",
                question=row["question"],
                answer=answer,
                answer_type=kind_of_answer(answer),
                modality={"X-Ray": "X-ray"}.get(row["modality"], row["modality"]),
                body_part=str(row["location"]).lower().replace("_", " ") or None,
                split=split,
                identities=(f"slake:{row['img_id']}",),
                extra={"base_type": row["base_type"], "content_type": row["content_type"]},
            )


def read_pmc_vqa(folder: Folder) -> Rows:
    """Version 1 (train.csv, test.csv, images.zip) or 2 (train_2.csv, test_2.csv, images_2.zip), images packed or not.

    In version 1 the column Answer (one revision spells it Anwser) holds the text and Answer_label the letter, in
    version 2 Answer is the letter. Choices are written with the letter in front. test_clean.csv is a part of
    test.csv: its rows have extra.clean.
    """
    second = bool(folder.find_all("train_2.csv"))
    suffix = "_2" if second else ""
    has_clean = bool(folder.find_all("test_clean.csv"))
    clean_rows = folder.table("test_clean.csv", figure="Figure_path", q="Question") if has_clean else ()
    clean = {row["figure"] + row["q"] for row in clean_rows}
    for split in ("train", "test"):
        columns: dict[str, Any] = {f"choice_{letter}": f"Choice {letter}" for letter in "ABCD"}
        columns |= {"figure": "Figure_path", "q": "Question", "answer": ("Answer", "Anwser"), "label_": ("Answer_label",)}
        for index, row in enumerate(folder.table(f"{split}{suffix}.csv", **columns)):
            choices = tuple(_without_letter(row[f"choice_{letter}"], letter) for letter in "ABCD")
            letter = (row["label"] or row["answer"] or "").strip().upper()[:1]
            if letter not in LETTERS[:4] or not letter or not all(choices):
                raise DataError(f"{split}{suffix}.csv, row {index + 2}: no answer letter, or an empty choice.")
            extra = {"clean": True} if split == "test" and row["figure"] + row["q"] in clean else {}
            yield choice_draft(
                f"{row['figure'].rsplit('.', 1)[0]}-{split}{suffix}",
                (folder.locate(row["figure"]),),
                row["q"],
                choices,
                LETTERS.index(letter),
                split=split,
                identities=(f"pmc:{row['figure'].rsplit('.', 1)[0]}",),
                extra=extra,
            )


def _without_letter(choice: str | None, letter: str) -> str:
    text = (choice or "").strip()
    return text[2:].strip() if text[:2] in (f"{letter}:", f"{letter}.") else text


def choice_draft(
    key: str, images: tuple[str, ...], question: str, choices: tuple[str, ...], right: int, **more: Any
) -> Draft:
    """A question with lettered choices; the answer is the text of the right one.

    Where two choices have one text, the answer cannot tell them apart: the doubles are shown once.
    """
    answer = choices[right]
    unique = tuple(dict.fromkeys(choices))
    options = " ".join(f"{letter}: {choice}" for letter, choice in zip(LETTERS, unique, strict=False))
    return Draft(
        key=key,
        images=images,
        task="vqa",
        question=f"{question.strip()} {options}",
        answer=answer,
        answer_type="choice",
        choices=unique,
        **more,
    )


def read_medframeqa(folder: Folder) -> Rows:
    """The Hub's Parquet files: image_1 … image_5, question, options, correct_answer (letter), modality, organ,
    video_id. All of it is a test set; whether options have letters in front is not confirmed, so both forms are taken.
    """
    columns = ["question", "options", "correct_answer", "modality", "organ", "video_id"]
    for path in folder.find_all("data/test-*.parquet", "*.parquet"):
        reference = path.relative_to(folder.root).as_posix()
        names = _image_columns(path)
        present = _present_images(path, names)
        for index, row in enumerate(_parquet_rows(path, columns)):
            choices = tuple(_without_letter(choice, letter) for choice, letter in zip(row["options"], LETTERS, strict=False))
            yield choice_draft(
                f"{path.stem}-{index}",
                tuple(f"{reference}{MEMBER}{name}{MEMBER}{index}" for name in names if present[name][index]),
                row["question"],
                choices,
                LETTERS.index(row["correct_answer"].strip().upper()[:1]),
                modality=row["modality"],
                body_part=row["organ"],
                patient=f"video {row['video_id']}",
                split="test",
            )


def _image_columns(path: Any) -> list[str]:
    import pyarrow.parquet

    return [name for name in pyarrow.parquet.read_schema(path).names if name.startswith("image_") and name[6:].isdigit()]


def _present_images(path: Any, names: list[str]) -> dict[str, list[bool]]:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    present: dict[str, list[bool]] = {name: [] for name in names}
    for group in range(file.num_row_groups):
        for name in names:
            present[name] += file.read_row_group(group, columns=[name]).column(name).is_valid().to_pylist()
    return present


def read_radimagenet_vqa(folder: Folder) -> Rows:
    """The Hub's Parquet files by split: image, question, answer, and where they are there choices, modality, body_part.

    Only image, question and answer are known for sure; the names of the other columns are not confirmed.
    """
    import pyarrow.parquet

    for split in ("train", "validation", "test"):
        for path in folder.find_all(f"data/{split}-*.parquet", f"{split}*.parquet", f"*/{split}-*.parquet"):
            reference = path.relative_to(folder.root).as_posix()
            there = set(pyarrow.parquet.read_schema(path).names)
            columns = [name for name in ("question", "answer", "choices", "modality", "body_part") if name in there]
            for index, row in enumerate(_parquet_rows(path, columns)):
                key, images = f"{path.stem}-{index}", (f"{reference}{MEMBER}image{MEMBER}{index}",)
                choices = tuple(row.get("choices") or ())
                more = {"modality": row.get("modality"), "body_part": row.get("body_part"), "split": split}
                if choices and row["answer"] in choices:
                    yield choice_draft(key, images, row["question"], choices, choices.index(row["answer"]), **more)
                else:
                    kind = kind_of_answer(row["answer"])
                    yield Draft(key, images, "vqa", row["answer"], row["question"], answer_type=kind, **more)


SOURCES = (
    Source(
        name="vqa-rad",
        title="VQA-RAD: clinicians' questions about MedPix images",
        size="315 images, 2,248 questions",
        url="https://osf.io/89kps/",
        licence="CC0",
        access="open",
        tasks=("vqa",),
        layout="'VQA_RAD Dataset Public.json' and 'VQA_RAD Image Folder/', or the Parquet files of flaviagiammarino/vqa-rad",
        read=read_vqa_rad,
        public_keys=True,
    ),
    Source(
        name="slake",
        title="SLAKE: questions about CT, MR and X-ray, English half",
        size="642 images, 14,028 questions in two languages",
        url="https://www.med-vqa.com/slake/",
        licence="CC BY 4.0",
        access="open",
        tasks=("vqa",),
        layout="train.json, validation.json, test.json and imgs/",
        read=read_slake,
        public_keys=True,
    ),
    Source(
        name="pmc-vqa",
        title="PMC-VQA: generated questions about figures of papers",
        size="149K images, 227K questions; 18.9 GB (version 1)",
        url="https://huggingface.co/datasets/xmcmic/PMC-VQA",
        licence="CC BY-SA",
        access="open",
        tasks=("vqa",),
        layout="train.csv, test.csv, images.zip (or train_2.csv, test_2.csv, images_2.zip)",
        read=read_pmc_vqa,
        public_keys=True,
        radiology=False,
    ),
    Source(
        name="medframeqa",
        title="MedFrameQA: questions about 2 to 5 frames of teaching videos",
        size="2,851 questions, 9,237 frames",
        url="https://huggingface.co/datasets/SuhaoYu1020/MedFrameQA",
        licence="CC BY 4.0",
        access="open",
        tasks=("vqa",),
        layout="the Parquet files of the Hub",
        read=read_medframeqa,
        public_keys=True,
        radiology=False,
    ),
    Source(
        name="radimagenet-vqa",
        title="RadImageNet-VQA: questions about CT and MR slices",
        size="750K images, 7.5M questions",
        url="https://huggingface.co/datasets/raidium/RadImageNet-VQA",
        licence="Apache-2.0",
        access="open",
        tasks=("vqa",),
        layout="the Parquet files of the Hub",
        read=read_radimagenet_vqa,
        public_keys=True,
    ),
)
