"""A model behind an OpenAI-compatible server (`/chat/completions`): slices go there as PNGs in data URIs.

Such a server scores no options, so the form likelihood is not asked. Where it returns the log-probabilities of the first
token of an answer, yes and no get theirs, which calibration needs; a server that ignores the wish is found out before the
run, and reported.
"""

import base64
import io
import math
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

from radfm.medmd.schema import YES_NO
from radfm.scan_radfm import Scan

from ..conditions import Request, ScanKey
from ..items import BenchError
from ..predictions import DECIMALS, Likelihood
from .base import Answer
from .slices import CHOICE_OF_SLICES, slice_images

TOP_LOGPROBS = 20  # the most that OpenAI's interface allows
TIMEOUT = 600.0  # seconds for one answer
# Waits in seconds before an answer is asked for again, after a lost connection or a status that passes.
WAITS = (1, 4, 16, 60)
PASSING = (408, 409, 429, 500, 502, 503, 504)
CHARACTERS_OF_TOKEN = 4


@dataclass(frozen=True)
class Prepared:
    """A batch: requests, and each scan as data URIs."""

    requests: Sequence[Request]
    images: dict[ScanKey, list[str]]


class Endpoint:
    """A model on a server. A key is taken from the environment variable OPENAI_API_KEY.

    Args:
        url: address of the interface, as in http://localhost:8000/v1.
        name: name of the model on that server.
        max_new_tokens: the longest answer.
        slices: how many slices of a volume it gets.

    Raises:
        BenchError: the server cannot be reached or does not answer a question.
    """

    scores_options = False

    def __init__(self, url: str, name: str, max_new_tokens: int, slices: int) -> None:
        self.url, self.name, self.slices = url.rstrip("/"), name, slices
        key = os.environ.get("OPENAI_API_KEY")
        self._client = httpx.Client(timeout=TIMEOUT, headers={"Authorization": f"Bearer {key}"} if key else {})
        self._generation = {"temperature": 0, "seed": 0, "max_tokens": max_new_tokens}
        self.warnings: list[str] = []
        self.gives_logprobs = self._probe()
        if not self.gives_logprobs:
            self.warnings.append(f"{url} returns no log-probabilities: there are no likelihoods and no calibration.")

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "endpoint": self.url,
            "generation": self._generation,
            "logprobs": self.gives_logprobs,
            "slices": self.slices,
            "choice_of_slices": CHOICE_OF_SLICES,
        }

    def scan_cost(self, shape: Sequence[int]) -> int:
        return 0

    def prompt_cost(self, request: Request) -> int:
        return sum(len(part.text or "") for part in request.messages[-1].content) // CHARACTERS_OF_TOKEN

    def prepare(self, requests: Sequence[Request], scans: Mapping[ScanKey, Scan]) -> Prepared:
        return Prepared(
            requests, {key: [_data_uri(i) for i in slice_images(scan, self.slices)] for key, scan in scans.items()}
        )

    def answer(self, prepared: Prepared) -> list[Answer]:
        with ThreadPoolExecutor(len(prepared.requests)) as pool:
            return list(pool.map(lambda request: self._ask(request, prepared.images), prepared.requests))

    def _ask(self, request: Request, images: Mapping[ScanKey, list[str]]) -> Answer:
        keys = iter(request.scans)
        messages, shown = [], []
        for message in request.messages:
            content: list[dict[str, Any]] = []
            for part in message.content:
                if part.type == "image":
                    uris = images[next(keys)]
                    content += [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
                    shown.append("<image>" * len(uris))
                else:
                    content.append({"type": "text", "text": part.text})
                    shown.append(part.text or "")
            messages.append({"role": message.role, "content": content})
        wants_logprobs = self.gives_logprobs and request.options == YES_NO
        choice = self._complete(messages, wants_logprobs)
        likelihoods = _first_token(choice) if wants_logprobs else None
        return Answer((choice["message"].get("content") or "").strip(), likelihoods, "".join(shown))

    def _probe(self) -> bool:
        """Whether the server returns log-probabilities. Adapts the name of the token limit to the server."""
        messages = [{"role": "user", "content": [{"type": "text", "text": "Is water wet? Answer yes or no."}]}]
        try:
            return bool(_top_tokens(self._complete(messages, True)))
        except BenchError as error:
            if "max_completion_tokens" in str(error):
                self._generation["max_completion_tokens"] = self._generation.pop("max_tokens")
                return self._probe()
            if "logprobs" not in str(error):
                raise
        self._complete(messages, False)
        return False

    def _complete(self, messages: list[dict[str, Any]], logprobs: bool) -> dict[str, Any]:
        """The first choice of a reply."""
        body: dict[str, Any] = {"model": self.name, "messages": messages, **self._generation}
        if logprobs:
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        for wait in (*WAITS, None):
            try:
                reply = self._client.post(f"{self.url}/chat/completions", json=body)
                reason = f"status {reply.status_code}: {reply.text[:200]}"
                if reply.status_code not in PASSING:
                    break
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
                if isinstance(error, httpx.UnsupportedProtocol | httpx.ConnectError):
                    raise BenchError(f"{self.url}: cannot be reached ({reason}).") from error
            if wait is None:
                raise BenchError(f"{self.url}: does not answer ({reason}); run the same command again to go on.")
            time.sleep(wait)
        if reply.status_code != httpx.codes.OK:
            raise BenchError(f"{self.url}: refuses a question ({reason}).")
        try:
            choice: dict[str, Any] = reply.json()["choices"][0]
            choice["message"]["role"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise BenchError(f"{self.url}: its reply is no chat completion ({reply.text[:200]}).") from error
        return choice


def _data_uri(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _top_tokens(choice: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The likeliest first tokens of an answer; empty where the server returned none."""
    content = (choice.get("logprobs") or {}).get("content") or [{}]
    tokens: list[dict[str, Any]] = content[0].get("top_logprobs") or []
    return tokens


def _first_token(choice: Mapping[str, Any]) -> dict[str, Likelihood] | None:
    """Log-probabilities of an answer that begins with yes or no; None where one of them is not among the top tokens."""
    shares = dict.fromkeys(YES_NO, 0.0)
    for token in _top_tokens(choice):
        word = token["token"].strip().lower()
        if word in shares:
            shares[word] += math.exp(token["logprob"])
    if not all(shares.values()):
        return None
    return {word: Likelihood(round(math.log(share), DECIMALS), 1) for word, share in shares.items()}
