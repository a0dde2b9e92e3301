"""Whether Triton runs here, and what all kernels share: tile sizes to choose from, and how matrices are multiplied."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None
    tl = None

# Triton's own switch: kernels run on the CPU, operation by operation, to check their numbers.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
OLDEST_CAPABILITY = (8, 0)
LOG2_E = 1.4426950408889634
# Widths of a head that attention is compiled for.
WIDTHS = (16, 32, 64, 128)


def runs_triton(device: torch.device) -> bool:
    """Whether kernels run on a device: a CUDA card of compute capability 8.0 or more, or Triton's interpreter."""
    if triton is None:
        return False
    if INTERPRETED:
        return True
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= OLDEST_CAPABILITY


def tuned(configs: Sequence[tuple[dict[str, int], int, int]], key: list[str]) -> Callable[[Any], Any]:
    """`triton.autotune` over (tile sizes, warps, stages), anew for each value of `key`.

    `RADFM_KERNELS_DETERMINISTIC=1` takes the first, so that two runs add up in the same order; the interpreter does too.
    """
    choices = [triton.Config(tiles, num_warps=warps, num_stages=stages) for tiles, warps, stages in configs]
    fixed = INTERPRETED or os.environ.get("RADFM_KERNELS_DETERMINISTIC") == "1"
    return triton.autotune(choices[:1] if fixed else choices, key=key)


def kernel(function: Callable) -> Any:
    """`triton.jit`, or the plain function where Triton is not installed and nothing will launch it."""
    return function if triton is None else triton.jit(function)


def precision(tensor: torch.Tensor) -> dict[str, Any]:
    """How a kernel multiplies matrices of float32: in three tensor-core products, or in one where torch allows TF32.

    The interpreter's bfloat16 product is wrong; there, operands are widened first.
    """
    in_one = torch.backends.cuda.matmul.allow_tf32
    return {
        "WIDEN": INTERPRETED and tensor.dtype == torch.bfloat16,
        "PRECISION": "ieee" if INTERPRETED else "tf32" if in_one else "tf32x3",
    }


def strided(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Each tensor as it is where its last axis lies side by side in memory, a copy otherwise."""
    return [tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in tensors]


def by_autograd(
    reference: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor], gradient: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Gradients of a plain PyTorch reference, where no kernel runs."""
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        return torch.autograd.grad(reference(*leaves), leaves, gradient)
