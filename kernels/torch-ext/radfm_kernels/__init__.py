"""Triton kernels for 3D patches: packed and neighbourhood attention, Perceiver, patch embedding, weighted cross-entropy."""

from . import layers
from .common import runs_triton
from .neighbourhood_attention import neighbourhood_attention
from .packed_attention import packed_attention
from .patch_embedding import patch_embedding
from .perceiver_attention import perceiver_attention
from .weighted_cross_entropy import weighted_cross_entropy

__all__ = [
    "layers",
    "neighbourhood_attention",
    "packed_attention",
    "patch_embedding",
    "perceiver_attention",
    "runs_triton",
    "weighted_cross_entropy",
]
