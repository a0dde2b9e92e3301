"""BLEU and ROUGE, each with a signature: under the word "BLEU" the same answers get 3 or 27.

`measure` gives the four that reports use. `definitions` gives all that papers may have meant, for scoring published answers
again: the definition behind the paper's BLEU and ROUGE was never published.

Conventions: sacrebleu's corpus BLEU gives 0 to a perfect copy of answers under four words, hence effective order.
rouge-score sees letters a–z and digits alone and gives 0 to a perfect copy of "-" or of Chinese: an answer without any
such word gets 1 where it is the reference, else 0.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from math import exp
from typing import Any

import numpy as np

from ..statistics import Array, Measurement, mean_of
from .closed import normalise

ORDER = 4


@cache
def _bleu(order: int, tokenize: str) -> Any:
    from sacrebleu.metrics import BLEU

    # force: silences sacrebleu's warning about references that look tokenized.
    return BLEU(max_ngram_order=order, tokenize=tokenize, effective_order=True, force=True)


@cache
def _rouge(kinds: tuple[str, ...], stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(kinds), use_stemmer=stemmer)


def corpus_bleu(
    answers: Sequence[str], references: Sequence[str], order: int = ORDER, tokenize: str = "13a", name: str | None = None
) -> Measurement:
    """sacrebleu's corpus BLEU with effective order, as sums of its counts, so that patients can be resampled.

    Example:
        >>> round(corpus_bleu(["no effusion", "CT"], ["no effusion", "CT"]).score, 6)
        1.0
    """
    bleu = _bleu(order, tokenize)
    rows = np.zeros((len(answers), 2 * order + 2))
    for row, answer, reference in zip(rows, answers, references, strict=True):
        counted = bleu.sentence_score(answer, [reference])
        row[:order], row[order : 2 * order] = counted.counts, counted.totals
        row[-2:] = counted.sys_len, counted.ref_len

    def value(sums: Array) -> Array:
        flat = sums.reshape(-1, sums.shape[-1])
        scores = [_bleu_of(bleu, row, order) for row in flat]
        return np.asarray(scores).reshape(sums.shape[:-1])

    return Measurement(name or f"BLEU-{order}", rows, value, f"sacrebleu corpus|{_signature(bleu)}", used=len(answers))


def _bleu_of(bleu: Any, sums: Array, order: int) -> float:
    counts, totals = [list(map(int, part)) for part in (sums[:order], sums[order : 2 * order])]
    score = bleu.compute_bleu(
        counts,
        totals,
        int(sums[-2]),
        int(sums[-1]),
        smooth_method=bleu.smooth_method,
        smooth_value=bleu.smooth_value,
        effective_order=bleu.effective_order,
        max_ngram_order=order,
    )
    return float(score.score) / 100


def _signature(bleu: Any) -> str:
    # The number of references is known to sacrebleu after a corpus score alone.
    bleu.corpus_score(["a"], [["a"]])
    return f"{bleu.get_signature()}|order:{bleu.max_ngram_order}"


def sentence_bleu(
    answers: Sequence[str], references: Sequence[str], order: int = ORDER, tokenize: str = "13a"
) -> Measurement:
    """The mean of sacrebleu's sentence BLEU."""
    bleu = _bleu(order, tokenize)
    scores = [bleu.sentence_score(a, [r]).score / 100 for a, r in zip(answers, references, strict=True)]
    return mean_of(f"BLEU-{order} (mean of sentences)", scores, f"sacrebleu mean of sentences|{_signature(bleu)}")


def bleu_1(answers: Sequence[str], references: Sequence[str], by_spaces: bool = False) -> Measurement:
    """The mean over answers of BLEU with single words: clipped precision times brevity penalty.

    Args:
        answers: what the model said.
        references: what was right.
        by_spaces: words as they stand between spaces; else lower case, words and punctuation apart.

    Example:
        >>> round(bleu_1(["CT of the head"], ["head CT"]).score, 3), bleu_1(["-"], ["-"]).score
        (0.5, 1.0)
    """

    def split(text: str) -> list[str]:
        return text.split() if by_spaces else re.findall(r"\w+|[^\w\s]", text.lower())

    scores = [_unigram_bleu(split(a), split(r)) for a, r in zip(answers, references, strict=True)]
    tokens = "words between spaces" if by_spaces else "lower case, words and punctuation"
    return mean_of(
        "BLEU-1 (spaces)" if by_spaces else "BLEU-1",
        scores,
        f"mean of sentences|order 1|{tokens}|brevity penalty|no smoothing",
    )


def _unigram_bleu(answer: list[str], reference: list[str]) -> float:
    if not answer:
        return float(not reference)
    matches = sum((Counter(answer) & Counter(reference)).values())
    penalty = 1.0 if len(answer) >= len(reference) else exp(1 - len(reference) / len(answer))
    return penalty * matches / len(answer)


def rouge(
    answers: Sequence[str], references: Sequence[str], kind: str = "rougeL", part: str = "fmeasure", stemmer: bool = True
) -> Measurement:
    """The mean over answers of rouge-score's ROUGE.

    Args:
        answers: what the model said.
        references: what was right.
        kind: rouge1, rouge2 or rougeL.
        part: precision, recall or fmeasure.
        stemmer: whether endings are cut (Porter).

    Example:
        >>> round(rouge(["no effusion"], ["no pleural effusion"]).score, 3)
        0.8
    """
    scores = [_rouge_of(kind, part, stemmer, a, r) for a, r in zip(answers, references, strict=True)]
    name = f"ROUGE-{kind.removeprefix('rouge')}"
    suffix = {"fmeasure": "", "precision": " precision", "recall": " recall"}[part] + ("" if stemmer else " (no stemmer)")
    signature = f"rouge-score {version('rouge-score')}|{kind}|{part}|stemmer:{'yes' if stemmer else 'no'}|mean of answers"
    return mean_of(name + suffix, scores, f"{signature}|no word on both sides: 1 if equal")


@lru_cache(maxsize=200_000)
def _rouge_of(kind: str, part: str, stemmer: bool, answer: str, reference: str) -> float:
    if not re.search("[a-z0-9]", answer.lower()) and not re.search("[a-z0-9]", reference.lower()):
        return float(normalise(answer) == normalise(reference))
    return float(getattr(_rouge((kind,), stemmer).score(reference, answer)[kind], part))


def measure(answers: Sequence[str], references: Sequence[str]) -> list[Measurement]:
    """The metrics of a report: corpus BLEU-4, BLEU-1, ROUGE-1 and ROUGE-L."""
    return [
        corpus_bleu(answers, references),
        bleu_1(answers, references),
        rouge(answers, references, "rouge1"),
        rouge(answers, references, "rougeL"),
    ]


def definitions(answers: Sequence[str], references: Sequence[str]) -> list[Measurement]:
    """Every definition of BLEU and ROUGE that a paper may mean by the bare word, from the same answers."""
    return [
        corpus_bleu(answers, references),
        corpus_bleu(answers, references, tokenize="none", name="BLEU-4 (not tokenized)"),
        sentence_bleu(answers, references),
        corpus_bleu(answers, references, order=1, name="BLEU-1 (corpus)"),
        bleu_1(answers, references),
        bleu_1(answers, references, by_spaces=True),
        *(rouge(answers, references, "rouge1", part) for part in ("precision", "recall", "fmeasure")),
        rouge(answers, references, "rougeL"),
        rouge(answers, references, "rougeL", stemmer=False),
    ]
