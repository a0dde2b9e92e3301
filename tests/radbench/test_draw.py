"""What is drawn: the same each time, with one right answer, and wrong values that the source knows to be wrong."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from bench_data import make_record

from radfm.medmd.questions import CLASHES, VALUES
from radfm.radbench.draw import draw, letter_options, own_item
from radfm.radbench.items import BenchError

MODALITIES = ("CT", "MRI", "X-ray", "ultrasound")


@pytest.fixture
def records():
    modalities = [make_record(number, "modality", MODALITIES[number % 4]) for number in range(200)]
    planes = [make_record(number, "plane", VALUES["plane"][number % 5]) for number in range(50)]
    findings = [("pneumonia", 1), ("effusion", 0), ("mass", -1)]
    return [*modalities, *planes, make_record(0, "diagnosis", "pneumonia", findings=findings)]


def test_two_draws_are_equal_whatever_the_order_of_the_records(records):
    shuffled = list(records)
    random.Random(0).shuffle(shuffled)
    assert draw(shuffled).items == draw(records).items


def test_another_seed_draws_other_questions(records):
    assert draw(records, seed=1).items != draw(records, seed=0).items


def test_a_record_is_an_item_with_its_own_question(records):
    for record in records:
        item = own_item(record)
        assert item.messages == record.messages[:-1] and item.reference == record.answer and item.group == record.group


def test_the_reference_is_one_of_the_options(records):
    for item in draw(records).items:
        assert item.form == "open" or item.options.count(item.reference) == 1


def test_a_choice_shows_its_options_and_the_likelihood_form_does_not(records):
    for item in draw(records).items:
        if item.form == "choice":
            assert item.question.endswith(letter_options(item.options))
        if item.form == "likelihood":
            assert item.messages == own_item(next(r for r in records if r.id == item.record)).messages


def test_yes_and_no_are_balanced(records):
    answers = [item.reference for item in draw(records).items if item.form == "yes_no"]
    assert abs(answers.count("yes") - answers.count("no")) < 4 * len(answers) ** 0.5


def test_the_answer_no_names_another_value_that_does_not_clash(records):
    by_id = {record.id: record for record in records}
    for item in draw(records).items:
        if item.form == "yes_no" and item.task != "diagnosis":
            right = by_id[item.record].answer
            assert item.asked.lower() in item.question.lower()
            assert (item.asked == right) == (item.reference == "yes")
            assert item.reference == "yes" or not any({item.asked, right} <= clash for clash in CLASHES)


def test_a_finding_that_is_uncertain_or_not_mentioned_is_never_asked_for():
    findings = [("pneumonia", 1), ("effusion", 0), ("mass", -1)]
    options = set()
    for seed in range(20):
        for item in draw([make_record(0, "diagnosis", "pneumonia", findings=findings)], seed).items:
            options |= set(item.options) | {item.asked}
    assert options == {"", "yes", "no", "pneumonia", "effusion", "normal"}


def test_a_label_without_a_known_wrong_value_has_its_own_form_alone():
    assert [item.form for item in draw([make_record(0, "diagnosis", "pneumonia")]).items] == ["open"]


def test_a_question_about_several_findings_has_no_single_right_option():
    findings = [("mass", 1), ("nodule", 1), ("effusion", 0)]
    forms = {item.form for item in draw([make_record(0, "diagnosis", "mass, nodule", findings=findings)]).items}
    assert forms == {"open", "yes_no"}


def test_running_text_is_left_out_and_counted():
    drawn = draw([make_record(0, "interleaved", "The end."), make_record(1, "vqa", "left")])
    assert [item.record for item in drawn.items] == ["test/1/vqa/0"]
    assert sum(drawn.left_out.values()) == 1


def test_only_the_wanted_forms_are_drawn(records):
    assert {item.form for item in draw(records, forms=("yes_no",)).items} == {"yes_no"}
    with pytest.raises(BenchError, match="form 'essay' is none of open"):
        draw(records, forms=("essay",))


def test_sets_that_radfm_was_trained_on_are_marked():
    seen, new = (own_item(make_record(0, "vqa", "left", source=source)) for source in ("slake", "ct-rate"))
    assert seen.comparison_only and not new.comparison_only


def test_a_note_of_the_record_comes_with_the_item():
    assert own_item(make_record(0, "report", "Normal.", extra={"note": "composed text"})).note == "composed text"


def test_a_record_without_a_label_is_no_item():
    drawn = draw([make_record(0, "diagnosis", "uncertain", extra={"unlabelled": True}), make_record(1, "vqa", "left")])
    assert [item.task for item in drawn.items] == ["vqa"]
    assert list(drawn.left_out) == ["no label: nothing is known to be the right answer"]


def test_a_draw_of_some_records_is_part_of_the_draw_of_all(records):
    every, some = draw(records), draw(records, per_task=30)
    assert set(some.items) < set(every.items)
    count = {task: len({item.record for item in some.items if item.bench_task == task}) for task in ("modality", "vqa")}
    assert count == {"modality": 30, "vqa": 30}
    assert some.left_out == {"modality: 30 of 200 were drawn": 170, "vqa: 30 of 50 were drawn": 20}
    assert draw(records[::-1], per_task=30).items == some.items
    assert draw(records, 1, per_task=30).items != some.items


@pytest.mark.parametrize(
    ("images", "volumes", "drawn"), [(200, 200, (15, 15)), (200, 8, (22, 8)), (4, 200, (4, 26)), (4, 8, (4, 8))]
)
def test_half_of_the_records_that_are_drawn_are_volumes_where_there_are_as_many(images, volumes, drawn):
    records = [make_record(number, "modality", MODALITIES[number % 4]) for number in range(images + volumes)]
    records = [*records[:images], *(replace(record, shapes=((64, 64, 32),)) for record in records[images:])]
    configs = Counter(item.config for item in draw(records, per_task=30).items if item.form == "open")
    assert (configs["2d"], configs["3d"]) == drawn
