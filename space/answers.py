"""The model behind the Space: loaded once, through transformers' Auto classes alone; scans are encoded once."""

import logging
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
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
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import HF_MODULES_CACHE
from transformers.utils import logging as progress

from reading import Reader

# Hugging Face lends a GPU to functions that are marked so; elsewhere there is nothing to mark.
on_gpu: Callable = import_module("spaces").GPU if find_spec("spaces") else lambda function: function

NEW_TOKENS = 256
ENCODED_SCANS = 64
SECONDS_A_TOKEN = 120.0
logger = logging.getLogger(__name__)

Message = dict[str, Any]


class AnswerError(RuntimeError):
    """Why there is no answer: one sentence that a visitor can read."""


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

    def __init__(self, model_id: str):
        """Start loading `model_id`, a folder or a Hub id, and return at once."""
        self.model_id = model_id
        self._features: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._turn = Lock()
        self._loading = ThreadPoolExecutor(1).submit(self._load)

    def _load(self) -> tuple[Any, Any]:
        if not sys.stderr.isatty():
            progress.disable_progress_bar()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.float32 if device == "cpu" else "auto"
        processor = AutoProcessor.from_pretrained(self.model_id, trust_remote_code=True)
        model = AutoModelForImageTextToText.from_pretrained(self.model_id, trust_remote_code=True, dtype=dtype)
        return model.eval().to(device), processor

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """Model and processor, as soon as they are there. Raises `AnswerError` where they cannot be had."""
        try:
            return self._loading.result()
        except torch.OutOfMemoryError as error:
            raise AnswerError(f"The model {self.model_id} does not fit into this machine's memory.") from error
        except (OSError, ValueError, ImportError) as error:
            logger.warning("%s cannot be loaded: %s", self.model_id, error)
            raise AnswerError(self._missing) from error

    @cached_property
    def scan_class(self) -> type:
        """The `Scan` of the model's own repository."""
        return self._remote("scans_radfm.Scan")

    @cached_property
    def hang(self) -> Callable[[Any], Any]:
        """What turns a scan the way a radiologist hangs it."""
        return self._remote("scan_types_radfm.hang")

    @cached_property
    def reader(self) -> Reader:
        """Where the model's own repository has `load_scan`, once it is fetched."""
        return Reader(str(HF_MODULES_CACHE), self._remote("scans_radfm.load_scan").__module__)

    def _remote(self, name: str) -> Any:
        try:
            return get_class_from_dynamic_module(name, self.model_id)
        except OSError as error:
            raise AnswerError(self._missing) from error

    @property
    def _missing(self) -> str:
        return f"The model {self.model_id} cannot be loaded: set RADFM_MODEL to a folder or a Hub id that holds one."

    def features(self, scans: Sequence[tuple[str, Callable[[], Any]]]) -> list[torch.Tensor]:
        """The image tokens of scans, given as (content's hash, how to load it); only what is new is encoded."""
        found = []
        for key, load in scans:
            feature = self._features.get(key)
            if feature is None:
                with told_in_a_sentence():
                    feature = self._encode(self.pixel_values(load()))
            self._features.pop(key, None)
            self._features[key] = feature
            found.append(feature)
        while len(self._features) > ENCODED_SCANS:
            self._features.popitem(last=False)
        return found

    def forget(self, keys: Sequence[str]) -> None:
        """Drop what was kept of scans."""
        for key in keys:
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
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = processor(text=text.replace("<image>", processor.image_text), return_tensors="pt")
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
