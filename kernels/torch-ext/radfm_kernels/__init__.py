"""Triton kernels of RadFM: packed attention, Perceiver attention, patch embedding and weighted cross-entropy.

Each operator falls back to plain PyTorch, with one warning, where no kernel runs (see `runs_triton`).
"""

from .common import runs_triton
from .packed_attention import packed_attention
from .patch_embedding import patch_embedding
from .perceiver_attention import perceiver_attention
from .weighted_cross_entropy import weighted_cross_entropy

__all__ = ["packed_attention", "patch_embedding", "perceiver_attention", "runs_triton", "weighted_cross_entropy"]
