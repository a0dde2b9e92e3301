"""BLEU and ROUGE against their own packages, and what three models get whose scores are known beforehand."""

import random

import numpy as np
import pytest
from results import REPORTS
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from radfm.radbench.metrics import overlap
from radfm.radbench.statistics import cluster_interval

ANSWERS = [
    "No pleural effusion. The heart is enlarged.",
    "Small right effusion with atelectasis.",
    "CT",
    "mass in the left upper lobe",
    "",
]
REFERENCES = [*REPORTS[:2], "CT", REPORTS[2], "no"]


@pytest.mark.parametrize("tokenize", ["13a", "none"])
@pytest.mark.parametrize("order", [1, 4])
def test_corpus_bleu_is_sacrebleus(order, tokenize):
    expected = BLEU(max_ngram_order=order, tokenize=tokenize, effective_order=True).corpus_score(ANSWERS, [REFERENCES])
    measured = overlap.corpus_bleu(ANSWERS, REFERENCES, order, tokenize)
    assert measured.score == pytest.approx(expected.score / 100)
    assert (
        f"tok:{tokenize}" in measured.signature
        and f"order:{order}" in measured.signature
        and "version:" in measured.signature
    )


def test_sentence_bleu_is_the_mean_of_sacrebleus():
    bleu = BLEU(effective_order=True)
    expected = np.mean([bleu.sentence_score(a, [r]).score for a, r in zip(ANSWERS, REFERENCES, strict=True)]) / 100
    assert overlap.sentence_bleu(ANSWERS, REFERENCES).score == pytest.approx(expected)


def test_bleu_1_by_hand():
    # "the the cat" for "the cat sat down": "the" counts once, so 2 of 3 words; penalty exp(1 - 4/3).
    assert overlap.bleu_1(["the the cat"], ["the cat sat down"]).score == pytest.approx(2 / 3 * np.exp(1 - 4 / 3))


@pytest.mark.parametrize("stemmer", [True, False])
@pytest.mark.parametrize("kind", ["rouge1", "rougeL"])
@pytest.mark.parametrize("part", ["precision", "recall", "fmeasure"])
def test_rouge_is_rouge_scores(kind, part, stemmer):
    scorer = RougeScorer([kind], use_stemmer=stemmer)
    expected = np.mean([getattr(scorer.score(r, a)[kind], part) for a, r in zip(ANSWERS, REFERENCES, strict=True)])
    assert overlap.rouge(ANSWERS, REFERENCES, kind, part, stemmer).score == pytest.approx(expected)


@pytest.mark.parametrize("texts", [list(REPORTS), ["CT", "no", "left lung"], ["-", "", "胸腔积液"]])
def test_a_copy_of_the_reference_gets_everything(texts):
    """sacrebleu's default gives 0 to copies under four words, rouge-score 0 to copies without a Latin letter."""
    for measurement in overlap.definitions(texts, texts):
        expected = pytest.approx(1.0)
        if measurement.name.startswith("BLEU-4") or "corpus" in measurement.name:
            # A corpus of nothing but "" has no n-gram: here other texts have.
            expected = pytest.approx(1.0 if "mean" not in measurement.name or "" not in texts else 2 / 3)
        assert measurement.score == expected, measurement.name


def test_shuffled_references_get_the_overlap_of_strangers():
    """A model that gives each scan the report of another scan still gets far more than nothing."""
    generator = random.Random(0)
    texts = [REPORTS[number % 4] for number in range(40)]
    shuffled = generator.sample(texts, len(texts))
    scores = {m.name: m.score for m in overlap.measure(shuffled, texts)}
    expected = np.mean([overlap.rouge([a], [r]).score for a, r in zip(shuffled, texts, strict=True)])
    assert scores["ROUGE-L"] == pytest.approx(expected) and 0.15 < scores["ROUGE-L"] < 0.7


def test_definitions_of_one_word_differ_by_a_multiple():
    texts = [REPORTS[number % 4] for number in range(1, 9)]
    scores = [m.score for m in overlap.definitions([REPORTS[number % 4] for number in range(8)], texts) if "BLEU" in m.name]
    assert max(scores) > 3 * min(scores)


def test_definitions_have_names_and_signatures_of_their_own():
    found = overlap.definitions(["CT"], ["CT"])
    assert len({m.name for m in found}) == len({m.signature for m in found}) == len(found)


def test_corpus_bleu_is_resampled_as_a_corpus():
    """The interval of corpus BLEU holds corpus BLEU, which the mean of sentence BLEU would not."""
    answers = [REPORTS[(number * 7) % 4] for number in range(30)]
    references = [REPORTS[number % 3] for number in range(30)]
    measurement = overlap.corpus_bleu(answers, references)
    interval = cluster_interval(measurement, range(30))
    assert interval.low < measurement.score < interval.high
