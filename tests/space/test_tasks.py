"""What the demo is asked and not asked, and the note beside an answer, from the files in the repository's root."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT

import markup
from radfm.medmd.prompts import CLOSED, OPEN, article
from radfm.medmd.questions import VALUES
from radfm.medmd.sources.demo import FINDINGS, QUESTIONS, UNKNOWN, YES_OR_NO
from radfm.scan_radfm import Scan
from scan_store import StoredScan
from tasks import Tasks

DEMO = ROOT / "training" / "demo"
KINDS = ("modality", "body_part", "plane", "sequence", "diagnosis")


@pytest.fixture
def demo() -> Tasks:
    return Tasks(json.loads((DEMO / "tasks.json").read_text()), json.loads((DEMO / "scores.json").read_text()))


def scan(modality: str | None = None, slices: int = 1, series: str | None = None) -> StoredScan:
    voxels = np.zeros((1, 64, 64, slices), np.float32)
    name = dict(Scan(voxels, modality=modality).describe())["Modality"]
    about = {"modality": modality, "modality_name": name, "series": series, "shape": list(voxels.shape)}
    return StoredScan("x", Path("x"), about, complete=True)


def test_the_list_of_tasks_is_what_the_demo_was_trained_on():
    tasks = json.loads((DEMO / "tasks.json").read_text())
    for name in ("modality", "sequence"):
        assert tasks["topics"][name]["labels"] == list(VALUES[name])
    assert {finding["pack"]: set(finding["labels"]) for finding in tasks["findings"]} == {
        p: set(FINDINGS[p]) for p in FINDINGS
    }
    assert tasks["unknown"] == UNKNOWN
    questions = [wording for kind in KINDS for wording in OPEN[kind]] + [w for ws in QUESTIONS.values() for w in ws]
    findings = [name for names in FINDINGS.values() for name in names if name != "normal"]
    for kind, values in {**VALUES, "diagnosis": findings, "normal": ["normal"]}.items():
        questions += [w.format(a=article(v), value=v) + YES_OR_NO for w in CLOSED[kind] for v in values]
    words = set(re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)*", " ".join(questions).lower()))
    assert tasks["vocabulary"] == sorted(words)


def test_each_question_of_the_training_has_its_topic(demo):
    topics = {"diagnosis": "finding", "caption": "describe"}
    for name in KINDS:
        assert {demo.topic(question) for question in OPEN[name]} == {topics.get(name, name)}, OPEN[name]
    for name, questions in QUESTIONS.items():
        assert {demo.topic(question) for question in questions} == {topics.get(name, name)}, questions


def test_a_question_of_the_training_is_asked(demo):
    for question in (*OPEN["modality"], *OPEN["diagnosis"], "Please, is this a CT scan?"):
        assert demo.refusal(question, [scan("DX")]) == ""


@pytest.mark.parametrize(
    ("question", "of", "says"),
    [
        ("What is the diagnosis?", scan("MR", slices=24, series="T1"), "This is a volume of 24 slices"),
        ("Is there a glioma?", scan("MR", series="T1 axial"), "Nothing in this file says that contrast was given"),
        ("Is there a glioma?", scan("MR", series="T1 without contrast"), "Nothing in this file says that contrast"),
        ("What is the finding?", scan("CT"), "This is CT"),
        ("Which body part is shown?", scan("PT"), "is PET"),
        ("Which MR sequence is this?", scan("CT"), "is CT"),
        ("Which stage is the carcinoma?", scan("MR"), "has never seen “stage”, “carcinoma”"),
        ("How is the scan?", scan("MR"), "outside what this model was trained for"),
    ],
)
def test_what_is_outside_is_refused_with_the_reason(demo, question, of, says):
    assert says in demo.refusal(question, [of])


@pytest.mark.parametrize("series", ["T1ce", "t1 post", "ax T1 +C", "T1 with contrast", "T1 Gd"])
def test_tumours_may_be_asked_of_an_image_with_contrast(demo, series):
    assert demo.refusal("Is there a glioma?", [scan("MR", series=series)]) == ""


def test_one_scan_at_a_time(demo):
    assert "one scan at a time" in demo.refusal("Which modality is this?", [scan("CT"), scan("MR")])


def test_a_finding_that_it_cannot_know_is_not_shown(demo):
    assert "is not shown" in demo.withheld("A 3D MRI scan of the brain: glioma.", [scan("MR", slices=20)])
    assert demo.withheld("A 2D ultrasound scan of the breast: benign breast lesion.", [scan("US")]) == ""
    assert demo.withheld("A 3D MRI scan of the brain.", [scan("MR", slices=20)]) == ""


def test_the_note_has_the_numbers_of_the_scores(demo):
    row = next(r for r in demo.scores if r["pack"] == "busi" and r["label"] == "finding")
    note = demo.note("What is the diagnosis?", "normal", [scan("US")])
    assert note.startswith(f"One of 3 labels; right in {row['model'] / row['count']:.0%} of {row['count']} held-out cases.")
    assert "breast lesions in single ultrasound images" in note
    assert "right in 99% of 2,122 held-out cases" in demo.note("Which modality is this?", "CT", [scan("CT")])


def test_of_an_image_without_a_header_each_finding_that_fits_the_answer_is_noted(demo):
    note = demo.note("What is the finding?", "normal", [scan(None)])
    assert "breast" in note and "chest" in note and "brain" not in note


def test_an_answer_that_the_header_contradicts_is_called_wrong(demo):
    assert "says CT: this answer is wrong" in demo.note("Which imaging modality is this?", "MRI", [scan("CT")])
    assert "wrong" not in demo.note("Which imaging modality is this?", "X-ray", [scan("CR")])


def test_an_answer_that_is_no_label_is_called_so(demo):
    assert "none of the" in demo.note("What is the diagnosis?", "abdomen", [scan("US")])


def test_reports_are_offered_where_the_model_was_trained_for_them(demo):
    assert {"Report", "Rationale", "Diagnosis"} <= set(demo.questions())
    assert "Report" not in Tasks({"tasks": ["modality"], "topics": {}}, []).questions()


def test_an_answer_that_nothing_is_known_needs_no_note_of_a_wrong_label(demo):
    assert demo.note("What is the diagnosis?", UNKNOWN, [scan("MR")]) == ""
    assert demo.note("Write a report of this scan.", f"2D MRI of the brain. Impression: {UNKNOWN}.", [scan("MR")]) == ""


def test_a_model_without_a_list_is_asked_anything():
    unknown = Tasks({}, [])
    assert not unknown.known and unknown.refusal("Which stage is it?", [scan("PT"), scan("CT")]) == ""
    assert unknown.note("Which modality is this?", "CT", [scan("CT")]) == "" and unknown.questions() == {}


def test_the_card_shows_shares_of_right_answers_alone(demo):
    faults = [row for row in demo.scores if row["most_frequent"] is None]
    assert faults
    card = markup.model_card(demo, "me/radfm", 6_000_000)
    assert "pneumonia-mnist" in card and "false finding" not in card
