"""Linear layers that a CPU multiplies with oneDNN wherever nobody asks for a gradient.

PyTorch multiplies float32 with MKL, which is a tenth slower than oneDNN on an AMD processor at the vision tower's sizes
(`benchmarks/README.md`). The operator is the one that compiled PyTorch calls; it has no backward, and computes what
`F.linear` computes but for the order of its sums.
"""

import torch
import torch.nn.functional as F
from torch import nn

HAS_ONE_DNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(rows: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear`: rows (…, inputs), matrix (outputs, inputs), bias (outputs,) → (…, outputs)."""
    if _one_dnn_takes(rows, matrix):
        return torch.ops.mkldnn._linear_pointwise(rows, matrix, bias, "none", [], "")
    return F.linear(rows, matrix, bias)


def _one_dnn_takes(rows: torch.Tensor, matrix: torch.Tensor) -> bool:
    return bool(
        HAS_ONE_DNN
        and rows.device.type == matrix.device.type == "cpu"
        and rows.dtype == matrix.dtype == torch.float32
        # A quantised or sharded weight is a class of its own, and knows F.linear alone.
        and type(matrix) in (torch.Tensor, nn.Parameter)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.enabled
    )


class Linear(nn.Linear):
    """`nn.Linear` by way of `linear`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight, self.bias)
