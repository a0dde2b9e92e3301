"""Intervals and tests: against SciPy, against numbers worked by hand, and under a true null hypothesis."""

import itertools
import math

import krippendorff
import numpy as np
import pytest
from scipy import stats

from radfm.radbench import statistics
from radfm.radbench.statistics import cluster_interval, holm, krippendorff_alpha, mean_of, sign_flip_test, wilson


@pytest.fixture(scope="module")
def patients():
    """150 patients of 1 to 8 questions; patients differ in how often they are answered rightly."""
    generator = np.random.default_rng(3)
    groups, right = [], []
    for patient in range(150):
        ease = generator.beta(1, 0.6)
        for _ in range(generator.integers(1, 9)):
            groups.append(patient)
            right.append(float(generator.random() < ease))
    return groups, right


def test_the_interval_is_that_of_scipys_bca_over_patients(patients):
    groups, right = patients
    sums = statistics.sum_by_group(np.stack([right, np.ones(len(right))], axis=1), groups)

    def share(patient, axis=-1):
        total = sums[np.asarray(patient, int)].sum(axis=-2)
        return total[..., 0] / total[..., 1]

    options = {"method": "BCa", "n_resamples": 9_999, "vectorized": True, "rng": np.random.default_rng(0)}
    expected = stats.bootstrap((np.arange(len(sums)),), share, **options).confidence_interval
    interval = cluster_interval(mean_of("accuracy", right, ""), groups)
    assert interval.kind == "cluster bootstrap, BCa"
    assert [interval.low, interval.high] == pytest.approx([expected.low, expected.high], abs=0.006)


def test_questions_of_one_patient_do_not_narrow_the_interval(patients):
    groups, right = patients
    measurement = mean_of("accuracy", right, "")
    by_patient, by_question = cluster_interval(measurement, groups), cluster_interval(measurement, range(len(right)))
    assert by_patient.high - by_patient.low > 1.2 * (by_question.high - by_question.low)


def test_each_answer_copied_ten_times_changes_nothing(patients):
    groups, right = patients
    once = cluster_interval(mean_of("accuracy", right, ""), groups)
    copied = cluster_interval(mean_of("accuracy", np.repeat(right, 10), ""), np.repeat(groups, 10).tolist())
    assert (once.low, once.high) == pytest.approx((copied.low, copied.high))


@pytest.mark.parametrize(("right", "n"), [(0, 10), (8, 10), (50, 50), (1, 3)])
def test_wilson_is_that_of_scipy(right, n):
    expected = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_all_right_is_no_certainty():
    interval = cluster_interval(mean_of("accuracy", [1.0] * 100, ""), [number // 2 for number in range(100)])
    assert interval.kind == "Wilson, n = groups" and interval.low == pytest.approx(wilson(50, 50)[0]) and interval.high == 1


def test_one_patient_has_no_interval():
    assert cluster_interval(mean_of("accuracy", [1.0, 0.0], ""), ["a", "a"]).low is None


def test_answers_without_a_value_are_left_out():
    measurement = mean_of("recall", [1.0, math.nan, 0.0, 0.0], "")
    assert measurement.score == pytest.approx(1 / 3) and measurement.used == 3
    assert math.isnan(mean_of("recall", [math.nan], "").score)


def test_the_sign_flip_test_counts_all_swaps_of_a_few_patients():
    first, second = [1.0, 1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0, 0.0]
    groups = ["a", "a", "b", "c", "d"]  # sums of differences: a 2, b 0, c -1, d 1
    sums = [2, -1, 1]
    observed = abs(sum(sums))
    flipped = [abs(sum(s * f for s, f in zip(sums, flips, strict=True))) for flips in itertools.product((1, -1), repeat=3)]
    expected = sum(value >= observed for value in flipped) / len(flipped)
    test = sign_flip_test(mean_of("a", first, ""), mean_of("a", second, ""), groups)
    assert test.p == pytest.approx(expected) and test.difference == pytest.approx(0.4) and (test.n, test.groups) == (5, 4)


def test_equal_answers_have_p_1():
    same = mean_of("a", [1.0, 0.0, 1.0], "")
    assert sign_flip_test(same, same, "abc").p == 1


def test_a_true_null_with_clustered_answers_is_rejected_as_often_as_stated():
    """Two equally good models that agree within a patient: by question one in four of such nulls is rejected."""
    generator, rejected = np.random.default_rng(5), 0
    groups = np.repeat(np.arange(25), 6)
    for seed in range(200):
        first, second = (np.repeat(generator.random(25) < 0.5, 6).astype(float) for _ in range(2))
        rejected += sign_flip_test(mean_of("a", first, ""), mean_of("a", second, ""), groups, seed).p < 0.05
    assert rejected / 200 < 0.09  # two standard errors above 5 %


def test_only_means_are_compared_in_pairs():
    mean = mean_of("accuracy", [1.0], "")
    corpus = statistics.Measurement("BLEU-4", mean.rows, lambda sums: sums[..., 0], "")
    with pytest.raises(ValueError, match="BLEU-4"):
        sign_flip_test(corpus, mean, ["a"])


def test_holm_by_hand():
    # Sorted: 0.005 · 5, 0.01 · 4, 0.03 · 3, 0.04 · 2 (less than the one before, so equal to it), 0.5 · 1.
    assert holm([0.01, 0.04, 0.03, 0.005, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.5])
    with_hole = holm([0.01, math.nan, 0.04])
    assert with_hole[0] == pytest.approx(0.02) and math.isnan(with_hole[1])


def test_alpha_is_krippendorffs_and_undefined_where_nothing_varies():
    nan = math.nan
    ratings = [[1, 2, 3, 3, 2, 1, 4, 1, 2, nan], [1, 2, 3, 3, 2, 2, 4, 1, 2, 5], [nan, 3, 3, 3, 2, 3, 4, 2, 2, 5]]
    expected = krippendorff.alpha(reliability_data=ratings, level_of_measurement="ordinal", value_domain=[0, 1, 2, 3, 4, 5])
    assert krippendorff_alpha(ratings, range(6)) == pytest.approx(expected)
    assert krippendorff_alpha([[0, 1, 2, 5], [0, 1, 2, 5]], range(6)) == pytest.approx(1)
    assert math.isnan(krippendorff_alpha([[3, 3], [3, 3]], range(6)))
    assert math.isnan(krippendorff_alpha([[3, nan], [nan, 2]], range(6)))


def test_two_calls_give_the_same_interval(patients):
    groups, right = patients
    measurement = mean_of("accuracy", right, "")
    assert cluster_interval(measurement, groups) == cluster_interval(measurement, groups)


def test_one_patient_who_differs_proves_nothing():
    first, second = mean_of("a", [1.0, 1.0, 0.0], ""), mean_of("a", [0.0, 1.0, 0.0], "")
    assert sign_flip_test(first, second, "abc").p == 1


def test_a_spread_that_cannot_be_seen_is_no_interval():
    rows = np.array([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]] * 5)
    constant = statistics.Measurement("balanced", rows, lambda sums: np.full(sums.shape[:-1], 0.5), "")
    assert cluster_interval(constant, range(10)).low is None
