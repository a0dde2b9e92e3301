"""Helpers of the kernel tests. The kernels run on a card where there is one, and otherwise in Triton's interpreter."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

# Triton reads this when it is imported, so the kernels are tested in a process of their own.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent / "torch-ext"))

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Rounding errors relative to the largest value: float32 sums in another order, and inputs rounded to 16 bits.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def cu_seqlens_of(*lengths: int) -> torch.Tensor:
    """(scans + 1,) int32: first row of each scan, and the end of the last."""
    return torch.tensor([0, *lengths], device=DEVICE).cumsum(0).to(torch.int32)


def rand(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> torch.Tensor:
    """Normal random values, drawn in float32 and then rounded to `dtype`."""
    return (torch.randn(shape) * scale).to(DEVICE, dtype)


def contiguous_gradient(output: torch.Tensor) -> torch.Tensor:
    return rand(*output.shape, dtype=output.dtype)


def transposed_gradient(output: torch.Tensor) -> torch.Tensor:
    """A random gradient whose first two axes are swapped in memory, as a transpose after the operator gives it."""
    return rand(output.shape[1], output.shape[0], *output.shape[2:], dtype=output.dtype).transpose(0, 1)


def expanded_gradient(output: torch.Tensor) -> torch.Tensor:
    """One value with stride 0 along every axis, as `sum` gives it."""
    return rand(1, dtype=output.dtype).squeeze().expand(output.shape)


NON_CONTIGUOUS_GRADIENTS = (transposed_gradient, expanded_gradient)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, name: str) -> None:
    """Equal within the tolerance of `dtype`, relative to the largest expected value."""
    error = (actual.double() - expected.double()).abs().max().item() if actual.numel() else 0.0
    limit = TOLERANCE[dtype] * max(expected.abs().max().item(), 1.0) if actual.numel() else 0.0
    assert error <= limit, f"{name} is off by {error:.2g}, more than {limit:.2g}"


def against_float64(
    kernel: Callable[..., torch.Tensor],
    reference: Callable[..., torch.Tensor],
    inputs: Sequence[torch.Tensor],
    dtype: torch.dtype,
    names: Sequence[str],
    gradient: Callable[[torch.Tensor], torch.Tensor] = contiguous_gradient,
) -> None:
    """A kernel's output and every gradient equal those of its reference in float64 on the same rounded inputs."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    output, expected = kernel(*leaves), reference(*exact)
    assert_close(output, expected, dtype, "the output")
    if output.numel():
        grad_output = gradient(output)
        output.backward(grad_output)
        expected.backward(grad_output.double())
        for name, leaf, exact_leaf in zip(names, leaves, exact, strict=True):
            assert_close(leaf.grad, exact_leaf.grad, dtype, f"the gradient of {name}")
