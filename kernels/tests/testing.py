"""Kernels on a card where there is one, and otherwise in Triton's interpreter: the same code, at small sizes."""

import os
import sys
from pathlib import Path

import torch

# Triton decides when it is imported, so these tests run in a process of their own.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent / "torch-ext"))

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# What rounding may cost, relative to the largest value: float32 sums in another order, inputs rounded to 16 bits.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def starts(*lengths):
    """(scans + 1,) int32: where each scan's rows begin."""
    return torch.tensor([0, *lengths], device=DEVICE).cumsum(0).to(torch.int32)


def rand(*shape, dtype=torch.float32, scale=1.0):
    """Random values as a kernel gets them."""
    return (torch.randn(shape) * scale).to(DEVICE, dtype)


def close(got, wanted, dtype, what):
    """Within the tolerance of a dtype of a float64 reference."""
    error = (got.double() - wanted.double()).abs().max().item() if got.numel() else 0.0
    limit = TOLERANCE[dtype] * max(wanted.abs().max().item(), 1.0) if got.numel() else 0.0
    assert error <= limit, f"{what} is off by {error:.2g}, more than {limit:.2g}"


def against_float64(kernel, reference, inputs, dtype, names):
    """A kernel's result and every gradient against its reference in float64 on the same (rounded) inputs."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    got, wanted = kernel(*leaves), reference(*exact)
    close(got, wanted, dtype, "the result")
    gradient = rand(*got.shape, dtype=got.dtype)
    if got.numel():
        got.backward(gradient)
        wanted.backward(gradient.double())
        for name, leaf, true in zip(names, leaves, exact, strict=True):
            close(leaf.grad, true.grad, dtype, f"the gradient of {name}")
