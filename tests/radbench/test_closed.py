"""Closed answers: how they are read, and what is counted; scikit-learn is the reference."""

import math

import numpy as np
import pytest
from sklearn import metrics as sklearn

from radfm.radbench.metrics import calibration, closed, likelihoods
from radfm.radbench.metrics.closed import YES_NO, read_leniently, read_strictly


@pytest.mark.parametrize(
    ("answer", "strict", "lenient"),
    [
        ("yes", "yes", "yes"),
        ("No.", "no", "no"),
        ("Yes, abnormal", None, "yes"),
        ("normal, yes", None, "yes"),
        ("No pneumonia is seen.", None, "no"),
        ("The answer is no.", None, "no"),
        ("abnormal", None, None),
        ("normal", None, None),
        ("nothing abnormal; not known", None, None),
        ("It may be yes or no.", None, None),
        ("Yes, there is no doubt of it.", None, "yes"),
        ("No, though some would say yes.", None, "no"),
        ("", None, None),
        ("YES", "yes", "yes"),
        ("There is no effusion", None, "no"),
    ],
)
def test_yes_and_no(answer, strict, lenient):
    assert read_strictly(answer, YES_NO) == strict and read_leniently(answer, YES_NO) == lenient


OPTIONS = ("pleural effusion", "effusion", "pneumonia", "CT")


@pytest.mark.parametrize(
    ("answer", "lenient"),
    [
        ("B", "effusion"),
        ("(c) pneumonia", "pneumonia"),
        ("d: whatever", "CT"),
        ("The answer is A", "pleural effusion"),
        ("There is a pleural effusion.", "pleural effusion"),
        ("There is an effusion.", "effusion"),
        ("A pneumonia is shown", "pneumonia"),
        ("pneumonia or effusion", None),
        ("pneumonias", None),
        ("E", None),
        ("ectopic", None),
    ],
)
def test_lettered_options(answer, lenient):
    assert read_leniently(answer, OPTIONS, lettered=True) == lenient


def test_letters_mean_nothing_where_the_question_showed_none():
    assert read_strictly("a", ["left"]) is None and read_leniently("B) right", ["left", "other"]) is None


def test_a_letter_means_the_option_at_its_place():
    assert read_strictly("A", ("right", "left"), lettered=True) == "right"


@pytest.fixture
def labels():
    generator = np.random.default_rng(0)
    references = [str(label) for label in generator.choice(["ct", "mri", "x-ray"], 200, p=[0.6, 0.3, 0.1])]
    read = [r if generator.random() < 0.7 else str(generator.choice(["ct", "mri", "x-ray"])) for r in references]
    return read, references


def test_accuracy_f1_and_balanced_accuracy_are_those_of_scikit_learn(labels):
    read, references = labels
    assert closed.accuracy("", read, references, "").score == pytest.approx(sklearn.accuracy_score(references, read))
    assert closed.balanced_accuracy("", read, references, "").score == pytest.approx(
        sklearn.balanced_accuracy_score(references, read)
    )
    assert closed.f1("", read, references, "").score == pytest.approx(sklearn.f1_score(references, read, average="macro"))


def test_f1_of_yes_is_that_of_scikit_learn():
    generator = np.random.default_rng(1)
    references, read = (["yes" if y else "no" for y in generator.random(50) < 0.3] for _ in range(2))
    assert closed.f1("", read, references, "").score == pytest.approx(sklearn.f1_score(references, read, pos_label="yes"))


def test_always_yes_gets_the_share_of_yes_and_half_of_balanced_accuracy():
    references = ["yes"] * 30 + ["no"] * 70
    always = ["yes"] * 100
    assert closed.accuracy("", always, references, "").score == pytest.approx(0.3)
    assert closed.balanced_accuracy("", always, references, "").score == pytest.approx(0.5)
    assert closed.f1("", always, references, "").score == pytest.approx(2 * 0.3 / 1.3)


def test_an_unreadable_answer_is_wrong():
    read, references = ["yes", None], ["yes", "no"]
    assert closed.accuracy("", read, references, "").score == 0.5 and closed.unreadable(read, "").score == 0.5
    assert closed.balanced_accuracy("", read, references, "").score == 0.5


def test_likelihoods():
    assert likelihoods.choose({"CT": -3.0, "MRI": -2.0}) == "MRI"
    shares = likelihoods.probabilities({"yes": -1000.0, "no": -1000.0 + math.log(3)})
    assert shares["no"] == pytest.approx(0.75) and sum(shares.values()) == pytest.approx(1)


def test_calibration_error_by_hand():
    # Two tenths: 0.3 thrice, one of them yes; 0.9 twice, both yes. ECE = 3/5 · |0.3 − 1/3| + 2/5 · |0.9 − 1|.
    p_yes, is_yes = [0.3, 0.3, 0.3, 0.9, 0.9], [True, False, False, True, True]
    assert calibration.calibration_error(p_yes, is_yes).score == pytest.approx(0.6 * (1 / 3 - 0.3) + 0.4 * 0.1)
    assert calibration.brier(p_yes, is_yes).score == pytest.approx(sklearn.brier_score_loss(is_yes, p_yes))
    bins = calibration.reliability(p_yes, is_yes)
    assert [(bin_.n, bin_.share) for bin_ in bins] == [(3, pytest.approx(1 / 3)), (2, 1.0)]


def test_a_calibrated_model_has_almost_no_error_and_a_certain_one_errs_by_its_mistakes():
    generator = np.random.default_rng(2)
    p_yes = generator.random(20_000)
    is_yes = generator.random(20_000) < p_yes
    assert calibration.calibration_error(p_yes, is_yes).score < 0.015
    certain = (p_yes > 0.5).astype(float)
    assert calibration.calibration_error(certain, is_yes).score == pytest.approx((certain != is_yes).mean(), abs=0.01)
