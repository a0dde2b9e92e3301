"""Loss weights of the tokens of an answer: medical terms 3, other text 1 (paper, Methods; equation of the weighted loss).

The paper matches terms as runs of token ids, which misses 73 % of them with a byte-level tokenizer, because the first
token of a word differs after a space. Here terms are matched as characters, and offsets carry the weights to the tokens.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import ahocorasick_rs
import numpy as np

from .recipe import Loss, RecipeError

VOCABULARY = Path(__file__).parent / "vocabulary"
MIN_LENGTH = 3  # shorter headings of MeSH (ST, Or, …) are mostly other words


def _read_terms(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _variants(heading: str) -> Iterable[str]:
    """A heading in the forms in which reports have it: turned ("Effusion, Pleural" → "pleural effusion"), singular, plural.

    Example:
        >>> sorted(_variants("Effusion, Pleural"))
        ['effusion, pleural', 'pleural effusion', 'pleural effusions']
    """
    term = heading.lower()
    yield term
    if term.count(", ") == 1:
        term = " ".join(reversed(term.split(", ")))
        yield term
    if term.endswith("ies"):
        yield f"{term[:-3]}y"
    elif term.endswith("s") and not term.endswith(("ss", "is", "us")):
        yield term[:-1]
    elif term[-1].isalpha() and not term.endswith(("s", "x")):
        yield f"{term}s"


@cache
def shipped_terms() -> tuple[str, ...]:
    """The terms that ship (sources and licences: `vocabulary/README.md`), in lower case."""
    ordinary = set(_read_terms(VOCABULARY / "ordinary_words.txt"))
    mesh = {term for heading in _read_terms(VOCABULARY / "mesh.txt") for term in _variants(heading)}
    others = (*_read_terms(VOCABULARY / "chest_findings.txt"), *_read_terms(VOCABULARY / "report_words.txt"))
    terms = {term for term in mesh if len(term) >= MIN_LENGTH and not {*_variants(term)} & ordinary}
    return tuple(sorted(terms | {term.lower() for term in others}))


class TermMatcher:
    """Finds medical terms in a text; the longest term at a place, at word edges, whatever the case.

    Example:
        >>> TermMatcher(["pleural effusion", "effusion"]).spans("Small Pleural effusion.")
        [(6, 22)]
    """

    def __init__(self, terms: Sequence[str]):
        self._automaton = ahocorasick_rs.AhoCorasick(
            [_lower(term) for term in terms],
            matchkind=ahocorasick_rs.MatchKind.Standard,
            implementation=ahocorasick_rs.Implementation.ContiguousNFA,
        )

    def spans(self, text: str) -> list[tuple[int, int]]:
        """(start, end) of each term in characters, from left to right, without overlaps."""
        found = [
            (start, end)
            for _, start, end in self._automaton.find_matches_as_indexes(_lower(text), overlapping=True)
            if not (start and text[start - 1].isalnum()) and not (end < len(text) and text[end].isalnum())
        ]
        # The edges are tested before the longest is chosen: a longer match that ends inside a word hides no shorter one.
        spans: list[tuple[int, int]] = []
        for start, end in sorted(found, key=lambda span: (span[0], -span[1])):
            if not spans or start >= spans[-1][1]:
                spans.append((start, end))
        return spans


def _lower(text: str) -> str:
    """Lower case of the same length: "İ".lower() is two characters, and offsets would move."""
    lowered = text.lower()
    return lowered if len(lowered) == len(text) else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


@cache
def make_matcher(terms_file: str) -> TermMatcher:
    """The matcher for a file with one term a line, or for the terms that ship where the name is empty."""
    if not terms_file:
        return TermMatcher(shipped_terms())
    try:
        return TermMatcher(_read_terms(Path(terms_file)))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"loss.terms={terms_file}: cannot be read as a UTF-8 text file with one term a line.") from error


def token_weights(text: str, offsets: Sequence[tuple[int, int]], loss: Loss) -> np.ndarray:
    """Weights of the tokens of an answer.

    Args:
        text: the answer.
        offsets: (start, end) of each token in the characters of `text`.

    Returns:
        (tokens,) float32: `loss.term_weight` for tokens that overlap a term, `loss.text_weight` for the others; all 1 with
        `loss.plain_mean`.

    Example:
        >>> token_weights("no effusion", [(0, 2), (2, 11)], Loss()).tolist()
        [1.0, 3.0]
    """
    if loss.plain_mean:
        return np.ones(len(offsets), np.float32)
    in_term = np.zeros(len(text) + 1, bool)
    for start, end in make_matcher(loss.terms).spans(text):
        in_term[start:end] = True
    # A token with a leading space belongs to the word after it; an empty token (an end mark) to none.
    hits = [bool(in_term[start:end].any()) for start, end in offsets]
    return np.where(hits, loss.term_weight, loss.text_weight).astype(np.float32)
