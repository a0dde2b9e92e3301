"""The model on a thread of its own: encodes scans and generates answers, many at a time."""

import asyncio
import copy
import threading
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from radfm.modeling_radfm import RadFMForConditionalGeneration, RadFMModel

from . import limits
from .answers import Answer, Piece, Prompt, Sampling, end_tokens
from .errors import ApiError, log_without_values
from .metrics import Metrics

# Of the memory that a GPU has left beside the weights: for the decoder's cache; the rest is for activations.
CACHE_SHARE = 0.6


@dataclass(eq=False)
class EncodeJob:
    """A scan to encode."""

    pixel_values: torch.Tensor
    patches: int
    future: "Future[torch.Tensor]" = field(default_factory=Future)


@dataclass(eq=False)
class AnswerJob:
    """A prompt to answer `sampling.n` times; pieces and errors go to `send`, from the model's thread."""

    prompt: Prompt
    sampling: Sampling
    loop: asyncio.AbstractEventLoop
    pieces: "asyncio.Queue[Piece | Exception]" = field(default_factory=asyncio.Queue)
    is_cancelled: bool = False
    has_started: bool = False

    def send(self, piece: Piece | Exception) -> None:
        """Hand a piece to the event loop."""
        self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)


def count_patches(shape: tuple[int, ...], patch_size: int, patch_depth: int) -> int:
    """Patches of a scan (C, H, W, D).

    >>> count_patches((1, 512, 512, 64), 32, 4)
    4096
    """
    _, height, width, depth = shape
    return (height // patch_size) * (width // patch_size) * max(depth // patch_depth, 1)


class Engine:
    """Batches by patches in the vision tower, and by tokens in the decoder.

    First come, first served. A batch of answers is generated to its end before the next one starts; each answer is sent as
    it grows, and a scan that arrives meanwhile waits. Both limits are of `limits`.
    """

    def __init__(
        self,
        model: RadFMForConditionalGeneration | RadFMModel,
        tokenizer: PreTrainedTokenizerBase,
        metrics: Metrics,
        batch_tokens: int | None = None,
    ):
        self._model, self._metrics = model, metrics
        # A tokenizer is not safe to use in two threads: this one decodes here and nowhere else.
        self._tokenizer = copy.deepcopy(tokenizer)
        self._batch_tokens = batch_tokens or default_batch_tokens(model)
        self._scans: deque[EncodeJob] = deque()
        self._prompts: deque[AnswerJob] = deque()
        self._changed = threading.Condition()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="radfm-model", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """End answers in progress at their next token, and the thread."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()
        self._thread.join(seconds)

    async def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The image tokens (I, E) of a scan (C, H, W, D), on the CPU."""
        vision = self._model.config.vision_config
        job = EncodeJob(pixel_values, count_patches(tuple(pixel_values.shape), vision.patch_size, vision.patch_depth))
        with self._changed:
            self._scans.append(job)
            self._changed.notify()
        return await asyncio.wrap_future(job.future)

    async def answer(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Piece]:
        """The pieces of `sampling.n` answers as they are generated. Closing the iterator ends them."""
        job = AnswerJob(prompt, sampling, asyncio.get_running_loop())
        with self._changed:
            self._prompts.append(job)
            self._changed.notify()
        unfinished = sampling.n
        try:
            while unfinished:
                piece = await job.pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                unfinished -= piece.finish_reason is not None
                yield piece
        finally:
            job.is_cancelled = True

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_stopped or self._scans or self._prompts)
                if self._is_stopped:
                    return
                scans, prompts = self._take_scans(), self._take_prompts()
            if scans:
                self._encode(scans)
            if prompts:
                self._generate(prompts)

    def _take_scans(self) -> list[EncodeJob]:
        """The next batch of the vision tower."""
        batch: list[EncodeJob] = []
        patches = 0
        while self._scans and (not batch or patches + self._scans[0].patches <= limits.BATCH_PATCHES):
            job = self._scans.popleft()
            if job.future.set_running_or_notify_cancel():
                batch.append(job)
                patches += job.patches
        return batch

    def _take_prompts(self) -> list[AnswerJob]:
        """The next batch of the decoder: answers × (longest prompt + longest answer) within the limit."""
        batch: list[AnswerJob] = []
        rows = longest_prompt = longest_answer = 0
        while self._prompts:
            job = self._prompts[0]
            if not job.is_cancelled:
                rows += job.sampling.n
                longest_prompt = max(longest_prompt, len(job.prompt.input_ids))
                longest_answer = max(longest_answer, job.sampling.max_tokens)
                if batch and rows * (longest_prompt + longest_answer) > self._batch_tokens:
                    break
                batch.append(job)
            self._prompts.popleft()
        return batch

    @torch.inference_mode()
    def _encode(self, jobs: list[EncodeJob]) -> None:
        try:
            scans = [job.pixel_values.to(self._model.device) for job in jobs]
            features = self._model.get_image_features(scans).pooler_output or ()
            self._metrics.encoded.observe(len(jobs))
            for job, of_scan in zip(jobs, features, strict=True):
                job.future.set_result(of_scan.cpu().clone())
        except Exception as error:
            if len(jobs) > 1:
                for half in _halves(jobs):
                    self._encode(half)
            else:
                jobs[0].future.set_exception(_as_api_error(error))

    def _generate(self, jobs: list[AnswerJob]) -> None:
        try:
            self._metrics.answered.observe(sum(job.sampling.n for job in jobs))
            self._generate_batch(jobs)
        except Exception as error:
            # A prompt that fails, or a batch that does not fit into memory, must not fail the others.
            fresh = [job for job in jobs if not job.has_started]
            if len(jobs) > 1 and fresh:
                for half in _halves(fresh):
                    self._generate(half)
                jobs = [job for job in jobs if job not in fresh]
            for job in jobs:
                job.send(_as_api_error(error))

    @torch.inference_mode()
    def _generate_batch(self, jobs: list[AnswerJob]) -> None:
        model = self._model
        assert isinstance(model, RadFMForConditionalGeneration)
        generation = copy.deepcopy(model.generation_config)
        generation.update(do_sample=False, temperature=None, top_p=None, top_k=None, num_beams=1)
        generation.update(max_length=None, max_new_tokens=max(job.sampling.max_tokens for job in jobs))
        eos_ids = end_tokens(generation)
        rows = [
            Row(job, Answer(self._tokenizer, job.sampling, index, eos_ids))
            for job in jobs
            for index in range(job.sampling.n)
        ]
        inputs = self._tokenizer.pad(
            {"input_ids": [row.job.prompt.input_ids for row in rows]}, padding_side="left", return_tensors="pt"
        ).to(model.device)
        features = [scan.to(model.device) for row in rows for scan in row.job.prompt.image_features]
        model.generate(
            **inputs,
            image_features=features or None,
            generation_config=generation,
            logits_processor=LogitsProcessorList([ChooseTokens(rows)]),
            stopping_criteria=StoppingCriteriaList([TakeTokens(rows, self)]),
        )

    @property
    def is_stopped(self) -> bool:
        """Whether answers in progress have to end."""
        return self._is_stopped


@dataclass(eq=False)
class Row:
    """One row of a batch in `generate`."""

    job: AnswerJob
    answer: Answer

    @property
    def is_done(self) -> bool:
        """Whether no more tokens are wanted."""
        return self.answer.finish_reason is not None or self.job.is_cancelled


class ChooseTokens(LogitsProcessor):
    """Samples for the rows that want it, each with its temperature and seed, by leaving them one token to choose."""

    def __init__(self, rows: list[Row]):
        self._rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for row, logits in zip(self._rows, scores, strict=True):
            token = None if row.is_done else row.answer.choose(logits)
            if token is not None:
                logits[:] = -torch.inf
                logits[token] = 0
        return scores


class TakeTokens(StoppingCriteria):
    """Hands each row its token, and ends the rows that are done."""

    def __init__(self, rows: list[Row], engine: Engine):
        self._rows, self._engine = rows, engine

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            if row.is_done:
                continue
            if self._engine.is_stopped:
                row.job.send(ApiError(503, "The server is being stopped.", retry_after=5))
                row.job.is_cancelled = True
                continue
            piece = row.answer.add(token)
            if piece is not None:
                row.job.has_started = True
                row.job.send(piece)
        return torch.tensor([row.is_done for row in self._rows], device=input_ids.device)


def _halves(jobs: list[Any]) -> Iterator[list[Any]]:
    middle = (len(jobs) + 1) // 2
    yield from (half for half in (jobs[:middle], jobs[middle:]) if half)


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error):
        return ApiError(400, "The model ran out of memory on this request: ask about fewer scans, or for a shorter answer.")
    log_without_values(error)
    return ApiError(500, "The model failed on this request.")


def default_batch_tokens(model: Any) -> int:
    """How many tokens of a batch fit: on a GPU into its free memory, on a CPU `limits.BATCH_TOKENS`."""
    if model.device.type != "cuda":
        return limits.BATCH_TOKENS
    decoder = model.config.text_config.get_text_config()
    heads = getattr(decoder, "num_key_value_heads", None) or decoder.num_attention_heads
    head_dim = getattr(decoder, "head_dim", None) or decoder.hidden_size // decoder.num_attention_heads
    dtype = model.get_input_embeddings().weight.dtype
    token_bytes = 2 * decoder.num_hidden_layers * heads * head_dim * dtype.itemsize
    free, _ = torch.cuda.mem_get_info(model.device)
    return max(int(CACHE_SHARE * free / token_bytes), 1)
