"""Precision and recall of medical terms: the paper's UMLS_Precision and UMLS_Recall, with a named extractor.

The paper counts the medical terms that an answer and its reference share, over the terms of the answer (precision) or of the
reference (recall); its matching was never published. Here a term counts once an answer, and a number is a mean over answers.

Conventions: an answer without terms has no precision unless the reference has terms (then 0); a reference without terms
has no recall. Such answers are left out, and the signature says how many were not.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np

from ..statistics import Measurement, divide, mean_of
from .errors import MetricError

MIN_LENGTH = 3  # shorter headings of MeSH (ST, Or, …) are mostly other words


class Extractor(Protocol):
    """Finds medical terms. `name` goes into the signature of a score."""

    name: str

    def __call__(self, text: str) -> set[str]: ...


class TermList:
    """Finds the terms of a list: the longest at a place, at word edges, whatever the case.

    Args:
        terms: the list. "Effusion, Pleural" is also "pleural effusion"; a plural s is cut from the last word.
        name: of the list.

    Example:
        >>> terms = TermList(["Effusion, Pleural", "effusion", "lung"], "three terms")
        >>> sorted(terms("Small pleural effusions in the left lung; no effusion."))
        ['effusion', 'lung', 'pleural effusion']
    """

    def __init__(self, terms: Iterable[str], name: str):
        self.name = name
        self._by_first: defaultdict[str, list[tuple[str, ...]]] = defaultdict(list)
        known = {form for term in terms for form in _forms(term)}
        for words in sorted(known, key=len, reverse=True):
            self._by_first[words[0]].append(words)

    def __call__(self, text: str) -> set[str]:
        words = [_singular(word) for word in _words(text)]
        found, place = set(), 0
        while place < len(words):
            term = next((t for t in self._by_first.get(words[place], ()) if tuple(words[place : place + len(t)]) == t), None)
            if term is not None:
                found.add(" ".join(term))
            place += len(term) if term else 1
        return found


def read_term_list(files: Sequence[Path], leave_out: Path | None = None) -> TermList:
    """A term list from text files, one term a line, less the terms of another file.

    Raises:
        MetricError: a file cannot be read.
    """
    try:
        lists = [file.read_text(encoding="utf-8").splitlines() for file in files]
        ordinary = set(leave_out.read_text(encoding="utf-8").lower().split("\n")) if leave_out else set()
    except OSError as error:
        raise MetricError(f"{error.filename}: the term list cannot be read ({error.strerror}).") from error
    ordinary |= {_singular(word) for word in ordinary}
    terms = [term for lines in lists for term in map(str.strip, lines) if len(term) >= MIN_LENGTH]
    kept = [term for term in terms if not {term.lower(), _singular(term.lower())} & ordinary]
    return TermList(kept, f"term list {'+'.join(file.name for file in files)}, {len(kept):,} terms")


class ScispacyExtractor:
    """Entities of a scispaCy model, in lower case.

    Args:
        model: the name of an installed model, or its folder.

    Raises:
        MetricError: spaCy or the model is not there.
    """

    def __init__(self, model: str):
        try:
            # By name, because scispaCy's models are nothing that an extra of this package could install.
            self._model = import_module("spacy").load(model)
        except (ImportError, OSError) as error:
            raise MetricError(
                f"{model}: spaCy or this model is not there ({error}); use a term list, or install scispacy."
            ) from error
        self.name = f"scispaCy {model} {self._model.meta.get('version', '')}".strip()

    def __call__(self, text: str) -> set[str]:
        return {entity.text.lower() for entity in self._model(text).ents}


def term_scores(answers: Sequence[str], references: Sequence[str], extract: Extractor) -> list[Measurement]:
    """Precision and recall of terms, as means over the answers for which they are defined.

    Example:
        >>> terms = TermList(["effusion", "cardiomegaly"], "two terms")
        >>> [m.score for m in term_scores(["effusion", "none"], ["effusion and cardiomegaly", "none"], terms)]
        [1.0, 0.5]
    """
    pairs = [(extract(answer), extract(reference)) for answer, reference in zip(answers, references, strict=True)]
    shared = np.array([len(answer & reference) for answer, reference in pairs], float)
    in_answer = np.array([len(answer) for answer, _ in pairs], float)
    in_reference = np.array([len(reference) for _, reference in pairs], float)
    precision = np.where((in_answer == 0) & (in_reference > 0), 0.0, divide(shared, in_answer))
    recall = divide(shared, in_reference)
    return [_named("term precision", precision, extract), _named("term recall", recall, extract)]


def _named(name: str, values: np.ndarray, extract: Extractor) -> Measurement:
    used = int((~np.isnan(values)).sum())
    signature = f"{extract.name}|distinct terms|mean of answers|0/0 left out: {used} of {len(values)} answers used"
    return mean_of(name, values, signature)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+(?:[-'][a-z0-9]+)*", text.lower())


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "is", "us")) and len(word) > 3 else word


def _forms(term: str) -> Iterable[tuple[str, ...]]:
    turned = ", ".join(reversed(term.split(", "))) if term.count(", ") == 1 else term
    for form in {term, turned}:
        words = tuple(_singular(word) for word in _words(form))
        if words:
            yield words
