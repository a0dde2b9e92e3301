"""The decoder on another machine: a plain LLaMA behind an engine that takes prompt embeddings, such as vLLM.

The front embeds the text, puts image tokens in the places of placeholders, and sends the result to `/completions`.
The engine batches, samples and stops.
"""

import asyncio
import base64
import io
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx
import torch

from radfm.modeling_radfm import RadFMModel

from .answers import AnswerText, Piece, Prompt, Sampling
from .errors import ApiError

# vLLM's lowest bias. The published head has no rows for the image tokens, so an answer never has one.
BANNED = -100
CONNECT_SECONDS = 10.0
RETRY_SECONDS = 10


class RemoteDecoder:
    """Answers prompts through OpenAI's `/completions` with vLLM's `prompt_embeds`.

    Args:
        url: of the API, such as http://vllm:8000/v1.
        front: a `RadFMModel` whose word embeddings are those of the decoder.
        eos_ids: tokens that end an answer.
        api_key: of the decoder's server.
    """

    def __init__(self, url: str, front: RadFMModel, eos_ids: frozenset[int], api_key: str | None = None):
        self._front, self._eos_ids = front, eos_ids
        config = front.config
        image_ids = (config.image_start_token_id, config.image_end_token_id, config.image_token_id)
        self._logit_bias = {str(token): BANNED for token in image_ids}
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        # No proxy of the environment: what is sent is made of scans.
        self._client = httpx.AsyncClient(
            base_url=url.rstrip("/") + "/",
            headers=headers,
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            trust_env=False,
        )
        self._name: str | None = None

    async def _model_name(self) -> str:
        if self._name is None:
            response = await self._client.get("models")
            _check(response)
            self._name = response.json()["data"][0]["id"]
        return self._name

    @torch.inference_mode()
    def embed(self, prompt: Prompt) -> torch.Tensor:
        """The embeddings (T, E) of a prompt, on the CPU."""
        device = self._front.device
        ids = torch.tensor(prompt.input_ids, device=device)
        embeddings: torch.Tensor = self._front.get_input_embeddings()(ids)
        if prompt.image_features:
            tokens = torch.cat(prompt.image_features).to(device, embeddings.dtype)
            embeddings[ids == self._front.config.image_token_id] = tokens
        return embeddings.cpu()

    async def answer(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Piece]:
        """The pieces of `sampling.n` answers as they are generated."""
        encoded = await asyncio.to_thread(_encode, self.embed, prompt)
        texts = [AnswerText(()) for _ in range(sampling.n)]
        counts = [0] * sampling.n
        try:
            body = {"model": await self._model_name(), **_fields(sampling), "prompt_embeds": encoded}
            body["logit_bias"] = self._logit_bias
            async with aclosing(self._choices(body)) as choices:
                async for choice in choices:
                    index, reason = choice["index"], choice["finish_reason"]
                    token_ids = choice.get("token_ids") or []
                    counts[index] += sum(token not in self._eos_ids for token in token_ids)
                    text = texts[index].add(choice["text"]) + (texts[index].end() if reason else "")
                    logprobs = self._logprobs(choice.get("logprobs"), token_ids, sampling)
                    if text or logprobs or reason:
                        yield Piece(index, text, logprobs, reason, counts[index] if reason else 0)
        except httpx.HTTPError as error:
            raise _unavailable("The decoder cannot be reached.") from error

    async def _choices(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """The choices in the events of a streamed completion."""
        async with self._client.stream("POST", "completions", json=body) as response:
            _check(response)
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise _unavailable("The decoder failed on this request.")
                    for choice in event["choices"]:
                        yield choice

    def _logprobs(self, logprobs: dict[str, Any] | None, token_ids: list[int], sampling: Sampling) -> list[dict[str, Any]]:
        """OpenAI's entries for chats, of those for completions."""
        if not logprobs or sampling.top_logprobs is None:
            return []
        entries = []
        rows = zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], token_ids, strict=True)
        for token, logprob, top, token_id in rows:
            if token_id in self._eos_ids:
                continue
            best = sorted((top or {}).items(), key=lambda item: item[1], reverse=True)[: sampling.top_logprobs]
            entries.append({**_entry(token, logprob), "top_logprobs": [_entry(*other) for other in best]})
        return entries


def _entry(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def _fields(sampling: Sampling) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "stream": True,
        "return_token_ids": True,
        "n": sampling.n,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "stop": list(sampling.stop),
    }
    return fields if sampling.top_logprobs is None else {**fields, "logprobs": sampling.top_logprobs}


def _encode(embed: Any, prompt: Prompt) -> str:
    """The embeddings of a prompt as vLLM reads them: base64 of what `torch.save` writes."""
    stream = io.BytesIO()
    torch.save(embed(prompt), stream)
    return base64.b64encode(stream.getvalue()).decode()


def _check(response: httpx.Response) -> None:
    """Raise `ApiError` for what the decoder's server refuses; its message is not repeated."""
    if response.status_code in (429, 503):
        raise ApiError(429, "The decoder has too many requests.", "queue_full", retry_after=RETRY_SECONDS)
    if response.status_code in (401, 403, 404):
        raise _unavailable(f"The decoder's server refuses the front (status {response.status_code}).")
    if response.status_code >= 500:
        raise _unavailable("The decoder failed on this request.")
    if response.status_code >= 400:
        raise ApiError(400, "The decoder refuses this request; its context may be shorter than the model's.")


def _unavailable(message: str) -> ApiError:
    return ApiError(503, message, "decoder_unavailable", retry_after=RETRY_SECONDS)
