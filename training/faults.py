"""Faults of a running training as one sentence: what happened, at which records, and what to change."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed import DistError

from radfm.medmd.schema import DataError
from radfm.scan_radfm import ScanError

from .recipe import RecipeError

# A file system that is full, a quota that is used up, a file beyond the largest size: OSError's numbers, and the texts of
# safetensors and torch.save, which pass no number on.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_TEXT = re.compile(
    rf"os error ({'|'.join(map(str, FULL))})\b|No space left|PytorchStreamWriter failed|file write failed"
)
LOST_TEXT = re.compile(r"[Cc]onnection (closed by peer|reset by peer|refused)|NCCL|gloo|[Ss]ocket|Broken pipe")


class TrainingError(RuntimeError):
    """A step that may not be taken: one line that names the records and what to change."""


def is_out_of_memory(error: BaseException) -> bool:
    """True for CUDA's error and for that of PyTorch's allocator on a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


@contextmanager
def explain_faults(out: Path) -> Iterator[None]:
    """Turn faults of scans, the disk, the memory and other ranks into `TrainingError`; others pass unchanged."""
    try:
        yield
    except TrainingError:
        raise
    except Exception as error:
        sentence = _sentence(error, out)
        if sentence is None:
            raise
        raise TrainingError(sentence) from error


def _sentence(error: Exception, out: Path) -> str | None:
    text = str(error)
    if isinstance(error, ScanError | DataError | RecipeError):
        # From a worker of the DataLoader comes its traceback as text; the message is what follows the name of the class.
        fault = text.rsplit(f"{type(error).__name__}: ", 1)[-1].strip()
        if isinstance(error, ScanError):
            return f"{fault.rstrip('.')}. Repair the scan or leave the record out; the same command then goes on."
        return fault if fault != text else None
    if is_out_of_memory(error):
        return "Out of memory outside of a micro-batch: train fewer parts, or adapters (parts.decoder=lora)."
    if any(getattr(cause, "errno", None) in FULL or FULL_TEXT.search(str(cause)) for cause in _causes(error)):
        return (
            f"{out}, or the cache of the data set, cannot be written: the disk is full; free space or lower "
            "training.save_total_limit. The same command then goes on from the last whole checkpoint."
        )
    if isinstance(error, DistError) or (isinstance(error, RuntimeError) and LOST_TEXT.search(text)):
        line = text.strip().splitlines()[0]
        return f"Another rank was lost ({line}); see its message. The same command goes on from the last checkpoint."
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from: `datasets` hides the system's error behind one of its own."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
