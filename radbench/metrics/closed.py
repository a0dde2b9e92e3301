"""Closed answers: how an option is read from free text, strictly and leniently, and accuracy, F1, balanced accuracy.

**Strict**: the whole answer is an option, or its letter; letter case, outer spaces and a full stop do not matter.

**Lenient**, for yes and no, the first rule that applies:

1. the answer begins with the word "yes" or "no": that ("Yes, abnormal", "No pneumonia is seen.");
2. one of the two words stands anywhere and the other does not ("normal, yes", "The answer is no."); "no" inside another
   word ("abnormal") is not the word;
3. anything else is unreadable and counts as wrong.

Rule 1 reads "No abnormality." as "no" to "Is it normal?" too: a reader of words cannot do better, likelihoods can.

**Lenient**, for other options, the first rule that applies:

1. the strict reading;
2. a letter at the beginning ("B) CT", "b: CT", "(B)") or after "answer is" or "option";
3. exactly one option is mentioned as whole words, where a mention inside a longer option's mention does not count
   ("pleural effusion" is no mention of "effusion").
"""

import re
from collections.abc import Sequence

import numpy as np

from ..statistics import Array, Measurement, divide, mean_of

YES_NO = ("yes", "no")
# "A" alone is an article at the beginning of a sentence: a letter counts only with a mark behind it.
_LETTER = re.compile(r"\(?([a-z])(?:\)|[.:](?=\s|$))|.*\b(?:answer is|option)\s*:?\s*\(?([a-z])\b", re.DOTALL)


def normalise(text: str) -> str:
    """Lower case, single spaces, no outer quotation marks, no final full stop.

    Example:
        >>> normalise('  "Chest  CT." ')
        'chest ct'
    """
    return re.sub(r"\s+", " ", text.lower()).strip(" \"'`*.!")


def read_strictly(answer: str, options: Sequence[str], lettered: bool = False) -> str | None:
    """The option that is the whole answer, or whose letter (A, B, …) is; None where there is none.

    Args:
        answer: what the model said.
        options: what it may have meant.
        lettered: whether the question showed the options with letters.

    Example:
        >>> options = ["MRI", "CT"]
        >>> read_strictly("CT.", options), read_strictly("(b)", options, lettered=True), read_strictly("a CT", options)
        ('CT', 'CT', None)
    """
    text = normalise(answer)
    for option in options:
        if text == normalise(option):
            return option
    letter = re.fullmatch(r"\(?([a-z])\)?", text) if lettered else None
    return _option_of(letter[1], options) if letter else None


def read_leniently(answer: str, options: Sequence[str], lettered: bool = False) -> str | None:
    """The option that the rules of this module find in an answer; None where it cannot be read. Arguments: `read_strictly`.

    Example:
        >>> answers = "Yes, abnormal", "normal, yes", "No pneumonia is seen.", "Unclear"
        >>> [read_leniently(answer, YES_NO) for answer in answers]
        ['yes', 'yes', 'no', None]
        >>> read_leniently("This is a CT of the head.", ["CT", "MRI"])
        'CT'
    """
    strict = read_strictly(answer, options, lettered)
    if strict is not None:
        return strict
    text = normalise(answer)
    if _is_yes_no(options):
        words = re.findall(r"[a-z]+", text)
        if words and words[0] in YES_NO:
            return next(option for option in options if normalise(option) == words[0])
        mentioned = [option for option in options if normalise(option) in words]
        return mentioned[0] if len(mentioned) == 1 else None
    letter = _LETTER.match(answer.strip().lower()) if lettered else None
    if letter:
        option = _option_of(letter[1] or letter[2], options)
        if option is not None:
            return option
    mentioned = _mentions(text, options)
    return mentioned[0] if len(mentioned) == 1 else None


def _is_yes_no(options: Sequence[str]) -> bool:
    return sorted(map(normalise, options)) == ["no", "yes"]


def _option_of(letter: str, options: Sequence[str]) -> str | None:
    index = ord(letter) - ord("a")
    return options[index] if index < len(options) else None


def _mentions(text: str, options: Sequence[str]) -> list[str]:
    """The options that stand in the text as whole words, longest first; what they cover is not looked at again."""
    found = []
    for option in sorted(options, key=lambda option: -len(option)):
        pattern = rf"(?<!\w){re.escape(normalise(option))}(?!\w)"
        if normalise(option) and re.search(pattern, text):
            found.append(option)
            text = re.sub(pattern, "\0", text)
    return found


def accuracy(name: str, read: Sequence[str | None], references: Sequence[str], signature: str) -> Measurement:
    """The share of answers that were read as the reference; an unreadable answer is wrong."""
    return mean_of(name, [float(is_same(a, b)) for a, b in zip(read, references, strict=True)], signature)


def is_same(answer: str | None, reference: str) -> bool:
    """Whether an option that was read is the reference; letter case and outer spaces do not matter."""
    return answer is not None and normalise(answer) == normalise(reference)


def unreadable(read: Sequence[str | None], signature: str) -> Measurement:
    """The share of answers in which no option could be read."""
    return mean_of("unreadable answers", [float(answer is None) for answer in read], signature)


def confusion(read: Sequence[str | None], references: Sequence[str]) -> tuple[list[str], Array]:
    """Classes (those of the references), and a row an answer: right, predicted, actual of each class, (n, 3 · classes)."""
    classes = sorted({normalise(reference) for reference in references})
    place = {name: index for index, name in enumerate(classes)}
    rows = np.zeros((len(read), 3, len(classes)))
    for row, answer, reference in zip(rows, read, references, strict=True):
        actual = place[normalise(reference)]
        row[2, actual] = 1
        if answer is not None and (predicted := place.get(normalise(answer))) is not None:
            row[1, predicted] = 1
            row[0, actual] = float(predicted == actual)
    return classes, rows.reshape(len(read), -1)


def f1(name: str, read: Sequence[str | None], references: Sequence[str], signature: str) -> Measurement:
    """F1 of "yes" for yes and no; else the mean F1 of the classes that the references have (macro).

    A class that is neither predicted nor there in a resample is left out of its mean.

    Example:
        >>> round(f1("F1", ["yes", "yes", "no", None], ["yes", "no", "no", "yes"], "").score, 3)
        0.5
    """
    classes, rows = confusion(read, references)
    binary = set(classes) <= set(YES_NO)

    def value(sums: Array) -> Array:
        right, predicted, actual = _three(sums)
        scores = divide(2 * right, predicted + actual)
        if binary:
            return scores[..., classes.index("yes")] if "yes" in classes else np.full(scores.shape[:-1], np.nan)
        return _mean_of_defined(scores)

    kind = "F1 of yes" if binary else f"macro F1 of {len(classes)} classes"
    return Measurement(name, rows, value, f"{signature}|{kind}", used=len(read))


def balanced_accuracy(name: str, read: Sequence[str | None], references: Sequence[str], signature: str) -> Measurement:
    """The mean recall of the classes that the references have: a model that always gives one answer gets 1 / classes.

    Example:
        >>> balanced_accuracy("", ["yes"] * 4, ["yes", "yes", "yes", "no"], "").score
        0.5
    """
    classes, rows = confusion(read, references)

    def value(sums: Array) -> Array:
        right, _, actual = _three(sums)
        return _mean_of_defined(divide(right, actual))

    return Measurement(name, rows, value, f"{signature}|mean recall of {len(classes)} classes", used=len(read))


def _three(sums: Array) -> tuple[Array, Array, Array]:
    parts = sums.reshape(*sums.shape[:-1], 3, -1)
    return parts[..., 0, :], parts[..., 1, :], parts[..., 2, :]


def _mean_of_defined(scores: Array) -> Array:
    defined = ~np.isnan(scores)
    return divide(np.where(defined, scores, 0.0).sum(axis=-1), defined.sum(axis=-1))
