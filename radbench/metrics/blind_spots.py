"""What each metric cannot see, on the references of the benchmark: a reference is changed, and the metric scores the change.

A metric that gives a text with left for right 0.95 cannot tell the two apart. Each change makes a right text wrong, so a
perfect metric would give 0 to all of them.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..statistics import Measurement
from .findings import finding_scores
from .medical_terms import Extractor, term_scores
from .overlap import measure as measure_overlap
from .similarity import TextModel

MOST = 200  # references a change: enough for a mean, and a language model reads them in seconds

_SWAPS = {
    "left for right": (("left", "right"),),
    "small for large": (("small", "large"), ("mild", "severe"), ("minimal", "marked")),
}
# Used where the references of a benchmark are too short or have none of these words.
EXAMPLES = (
    "There is no pleural effusion or pneumothorax.",
    "Small left pleural effusion with mild atelectasis at the left lung base.",
    "Large mass in the right upper lobe; no evidence of metastasis.",
    "No acute fracture of the right wrist is seen. Mild soft tissue swelling.",
)


_NEGATION = re.compile(r"\b(?:(?:there is )?no evidence of|without|no|not)\s+", re.IGNORECASE)


def flip_negation(text: str) -> str:
    """The text without its negations, or with one in front where it has none.

    Example:
        >>> flip_negation("No pleural effusion."), flip_negation("Pleural effusion.")
        ('Pleural effusion.', 'No pleural effusion.')
    """
    flipped, count = _NEGATION.subn("", text)
    if count == 0:
        flipped = f"no {text[:1].lower()}{text[1:]}"
    return flipped[:1].upper() + flipped[1:]


def swap(text: str, pairs: Sequence[tuple[str, str]]) -> str:
    """The text with the words of each pair exchanged.

    Example:
        >>> swap("Left lung, right hilum.", [("left", "right")])
        'Right lung, left hilum.'
    """
    other = {a: b for pair in pairs for a, b in (pair, pair[::-1])}

    def exchange(match: re.Match[str]) -> str:
        word = other[match[0].lower()]
        return word.capitalize() if match[0][0].isupper() else word

    return re.sub(rf"\b(?:{'|'.join(other)})\b", exchange, text, flags=re.IGNORECASE)


CHANGES: dict[str, Callable[[str], str]] = {
    "negation flipped": flip_negation,
    **{name: partial(swap, pairs=pairs) for name, pairs in _SWAPS.items()},
}


def measure(
    references: Sequence[str], extractor: Extractor | None = None, text_model: TextModel | None = None
) -> list[dict[str, Any]]:
    """The score of changed references, by change and metric: [{"change", "metric", "value", "n", "texts"}, …].

    `texts` says whose references these are: the benchmark's, or four examples where the change applies to none of them.
    """
    rows = []
    for change, function in CHANGES.items():
        changed_references = _changed(references, function)
        originals, changed = zip(*(changed_references or _changed(EXAMPLES, function)), strict=True)
        for measurement in _all_metrics(changed, originals, extractor, text_model):
            value = measurement.score
            rows.append(
                {
                    "change": change,
                    "metric": measurement.name,
                    "value": None if value != value else round(value, 6),
                    "n": len(changed),
                    "texts": "references of the benchmark" if changed_references else "examples",
                }
            )
    return rows


def _changed(texts: Sequence[str], function: Callable[[str], str]) -> list[tuple[str, str]]:
    pairs = [(text, function(text)) for text in dict.fromkeys(texts)]
    return [(text, changed) for text, changed in pairs if changed != text][:MOST]


def _all_metrics(
    answers: Sequence[str], references: Sequence[str], extractor: Extractor | None, text_model: TextModel | None
) -> list[Measurement]:
    measured = measure_overlap(answers, references)
    if extractor is not None:
        measured += term_scores(answers, references, extractor)
    measured += finding_scores(answers, references)[-1:]
    if text_model is not None:
        measured += text_model.measure(answers, references)
    return measured
