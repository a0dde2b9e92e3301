"""scores.json: what three models get whose scores are known beforehand, and what may be concluded from them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from results import REPORTS, copy_reference, make_item, make_items, most_frequent, predict, write_results

from radfm.radbench.items import BenchError
from radfm.radbench.metrics.medical_terms import TermList
from radfm.radbench.predictions import SCAN, Likelihood, Prediction
from radfm.radbench.readings import Tools, labels_of
from radfm.radbench.scores import read_scores, score, score_run

TERMS = TermList(["pleural effusion", "pneumothorax", "atelectasis", "mass", "cardiomegaly"], "five terms")


def tools_for(items) -> Tools:
    return Tools(TERMS, None, labels_of(items))


def find(scores, task: str, form: str, metric: str, condition: str = SCAN) -> dict:
    """The one row of these."""
    wanted = (task, form, metric, condition)
    (row,) = [r for r in scores["scores"] if (r["bench_task"], r["form"], r["metric"], r["condition"]) == wanted]
    return row


@pytest.fixture(scope="module")
def perfect() -> dict:
    """A model that copies the reference, and one that always says the most frequent answer as its baseline."""
    items = make_items(24)
    predictions = predict(items, copy_reference, likelihoods=True) + predict(items, most_frequent, "most frequent answer")
    return score(items, predictions, tools_for(items))


def test_a_copy_of_the_reference_gets_everything(perfect):
    for row in perfect["scores"]:
        if row["condition"] == SCAN:
            # Its likelihoods are sure by 4 nats, and references without medical terms have no precision of terms.
            expected = {"unreadable answers": 0, "calibration error": 0.018, "Brier score": 0.0003}.get(row["metric"], 1)
            undefined = row["bench_task"] == "modality" and row["metric"].startswith("term")
            assert row["value"] is None if undefined else row["value"] == pytest.approx(expected, abs=1e-4), row
    ends = find(perfect, "vqa", "choice", "accuracy (lenient)")
    assert ends["interval_kind"] == "Wilson, n = groups" and ends["interval"][0] < 0.9 and ends["groups"] == 12


def test_always_one_answer_gets_its_share_and_no_more_than_chance_of_the_balance(perfect):
    condition = "most frequent answer"
    assert find(perfect, "diagnosis", "yes_no", "accuracy (lenient)", condition)["value"] == pytest.approx(2 / 3)
    assert find(perfect, "diagnosis", "yes_no", "balanced accuracy (lenient)", condition)["value"] == pytest.approx(1 / 2)
    assert find(perfect, "diagnosis", "yes_no", "F1 (lenient)", condition)["value"] == 0  # it never says yes
    assert find(perfect, "modality", "open", "balanced accuracy (lenient)", condition)["value"] == pytest.approx(1 / 3)


def test_a_perfect_model_beats_the_baseline_and_the_baseline_does_not_beat_itself(perfect):
    assert all(row["beats"] and row["p_holm"] >= row["p"] for row in perfect["significance"])
    assert not any("does not beat" in warning for warning in perfect["warnings"])
    items = make_items(24)
    predictions = predict(items, most_frequent) + predict(items, most_frequent, "no image")
    scores = score(items, predictions, tools_for(items))
    assert not any(row["beats"] for row in scores["significance"])
    assert {row["p"] for row in scores["significance"]} == {1.0}
    assert "report, open: the model does not beat these baselines significantly: no image." in scores["warnings"]


def test_a_black_image_that_answers_as_well_is_warned_of():
    """A model that knows the answers without the scan: high accuracy, and a warning beside it."""
    items = make_items(24)
    predictions = predict(items, copy_reference) + predict(items, copy_reference, "black image")
    warnings = score(items, predictions, tools_for(items))["warnings"]
    assert sum("black image" in warning for warning in warnings) == 5


def test_another_patients_scan_with_the_same_label_need_not_be_beaten():
    items = make_items(24)
    predictions = predict(items, copy_reference) + predict(items, copy_reference, "scan of another patient, same label")
    assert not any("same label" in warning for warning in score(items, predictions, tools_for(items))["warnings"])


def test_baselines_that_answer_some_items_are_compared_on_those():
    items = make_items(24)
    some = [item for item in items if item.bench_task == "report"][:10]
    predictions = predict(items, copy_reference) + predict(some, most_frequent, "history only")
    (row,) = score(items, predictions, tools_for(items))["significance"]
    assert (row["n"], row["groups"], row["bench_task"]) == (10, 5, "report")


def test_letters_are_read_in_the_order_in_which_they_were_shown():
    item = make_item(0, "choice", "vqa", "left", ("left", "right"))
    shuffled = Prediction(item.id, "shuffled options", "B", None, "", ("right", "left"))
    scores = score([item], [Prediction(item.id, SCAN, "A", None, "", ("left", "right")), shuffled], tools_for([item]))
    for condition in (SCAN, "shuffled options"):
        assert find(scores, "vqa", "choice", "accuracy (strict)", condition)["value"] == 1


def test_likelihoods_are_read_by_mean_and_by_sum():
    item = make_item(0, "likelihood", "modality", "magnetic resonance", ("CT", "magnetic resonance"))
    likelihoods = {"CT": Likelihood(-3.0, 1), "magnetic resonance": Likelihood(-4.0, 4)}
    scores = score([item], [Prediction(item.id, SCAN, "magnetic resonance", likelihoods)], tools_for([item]))
    assert find(scores, "modality", "likelihood", "accuracy (likelihood)")["value"] == 1
    assert find(scores, "modality", "likelihood", "accuracy (likelihood, sum)")["value"] == 0


def test_a_model_without_log_probabilities_is_told_and_not_guessed():
    items = [make_item(n, "yes_no", "diagnosis", ("yes", "no")[n % 2], ("yes", "no")) for n in range(8)]
    scores = score(items, predict(items, copy_reference), tools_for(items))
    assert not any("likelihood" in row["metric"] or "calibration" in row["metric"] for row in scores["scores"])
    assert scores["calibration"] == {} and any("no log-probabilities" in warning for warning in scores["warnings"])


def test_sets_seen_in_training_composed_texts_and_few_patients_are_named():
    items = [replace(item, comparison_only=True, note="composed text") for item in make_items(8)]
    warnings = " ".join(score(items, predict(items, copy_reference), tools_for(items))["warnings"])
    assert "trained on" in warnings and "composed text" in warnings and "only 4 patients or images" in warnings


def test_a_baseline_that_is_told_the_title_is_named():
    items = [make_item(n, "open", "rationale", REPORTS[n % 4]) for n in range(8)]
    baseline = predict(items, copy_reference, "nearest training answer")
    warnings = score(items, predict(items, copy_reference) + baseline, tools_for(items))["warnings"]
    assert any("looked up by the title of the right answer" in warning for warning in warnings)


def test_stability_counts_unchanged_answers_and_is_no_baseline():
    items = make_items(8)
    predictions = predict(items, copy_reference) + predict(items, lambda item: item.reference.upper() + ".", "flipped scan")
    scores = score(items, predictions, tools_for(items))
    assert find(scores, "vqa", "choice", "unchanged answers", "flipped scan")["value"] == 1
    assert scores["significance"] == []


def test_one_patient_alone_proves_nothing():
    item = make_item(0, "open", "report", REPORTS[0])
    scores = score([item], predict([item], copy_reference) + predict([item], lambda _: "no", "no image"), tools_for([item]))
    (row,) = scores["significance"]
    assert row["p"] is None and row["p_holm"] is None and not row["beats"]


def test_breakdowns_add_up(perfect):
    rows = [row for row in perfect["breakdowns"] if (row["bench_task"], row["by"]) == ("report", "modality")]
    assert {row["part"] for row in rows} == {"CT", "MRI"} and sum(row["n"] for row in rows) == 24


def test_the_file_is_the_same_twice_and_holds_what_it_is_about(tmp_path):
    items = make_items(8)
    out = write_results(tmp_path, items, predict(items, copy_reference) + predict(items, most_frequent, "no image"))
    score_run(out)
    first = (out / "scores.json").read_bytes()
    score_run(out)
    assert (out / "scores.json").read_bytes() == first
    scores = read_scores(out)
    assert scores["benchmark"] == "RadBench" and scores["model"] == "test/model" and len(scores["items_fingerprint"]) == 64
    assert "NaN" not in first.decode() and all(row["signature"] for row in scores["scores"])


def test_what_does_not_fit_is_refused(tmp_path):
    items = make_items(2)
    out = write_results(tmp_path, items, [Prediction("nowhere#open", SCAN, "CT")])
    with pytest.raises(BenchError, match="nowhere#open"):
        score_run(out)
    write_results(tmp_path, items, predict(items, copy_reference, "no image"))
    with pytest.raises(BenchError, match="nothing to score"):
        score_run(out)
    with pytest.raises(BenchError, match=r"scores\.json"):
        read_scores(Path(tmp_path / "other"))


def test_external_scores_enter_with_intervals(tmp_path):
    items = [item for item in make_items(8) if item.bench_task == "report"]
    lines = ["id,score", *(f"{item.id},{number / 10}" for number, item in enumerate(items))]
    (tmp_path / "radgraph.csv").write_text("\n".join(lines) + "\n")
    tools = replace(tools_for(items), external={"radgraph": tmp_path / "radgraph.csv"})
    predictions = predict(items, copy_reference) + predict(items, most_frequent, "no image")
    scores = score(items, predictions, tools)
    row = find(scores, "report", "open", "radgraph")
    assert row["value"] == pytest.approx(0.35) and row["interval"]
    assert [r["condition"] for r in scores["scores"] if r["metric"] == "radgraph"] == [SCAN]
    json.dumps(scores, allow_nan=False)
