"""Triton kernels for 3D patches: attention of packed scans and its neighbourhood, Perceiver, patch embedding, cross-entropy."""

from .launching import runs_triton
from .packed_attention import packed_attention

__all__ = ["packed_attention", "runs_triton"]
