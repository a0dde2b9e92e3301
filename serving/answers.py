"""One answer while it is generated: its tokens, its text, where it ends. Nothing here knows HTTP or the model."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

# What a decoder writes for bytes that are no whole character yet.
INCOMPLETE = "\ufffd"


@dataclass(frozen=True)
class Prompt:
    """Token ids with a placeholder for each image token, and the image tokens (I, E) of each scan, in order."""

    input_ids: list[int]
    image_features: list[torch.Tensor]


@dataclass(frozen=True)
class Sampling:
    """How answers are generated.

    Args:
        n: number of answers.
        max_tokens: the longest answer.
        temperature: 0 takes the most likely token.
        top_p: sample among the most likely tokens that together have this probability.
        seed: the same seed gives the same answers, whatever else is in the batch.
        stop: texts that end an answer and are not part of it.
        top_logprobs: how many alternatives to give with each token's log-probability; None gives no log-probabilities.
    """

    n: int
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None


@dataclass
class Piece:
    """The next part of an answer.

    Args:
        index: which of the `n` answers.
        text: new text; pieces of one answer joined are the answer.
        logprobs: OpenAI's entries of the tokens since the last piece.
        finish_reason: "stop" or "length" in the last piece.
        num_tokens: tokens of the whole answer, in the last piece.
    """

    index: int
    text: str
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    num_tokens: int = 0


def end_tokens(generation: GenerationConfig) -> frozenset[int]:
    """The tokens that end an answer."""
    ids = generation.eos_token_id
    return frozenset([ids] if isinstance(ids, int) else ids or [])


class AnswerText:
    """Text that arrives in parts → the parts that may be shown.

    Held back: space at the ends, which is no part of an answer, what may become a stop text, and incomplete characters.
    """

    def __init__(self, stop: tuple[str, ...]):
        self._stop = stop
        self._text = ""
        self._shown = 0
        self.is_stopped = False

    def add(self, text: str) -> str:
        """The text that can be shown now. After a stop text `is_stopped` is true and nothing follows."""
        if self.is_stopped:
            return ""
        self._text += text
        found = [place for place in (self._text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self._text, self.is_stopped = self._text[: min(found)], True
            return self.end()
        beginnings = (length for stop in self._stop for length in range(1, len(stop)) if self._text.endswith(stop[:length]))
        held = max(beginnings, default=0)
        return self._show(self._text[: len(self._text) - held].rstrip(INCOMPLETE).strip())

    def end(self) -> str:
        """What is left when nothing follows."""
        return self._show(self._text.strip())

    def _show(self, text: str) -> str:
        new = text[self._shown :]
        self._shown = max(self._shown, len(text))
        return new


class Answer:
    """One row of a batch: takes a token a step and gives a `Piece` a step.

    Args:
        index: which of the `n` answers to a prompt.
        eos_ids: tokens that end an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, sampling: Sampling, index: int, eos_ids: frozenset[int]):
        self._tokenizer, self._sampling, self.index, self._eos_ids = tokenizer, sampling, index, eos_ids
        self._is_greedy = sampling.temperature == 0
        self.finish_reason: str | None = None
        self._ids: list[int] = []
        # Tokens up to `_prefix` are text already; those up to `_read` are the context in which the next one is decoded.
        self._prefix = self._read = 0
        self._text = AnswerText(sampling.stop)
        self._generator = torch.Generator()
        digest = hashlib.sha256(f"{sampling.seed}/{index}".encode()).digest()
        self._generator.manual_seed(int.from_bytes(digest[:7], "big"))
        self._logprobs: list[dict[str, Any]] = []

    @property
    def num_tokens(self) -> int:
        """Tokens so far, without the one that ended the answer."""
        return len(self._ids)

    def choose(self, logits: torch.Tensor) -> int | None:
        """The next token of float32 logits (vocabulary,); None for the most likely one."""
        token = None
        if not self._is_greedy:
            token = self._sample(logits)
        if self._sampling.top_logprobs is not None:
            self._note_logprobs(logits, int(logits.argmax()) if token is None else token)
        return token

    def _sample(self, logits: torch.Tensor) -> int:
        probabilities = (logits.double().cpu() / self._sampling.temperature).softmax(-1)
        point = torch.rand((), generator=self._generator, dtype=torch.float64)
        if self._sampling.top_p == 1:
            return _at(point, probabilities)
        ordered, ids = probabilities.sort(descending=True)
        # The token at which the sum reaches top_p is the last one that may be chosen.
        count = int((ordered.cumsum(0) < self._sampling.top_p).sum()) + 1
        return int(ids[_at(point, ordered[:count])])

    def _note_logprobs(self, logits: torch.Tensor, token: int) -> None:
        if token in self._eos_ids:
            return
        logprobs = logits.log_softmax(-1)
        entry = self._entry(token, float(logprobs[token]))
        top = logprobs.topk(self._sampling.top_logprobs or 0)
        entry["top_logprobs"] = [
            self._entry(other, value) for other, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
        self._logprobs.append(entry)

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._decode_next(token, skip_special_tokens=False)
        is_whole = INCOMPLETE not in text
        return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if is_whole else None}

    def add(self, token: int) -> Piece | None:
        """Take the next token. None where it shows nothing yet."""
        if token in self._eos_ids:
            return self._finish("stop")
        text = self._decode_next(token)
        self._ids.append(token)
        new = ""
        if not text.endswith(INCOMPLETE):
            self._prefix, self._read = self._read, len(self._ids)
            new = self._text.add(text)
        if self._text.is_stopped:
            return self._finish("stop", new)
        if len(self._ids) >= self._sampling.max_tokens:
            return self._finish("length", new)
        if not new and not self._logprobs:
            return None
        return Piece(self.index, new, self._take_logprobs())

    def _decode_next(self, token: int, skip_special_tokens: bool = True) -> str:
        """The text that a token adds to what is text already."""
        return self._decode_behind_context([*self._ids[self._read :], token], skip_special_tokens)

    def _decode_behind_context(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        # A token's text depends on the one before: LLaMA's tokenizer drops the space in front of the first.
        context = self._ids[self._prefix : self._read]
        before = str(self._tokenizer.decode(context, skip_special_tokens=skip_special_tokens)) if context else ""
        return str(self._tokenizer.decode([*context, *ids], skip_special_tokens=skip_special_tokens))[len(before) :]

    def _finish(self, reason: str, new: str = "") -> Piece:
        self.finish_reason = reason
        if not self._text.is_stopped:
            pending = self._ids[self._read :]
            if pending:  # bytes that never became a character
                new += self._text.add(self._decode_behind_context(pending))
            new += self._text.end()
        return Piece(self.index, new, self._take_logprobs(), reason, len(self._ids))

    def _take_logprobs(self) -> list[dict[str, Any]]:
        logprobs, self._logprobs = self._logprobs, []
        return logprobs


def _at(point: torch.Tensor, weights: torch.Tensor) -> int:
    """The index at which a share `point` (0…1) of the weights lies before."""
    cumulated = weights.cumsum(0)
    return min(int(torch.searchsorted(cumulated, point * cumulated[-1], right=True)), len(weights) - 1)
