"""The conditions: what each changes, which items it applies to, and which label the scan of another patient has."""

import nibabel
import numpy as np
import pytest
from bench_data import make_record

from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.load_scan_radfm import load_scan
from radfm.medmd.schema import Message, Part
from radfm.radbench.conditions import (
    MODEL_CONDITIONS,
    OTHER_LABEL,
    SAME_LABEL,
    STABILITY,
    apply_change,
    make_requests,
)
from radfm.radbench.draw import draw, letter_options
from radfm.scan_radfm import Scan

MODALITIES = ("CT", "MRI", "X-ray", "ultrasound")
HISTORY = "Woman, 61 years, fever."


@pytest.fixture
def records():
    records = [make_record(number, "modality", MODALITIES[number % 4]) for number in range(24)]
    # The second study of a patient, and a copy of a scan that was filed under another patient.
    records.append(make_record(100, "modality", "CT", group=records[0].group))
    records.append(make_record(101, "modality", "CT", image_sha256=records[0].image_sha256))
    for number in range(12):
        state = number % 2
        findings = [("pneumonia", state), ("effusion", 1 - state)]
        right = "pneumonia" if state else "effusion"
        records.append(make_record(number, "diagnosis", right, "What is the diagnosis?", findings))
        records.append(make_record(number, "report", f"{right} {number}", f"{HISTORY} Report this scan.", findings))
        records.append(make_record(number, "vqa", ("left", "right")[state], "On which side?"))
    return {record.id: record for record in records}


@pytest.fixture
def items(records):
    return {item.id: item for item in draw(records.values()).items}


@pytest.fixture
def requests(items, records):
    conditions = (*MODEL_CONDITIONS, *STABILITY)
    made = make_requests(list(items.values()), records, conditions)
    return {name: [request for request in made if request.condition == name] for name in conditions}


def text_of(request) -> str:
    return "".join(part.text or "" for message in request.messages for part in message.content)


def marks_of(request) -> int:
    return sum(part.type == "image" for message in request.messages for part in message.content)


def test_every_request_has_a_scan_for_each_image_mark(requests):
    assert all(len(request.scans) == marks_of(request) for made in requests.values() for request in made)


def test_without_an_image_the_question_stands_alone(requests, items):
    assert len(requests["no image"]) == len(items)
    for request in requests["no image"]:
        assert marks_of(request) == 0 and HISTORY not in text_of(request)
        assert items[request.item].question.endswith(text_of(request))


def test_history_alone_is_asked_where_there_is_one(requests, items):
    assert {items[request.item].task for request in requests["history only"]} == {"report"}
    for request in requests["history only"]:
        assert marks_of(request) == 0 and text_of(request) == items[request.item].question


def test_earlier_turns_are_history_too():
    record = make_record(0, "vqa", "left", "On which side?")
    first = (Message("user", (Part("image"), Part("text", "Is it CT?"))), Message("assistant", (Part("text", "yes"),)))
    question = Message("user", (Part("text", "On which side?"),))
    record = make_record(0, "vqa", "left")
    record = type(record)(**{**vars(record), "messages": (*first, question, record.messages[-1])})
    made = {r.condition: r for r in make_requests(draw([record]).items, {record.id: record}, MODEL_CONDITIONS)}
    assert text_of(made["history only"]) == "Is it CT?yesOn which side?" and marks_of(made["history only"]) == 0
    assert text_of(made["no image"]) == "On which side?"
    assert marks_of(made["scan"]) == 1


def _label(record, item):
    """The right answer to an item if it were asked about the scan of another record."""
    if item.task == "modality":
        return {True: "yes", False: "no"}[record.answer == item.asked] if item.form == "yes_no" else record.answer
    if item.task == "vqa":
        return record.answer
    findings = {finding.name: finding.value for finding in record.findings}
    if item.form == "yes_no":
        return "yes" if findings.get(item.asked, 0) == 1 else "no"
    return findings


@pytest.mark.parametrize("condition", [SAME_LABEL, OTHER_LABEL])
def test_the_scan_of_another_patient_has_the_label_that_it_must_have(condition, requests, items, records):
    assert {items[request.item].form for request in requests[condition]} == {"open", "yes_no", "choice", "likelihood"}
    for request in requests[condition]:
        item, partner = items[request.item], records[request.scans[0].record]
        record = records[item.record]
        assert partner.group != record.group and partner.image_sha256 != record.image_sha256
        assert request.messages == item.messages
        assert (_label(partner, item) == _label(record, item)) == (condition == SAME_LABEL)


def test_no_other_patient_no_request():
    records = {record.id: record for record in [make_record(0, "vqa", "left"), make_record(1, "vqa", "left")]}
    made = make_requests(draw(records.values()).items, records, MODEL_CONDITIONS)
    assert [request.condition for request in made].count(SAME_LABEL) == 2
    assert OTHER_LABEL not in [request.condition for request in made]


@pytest.mark.parametrize("shared", ["group", "image_sha256"])
def test_another_study_of_the_patient_and_a_copy_of_the_scan_are_no_other_patient(shared):
    first = make_record(0, "vqa", "left")
    again = make_record(1, "vqa", "left", **{shared: getattr(first, shared)})
    items = draw([first, again]).items
    made = make_requests(items, {record.id: record for record in (first, again)}, [SAME_LABEL])
    assert made == []
    other = make_record(2, "vqa", "left")
    made = make_requests(items, {record.id: record for record in (first, again, other)}, [SAME_LABEL])
    assert [request.scans[0].record for request in made] == [other.id] * 2


def test_shuffled_options_are_the_same_in_another_order(requests, items):
    assert len(requests["shuffled options"]) == sum(item.form == "choice" for item in items.values())
    for request in requests["shuffled options"]:
        item = items[request.item]
        assert request.shown != item.options and sorted(request.shown) == sorted(item.options)
        assert text_of(request) == item.question.replace(letter_options(item.options), letter_options(request.shown))


def test_a_flip_is_not_asked_where_the_answer_has_a_side(requests, items):
    assert "vqa" not in {items[request.item].task for request in requests["flipped scan"]}
    assert requests["flipped scan"]


@pytest.mark.parametrize("modality", [None, "CT", "MR"])
def test_a_black_image_is_black_for_the_model(modality):
    voxels = np.random.default_rng(0).normal(0, 500, (1, 40, 40, 8)).astype(np.float32)
    black = apply_change(Scan(voxels, np.eye(4), (1.0, 1.0, 1.0), modality), "black image")
    assert black.voxels.shape == voxels.shape
    assert RadFMImageProcessor(image_size=64).preprocess(black).max() == 0


def test_a_flipped_scan_is_mirrored_as_the_model_sees_it(nifti_files):
    scan = load_scan(nifti_files / "example4d.nii.gz")
    processor = RadFMImageProcessor(image_size=64)
    plain, flipped = (processor.preprocess(apply_change(scan, change)) for change in ("scan", "flipped scan"))
    np.testing.assert_allclose(flipped.flip(2).numpy(), plain.numpy(), atol=1e-5)


def test_other_slices_keep_their_place_in_the_patient():
    affine = np.array([[2.0, 0, 0, 7], [0, 2, 0, 8], [0, 0, 5, 9], [0, 0, 0, 1]])
    ramp = np.broadcast_to(np.arange(12, dtype=np.float32), (1, 20, 24, 12))
    thinned = apply_change(Scan(ramp, affine, (2.0, 2.0, 5.0)), "other slices")
    assert thinned.voxels.shape[-1] == 6 and thinned.spacing[2] == 10
    for slice_ in range(6):
        place = (thinned.affine @ [0, 0, slice_, 1])[2]
        assert thinned.voxels[0, 0, 0, slice_] == (place - 9) / 5


@pytest.mark.parametrize(
    "scan",
    [
        Scan(np.linspace(-200, 300, 4096, dtype=np.float32).reshape(1, 64, 64, 1), modality="CT"),
        Scan(np.linspace(0, 255, 4096, dtype=np.float32).reshape(1, 64, 64, 1), windows=((0.0, 255.0),)),
        Scan(np.linspace(0, 900, 4096, dtype=np.float32).reshape(1, 64, 64, 1), modality="MR"),
    ],
    ids=["CT", "picture", "MR"],
)
def test_another_window_changes_grey_values_and_not_their_order(scan):
    processor = RadFMImageProcessor(image_size=64)
    plain, changed = (processor.preprocess(apply_change(scan, change)).flatten() for change in ("scan", "other window"))
    assert (plain - changed).abs().max() > 0.01
    assert bool((changed.diff() >= 0).all())


def test_nothing_is_changed_in_the_condition_scan(nifti_files):
    scan = load_scan(nifti_files / "anatomical.nii")
    assert apply_change(scan, "scan") is scan
    assert nibabel.load(nifti_files / "anatomical.nii").shape[2] == scan.voxels.shape[-1]
