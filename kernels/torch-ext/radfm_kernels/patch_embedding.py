"""Patch embedding: scans of one shape → patches → LayerNorm → Linear → LayerNorm → plus positions.

1. `_normalise_kernel`: reads each voxel once, and writes the matrix of normalised patches in the dtype of the weights;
2. PyTorch's matrix product;
3. `_norm_positions_kernel`: LayerNorm of each token, and its position.

The affine part of the first LayerNorm is folded into the Linear by the caller, which is exact (see `RadFMPatchEmbedding`).
The values of a patch run along rows, columns, slices and channels, channel fastest. All sums are float32.

A product that gathers and normalises the voxels itself, so that no matrix is written, took 3.7 times as long on an H200:
each tile of features gathers all voxels again.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F

from ._ops import add_op_namespace_prefix
from .common import jit, needs_dispatcher, tl, triton, use_kernel, without_autocast

# Values that a program of `_normalise_kernel` holds in registers, and its warps: four patches of a CT at the paper's size.
BLOCK_VALUES, NORMALISE_WARPS = 16_384, 8
VOXEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@jit
def _patch_offsets(  # type: ignore[no-untyped-def]
    patch_idx,  # (BLOCK_M,): index among the patches of all scans; within a scan the depth runs fastest
    channels, height, width, depth,  # of a scan, in voxels
    PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, PATCH_D: tl.constexpr,  # rows, columns and slices of a patch
):  # fmt: skip
    """Offset of the first voxel of each patch, (BLOCK_M,) int64; `_value_offsets` are added to it."""
    grid_w, grid_d = width // PATCH_W, depth // PATCH_D
    patches_per_scan = height // PATCH_H * grid_w * grid_d
    scan, idx = patch_idx // patches_per_scan, patch_idx % patches_per_scan
    row_idx = idx // (grid_w * grid_d) * PATCH_H
    column_idx = idx // grid_d % grid_w * PATCH_W
    slice_idx = idx % grid_d * PATCH_D
    return scan.to(tl.int64) * channels * height * width * depth + (row_idx * width + column_idx) * depth + slice_idx


@jit
def _value_offsets(  # type: ignore[no-untyped-def]
    offs_k,  # (BLOCK_K,): index of a value within a patch
    height, width, depth,  # of a scan, in voxels
    CHANNELS: tl.constexpr, PATCH_W: tl.constexpr, PATCH_D: tl.constexpr,
):  # fmt: skip
    """Distance of each value of a patch from the first voxel of the patch, (BLOCK_K,)."""
    row_idx = offs_k // (PATCH_W * PATCH_D * CHANNELS)
    column_idx, slice_idx = offs_k // (PATCH_D * CHANNELS) % PATCH_W, offs_k // CHANNELS % PATCH_D
    return (offs_k % CHANNELS) * height * width * depth + (row_idx * width + column_idx) * depth + slice_idx


@jit
def _normalise_kernel(  # type: ignore[no-untyped-def]
    voxels_ptr,  # (scans, CHANNELS, height, width, depth), contiguous
    matrix_ptr,  # (patches, values of a patch), written: (value − mean of the patch) / √(variance of the patch + eps)
    patches,  # of all scans
    channels, height, width, depth,  # of a scan, in voxels
    eps,
    CHANNELS: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, PATCH_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,  # patches of a program; values of a patch, up to a power of two
):  # fmt: skip
    offs_m, offs_k = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
    count = PATCH_H * PATCH_W * PATCH_D * CHANNELS
    mask = (offs_m < patches)[:, None] & (offs_k < count)[None, :]
    patch_offs = _patch_offsets(offs_m, channels, height, width, depth, PATCH_H, PATCH_W, PATCH_D)
    value_offs = _value_offsets(offs_k, height, width, depth, CHANNELS, PATCH_W, PATCH_D)
    x = tl.load(voxels_ptr + patch_offs[:, None] + value_offs[None, :], mask=mask, other=0.0).to(tl.float32)
    # The variance as E[x²] − E[x]² would lose all digits on a bright patch of low contrast.
    centered = tl.where(mask, x - (tl.sum(x, 1) / count)[:, None], 0.0)
    x_hat = centered / tl.sqrt(tl.sum(centered * centered, 1) / count + eps)[:, None]
    out_ptrs = matrix_ptr + offs_m[:, None].to(tl.int64) * count + offs_k[None, :]
    tl.store(out_ptrs, x_hat.to(matrix_ptr.dtype.element_ty), mask=mask)


@jit
def _norm_positions_kernel(  # type: ignore[no-untyped-def]
    projected_ptr,  # (patches, features): the product
    norm_weight_ptr, norm_bias_ptr,  # (features,): of the LayerNorm of a token
    row_positions_ptr, column_positions_ptr, depth_positions_ptr,  # (entries, features / 3): learned positions
    tokens_ptr,  # (patches, features), written
    features,  # width of a token
    grid_h, grid_w, grid_d,  # patches of a scan along rows, columns and depth
    row_step, column_step, depth_step,  # ⌊entries / patches along the axis⌋ of each table
    eps,
    BLOCK_N: tl.constexpr,  # features up to a power of two
):  # fmt: skip
    patch_idx = tl.program_id(0)
    offs_n = tl.arange(0, BLOCK_N)
    feature_mask = offs_n < features
    x = tl.load(projected_ptr + patch_idx.to(tl.int64) * features + offs_n, mask=feature_mask, other=0.0).to(tl.float32)
    mean = tl.sum(x, 0) / features
    centered = tl.where(feature_mask, x - mean, 0.0)
    rstd = 1 / tl.sqrt(tl.sum(centered * centered, 0) / features + eps)
    norm_weight = tl.load(norm_weight_ptr + offs_n, mask=feature_mask, other=0.0).to(tl.float32)
    norm_bias = tl.load(norm_bias_ptr + offs_n, mask=feature_mask, other=0.0).to(tl.float32)
    # A token is three thirds: patch i of n along an axis takes entry (i + 1) · ⌊entries / n⌋ − 1 of the table of that axis.
    third = features // 3
    row_entry = (patch_idx // (grid_w * grid_d) % grid_h + 1) * row_step - 1
    column_entry = (patch_idx // grid_d % grid_w + 1) * column_step - 1
    depth_entry = (patch_idx % grid_d + 1) * depth_step - 1
    offs_third = offs_n % third
    in_rows, in_depth = offs_n < third, feature_mask & (offs_n >= 2 * third)
    in_columns = (offs_n >= third) & (offs_n < 2 * third)
    position = tl.load(row_positions_ptr + row_entry * third + offs_third, mask=in_rows, other=0.0).to(tl.float32)
    position += tl.load(column_positions_ptr + column_entry * third + offs_third, mask=in_columns, other=0.0).to(tl.float32)
    position += tl.load(depth_positions_ptr + depth_entry * third + offs_third, mask=in_depth, other=0.0).to(tl.float32)
    token = centered * rstd * norm_weight + norm_bias + position
    out_ptrs = tokens_ptr + patch_idx.to(tl.int64) * features + offs_n
    tl.store(out_ptrs, token.to(tokens_ptr.dtype.element_ty), mask=feature_mask)


def reference(voxels: torch.Tensor, *parameters: torch.Tensor, patch_size: Sequence[int], eps: float) -> torch.Tensor:
    """The same in plain PyTorch, with the matrix of patches written out; arguments as `patch_embedding`."""
    weight, bias, norm_weight, norm_bias, *tables = parameters
    scans, channels, grid = *voxels.shape[:2], _patch_grid(voxels, patch_size)
    x = voxels.to(torch.promote_types(weight.dtype, torch.float32))
    x = x.reshape(scans, channels, *(n for pair in zip(grid, patch_size, strict=True) for n in pair))
    patches = x.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4).flatten(0, 3)
    x_hat = F.layer_norm(patches, patches.shape[-1:], eps=eps)
    tokens = F.layer_norm(F.linear(x_hat.to(weight.dtype), weight, bias), norm_weight.shape, norm_weight, norm_bias, eps)
    thirds = []
    for axis, table in enumerate(tables):
        third = table[_position_entries(table, grid[axis])]
        thirds.append(third.view(*(n if a == axis else 1 for a, n in enumerate(grid)), -1).expand(*grid, -1))
    return tokens + torch.cat(thirds, -1).flatten(0, 2).repeat(scans, 1)


def patch_embedding(
    voxels: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    row_positions: torch.Tensor,
    column_positions: torch.Tensor,
    depth_positions: torch.Tensor,
    patch_size: Sequence[int],
    eps: float = 1e-5,
) -> torch.Tensor:
    """Patch tokens of scans of one shape.

    Args:
        voxels: (scans, channels, height, width, depth), float16, bfloat16 or float32.
        weight: (features, values of a patch), LayerNorm and Linear folded; the values run along rows, columns, slices and
            channels of a patch, channel fastest. 3 divides `features`.
        bias, norm_weight, norm_bias: (features,): of the folded Linear, and of the LayerNorm of a token.
        row_positions, column_positions, depth_positions: (entries, features / 3): learned positions; patch i of n along an
            axis takes entry (i + 1) · ⌊entries / n⌋ − 1.
        patch_size: rows, columns and slices of a patch; they divide height, width and depth.
        eps: of both LayerNorms.

    Returns:
        (scans · patches, features) in the dtype of `weight`; differentiable in all parameters, not in the voxels.

    Raises:
        ValueError: an argument whose shape or dtype does not fit; the message begins with its name.

    Example, one grey scan of 2 × 2 × 1 patches:
        >>> norm, positions = torch.ones(48), torch.zeros(16, 16)
        >>> parameters = (torch.ones(48, 8 * 8 * 4), norm, norm, norm, positions, positions, positions)
        >>> patch_embedding(torch.zeros(1, 1, 16, 16, 4), *parameters, (8, 8, 4)).shape
        torch.Size([4, 48])
    """
    if voxels.ndim != 5 or voxels.dtype not in VOXEL_DTYPES:
        raise ValueError(f"voxels: {tuple(voxels.shape)} {voxels.dtype} is not 5 axes of float16, bfloat16 or float32.")
    if any(n == 0 or n % step for n, step in zip(voxels.shape[2:], patch_size, strict=True)):
        raise ValueError(f"voxels: {tuple(voxels.shape[2:])} cannot be cut into patches of {tuple(patch_size)}.")
    values = voxels.shape[1] * patch_size[0] * patch_size[1] * patch_size[2]
    if weight.ndim != 2 or weight.shape[1] != values or weight.shape[0] % 3:
        raise ValueError(f"weight: shape {tuple(weight.shape)} is not (multiple of 3, {values} values of a patch).")
    for name, vector in (("bias", bias), ("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        if vector.shape != weight.shape[:1]:
            raise ValueError(f"{name}: shape {tuple(vector.shape)} is not ({len(weight)},).")
    tables, third = (row_positions, column_positions, depth_positions), len(weight) // 3
    for axis, table, n in zip(("row", "column", "depth"), tables, _patch_grid(voxels, patch_size), strict=True):
        if table.ndim != 2 or table.shape[1] != third or len(table) < n:
            raise ValueError(f"{axis}_positions: shape {tuple(table.shape)} is not ({n} entries or more, {third}).")
    if not use_kernel(voxels.device):
        return reference(voxels, weight, bias, norm_weight, norm_bias, *tables, patch_size=patch_size, eps=eps)
    tensors = (voxels, weight, bias, norm_weight, norm_bias, *tables)
    forward = _forward_op if needs_dispatcher(*tensors) else _forward
    tokens: torch.Tensor = forward(*tensors, list(patch_size), eps)[0]
    return tokens


def _patch_grid(voxels: torch.Tensor, patch_size: Sequence[int]) -> tuple[int, ...]:
    """Patches of a scan along rows, columns and depth."""
    return tuple(n // step for n, step in zip(voxels.shape[2:], patch_size, strict=True))


def _position_entries(table: torch.Tensor, n: int) -> torch.Tensor:
    """Entries of a table of positions for the n patches along its axis."""
    return torch.arange(1, n + 1, device=table.device) * (len(table) // n) - 1


def _normalise(voxels: torch.Tensor, weight: torch.Tensor, patch_size: Sequence[int], eps: float) -> torch.Tensor:
    """(patches, values of a patch) in the dtype of `weight`: each patch with mean 0 and variance 1."""
    values = weight.shape[1]
    matrix = weight.new_empty((len(voxels) * prod(_patch_grid(voxels, patch_size)), values))
    block_k = triton.next_power_of_2(values)
    block_m = max(BLOCK_VALUES // block_k, 1)
    height, width, depth = patch_size
    _normalise_kernel[(triton.cdiv(len(matrix), block_m),)](
        voxels.contiguous(), matrix, len(matrix), *voxels.shape[1:], eps,
        CHANNELS=voxels.shape[1], PATCH_H=height, PATCH_W=width, PATCH_D=depth, BLOCK_M=block_m, BLOCK_K=block_k,
        num_warps=NORMALISE_WARPS,
    )  # fmt: skip
    return matrix


@without_autocast
def _forward(
    voxels: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    row_positions: torch.Tensor,
    column_positions: torch.Tensor,
    depth_positions: torch.Tensor,
    patch_size: list[int],
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and the projected tokens before their LayerNorm, for the backward pass."""
    grid, tables = _patch_grid(voxels, patch_size), (row_positions, column_positions, depth_positions)
    if len(voxels) == 0:
        return weight.new_empty((0, len(weight))), weight.new_empty((0, len(weight)))
    projected = torch.addmm(bias, _normalise(voxels, weight, patch_size, eps), weight.t())
    tokens = torch.empty_like(projected)
    features, steps = len(weight), [len(table) // n for table, n in zip(tables, grid, strict=True)]
    _norm_positions_kernel[(len(tokens),)](
        projected, norm_weight.contiguous(), norm_bias.contiguous(), *(table.contiguous() for table in tables), tokens,
        features, *grid, *steps, eps, BLOCK_N=triton.next_power_of_2(features),
    )  # fmt: skip
    return tokens, projected


_forward_op = torch.library.custom_op(add_op_namespace_prefix("patch_embedding_forward"), _forward, mutates_args=())


@_forward_op.register_fake
def _(voxels: torch.Tensor, weight: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    patches = len(voxels) * prod(_patch_grid(voxels, rest[-2]))
    tokens, projected = (weight.new_empty((patches, len(weight))) for _ in range(2))
    return tokens, projected


@torch.library.custom_op(add_op_namespace_prefix("patch_embedding_backward"), mutates_args=())
@without_autocast
def _backward_op(dtokens: torch.Tensor, saved: list[torch.Tensor], patch_size: list[int], eps: float) -> list[torch.Tensor]:
    """Gradients of the seven parameters; `saved` is what `_save_for_backward` keeps."""
    voxels, *parameters, projected = saved
    weight, _, norm_weight, norm_bias, *tables = parameters
    grid, features = _patch_grid(voxels, patch_size), len(weight)
    if len(voxels) == 0:
        return [torch.zeros_like(p) for p in parameters]
    dtokens, projected = dtokens.float().contiguous(), projected.float()
    variance, token_mean = torch.var_mean(projected, -1, correction=0, keepdim=True)
    dprojected, dnorm_weight, dnorm_bias = torch.ops.aten.native_layer_norm_backward(
        dtokens, projected, [features], token_mean, (variance + eps).rsqrt(), norm_weight.float(), norm_bias.float(),
        [True, True, True],
    )  # fmt: skip
    dweight = dprojected.t().to(weight.dtype) @ _normalise(voxels, weight, patch_size, eps)
    gradients = [dweight, dprojected.sum(0), dnorm_weight, dnorm_bias]
    per_patch = dtokens.view(len(voxels), *grid, features).sum(0)
    other_axes = ((1, 2), (0, 2), (0, 1))
    for third, table, axes, n in zip(per_patch.tensor_split(3, -1), tables, other_axes, grid, strict=True):
        zeros = torch.zeros_like(table, dtype=torch.float32)
        gradients.append(zeros.index_add(0, _position_entries(table, n), third.sum(axes)))
    return [g.to(p.dtype) for g, p in zip(gradients, parameters, strict=True)]


@_backward_op.register_fake
def _(_dtokens: torch.Tensor, saved: list[torch.Tensor], *_rest: Any) -> list[torch.Tensor]:
    return [torch.empty_like(p) for p in saved[1:8]]


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    voxels, *parameters, ctx.patch_size, ctx.eps = inputs
    ctx.save_for_backward(voxels, *parameters, output[1])


def _backward(ctx: Any, dtokens: torch.Tensor, *_unused: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return (None, *_backward_op(dtokens, list(ctx.saved_tensors), ctx.patch_size, ctx.eps), None, None)


_forward_op.register_autograd(_backward, setup_context=_save_for_backward)
