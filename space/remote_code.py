"""What the Space takes from the model's repository through transformers: code for scans, the processor, scores and tasks.

Names in that repository are known here and, for the reader's child process, in `model_code.py`.
"""

import json
import os
import sys
import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

from transformers import AutoProcessor
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import HF_MODULES_CACHE, cached_file

from reader_process import ReaderModule

Fetched = TypeVar("Fetched")
# Beside the code that made them, or in the root of a checkpoint that was saved elsewhere.
SCORES = ("training/demo/scores.json", "scores.json")
TASKS = ("training/demo/tasks.json", "tasks.json")


def retry_parser_race(fetch: Callable[[], Fetched]) -> Fetched:
    """`fetch()`, called a second time where Python's parser failed.

    Python 3.11 counts its parser's depth for all threads together and raises SystemError where two parse at once, as Gradio
    does while transformers parses the model's code (github.com/python/cpython/issues/106905).
    """
    try:
        return fetch()
    except SystemError:
        return fetch()


class AnswerError(RuntimeError):
    """Why there is no answer: one sentence that a visitor can read."""


class Repository:
    """A model's repository: a folder or a Hub id, at the revision in `RADFM_REVISION` where that is set."""

    def __init__(self, model_id: str, revision: str | None = None):
        """Nothing is fetched yet."""
        self.model_id = model_id
        self.revision = revision or os.environ.get("RADFM_REVISION") or None
        self._fetching = threading.RLock()

    @cached_property
    def processor(self) -> Any:
        """Its processor. Raises `AnswerError` where it cannot be had."""
        with self._fetching:
            return self._fetch(
                lambda: AutoProcessor.from_pretrained(self.model_id, revision=self.revision, trust_remote_code=True)
            )

    @cached_property
    def reader(self) -> ReaderModule:
        """Where its code for scans is, once that has been fetched. Raises `AnswerError`."""
        image_processor = self.processor.image_processor
        return ReaderModule(
            folder=str(HF_MODULES_CACHE),
            reader=self._module("load_scan_radfm.load_scan"),
            scans=self._module("scan_radfm.to_radiological_view"),
            image_processor=type(image_processor).__module__,
            image_processor_class=type(image_processor).__name__,
            settings=json.loads(image_processor.to_json_string()),
        )

    @cached_property
    def scores(self) -> list[dict[str, Any]]:
        """Right answers on held-out cases: rows {"pack", "label", "count", "model", "most_frequent"}; empty if absent."""
        return self._json(SCORES) or []

    @cached_property
    def tasks(self) -> dict[str, Any]:
        """What the model was trained for (docs/space.md has the format); empty if absent."""
        return self._json(TASKS) or {}

    @property
    def missing(self) -> str:
        """What to say when the model cannot be had."""
        at = f" at revision {self.revision}" if self.revision else ""
        return f"The model {self.model_id}{at} cannot be loaded: set RADFM_MODEL to a folder or a Hub id that holds one."

    def _module(self, name: str) -> str:
        with self._fetching:
            found = self._fetch(lambda: get_class_from_dynamic_module(name, self.model_id, revision=self.revision))
        return found.__module__

    def _fetch(self, fetch: Callable[[], Fetched]) -> Fetched:
        try:
            return retry_parser_race(fetch)
        except (OSError, ValueError) as error:
            raise AnswerError(self.missing) from error

    def _json(self, files: tuple[str, ...]) -> Any:
        """The first of some files that the repository holds, parsed; None where it holds none."""
        for file in files:
            try:
                path = cached_file(self.model_id, file, revision=self.revision)
            except OSError:
                continue
            if path is not None:
                with open(path, encoding="utf-8") as stream:
                    return json.load(stream)
        return None


def encode(processor: Any, messages: list[dict[str, Any]]) -> Any:
    """Messages → `input_ids` with the placeholders of each {"type": "image"} part; scans come as `image_features`.

    Control tokens that are typed in text parts stay text: `apply_chat_template` of the model's processor sees to that.
    """
    return processor.apply_chat_template(
        messages,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"images_encoded": True},
    )


def context_length(model: Any) -> int:
    """How many tokens the decoder can take."""
    return getattr(model.config.text_config, "max_position_embeddings", sys.maxsize)
