"""The kernels as layers that `kernelize` puts in the place of a model's own: a forward pass, and nothing else."""

import torch
from torch import nn

from .packed_attention import packed_attention


class PackedAttention(nn.Module):
    """Attention of packed scans."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, longest: int
    ) -> torch.Tensor:
        return packed_attention(query, key, value, starts, starts, longest, longest)
