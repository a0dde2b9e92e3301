"""What the Space takes of the model's repository beside the weights: how a scan is read and hung. Needs no torch."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import HF_MODULES_CACHE

from reader_process import Reader

Fetched = TypeVar("Fetched")


def with_its_code(fetch: Callable[[], Fetched]) -> Fetched:
    """What `fetch` brings from a model's repository with the code that transformers parses for it.

    Python 3.11 counts its parser's depth for all threads together, and raises SystemError where two parse at once, as
    Gradio does while the model is loaded (github.com/python/cpython/issues/106905): that is tried again.
    """
    try:
        return fetch()
    except SystemError:
        return fetch()


class AnswerError(RuntimeError):
    """Why there is no answer: one sentence that a visitor can read."""


class Repository:
    """The code of a model, at its own revision."""

    def __init__(self, model_id: str):
        """`model_id` is a folder or a Hub id; nothing is fetched yet."""
        self.model_id = model_id

    @cached_property
    def scan_class(self) -> type:
        """Its `Scan`."""
        return self._remote("load_scan_radfm.Scan")

    @cached_property
    def to_radiological_view(self) -> Callable[[Any], Any]:
        """What turns a scan the way a radiologist hangs it."""
        return self._remote("scan_radfm.to_radiological_view")

    @cached_property
    def reader(self) -> Reader:
        """Where it has `load_scan`, once it is fetched."""
        return Reader(str(HF_MODULES_CACHE), self._remote("load_scan_radfm.load_scan").__module__)

    @property
    def missing(self) -> str:
        """What to say when it cannot be had."""
        return f"The model {self.model_id} cannot be loaded: set RADFM_MODEL to a folder or a Hub id that holds one."

    def _remote(self, name: str) -> Any:
        try:
            return with_its_code(lambda: get_class_from_dynamic_module(name, self.model_id))
        except OSError as error:
            raise AnswerError(self.missing) from error
