"""Baselines without a model, by hand; and the leak check."""

import pytest
from bench_data import build_data, make_record

from radfm.radbench.baselines import answer_without_model
from radfm.radbench.draw import draw
from radfm.radbench.leaks import find_leaks
from radfm.radbench.records import read_light


def answers(test, training):
    items = draw(test).items
    return items, {(p.condition, p.item): p.answer for p in answer_without_model(items, draw(training).items)}


def test_the_most_frequent_answer_is_that_of_the_training_split():
    training = [make_record(number, "vqa", answer) for number, answer in enumerate(["left", "left", "right"])]
    items, found = answers([make_record(9, "vqa", "right")], training)
    assert found["most frequent answer", items[0].id] == "left"


def test_of_a_choice_it_is_one_of_the_options():
    training = [make_record(n, "modality", "CT") for n in range(5)] + [make_record(n, "modality", "MRI") for n in (5, 6)]
    items, found = answers([make_record(9, "modality", "MRI")], training)
    for item in items:
        assert not item.options or found.get(("most frequent answer", item.id), item.reference) in item.options


def test_a_source_without_training_answers_takes_those_of_the_others():
    items, found = answers([make_record(9, "vqa", "right", source="slake")], [make_record(1, "vqa", "left")])
    assert found["most frequent answer", items[0].id] == "left"


def test_the_constant_sentence_is_most_like_the_others_and_only_open_questions_get_it():
    reports = ["the lungs are clear", "lungs are clear", "large mass", "the lungs are not clear"]
    training = [make_record(number, "report", report) for number, report in enumerate(reports)]
    training += [make_record(number, "vqa", "yes") for number in range(3)]
    items, found = answers([make_record(9, "report", "x"), make_record(9, "vqa", "yes")], training)
    report, closed = sorted(items, key=lambda item: item.task)
    assert found["constant sentence", report.id] == "the lungs are clear"
    assert ("constant sentence", closed.id) not in found


def test_the_nearest_training_answer_is_that_of_the_most_similar_question():
    training = [
        make_record(1, "vqa", "liver", "Which organ is enlarged?"),
        make_record(2, "vqa", "left", "On which side is the effusion?"),
    ]
    items, found = answers([make_record(9, "vqa", "right", "On which side is the mass?")], training)
    assert found["nearest training answer", items[0].id] == "left"


def test_a_rationale_takes_the_training_answer_of_the_same_title():
    training = [
        make_record(1, "rationale", "Pneumonia. Consolidation.", "Why?"),
        make_record(2, "rationale", "Effusion. Blunt angle.", "Which features?"),
    ]
    items, found = answers([make_record(9, "rationale", "Effusion. Fluid at the base.", "Why?")], training)
    assert found["nearest training answer", items[0].id] == "Effusion. Blunt angle."


def test_no_training_split_no_baselines():
    assert answers([make_record(9, "vqa", "right")], [])[1] == {}


TRAINING = ("train", "validation")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return build_data(tmp_path_factory.mktemp("leaks"))


def test_a_data_set_does_not_leak_into_its_own_test_split(data):
    found = find_leaks(draw(read_light(data, "test")).items, data, TRAINING)
    assert found["leaks"] == {} and found["records"] == sum(1 for _ in read_light(data, "train"))


def test_items_that_were_trained_on_are_counted_by_what_gives_them_away(data):
    items = draw(read_light(data, "train")).items
    found = find_leaks(items, data, TRAINING)["leaks"]
    assert {kind: leak["items"] for kind, leak in found.items()} == {
        kind: len(items) for kind in ("same record", "same patient", "same scan")
    }
    assert found["same scan"]["examples"][0] == items[0].id


def test_a_copy_of_a_scan_under_another_name_is_found(data):
    record = next(read_light(data, "train"))
    copy = make_record(77, "vqa", "left", image_sha256=record.image_sha256)
    assert set(find_leaks(draw([copy]).items, data, TRAINING)["leaks"]) == {"same scan"}
