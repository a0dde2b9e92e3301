"""A folder or Hub id → a model on its device."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from radfm.scan_radfm import first_line

from ..items import BenchError
from .image_text import ImageText
from .local import LocalModel
from .radfm import RadFM

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded and asked.

    Args:
        device: cpu, cuda, cuda:1, …; auto takes a GPU where there is one, each process another.
        dtype: one of `DTYPES`; auto is float32 on a CPU and as stored elsewhere.
        max_new_tokens: the longest answer.
        slices: how many slices of a volume a model gets that takes images only.
        trust_remote_code: whether code of the model's repository may run.
        local_rank: number of this process on its machine.
    """

    device: str = "auto"
    dtype: str = "auto"
    max_new_tokens: int = 256
    slices: int = 8
    trust_remote_code: bool = False
    local_rank: int = 0


def load_model(name: str, options: LoadOptions) -> LocalModel:
    """Load a model of transformers from a folder or the Hub.

    Raises:
        BenchError: there is no such model, it does not load, or its processor needs a package that is not here.
    """
    if options.dtype not in DTYPES:
        raise BenchError(f"--dtype {options.dtype} is none of {', '.join(DTYPES)}.")
    device = _find_device(options.device, options.local_rank)
    as_stored = options.dtype == "auto" and device.type != "cpu"
    dtype = "auto" if as_stored else getattr(torch, options.dtype.replace("auto", "float32"))
    logging.disable_progress_bar()
    trust = options.trust_remote_code
    processor = _load_processor(name, trust)
    try:
        model = AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=trust, dtype=dtype)
    except (OSError, ValueError) as error:
        raise BenchError(f"{name}: cannot be loaded ({first_line(error)})") from error
    model = model.eval().to(device)
    if model.config.model_type == "radfm":
        return RadFM(name, processor, model, options.max_new_tokens)
    return ImageText(name, processor, model, options.max_new_tokens, options.slices)


def _load_processor(name: str, trust_remote_code: bool) -> Any:
    try:
        return AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (ImportError, AttributeError) as error:
        # transformers says ImportError, or AttributeError where a class that needs torchvision is missing.
        if find_spec("torchvision") is None:
            raise BenchError(
                f"{name}: its processor needs torchvision, which is not installed; install the one that fits torch "
                f"{torch.__version__}, or serve the model elsewhere and name it with --endpoint."
            ) from error
        raise BenchError(f"{name}: its processor cannot be loaded ({first_line(error)})") from error
    except (OSError, ValueError) as error:
        raise BenchError(f"{name}: cannot be loaded ({first_line(error)})") from error


def _find_device(device: str, local_rank: int) -> torch.device:
    if device == "auto":
        return torch.device(f"cuda:{local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise BenchError(f"--device {device}: {first_line(error)}") from error
    return target
