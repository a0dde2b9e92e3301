"""Results folders for tests: items of several patients, and a model that answers as a function says."""

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from radfm.medmd.build import BuildOptions, build
from radfm.medmd.schema import Message, Part
from radfm.radbench.draw import draw
from radfm.radbench.items import FORMS, Item, fingerprint, write_items
from radfm.radbench.predictions import SCAN, Likelihood, Prediction, write_predictions
from radfm.radbench.records import read_light

REPORTS = (
    "No pleural effusion or pneumothorax. The heart is normal.",
    "Small left pleural effusion with atelectasis at the left lung base.",
    "Large mass in the right upper lobe. No evidence of metastasis.",
    "Cardiomegaly and mild pulmonary edema. No consolidation.",
)
Answerer = Callable[[Item], str]


def make_item(number: int, form: str, bench_task: str, reference: str, options: Sequence[str] = (), **more) -> Item:
    """An item of patient number // 2."""
    question = Message("user", (Part("image"), Part("text", f"Question {number}?")))
    record = f"test/{number}/{bench_task}/0"
    task = {"vqa": "vqa", "report": "report", "rationale": "rationale"}.get(bench_task, bench_task)
    values = {
        "group": f"{number // 2:04x}",
        "source": "test",
        "modality": "CT" if number % 3 else "MRI",
        "body_part": "head",
    }
    return Item(
        f"{record}#{form}", record, form, task, bench_task, (question,), tuple(options), reference, **{**values, **more}
    )


def make_items(count: int = 24) -> list[Item]:
    """`count` items of each of five kinds."""
    items = []
    for number in range(count):
        items.append(make_item(number, "open", "modality", ("CT", "MRI", "X-ray")[number % 3]))
        items.append(make_item(number, "yes_no", "diagnosis", ("yes", "no", "no")[number % 3], ("yes", "no")))
        items.append(make_item(number, "choice", "vqa", ("left", "right")[number % 2], ("left", "right")))
        items.append(make_item(number, "likelihood", "modality", ("CT", "MRI")[number % 2], ("CT", "MRI")))
        items.append(make_item(number, "open", "report", REPORTS[number % 4]))
    return items


def copy_reference(item: Item) -> str:
    """What a perfect model answers."""
    return item.reference


def most_frequent(item: Item) -> str:
    """One answer a kind of item."""
    return {"modality": "CT", "diagnosis": "no", "vqa": "left", "report": REPORTS[0]}[item.bench_task]


def predict(items: Sequence[Item], answer: Answerer, condition: str = SCAN, likelihoods: bool = False) -> list[Prediction]:
    """Predictions of a model; with likelihoods, its answer gets 4 nats more than other options."""
    found = []
    for item in items:
        said = answer(item)
        scores = None
        if likelihoods and item.options:
            scores = {option: Likelihood(-0.1 if option == said else -4.1, 1) for option in item.options}
        found.append(Prediction(item.id, condition, said, scores, "prompt", item.options if item.form == "choice" else ()))
    return found


def write_results(folder: Path, items: Sequence[Item], predictions: Sequence[Prediction], model: str = "test/model") -> Path:
    """The files that `radfm bench run` leaves, without scores."""
    folder.mkdir(parents=True, exist_ok=True)
    write_items(items, folder / "items.jsonl")
    write_predictions(predictions, folder / "predictions.jsonl")
    run = {
        "model": {"name": model},
        "items_fingerprint": fingerprint(items),
        "data_fingerprint": "0" * 8,
        "settings": {},
        "warnings": [],
    }
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def build_data(folder: Path, series_zips: Path, reports: Sequence[str] = REPORTS) -> Path:
    """A data set of a CT series in the test split, with a report and a yes/no question a patient."""
    source = folder / "source"
    source.mkdir(parents=True)
    shutil.copy(series_zips / "dicom_series_ct.zip", source / "ct.zip")
    rows = []
    for number, report in enumerate(reports):
        rows.append(("Write a report.", report, "report", number))
        rows.append(("Is there an effusion?", "yes" if "effusion" in report else "no", "diagnosis", number))
    with open(source / "rows.csv", "w", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(("image", "question", "answer", "task", "group", "split"))
        writer.writerows(("ct.zip", question, answer, task, f"p{number}", "test") for question, answer, task, number in rows)
    build({"csv": source / "rows.csv"}, folder / "data", BuildOptions())
    return folder / "data"


def write_two_results(folder: Path, data: Path) -> list[Path]:
    """Results of a model that copies the references and of one that answers the same to everything, on a built data set."""
    items = draw(read_light(data, "test"), 0, FORMS).items
    one = write_results(folder / "one", items, predict(items, copy_reference), "lab/one")
    two = write_results(folder / "two", items, predict(items, lambda item: "no"), "lab/two")
    return [one, two]
