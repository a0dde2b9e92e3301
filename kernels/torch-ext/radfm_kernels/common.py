"""What the kernels share: where Triton runs, tile sizes, and options of `tl.dot`."""

import logging
import os
from collections.abc import Callable, Sequence
from functools import cache, wraps
from types import SimpleNamespace
from typing import Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    # The kernels are defined, but not compiled; their annotations name `tl.constexpr`.
    triton, tl = None, SimpleNamespace(constexpr=None)

__all__ = [
    "HEAD_DIMS", "LOG2_E", "autotune", "dot_options", "jit", "needs_dispatcher",
    "runs_triton", "tl", "triton", "use_kernel", "with_unit_stride", "without_autocast",
]  # fmt: skip

logger = logging.getLogger(__name__)

# Triton's own switch: kernels run on the CPU, one operation after the other, to check their numbers.
INTERPRETER = os.environ.get("TRITON_INTERPRET") == "1"
# Ampere: the first generation with bfloat16 and TF32 tensor cores.
MIN_CAPABILITY = (8, 0)
LOG2_E = 1.4426950408889634
# `tl.dot` needs 16 or more and `tl.arange` a power of two; wider heads were never compiled.
HEAD_DIMS = (16, 32, 64, 128)

# (block sizes, warps, pipeline stages) of one launch.
TileConfig = tuple[dict[str, int], int, int]


def runs_triton(device: torch.device) -> bool:
    """Whether the kernels run on a device: a CUDA card of compute capability 8.0 or newer, or Triton's interpreter."""
    if triton is None:
        return False
    if INTERPRETER:
        return True
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= MIN_CAPABILITY


@cache
def _warn_fallback(device_type: str) -> None:
    reason = "Triton is not installed" if triton is None else "they need a CUDA card of compute capability 8.0 or newer"
    logger.warning("RadFM's kernels do not run on %s (%s): PyTorch's operators take their place.", device_type, reason)


def use_kernel(device: torch.device) -> bool:
    """`runs_triton`, with one warning for each type of device where the PyTorch reference takes a kernel's place."""
    if runs_triton(device):
        return True
    _warn_fallback(device.type)
    return False


def needs_dispatcher(*tensors: torch.Tensor) -> bool:
    """Whether an operator must be called through PyTorch's dispatcher: for a gradient, or because something traces the call.

    Otherwise its function is called, because the dispatcher takes longer on the CPU than a small kernel on the card.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return True
    plain = all(type(tensor) in (torch.Tensor, torch.nn.Parameter) for tensor in tensors)
    return not plain or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of an operator whose matrix products keep the dtypes of its arguments; the first argument is a tensor."""

    @wraps(function)
    def call(tensor: torch.Tensor, *arguments: Any) -> Any:
        with torch.autocast(tensor.device.type, enabled=False):
            return function(tensor, *arguments)

    return call


def jit(function: Callable[..., None]) -> Any:
    """`triton.jit`, or the plain function where Triton is not installed and nothing will launch it."""
    return function if triton is None else triton.jit(function)


def autotune(configs: Sequence[TileConfig], key: list[str]) -> Callable[[Any], Any]:
    """`triton.autotune` over tile configurations, measured again for each new value of the arguments in `key`.

    A configuration that does not fit the shared memory of the card is left out by Triton; the last one of `configs` must
    fit every card. `RADFM_KERNELS_DETERMINISTIC=1` takes that one alone, because another tile size adds in another order,
    and the interpreter, which has no card to measure on, the first.
    """
    candidates = [triton.Config(blocks, num_warps=warps, num_stages=stages) for blocks, warps, stages in configs]
    if INTERPRETER:
        candidates = candidates[:1]
    elif os.environ.get("RADFM_KERNELS_DETERMINISTIC") == "1":
        candidates = candidates[-1:]
    tuner: Callable[[Any], Any] = triton.autotune(candidates, key=key)
    return tuner


def dot_options(tensor: torch.Tensor) -> dict[str, Any]:
    """The constants `UPCAST` and `PRECISION` with which kernels multiply matrices of the tensor's dtype.

    float32 is multiplied in three TF32 products (close to float32), or in one where `torch.backends.cuda.matmul.allow_tf32`.
    The interpreter multiplies bfloat16 wrongly, so there operands are converted to float32 first.
    """
    tf32 = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"
    return {
        "UPCAST": INTERPRETER and tensor.dtype == torch.bfloat16,
        "PRECISION": "ieee" if INTERPRETER else tf32,
    }


def with_unit_stride(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Each tensor, copied only if its last axis is not contiguous: kernels take the strides of all other axes."""
    return [tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in tensors]
