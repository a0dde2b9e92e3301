"""A chat request → the scans it shows, the prompt, the pieces of its answers, the response."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from radfm.processing_radfm import RadFMProcessor

from .answers import Piece, Prompt, Sampling
from .errors import ApiError
from .feature_cache import EncodedScan, FeatureCache
from .files import FileStore
from .metrics import Metrics
from .protocol import ChatRequest, FilePart, ImagePart, TextPart
from .scans import ScanReader, ScanRefusedError, cache_key, inline_source, read_choice, read_options


class Encoder(Protocol):
    """Makes image tokens (I, E) of scans (C, H, W, D)."""

    async def encode(self, pixel_values: torch.Tensor) -> torch.Tensor: ...


class Decoder(Protocol):
    """Answers prompts."""

    def answer(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Piece]: ...


@dataclass
class Model:
    """What answers, and what the server has to know about it.

    Args:
        name: the id that requests name.
        context_length: tokens of a prompt and its answer together.
        new_tokens: the longest answer where a request does not say.
        temperature: where a request does not say.
    """

    name: str
    processor: RadFMProcessor
    encoder: Encoder
    decoder: Decoder
    context_length: int
    new_tokens: int
    temperature: float


@dataclass
class Reply:
    """The answers to one request: those that are complete, or so far.

    Args:
        scans: what was read, one description a scan, in the order of the request.
    """

    request: ChatRequest
    model: str
    prompt_tokens: int
    scans: list[dict[str, Any]]
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    completion_tokens: int = 0

    def usage(self) -> dict[str, int]:
        """OpenAI's counts of tokens."""
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }

    def completion(self, pieces: list[Piece]) -> dict[str, Any]:
        """The `chat.completion` of all pieces."""
        choices = []
        for index in range(self.request.n or 1):
            of_answer = [piece for piece in pieces if piece.index == index]
            logprobs = {"content": [entry for piece in of_answer for entry in piece.logprobs], "refusal": None}
            text = "".join(piece.text for piece in of_answer)
            choices.append(
                {
                    "index": index,
                    "message": {"role": "assistant", "content": text, "refusal": None},
                    "logprobs": logprobs if self.request.logprobs else None,
                    "finish_reason": of_answer[-1].finish_reason,
                }
            )
        return {**self._head("chat.completion"), "choices": choices, "usage": self.usage(), "scans": self.scans}

    def first_chunk(self) -> dict[str, Any]:
        """The first event of a stream: whose answers follow, and which scans were read."""
        delta = {"role": "assistant", "content": ""}
        choices = [{"index": i, "delta": delta, "logprobs": None, "finish_reason": None} for i in range(self.request.n or 1)]
        return {**self._chunk(choices), "scans": self.scans}

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """The event of one piece."""
        logprobs = {"content": piece.logprobs, "refusal": None} if self.request.logprobs else None
        delta = {"content": piece.text} if piece.text else {}
        choice = {"index": piece.index, "delta": delta, "logprobs": logprobs, "finish_reason": piece.finish_reason}
        return self._chunk([choice])

    def usage_chunk(self) -> dict[str, Any]:
        """The last event, where the request asked for usage."""
        return {**self._chunk([]), "usage": self.usage()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        # As in OpenAI's API: with usage at the end, the other events have a null for it.
        usage = {"usage": None} if self.has_usage_chunk else {}
        return {**self._head("chat.completion.chunk"), "choices": choices, **usage}

    @property
    def has_usage_chunk(self) -> bool:
        """Whether the stream ends with the counts of tokens."""
        return self.request.stream_options is not None and self.request.stream_options.include_usage

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


class Chat:
    """Answers chat requests."""

    def __init__(self, model: Model, reader: ScanReader, cache: FeatureCache, files: FileStore, metrics: Metrics):
        self.model = model
        self.cache = cache
        self._reader, self._files, self._metrics = reader, files, metrics
        self.created = int(time.time())
        # The processor's tokenizer is not safe to use in two threads.
        self._tokenizing = ThreadPoolExecutor(1, "radfm-tokenizer")
        vocabulary = model.processor.tokenizer.get_vocab()
        self._longest_text = max(map(len, vocabulary)) * model.context_length

    def require_model(self, name: str) -> None:
        """Raise `ApiError` 404 for the name of another model."""
        if name != self.model.name:
            raise ApiError(404, f"This server has the model {self.model.name} and no other.", "model_not_found", "model")

    async def prepare(self, request: ChatRequest) -> tuple[Reply, Prompt, Sampling]:
        """Read and encode the scans of a request, and make its prompt.

        Raises:
            ApiError: a scan that cannot be read, or a request that does not fit into the model's context.
        """
        self.require_model(request.model)
        texts = [part.text for message in request.messages for part in message.content if isinstance(part, TextPart)]
        if sum(map(len, texts)) > self._longest_text:
            raise self._too_long("The text of the messages is")
        scans = await self._encode_scans(request)
        loop = asyncio.get_running_loop()
        input_ids = await loop.run_in_executor(self._tokenizing, self._tokenize, request)
        room = self.model.context_length - len(input_ids)
        if room < (request.new_tokens or 1):
            raise self._too_long(f"The prompt of {len(input_ids)} tokens and an answer of {request.new_tokens or 1} are")
        sampling = Sampling(
            n=request.n or 1,
            max_tokens=request.new_tokens or min(self.model.new_tokens, room),
            temperature=self.model.temperature if request.temperature is None else request.temperature,
            top_p=request.top_p or 1.0,
            seed=secrets.randbits(62) if request.seed is None else request.seed,
            stop=tuple(request.stop or ()),
            top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        )
        self._metrics.prompt_tokens.inc(len(input_ids))
        reply = Reply(request, self.model.name, len(input_ids), [scan.description for scan in scans])
        return reply, Prompt(input_ids, [scan.features for scan in scans]), sampling

    def _too_long(self, what: str) -> ApiError:
        message = f"{what} longer than the model's context of {self.model.context_length} tokens."
        return ApiError(400, message, "context_length_exceeded", "messages")

    async def _encode_scans(self, request: ChatRequest) -> list[EncodedScan]:
        """The scans of a request in the order of its parts, read side by side."""
        parts = [
            (f"messages[{i}].content[{j}]", part)
            for i, message in enumerate(request.messages)
            for j, part in enumerate(message.content)
            if not isinstance(part, TextPart)
        ]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._encode_scan(where, part)) for where, part in parts]
        except ExceptionGroup as errors:  # the first that failed; the others were cancelled
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _encode_scan(self, where: str, part: FilePart | ImagePart) -> EncodedScan:
        try:
            source = await asyncio.to_thread(inline_source, part)
            if source is None:
                assert isinstance(part, FilePart) and part.file.file_id is not None
                source = self._files.source(part.file.file_id)
            options = read_options(read_choice(part))

            async def encode() -> EncodedScan:
                pixel_values, description = await self._reader.read(source, options)
                return EncodedScan(await self.model.encoder.encode(pixel_values), description)

            return await self.cache.get(cache_key(source, options), encode)
        except ScanRefusedError as error:
            raise ApiError(400, f"{where}: {error}", "invalid_scan", where) from None

    def _tokenize(self, request: ChatRequest) -> list[int]:
        conversation = [
            {"role": message.role, "content": [_template_part(part) for part in message.content]}
            for message in request.messages
        ]
        inputs = self.model.processor.apply_chat_template(
            conversation,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"images_encoded": True},
        )
        ids: list[int] = inputs["input_ids"][0]
        return ids

    async def pieces(self, reply: Reply, prompt: Prompt, sampling: Sampling, started: float) -> AsyncGenerator[Piece]:
        """The pieces of the answers, counted; `started` is when the request came (`time.monotonic`)."""
        is_first = True
        async with aclosing(self.model.decoder.answer(prompt, sampling)) as pieces:
            async for piece in pieces:
                if is_first:
                    self._metrics.first_token_seconds.observe(time.monotonic() - started)
                    is_first = False
                if piece.finish_reason is not None:
                    reply.completion_tokens += piece.num_tokens
                    self._metrics.completion_tokens.inc(piece.num_tokens)
                yield piece


def _template_part(part: TextPart | FilePart | ImagePart) -> dict[str, str]:
    return {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
