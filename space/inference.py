"""The model behind the Space: loaded once, through transformers' Auto classes alone; scans are encoded once."""

import logging
import math
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)
from transformers.utils import logging as progress

from remote_code import AnswerError, Repository, with_its_code

# Hugging Face lends a GPU to functions that are marked so; elsewhere there is nothing to mark.
on_gpu: Callable = import_module("spaces").GPU if find_spec("spaces") else lambda function: function

NEW_TOKENS = 256
ENCODED_SCANS = 64
SECONDS_A_TOKEN = 120.0
logger = logging.getLogger(__name__)

Message = dict[str, Any]


@contextmanager
def told_in_a_sentence() -> Iterator[None]:
    """Running out of memory becomes an `AnswerError`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # A GPU's lack of memory has a class of its own, a CPU's only its words.
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error):
            raise AnswerError("The model ran out of memory on this: try fewer or smaller scans.") from error
        raise


class Answers:
    """A model, and the image tokens of the scans that it was asked about last."""

    def __init__(self, repository: Repository):
        """Load the model. Whatever went wrong with that, `loaded` says it."""
        self._features: OrderedDict[str, tuple[float, torch.Tensor]] = OrderedDict()
        self._turn = Lock()
        self._repository = repository
        self._failure: Exception | None = None
        try:
            self._loaded = with_its_code(lambda: self._load(repository.model_id))
        except Exception as error:
            logger.warning("%s cannot be loaded: %s", repository.model_id, error)
            self._failure = error

    def _load(self, model_id: str) -> tuple[Any, Any]:
        if not sys.stderr.isatty():
            progress.disable_progress_bar()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.float32 if device == "cpu" else "auto"
        processor = AutoProcessor.from_pretrained(model_id, trust_remote_code=True)
        model = AutoModelForImageTextToText.from_pretrained(model_id, trust_remote_code=True, dtype=dtype)
        return model.eval().to(device), processor

    @property
    def loaded(self) -> tuple[Any, Any]:
        """Model and processor. Raises `AnswerError` where they cannot be had."""
        if isinstance(self._failure, torch.OutOfMemoryError):
            raise AnswerError(f"The model {self._repository.model_id} does not fit into this machine's memory.")
        if self._failure is not None:
            raise AnswerError(self._repository.missing)
        return self._loaded

    def features(self, scans: Sequence[tuple[str, Callable[[], Any]]]) -> list[torch.Tensor]:
        """The image tokens of scans, given as (content's hash, how to load it); only what is new is encoded."""
        found = []
        for key, load in scans:
            _, feature = self._features.pop(key, (0.0, None))
            if feature is None:
                with told_in_a_sentence():
                    feature = self._encode(self.pixel_values(load()))
            self._features[key] = time.monotonic(), feature
            found.append(feature)
        while len(self._features) > ENCODED_SCANS:
            self._features.popitem(last=False)
        return found

    def knows(self, key: str) -> bool:
        """Whether a scan's image tokens are at hand."""
        return key in self._features

    def forget(self, seconds: float) -> None:
        """Drop the image tokens of scans that nobody asked about for so long."""
        for key, (used, _) in list(self._features.items()):
            if time.monotonic() - used > seconds:
                self._features.pop(key, None)

    def pixel_values(self, scan: Any) -> torch.Tensor:
        """What the model sees of a scan: (C, H, W, D)."""
        return self.loaded[1].image_processor([scan])["pixel_values"][0]

    def stream(self, messages: list[Message], features: list[torch.Tensor], stop: Path) -> Iterator[str]:
        """The answer so far, again and again, until it is complete or the file `stop` exists."""
        with told_in_a_sentence():
            yield from self._speak(messages, features, stop)

    def yes(self, messages: list[Message], features: list[torch.Tensor]) -> float:
        """Of the answers "yes" and "no", the probability that the model gives to "yes"."""
        with told_in_a_sentence():
            return self._yes(messages, features)

    def attention(self, scan: Any) -> torch.Tensor:
        """The Perceiver's attention over a scan's patches: (rows, columns, depths)."""
        with told_in_a_sentence():
            return self._attend(self.pixel_values(scan))

    def _inputs(self, messages: list[Message]) -> Any:
        model, processor = self.loaded
        inputs = processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"images_encoded": True},
        )
        longest = getattr(model.config.text_config, "max_position_embeddings", sys.maxsize)
        if inputs["input_ids"].shape[1] + NEW_TOKENS > longest:
            raise AnswerError(f"The conversation is longer than the model's {longest} tokens: start a new one.")
        return inputs.to(model.device)

    @on_gpu
    @torch.inference_mode()
    def _encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        model = self.loaded[0]
        with self._turn:
            return model.get_image_features([pixel_values.to(model.device)]).pooler_output[0].cpu()

    @on_gpu
    def _attend(self, pixel_values: torch.Tensor) -> torch.Tensor:
        model = self.loaded[0]
        with self._turn:
            return model.image_attention([pixel_values.to(model.device)])[0].float().cpu()

    @on_gpu
    def _speak(self, messages: list[Message], features: list[torch.Tensor], stop: Path) -> Iterator[str]:
        model, processor = self.loaded
        inputs = self._inputs(messages)
        streamer = TextIteratorStreamer(
            processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=SECONDS_A_TOKEN
        )
        failed: list[BaseException] = []

        def generate() -> None:
            try:
                with self._turn:
                    model.generate(
                        **inputs,
                        image_features=[feature.to(model.device) for feature in features] or None,
                        max_new_tokens=NEW_TOKENS,
                        do_sample=False,
                        streamer=streamer,
                        stopping_criteria=StoppingCriteriaList([Stopped(stop)]),
                    )
            except Exception as error:
                failed.append(error)
                streamer.end()

        thread = Thread(target=generate, daemon=True)
        thread.start()
        answer = ""
        for words in streamer:
            answer += words
            yield answer.strip()
        thread.join()
        if failed:
            raise failed[0]

    @on_gpu
    @torch.inference_mode()
    def _yes(self, messages: list[Message], features: list[torch.Tensor]) -> float:
        with self._turn:
            yes, no = (self._likelihood(messages, features, answer) for answer in ("yes", "no"))
        return 1 / (1 + math.exp(no - yes))

    def _likelihood(self, messages: list[Message], features: list[torch.Tensor], answer: str) -> float:
        """The logarithm of an answer's probability."""
        model = self.loaded[0]
        asked = self._inputs(messages)["input_ids"]
        said = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        both = self._inputs([*messages, said])["input_ids"]
        shared = int((both[0, : asked.shape[1]] == asked[0]).cumprod(0).sum())
        features = [feature.to(model.device) for feature in features]
        logits = model(input_ids=both, image_features=features or None).logits[0, shared - 1 : -1]
        return float(logits.float().log_softmax(-1).gather(-1, both[0, shared:, None]).sum())


class Stopped(StoppingCriteria):
    """Ends an answer when a file is there, or its folder is not. A file, because a lent GPU works in another process."""

    def __init__(self, file: Path):
        self.file = file

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        stopped = self.file.exists() or not self.file.parent.exists()
        return torch.full((len(input_ids),), stopped, device=input_ids.device)
