"""The published result CSV is read, written and scored, and the known faults of the published benchmark are printed."""

from pathlib import Path

import pytest
from results import REPORTS
from typer.testing import CliRunner

from radfm.cli.main import app
from radfm.radbench.items import BenchError
from radfm.radbench.metrics import overlap
from radfm.radbench.published import FAULTS, Result, published_scores, read_results, write_results
from radfm.radbench.rescore import score_published

QUESTION = "Write the impression of this scan<image><image0></image>."
ROWS = [Result(QUESTION, REPORTS[n % 4], REPORTS[(3 * n) % 4], "chestxray_caption_dataset") for n in range(12)]
ROWS += [Result("Is it normal?", ("yes", "no")[n % 2], ('Yes, it\'s "fine"', "no")[n % 2], "pcxr_close") for n in range(4)]


@pytest.fixture
def example(tmp_path) -> Path:
    write_results(ROWS, tmp_path / "caption_example.csv")
    return tmp_path / "caption_example.csv"


def test_each_cell_is_a_list_of_one_string(example):
    first, second = example.read_text().splitlines()[:2]
    assert first == "Question,Ground Truth,Pred,belong_to" and second.startswith(f"['{QUESTION}'],")
    assert read_results(example) == ROWS


def test_as_the_authors_script_writes_it(tmp_path):
    """csv.writer over `[question], [answer], …` of a batch of one, as in the published test.py."""
    import csv

    with open(tmp_path / "a.csv", "w", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(["Question", "Ground Truth", "Pred", "belong_to"])
        for row in ROWS:
            writer.writerow([[row.question], [row.reference], [row.answer], [row.dataset]])
    assert read_results(tmp_path / "a.csv") == ROWS


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("Question,Pred\n", "Ground Truth, belong_to"),
        ("Question,Ground Truth,Pred,belong_to\n", "no row"),
        ("Question,Ground Truth,Pred,belong_to\n['a'],b,['c'],['d']\n", "line 2: Ground Truth is 'b'"),
        ("Question,Ground Truth,Pred,belong_to\n['a'],\"['b', 'c']\",['c'],['d']\n", "line 2: Ground Truth"),
        ("Question,Ground Truth,Pred,belong_to\n['a'],['b'],__import__('os'),['d']\n", "line 2: Pred"),
    ],
)
def test_what_is_no_such_csv_is_named_by_its_line(text, complaint, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(BenchError, match=complaint):
        read_results(tmp_path / "a.csv")


def test_rows_are_scored_by_data_set_and_kind(example):
    scores = score_published(example)
    texts = {m.name: m.score for m, _ in scores.parts["chestxray_caption_dataset"]}
    rows = [row for row in ROWS if row.dataset == "chestxray_caption_dataset"]
    expected = overlap.bleu_1([row.answer for row in rows], [row.reference for row in rows]).score
    assert texts["BLEU-1"] == pytest.approx(expected) and "ROUGE-L" in texts and "accuracy (strict)" not in texts
    closed = {m.name: m.score for m, _ in scores.parts["pcxr_close"]}
    assert (closed["accuracy (strict)"], closed["accuracy (lenient)"]) == (0.5, 1.0) and "BLEU-1" not in closed


def test_the_command_names_definitions_and_faults(example):
    result = CliRunner().invoke(app, ["bench", "score", str(example)])
    assert result.exit_code == 0, result.output
    assert "sacrebleu corpus" in result.output and "tok:13a" in result.output and "rouge-score" in result.output
    assert all(fault in result.output for fault in FAULTS)
    assert "no patient ids" in result.output


def test_the_command_says_what_is_wrong_in_a_line(tmp_path):
    result = CliRunner().invoke(app, ["bench", "score", str(tmp_path / "none.csv")])
    assert result.exit_code == 2 and "none.csv" in result.output and "Traceback" not in result.output


def test_published_scores_are_labelled_and_rectangular():
    known = published_scores()
    assert "as published" in known["version"] and "Nature Communications" in known["source"]
    assert all(len(row["values"]) == len(known["models"]) for row in known["automatic"])
    assert all(len(row) == len(known["human"]["tasks"]) for row in known["human"]["models"].values())
    assert next(row for row in known["automatic"] if (row["task"], row["metric"]) == ("vqa", "BLEU"))["values"][-1] == 30.88
