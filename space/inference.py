"""The model behind the Space: loaded once, through transformers' Auto classes alone."""

import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForImageTextToText,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)
from transformers.utils import logging as transformers_logging

from remote_code import AnswerError, Repository, context_length, encode, retry_parser_race

# The decorator with which a ZeroGPU Space borrows a GPU for one call; a no-op elsewhere.
on_gpu: Callable[..., Any] = import_module("spaces").GPU if find_spec("spaces") else lambda function: function

NEW_TOKENS = 256
SECONDS_A_TOKEN = 120.0
logger = logging.getLogger(__name__)

Message = dict[str, Any]


@contextmanager
def out_of_memory_as_answer_error() -> Iterator[None]:
    """Running out of memory becomes an `AnswerError`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # On a GPU this has a class of its own, on a CPU only the message tells.
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error):
            raise AnswerError("The model ran out of memory on this: try fewer or smaller scans.") from error
        raise


class Model:
    """A model and its processor. Everything but loading raises `AnswerError` where the model could not be loaded."""

    def __init__(self, repository: Repository):
        """Load the model; a failure is kept and raised by `model_and_processor`."""
        self._turn = Lock()
        self._repository = repository
        self._failure: Exception | None = None
        try:
            self._loaded = retry_parser_race(self._load)
        except Exception as error:
            logger.warning("%s cannot be loaded: %s", repository.model_id, error)
            self._failure = error

    def _load(self) -> tuple[Any, Any]:
        if not sys.stderr.isatty():
            transformers_logging.disable_progress_bar()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.float32 if device == "cpu" else "auto"
        processor = self._repository.processor
        model = AutoModelForImageTextToText.from_pretrained(
            self._repository.model_id, revision=self._repository.revision, trust_remote_code=True, dtype=dtype
        )
        return model.eval().to(device), processor

    @property
    def model_and_processor(self) -> tuple[Any, Any]:
        """Model and processor."""
        if isinstance(self._failure, torch.OutOfMemoryError):
            raise AnswerError(f"The model {self._repository.model_id} does not fit into this machine's memory.")
        if self._failure is not None:
            raise AnswerError(self._repository.missing)
        return self._loaded

    def num_parameters(self) -> int:
        """How many parameters the model has."""
        return sum(parameter.numel() for parameter in self.model_and_processor[0].parameters())

    def image_tokens(self, pixel_values: Path) -> torch.Tensor:
        """The image tokens (tokens, width) of the `pixel_values` in a file."""
        with out_of_memory_as_answer_error():
            return self._encode(_load_pixels(pixel_values))

    def attention(self, pixel_values: Path) -> np.ndarray:
        """The Perceiver's attention over the patches of the `pixel_values` in a file: (rows, columns, depths)."""
        with out_of_memory_as_answer_error():
            return self._attend(_load_pixels(pixel_values)).numpy()

    def stream(self, messages: list[Message], features: Sequence[torch.Tensor], stop: Path) -> Iterator[str]:
        """The answer so far, again and again, until it is complete or the file `stop` exists."""
        with out_of_memory_as_answer_error():
            yield from self._generate(messages, features, stop)

    def p_yes(self, messages: list[Message], features: Sequence[torch.Tensor]) -> float:
        """P("yes") / (P("yes") + P("no")), as the model weighs the two answers."""
        with out_of_memory_as_answer_error():
            return self._p_yes(messages, features)

    def _inputs(self, messages: list[Message]) -> Any:
        model, processor = self.model_and_processor
        inputs = encode(processor, messages)
        longest = context_length(model)
        if inputs["input_ids"].shape[1] + NEW_TOKENS > longest:
            raise AnswerError(f"The conversation is longer than the model's {longest} tokens: start a new one.")
        return inputs.to(model.device)

    @on_gpu
    @torch.inference_mode()
    def _encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        model = self.model_and_processor[0]
        with self._turn:
            return model.get_image_features([pixel_values.to(model.device)]).pooler_output[0].cpu()

    @on_gpu
    @torch.inference_mode()
    def _attend(self, pixel_values: torch.Tensor) -> torch.Tensor:
        model = self.model_and_processor[0]
        with self._turn:
            return model.image_attention([pixel_values.to(model.device)])[0].float().cpu()

    @on_gpu
    def _generate(self, messages: list[Message], features: Sequence[torch.Tensor], stop: Path) -> Iterator[str]:
        model, processor = self.model_and_processor
        inputs = self._inputs(messages)
        streamer = TextIteratorStreamer(
            processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=SECONDS_A_TOKEN
        )
        failed: list[Exception] = []

        def generate() -> None:
            try:
                with self._turn:
                    model.generate(
                        **inputs,
                        image_features=[feature.to(model.device) for feature in features] or None,
                        max_new_tokens=NEW_TOKENS,
                        do_sample=False,
                        streamer=streamer,
                        stopping_criteria=StoppingCriteriaList([StopOnFile(stop)]),
                    )
            except Exception as error:
                failed.append(error)
                streamer.end()

        thread = Thread(target=generate, daemon=True)
        thread.start()
        answer = ""
        for piece in streamer:
            answer += piece
            yield answer.strip()
        thread.join()
        if failed:
            raise failed[0]

    @on_gpu
    @torch.inference_mode()
    def _p_yes(self, messages: list[Message], features: Sequence[torch.Tensor]) -> float:
        with self._turn:
            yes, no = (self._log_probability(messages, features, answer) for answer in ("yes", "no"))
        return 1 / (1 + math.exp(no - yes))

    def _log_probability(self, messages: list[Message], features: Sequence[torch.Tensor], answer: str) -> float:
        model = self.model_and_processor[0]
        prompt_ids = self._inputs(messages)["input_ids"]
        reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        input_ids = self._inputs([*messages, reply])["input_ids"]
        shared = int((input_ids[0, : prompt_ids.shape[1]] == prompt_ids[0]).cumprod(0).sum())
        image_features = [feature.to(model.device) for feature in features] or None
        logits = model(input_ids=input_ids, image_features=image_features).logits[0, shared - 1 : -1]
        return float(logits.float().log_softmax(-1).gather(-1, input_ids[0, shared:, None]).sum())


def _load_pixels(file: Path) -> torch.Tensor:
    return torch.from_numpy(np.load(file))


class StopOnFile(StoppingCriteria):
    """Ends an answer when a file is there or its folder is gone. A file, because a lent GPU works in another process."""

    def __init__(self, file: Path):
        self.file = file

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        stopped = self.file.exists() or not self.file.parent.exists()
        return torch.full((len(input_ids),), stopped, device=input_ids.device)
