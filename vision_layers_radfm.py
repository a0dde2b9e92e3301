"""Layers of RadFM's vision tower: patch embedding, 3D vision transformer, Perceiver. `modeling_radfm.py` puts them together.

Shape letters: N scans, C channels, H height, W width, D depth; L patches of one scan, P patches of all scans, V width of the
vision tower, I image tokens of one scan; h heads, d width of a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention_radfm import LatentPack, PackedLengths, kernels_for, latent_attention, packed_attention
from .configuration_radfm import RadFMVisionConfig

# Rows of the patch projection whose product stays in a processor's cache: 1.5 MB at the paper's sizes. All rows at once take
# two and a half times as long, because each forward would ask for 38 MB of fresh memory.
ROWS_IN_CACHE = 32


def is_plain(module: nn.Module) -> bool:
    """True if `module(x)` does nothing but the forward of a dense `nn.Linear`, `nn.LayerNorm` or `nn.Embedding`.

    Only then may a computation use `module.weight` in place of `module(x)`. Adapters and quantised layers are other classes;
    offloading and forward hooks act on the call.
    """
    return (
        type(module) in (nn.Linear, nn.LayerNorm, nn.Embedding)
        and "forward" not in module.__dict__  # accelerate's offloading replaces the method on the instance
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        and all(type(p) is nn.Parameter and not p.is_meta for p in module.parameters())
    )


class RadFMPatchEmbedding(nn.Module):
    """Patches of a scan → LayerNorm → Linear → LayerNorm, plus the learned positions of row, column and depth.

    The weights are those of a full patch (patch size, patch size, patch depth, channels). LayerNorm of repeated values has
    the mean and the variance of one copy, so for a grey or 2D scan LayerNorm and Linear become one smaller matrix: their
    weights summed over the copies. The matrix is computed in each forward, so it follows every change of the weights.
    """

    def __init__(self, config: RadFMVisionConfig):
        super().__init__()
        self.config = config
        self.full_patch = (config.patch_size, config.patch_size, config.patch_depth, config.num_channels)
        values = config.patch_size**2 * config.patch_depth * config.num_channels
        self.patch_norm = nn.LayerNorm(values, eps=config.layer_norm_eps)
        self.projection = nn.Linear(values, config.hidden_size)
        self.output_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        axis_width = config.hidden_size // 3
        self.row_positions = nn.Embedding(config.image_size // config.patch_size, axis_width)
        self.column_positions = nn.Embedding(config.image_size // config.patch_size, axis_width)
        self.depth_positions = nn.Embedding(config.max_slices // config.patch_depth, axis_width)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def patch_grid(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Patches along rows, columns and depth of a scan of `shape` (C, H, W, D).

        Raises:
            ValueError: a shape that does not fit patches or position tables.
        """
        channels, height, width, depth = shape
        patch, patch_depth = self.config.patch_size, self.config.patch_depth
        if channels not in (1, self.config.num_channels):
            raise ValueError(
                f"A scan of shape {tuple(shape)} has {channels} channels; the vision tower takes 1 (grey) "
                f"or {self.config.num_channels}, in the order (channels, height, width, depth)."
            )
        if min(height, width, depth) < 1 or height % patch or width % patch or (depth > 1 and depth % patch_depth):
            raise ValueError(
                f"A scan of shape {tuple(shape)} cannot be cut into patches of {patch}×{patch}×{patch_depth}: height and "
                f"width must be multiples of {patch}, depth 1 (an image) or a multiple of {patch_depth}."
            )
        if max(height, width) > self.config.image_size or depth > self.config.max_slices:
            raise ValueError(
                f"A scan of shape {tuple(shape)} is larger than the position tables: at most {self.config.image_size} "
                f"rows and columns and {self.config.max_slices} slices."
            )
        return height // patch, width // patch, max(depth // patch_depth, 1)

    def positions(self, grid: tuple[int, int, int], device: torch.device) -> torch.Tensor:
        """Positions of the patches of a grid, (L, V): patch i of n takes entry (i + 1) · ⌊N / n⌋ − 1 of a table of N."""
        parts = []
        for axis, (table, n) in enumerate(zip(self.position_tables(), grid, strict=True)):
            index = torch.arange(1, n + 1, device=device) * (table.num_embeddings // n) - 1
            part = table(index).view(*(n if a == axis else 1 for a in range(3)), -1)  # (n, V / 3) → e.g. (1, n, 1, V / 3)
            parts.append(part.expand(*grid, -1))
        return torch.cat(parts, dim=-1).flatten(0, 2)  # (rows, columns, depths, V) → (L, V)

    def position_tables(self) -> tuple[nn.Embedding, nn.Embedding, nn.Embedding]:
        """Positions of rows, of columns and of depths."""
        return self.row_positions, self.column_positions, self.depth_positions

    def folded_projection(self, grey: bool, flat: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Matrix (V, values of one copy) and bias (V,) that stand for LayerNorm's weight and bias and the Linear."""
        copies = [dim for dim, repeated in ((-1, grey), (-2, flat)) if repeated]
        parts = []
        for rows in self.projection.weight.split(ROWS_IN_CACHE):
            part = (rows * self.patch_norm.weight).view(-1, *self.full_patch)  # (rows, patch, patch, patch depth, channels)
            parts.append((part.sum(copies) if copies else part).flatten(1))
        return torch.cat(parts), self.projection.bias + self.projection.weight @ self.patch_norm.bias

    def cut(self, scans: torch.Tensor) -> torch.Tensor:
        """Scans (N, C, H, W, D) → patches (N · L, values of a patch), the channel fastest."""
        n, channels, _, _, depth = scans.shape
        rows, columns, depths = self.patch_grid(scans.shape[1:])
        patch = self.config.patch_size
        patches = scans.reshape(n, channels, rows, patch, columns, patch, depths, depth // depths)
        return patches.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4).flatten(0, 3)

    def forward(self, scans: torch.Tensor) -> torch.Tensor:
        """Scans of one shape (N, C, H, W, D) → (N · L, V)."""
        grid = self.patch_grid(scans.shape[1:])
        grey, flat = scans.shape[1] < self.config.num_channels, scans.shape[-1] == 1
        if is_plain(self.patch_norm) and is_plain(self.projection):
            matrix, bias = self.folded_projection(grey, flat)
            fused = kernels_for(scans.device, self.config.kernels)
            if fused is not None and all(is_plain(module) for module in (self.output_norm, *self.position_tables())):
                norm = (self.output_norm.weight, self.output_norm.bias)
                tables = (table.weight for table in self.position_tables())
                size = (self.config.patch_size, self.config.patch_size, scans.shape[-1] // grid[2])
                fused_tokens = fused.patch_embedding(
                    scans, matrix, bias, *norm, *tables, size, eps=self.config.layer_norm_eps
                )
                return self.dropout(fused_tokens)
            patches = self.cut(scans)
            normed = F.layer_norm(patches.float(), patches.shape[-1:], eps=self.config.layer_norm_eps)
            projected = F.linear(normed.to(matrix.dtype), matrix, bias)
        else:
            channels, depth = self.config.num_channels, self.config.patch_depth if flat else -1
            patches = self.cut(scans.expand(-1, channels, -1, -1, depth))  # (N · L, values of a full patch)
            projected = self.projection(self.patch_norm(patches.to(self.patch_norm.weight.dtype)))
        tokens = self.output_norm(projected).unflatten(0, (len(scans), -1))  # (N, L, V)
        embedded: torch.Tensor = self.dropout((tokens + self.positions(grid, tokens.device)).flatten(0, 1))
        return embedded


class RadFMVisionAttention(nn.Module):
    """Self-attention of the patches of each scan."""

    def __init__(self, config: RadFMVisionConfig):
        super().__init__()
        self.config = config
        self.heads, self.head_dim = config.num_attention_heads, int(config.head_dim or 0)
        self.scaling, self.dropout, self.is_causal = self.head_dim**-0.5, config.attention_dropout, False
        self.qkv = nn.Linear(config.hidden_size, 3 * self.heads * self.head_dim, bias=False)
        self.output = nn.Linear(self.heads * self.head_dim, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, pack: PackedLengths
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor] | None]:
        query, key, value = self.qkv(hidden_states).view(-1, 3, self.heads, self.head_dim).unbind(1)  # each (P, h, d)
        attended, weights = packed_attention(self, query, key, value, pack, pack)
        output: torch.Tensor = self.output(attended)
        return output, weights


class RadFMMLP(nn.Module):
    """Linear, activation, Linear."""

    def __init__(self, width: int, hidden: int, act: str, bias: bool):
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=bias)
        self.act = ACT2FN[act]
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.down(self.act(self.up(hidden_states)))
        return output


class RadFMVisionLayer(GradientCheckpointingLayer):
    """One pre-norm layer of the vision transformer."""

    def __init__(self, config: RadFMVisionConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = RadFMVisionAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = RadFMMLP(config.hidden_size, config.intermediate_size, config.hidden_act, bias=True)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self, hidden_states: torch.Tensor, pack: PackedLengths
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor] | None]:
        attended, weights = self.attention(self.attention_norm(hidden_states), pack)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states))), weights


class RadFMPerceiverAttention(nn.Module):
    """Cross-attention of the Perceiver: the queries are latents, keys and values the scan's patches and then its latents."""

    def __init__(self, config: RadFMVisionConfig):
        super().__init__()
        self.config = config
        self.heads, self.head_dim = config.perceiver_num_attention_heads, config.perceiver_head_dim
        self.scaling, self.dropout, self.is_causal = self.head_dim**-0.5, 0.0, False
        inner = self.heads * self.head_dim
        self.patches_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.latents_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.query = nn.Linear(config.hidden_size, inner, bias=False)
        self.key_value = nn.Linear(config.hidden_size, 2 * inner, bias=False)
        self.output = nn.Linear(inner, config.hidden_size, bias=False)

    def project(self, latents: torch.Tensor, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (N · I, h, d), keys and values of the patches (P, 2, h, d) and of the latents (N · I, 2, h, d)."""
        latents = self.latents_norm(latents)
        query = self.query(latents).view(-1, self.heads, self.head_dim)
        key_value, latent_key_value = (
            self.key_value(rows).view(-1, 2, self.heads, self.head_dim) for rows in (self.patches_norm(patches), latents)
        )
        return query, key_value, latent_key_value

    def forward(self, latents: torch.Tensor, patches: torch.Tensor, pack: LatentPack) -> torch.Tensor:
        output: torch.Tensor = self.output(latent_attention(self, *self.project(latents, patches), pack))
        return output

    def patch_attention(self, latents: torch.Tensor, patches: torch.Tensor, pack: LatentPack) -> list[torch.Tensor]:
        """The attention weights of each scan on its patches, (L,) a scan: the mean over heads and latents."""
        query, key_value, latent_key_value = self.project(latents, patches)
        keys = pack.interleave(key_value[:, 0], latent_key_value[:, 0]).split(pack.keys.lengths)
        weights = [
            torch.einsum("qhd, khd -> hqk", q.float(), k.float()).mul(self.scaling).softmax(-1)  # (h, I, L + I)
            for q, k in zip(query.split(pack.latents), keys, strict=True)
        ]
        return [w.mean((0, 1))[: -pack.latents] for w in weights]


class RadFMPerceiverLayer(GradientCheckpointingLayer):
    """One layer of the Perceiver: attention and MLP, each added to the latents."""

    def __init__(self, config: RadFMVisionConfig):
        super().__init__()
        self.attention = RadFMPerceiverAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = RadFMMLP(config.hidden_size, config.perceiver_intermediate_size, "gelu", bias=False)

    def forward(self, latents: torch.Tensor, patches: torch.Tensor, pack: LatentPack) -> torch.Tensor:
        latents = latents + self.attention(latents, patches, pack)
        output: torch.Tensor = latents + self.mlp(self.mlp_norm(latents))
        return output


class RadFMPerceiver(nn.Module):
    """Patches of a scan, any number of them → a fixed number of image tokens (Flamingo, arXiv 2204.14198, section 2.1)."""

    def __init__(self, config: RadFMVisionConfig):
        super().__init__()
        self.latents = nn.Parameter(torch.empty(config.num_image_tokens, config.hidden_size))
        self.layers = nn.ModuleList(RadFMPerceiverLayer(config) for _ in range(config.perceiver_num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, patches: torch.Tensor, pack: PackedLengths, patch_attention: bool = False) -> Any:
        """Packed patches (P, V) → image tokens (N, I, V).

        With `patch_attention` instead the attention of the last layer on the patches, (L,) for each scan.
        """
        tokens, scans = len(self.latents), len(pack.lengths)
        latent_pack = LatentPack(pack, tokens, patches.device)
        layer: Any  # nn.ModuleList knows its layers as nn.Module
        latents = self.latents.to(patches.device).repeat(scans, 1)  # (N · I, V)
        for number, layer in enumerate(self.layers, start=1):
            if patch_attention and number == len(self.layers):
                return layer.attention.patch_attention(latents, patches, latent_pack)
            latents = layer(latents, patches, latent_pack)
        return self.norm(latents).view(scans, tokens, -1)
