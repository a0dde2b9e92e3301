"""Answers that need no model: they show how far one gets without looking at a scan.

All are chosen on the training split, whose questions become items in the same way (`draw`):

- "most frequent answer": of the same source, task and form; for a choice the most frequent one of its options.
- "constant sentence": for open questions the training answer that shares most words with the others of its source and task.
- "nearest training answer": for a rationale the answer under the same title, if there is one; else the answer to the
  training question, history included, that shares most words with the question.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache

from .draw import order_by_hash
from .items import Item
from .predictions import Prediction

# Of so many training items of a source, task and form, chosen by hash, answers are compared word by word.
SAMPLE = 2_000
SENTENCES = 300
_WORD = re.compile(r"\w+")


def answer_without_model(items: Sequence[Item], training: Iterable[Item], seed: int = 0) -> list[Prediction]:
    """The predictions of all baselines that need no model, for items of whose task and form the training split has some.

    Args:
        items: of the benchmark.
        training: items drawn from the training split.
        seed: chooses the sample that answers are compared with.
    """
    known = TrainingItems(training, seed)
    rules: dict[str, Callable[[Item], str | None]] = {
        "most frequent answer": known.most_frequent,
        "constant sentence": known.constant_sentence,
        "nearest training answer": known.nearest,
    }
    return [
        Prediction(item.id, condition, answer, options=item.options if item.form == "choice" else ())
        for item in items
        for condition, rule in rules.items()
        if (answer := rule(item)) is not None
    ]


class TrainingItems:
    """Items of the training split by source, task and form; where a source has none of a kind, those of all sources."""

    def __init__(self, training: Iterable[Item], seed: int) -> None:
        self._kinds: dict[tuple[str, ...], dict[str, Item]] = {}
        for item in training:
            for kind in ((item.source, item.task, item.form), (item.task, item.form)):
                self._kinds.setdefault(kind, {})[item.id] = item
        self._seed = seed
        self._samples: dict[tuple[str, ...], list[tuple[frozenset[str], Item]]] = {}
        self._constants: dict[tuple[str, ...], str] = {}

    def most_frequent(self, item: Item) -> str | None:
        """The most frequent reference of the item's kind, of its options if there are any; of equals the first by name."""
        counts = Counter(each.reference for each in self._items(self._kind(item)))
        allowed = [answer for answer in counts if not item.options or answer in item.options]
        return min(allowed, key=lambda answer: (-counts[answer], answer), default=None)

    def constant_sentence(self, item: Item) -> str | None:
        """The reference that is most like the other references of the item's kind (greatest mean overlap of words)."""
        kind = self._kind(item)
        if item.form != "open" or not self._items(kind):
            return None
        if kind not in self._constants:
            sample = [each.reference for _, each in self._sample(kind)[:SENTENCES]]
            self._constants[kind] = max(sample, key=lambda text: sum(overlap(words(text), words(other)) for other in sample))
        return self._constants[kind]

    def nearest(self, item: Item) -> str | None:
        """The reference of the training item with the same title, or else with the most similar question."""
        sample = [
            (text, each)
            for text, each in self._sample(self._kind(item))
            if not item.options or each.reference in item.options
        ]
        if not sample:
            return None
        if item.task == "rationale":
            same_title = [each for each in self._items(self._kind(item)) if title(each.reference) == title(item.reference)]
            if same_title:
                return same_title[0].reference
        question = _question_words(item)
        return max(sample, key=lambda pair: overlap(question, pair[0]))[1].reference

    def _kind(self, item: Item) -> tuple[str, ...]:
        kind = (item.source, item.task, item.form)
        return kind if kind in self._kinds else kind[1:]

    def _items(self, kind: tuple[str, ...]) -> list[Item]:
        return list(self._kinds.get(kind, {}).values())

    def _sample(self, kind: tuple[str, ...]) -> list[tuple[frozenset[str], Item]]:
        if kind not in self._samples:
            items = self._kinds.get(kind, {})
            chosen = order_by_hash(items, self._seed, "sample")[:SAMPLE]
            self._samples[kind] = [(_question_words(items[name]), items[name]) for name in chosen]
        return self._samples[kind]


@cache
def words(text: str) -> frozenset[str]:
    """The words of a text, in small letters."""
    return frozenset(_WORD.findall(text.lower()))


def overlap(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard similarity of two sets of words.

    >>> overlap(words("No effusion."), words("no pneumonia"))
    0.3333333333333333
    """
    return len(one & other) / max(len(one | other), 1)


def title(rationale: str) -> str:
    """The title of a rationale: what stands before the first full stop.

    >>> title("Pneumonia. Consolidation with air bronchograms.")
    'pneumonia'
    """
    return rationale.split(".")[0].strip().lower()


def _question_words(item: Item) -> frozenset[str]:
    return words(" ".join(part.text or "" for message in item.messages for part in message.content))
