"""What the runner needs of a model: `Model`, and `Answer`, which it gives to each request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from radfm.scan_radfm import Scan

from ..conditions import Request, ScanKey
from ..predictions import Likelihood


@dataclass(frozen=True)
class Answer:
    """The answer to one request.

    Args:
        text: what the model generated, without blanks around it; empty where the request generates nothing.
        likelihoods: of the request's options; None where it has none, or the model gives none.
        prompt: the text that the model got.
    """

    text: str
    likelihoods: dict[str, Likelihood] | None
    prompt: str


class Model(Protocol):
    """A model under test. `prepare` may run in another thread while `answer` works on the batch before."""

    scores_options: bool  # whether it gives the log-probability of any option, as the form likelihood needs
    warnings: list[str]  # what a reader of the scores must know, in sentences

    def describe(self) -> dict[str, Any]:
        """What identifies the model and decides its answers, for `run.json`: equal for equal answers."""

    def scan_cost(self, shape: Sequence[int]) -> int:
        """Patches or images that a scan of this shape (height, width[, depth]) becomes."""

    def prompt_cost(self, request: Request) -> int:
        """Tokens of the request's prompt, those of its scans included; about right."""

    def prepare(self, requests: Sequence[Request], scans: Mapping[ScanKey, Scan]) -> Any:
        """What `answer` takes: texts and pixel values in main memory."""

    def answer(self, prepared: Any) -> list[Answer]:
        """The answers, in the order of the requests."""
