"""Patch embedding: scans of one shape → patches → LayerNorm → Linear → LayerNorm → plus positions.

The matrix of patches (4,096 × 12,288 values for a CT of 512 × 512 × 64) is never written. Three passes instead:

1. `_statistics_kernel`: mean and 1 / standard deviation of each patch, from the voxels where they lie;
2. `_project_kernel`: a matrix product that gathers and normalises the voxels of its left operand while it runs;
3. `_norm_positions_kernel`: LayerNorm of each token, and its position.

The affine part of the first LayerNorm is folded into the Linear by the caller, which is exact (see `RadFMPatchEmbedding`).
In the products M counts patches, N output features, and K the values of a patch; these run along rows, columns, slices and
channels of the patch, channel fastest. All sums are float32.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F

from ._ops import add_op_namespace_prefix
from .common import autotune, dot_options, jit, tl, triton, use_kernel

PROJECT_CONFIGS = [
    ({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64}, 4, 3),
    ({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64}, 8, 3),
    ({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64}, 4, 3),
]
WEIGHT_GRADIENT_CONFIGS = [
    ({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64}, 4, 3),
    ({"BLOCK_M": 32, "BLOCK_N": 128, "BLOCK_K": 128}, 8, 3),
]
STATISTICS_BLOCKS = {"BLOCK_M": 16, "BLOCK_K": 256}
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
def _statistics_kernel(  # type: ignore[no-untyped-def]
    voxels_ptr,  # (scans, CHANNELS, height, width, depth), contiguous
    mean_ptr, rstd_ptr,  # (patches,) float32, written: mean of the values of a patch, and 1 / √(variance + eps)
    patches,  # of all scans
    channels, height, width, depth,  # of a scan, in voxels
    eps,
    CHANNELS: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, PATCH_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,  # patches of a program, values of a patch that are read at a time
):  # fmt: skip
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    patch_mask = offs_m < patches
    count = PATCH_H * PATCH_W * PATCH_D * CHANNELS
    patch_offs = _patch_offsets(offs_m, channels, height, width, depth, PATCH_H, PATCH_W, PATCH_D)
    total = tl.zeros([BLOCK_M], tl.float32)
    for start_k in range(0, count, BLOCK_K):
        offs_k = start_k + tl.arange(0, BLOCK_K)
        mask = patch_mask[:, None] & (offs_k < count)[None, :]
        value_offs = _value_offsets(offs_k, height, width, depth, CHANNELS, PATCH_W, PATCH_D)
        x = tl.load(voxels_ptr + patch_offs[:, None] + value_offs[None, :], mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(tl.where(mask, x, 0.0), 1)
    mean = total / count
    # The voxels are read twice: the variance as E[x²] − E[x]² would lose all digits on a bright patch of low contrast.
    squares = tl.zeros([BLOCK_M], tl.float32)
    for start_k in range(0, count, BLOCK_K):
        offs_k = start_k + tl.arange(0, BLOCK_K)
        mask = patch_mask[:, None] & (offs_k < count)[None, :]
        value_offs = _value_offsets(offs_k, height, width, depth, CHANNELS, PATCH_W, PATCH_D)
        x = tl.load(voxels_ptr + patch_offs[:, None] + value_offs[None, :], mask=mask, other=0.0).to(tl.float32)
        centered = tl.where(mask, x - mean[:, None], 0.0)
        squares += tl.sum(centered * centered, 1)
    tl.store(mean_ptr + offs_m, mean, mask=patch_mask)
    tl.store(rstd_ptr + offs_m, 1 / tl.sqrt(squares / count + eps), mask=patch_mask)


@jit
def _project_kernel(  # type: ignore[no-untyped-def]
    voxels_ptr,  # (scans, CHANNELS, height, width, depth), contiguous
    mean_ptr, rstd_ptr,  # (patches,) float32, of `_statistics_kernel`
    weight_ptr,  # (features, values of a patch), contiguous: LayerNorm and Linear folded
    bias_ptr,  # (features,)
    projected_ptr,  # (patches, features) float32, written
    patches, features,  # patches of all scans, width of a token
    channels, height, width, depth,  # of a scan, in voxels
    CHANNELS: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, PATCH_D: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,  # operands to float32 first; ieee, tf32x3 or tf32 products of float32
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,  # patches, features, values of a tile
):  # fmt: skip
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    patch_mask, feature_mask = offs_m < patches, offs_n < features
    count = PATCH_H * PATCH_W * PATCH_D * CHANNELS
    mean = tl.load(mean_ptr + offs_m, mask=patch_mask, other=0.0)
    rstd = tl.load(rstd_ptr + offs_m, mask=patch_mask, other=0.0)
    patch_offs = _patch_offsets(offs_m, channels, height, width, depth, PATCH_H, PATCH_W, PATCH_D)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start_k in range(0, count, BLOCK_K):
        offs_k = start_k + tl.arange(0, BLOCK_K)
        mask = patch_mask[:, None] & (offs_k < count)[None, :]
        value_offs = _value_offsets(offs_k, height, width, depth, CHANNELS, PATCH_W, PATCH_D)
        x = tl.load(voxels_ptr + patch_offs[:, None] + value_offs[None, :], mask=mask, other=0.0).to(tl.float32)
        x_hat = tl.where(mask, (x - mean[:, None]) * rstd[:, None], 0.0)
        w_mask = feature_mask[None, :] & (offs_k < count)[:, None]
        w = tl.load(weight_ptr + offs_n[None, :] * count + offs_k[:, None], mask=w_mask, other=0.0)
        if UPCAST:
            acc += tl.dot(x_hat, w.to(tl.float32), input_precision=PRECISION)
        else:
            acc += tl.dot(x_hat.to(w.dtype), w, input_precision=PRECISION)
    acc += tl.load(bias_ptr + offs_n, mask=feature_mask, other=0.0).to(tl.float32)[None, :]
    out_ptrs = projected_ptr + offs_m[:, None].to(tl.int64) * features + offs_n[None, :]
    tl.store(out_ptrs, acc, mask=patch_mask[:, None] & feature_mask[None, :])


@jit
def _norm_positions_kernel(  # type: ignore[no-untyped-def]
    projected_ptr,  # (patches, features) float32, of `_project_kernel`
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
    x = tl.load(projected_ptr + patch_idx.to(tl.int64) * features + offs_n, mask=feature_mask, other=0.0)
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


@jit
def _weight_gradient_kernel(  # type: ignore[no-untyped-def]
    voxels_ptr,  # (scans, CHANNELS, height, width, depth), contiguous
    mean_ptr, rstd_ptr,  # (patches,) float32, of the forward pass
    dprojected_ptr,  # (patches, features) float32, contiguous: gradient of the projected tokens
    dweight_ptr,  # (features, values of a patch), contiguous, written
    patches, features,  # patches of all scans, width of a token
    channels, height, width, depth,  # of a scan, in voxels
    CHANNELS: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, PATCH_D: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,  # operands to float32 first; ieee, tf32x3 or tf32 products of float32
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,  # patches, features, values of a tile
):  # fmt: skip
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    count = PATCH_H * PATCH_W * PATCH_D * CHANNELS
    feature_mask, value_mask = offs_n < features, offs_k < count
    value_offs = _value_offsets(offs_k, height, width, depth, CHANNELS, PATCH_W, PATCH_D)
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for start_m in range(0, patches, BLOCK_M):
        offs_m = start_m + tl.arange(0, BLOCK_M)
        patch_mask = offs_m < patches
        mask = patch_mask[:, None] & value_mask[None, :]
        patch_offs = _patch_offsets(offs_m, channels, height, width, depth, PATCH_H, PATCH_W, PATCH_D)
        mean = tl.load(mean_ptr + offs_m, mask=patch_mask, other=0.0)
        rstd = tl.load(rstd_ptr + offs_m, mask=patch_mask, other=0.0)
        x = tl.load(voxels_ptr + patch_offs[:, None] + value_offs[None, :], mask=mask, other=0.0).to(tl.float32)
        x_hat = tl.where(mask, (x - mean[:, None]) * rstd[:, None], 0.0)
        dy_mask = patch_mask[None, :] & feature_mask[:, None]
        dy_ptrs = dprojected_ptr + offs_m[None, :].to(tl.int64) * features + offs_n[:, None]
        dy = tl.load(dy_ptrs, mask=dy_mask, other=0.0)
        if UPCAST:
            acc += tl.dot(dy, x_hat, input_precision=PRECISION)
        else:
            dtype = dweight_ptr.dtype.element_ty
            acc += tl.dot(dy.to(dtype), x_hat.to(dtype), input_precision=PRECISION)
    out_ptrs = dweight_ptr + offs_n[:, None].to(tl.int64) * count + offs_k[None, :]
    tl.store(out_ptrs, acc.to(dweight_ptr.dtype.element_ty), mask=feature_mask[:, None] & value_mask[None, :])


if triton is not None:
    _tuned_project = autotune(PROJECT_CONFIGS, ["patches", "features"])(_project_kernel)
    _tuned_weight_gradient = autotune(WEIGHT_GRADIENT_CONFIGS, ["patches", "features"])(_weight_gradient_kernel)


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
    tokens: torch.Tensor = _forward_op(voxels, weight, bias, norm_weight, norm_bias, *tables, list(patch_size), eps)[0]
    return tokens


def _patch_grid(voxels: torch.Tensor, patch_size: Sequence[int]) -> tuple[int, ...]:
    """Patches of a scan along rows, columns and depth."""
    return tuple(n // step for n, step in zip(voxels.shape[2:], patch_size, strict=True))


def _position_entries(table: torch.Tensor, n: int) -> torch.Tensor:
    """Entries of a table of positions for the n patches along its axis."""
    return torch.arange(1, n + 1, device=table.device) * (len(table) // n) - 1


def _constants(voxels: torch.Tensor, patch_size: Sequence[int]) -> dict[str, int]:
    height, width, depth = patch_size
    return {"CHANNELS": voxels.shape[1], "PATCH_H": height, "PATCH_W": width, "PATCH_D": depth}


def _allocate(voxels: torch.Tensor, weight: torch.Tensor, patch_size: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """Uninitialised tokens, projected tokens, mean and rstd; all but the tokens in float32."""
    patches, features = len(voxels) * prod(_patch_grid(voxels, patch_size)), len(weight)
    tokens, projected = (weight.new_empty((patches, features), dtype=dtype) for dtype in (weight.dtype, torch.float32))
    mean, rstd = (weight.new_empty((patches,), dtype=torch.float32) for _ in range(2))
    return tokens, projected, mean, rstd


@torch.library.custom_op(add_op_namespace_prefix("patch_embedding_forward"), mutates_args=())
def _forward_op(
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, and what the backward pass needs: projected tokens, mean and rstd of the patches."""
    parameters = (weight, bias, norm_weight, norm_bias, row_positions, column_positions, depth_positions)
    tokens, projected, mean, rstd = _allocate(voxels, weight, patch_size)
    patches, features = tokens.shape
    if patches == 0:
        return tokens, projected, mean, rstd
    voxels, shape = voxels.contiguous(), voxels.shape[1:]
    weight, bias, norm_weight, norm_bias, *tables = (p.contiguous() for p in parameters)
    constants = _constants(voxels, patch_size)
    _statistics_kernel[(triton.cdiv(patches, STATISTICS_BLOCKS["BLOCK_M"]),)](
        voxels, mean, rstd, patches, *shape, eps, **constants, **STATISTICS_BLOCKS
    )
    _tuned_project[lambda b: (triton.cdiv(patches, b["BLOCK_M"]), triton.cdiv(features, b["BLOCK_N"]))](
        voxels, mean, rstd, weight, bias, projected, patches, features, *shape, **constants, **dot_options(weight)
    )
    grid = _patch_grid(voxels, patch_size)
    steps = [len(table) // n for table, n in zip(tables, grid, strict=True)]
    _norm_positions_kernel[(patches,)](
        projected, norm_weight, norm_bias, *tables, tokens, features, *grid, *steps, eps,
        BLOCK_N=triton.next_power_of_2(features),
    )  # fmt: skip
    return tokens, projected, mean, rstd


@_forward_op.register_fake
def _(voxels: torch.Tensor, weight: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    return _allocate(voxels, weight, rest[-2])


@torch.library.custom_op(add_op_namespace_prefix("patch_embedding_backward"), mutates_args=())
def _backward_op(dtokens: torch.Tensor, saved: list[torch.Tensor], patch_size: list[int], eps: float) -> list[torch.Tensor]:
    """Gradients of the seven parameters; `saved` is what `_save_for_backward` keeps."""
    voxels, *parameters, projected, mean, rstd = saved
    weight, _, norm_weight, norm_bias, *tables = parameters
    grid = _patch_grid(voxels, patch_size)
    patches, features, values = len(projected), *weight.shape
    if patches == 0:
        return [torch.zeros_like(p) for p in parameters]
    # The LayerNorm of tokens and the positions have small matrices, and are left to PyTorch.
    dtokens = dtokens.float().contiguous()
    variance, token_mean = torch.var_mean(projected, -1, correction=0, keepdim=True)
    dprojected, dnorm_weight, dnorm_bias = torch.ops.aten.native_layer_norm_backward(
        dtokens, projected, [features], token_mean, (variance + eps).rsqrt(), norm_weight.float(), norm_bias.float(),
        [True, True, True],
    )  # fmt: skip
    dweight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    _tuned_weight_gradient[lambda b: (triton.cdiv(features, b["BLOCK_N"]), triton.cdiv(values, b["BLOCK_K"]))](
        voxels.contiguous(), mean, rstd, dprojected.contiguous(), dweight, patches, features, *voxels.shape[1:],
        **_constants(voxels, patch_size), **dot_options(weight),
    )  # fmt: skip
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


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    voxels, *parameters, ctx.patch_size, ctx.eps = inputs
    ctx.save_for_backward(voxels, *parameters, *output[1:])


def _backward(ctx: Any, dtokens: torch.Tensor, *_unused: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return (None, *_backward_op(dtokens, list(ctx.saved_tensors), ctx.patch_size, ctx.eps), None, None)


_forward_op.register_autograd(_backward, setup_context=_save_for_backward)
