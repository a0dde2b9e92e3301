"""The score table in README.md is what is written from the committed scores, and says what they say."""

import json

import pytest
from helpers import ROOT
from results import copy_reference, make_items, most_frequent, predict, write_results

from radfm.radbench.items import BenchError
from radfm.radbench.readme import BEGIN, END, SCORES, excerpt, replace_table, score_table
from radfm.radbench.scores import read_scores, score_run


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """Of a model that copies the references, with two baselines of which one is better."""
    items = make_items(24)
    predictions = predict(items, copy_reference)
    predictions += predict(items, most_frequent, "most frequent answer") + predict(items, lambda item: "?", "no image")
    out = write_results(tmp_path_factory.mktemp("results"), items, predictions)
    score_run(out)
    return read_scores(out)


def test_the_table_in_the_readme_is_that_of_the_committed_scores():
    text = (ROOT / "README.md").read_text()
    assert replace_table(text, json.loads((ROOT / SCORES).read_text())) == text


def test_a_row_has_n_score_interval_and_the_best_baseline(scores):
    rows = score_table(scores).splitlines()
    assert len(rows) == 2 + 5
    # 8 of 24 are CT. All are right, so the interval is Wilson's, of 12 patients.
    assert "| Modality recognition, open questions | 24 | accuracy | 100 (76–100) | 33, most frequent answer |" in rows


def test_a_baseline_that_is_not_beaten_is_marked(scores):
    rows = score_table(
        {**scores, "significance": [{**row, "beats": False, "p_holm": 0.5} for row in scores["significance"]]}
    ).splitlines()
    assert all("(not beaten)" in row for row in rows[2:]) and not any("(not beaten)" in row for row in rows[:2])


def test_a_baseline_that_is_better_than_the_model_is_called_so(scores):
    better = [{**row, "beats": False, "difference": -0.5, "p_holm": 0.01} for row in scores["significance"]]
    rows = score_table({**scores, "significance": better}).splitlines()
    assert all(row.endswith("(better) |") for row in rows[2:])


def test_the_small_file_gives_the_table_of_the_whole(scores):
    small = excerpt(scores)
    assert score_table(small) == score_table(scores) and excerpt(small) == small
    assert len(json.dumps(small)) < len(json.dumps(scores)) / 3


def test_a_readme_without_the_marks_is_refused(scores):
    with pytest.raises(BenchError, match="lacks the lines"):
        replace_table(f"{END} {BEGIN}", scores)
