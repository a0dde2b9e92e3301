"""Items and predictions: what is written is read again, and what is no item is refused in one sentence."""

import json
from dataclasses import replace

import pytest
from bench_data import make_record

from radfm.radbench.draw import own_item
from radfm.radbench.items import BenchError, Item, fingerprint, read_items, write_items
from radfm.radbench.predictions import Likelihood, Prediction, read_predictions, write_predictions

# Characters at which str.splitlines ends a line and JSON does not.
ODD = "a\u2028b\x85c\nd “é”"


@pytest.fixture
def items() -> list[Item]:
    return [own_item(make_record(number, "vqa", f"answer {number} {ODD}")) for number in (2, 1, 3)]


def test_items_that_were_written_are_read_again_sorted_by_id(items, tmp_path):
    write_items(items, tmp_path / "items.jsonl")
    assert read_items(tmp_path / "items.jsonl") == sorted(items, key=lambda item: item.id)


def test_the_fingerprint_is_of_the_content_and_not_of_the_order(items):
    assert fingerprint(items) == fingerprint(items[::-1])
    assert fingerprint(items) != fingerprint(items[1:])
    assert fingerprint(items) != fingerprint([replace(items[0], reference="another"), *items[1:]])


def _drop_a_key(line: str) -> str:
    row = json.loads(line)
    del row["reference"]
    return json.dumps(row)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda line: "", "line 1"),
        (lambda line: line[:50], "line 1"),
        (_drop_a_key, "reference is missing"),
        (lambda line: f"{line}\n{line}", "an id is there twice"),
        (lambda line: line.replace('"form": "open"', '"form": "essay"'), "has the form 'essay'"),
    ],
)
def test_a_damaged_file_of_items_is_one_sentence(damage, sentence, items, tmp_path):
    file = tmp_path / "items.jsonl"
    file.write_text(damage(items[0].to_line()) + "\n")
    with pytest.raises(BenchError, match=sentence):
        read_items(file)


def test_predictions_that_were_written_are_read_again_with_the_scan_first(tmp_path):
    scored = {"yes": Likelihood(-0.25, 2), "no": Likelihood(-1.5, 2)}
    predictions = [
        Prediction("b", "black image", ODD),
        Prediction("b", "scan", "yes", scored, "prompt", ("yes", "no")),
        Prediction("a", "scan", ""),
    ]
    write_predictions(predictions, tmp_path / "predictions.jsonl")
    read = read_predictions(tmp_path / "predictions.jsonl")
    assert read == [predictions[2], predictions[1], predictions[0]]
    assert read[1].likelihoods["no"].mean == -0.75


def test_an_answer_that_is_there_twice_is_refused(tmp_path):
    write_predictions([Prediction("a", "scan", "yes"), Prediction("a", "scan", "no")], tmp_path / "predictions.jsonl")
    with pytest.raises(BenchError, match="answered twice"):
        read_predictions(tmp_path / "predictions.jsonl")
