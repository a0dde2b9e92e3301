"""Patch embedding: raw voxels of scans of one shape → normed, projected, normed and placed patch tokens.

The matrix of patches (4,096 × 12,288 values for a CT) is never written: a first pass over the voxels finds each patch's
mean and spread, a second gathers, scales and norms voxels while it multiplies them, a third norms the tokens and adds their
positions. Norm and Linear are folded into one matrix beforehand (RadFM's `RadFMPatchEmbedding` says why that is exact).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ._ops import NAMESPACE
from .common import by_autograd, kernel, precision, runs_triton, tl, triton, tuned

PROJECT_TILES = [
    ({"PATCHES": 64, "OUTPUTS": 128, "VALUES": 64}, 4, 3),
    ({"PATCHES": 128, "OUTPUTS": 128, "VALUES": 64}, 8, 3),
    ({"PATCHES": 64, "OUTPUTS": 64, "VALUES": 64}, 4, 3),
]
GRADIENT_TILES = [
    ({"PATCHES": 64, "OUTPUTS": 128, "VALUES": 64}, 4, 3),
    ({"PATCHES": 32, "OUTPUTS": 128, "VALUES": 128}, 8, 3),
]
STATISTICS_PATCHES, STATISTICS_VALUES = 16, 256
VOXELS = (torch.uint8, torch.int16, torch.float16, torch.bfloat16, torch.float32)


class Patch(NamedTuple):
    """Size of a patch in voxels."""

    rows: int
    columns: int
    slices: int


@kernel
def _corner(
    patch,  # (patches of a tile,): index among all; patches of a scan run along rows, columns and depth
    channels, height, width, depth,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """Where the first voxel of each patch lies, and in which scan; each voxel's place is this plus `_inside`."""
    across, deep = width // COLUMNS, depth // SLICES
    per_scan = height // ROWS * across * deep
    scan, inside = patch // per_scan, patch % per_scan
    row, column, piece = inside // (across * deep) * ROWS, inside // deep % across * COLUMNS, inside % deep * SLICES
    return scan.to(tl.int64) * channels * height * width * depth + (row * width + column) * depth + piece, scan


@kernel
def _inside(
    value,  # (values of a tile,): index in a patch; rows, columns, slices, channels follow each other, channel fastest
    height, width, depth,
    CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """How far each value of a patch lies from the patch's first voxel."""
    row = value // (COLUMNS * SLICES * CHANNELS)
    column, piece = value // (SLICES * CHANNELS) % COLUMNS, value // CHANNELS % SLICES
    return (value % CHANNELS) * height * width * depth + (row * width + column) * depth + piece


@kernel
def _gathered(
    voxels_ptr,  # (scans, channels, height, width, depth)
    corner, inside,  # (patches,), (values,): places of patches, and of values in them
    known,  # (patches, values): where both exist
    low, per_unit,  # (patches,): the value that becomes 0, and 1 / (value that becomes 1 − low)
    SCALED: tl.constexpr,
):  # fmt: skip
    """Voxels of patches (patches, values) as float32, in their window."""
    found = tl.load(voxels_ptr + corner[:, None] + inside[None, :], mask=known, other=0.0).to(tl.float32)
    if SCALED:
        found = tl.minimum(tl.maximum((found - low[:, None]) * per_unit[:, None], 0.0), 1.0)
    return found


@kernel
def _statistics(
    voxels_ptr, low_ptr, per_unit_ptr,
    mean_ptr, spread_ptr,  # (patches,) float32: mean and 1 / standard deviation of a patch's values
    patches, channels, height, width, depth, eps,
    SCALED: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SLICES: tl.constexpr,
    PATCHES: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    patch = tl.program_id(0) * PATCHES + tl.arange(0, PATCHES)
    here = patch < patches
    count = ROWS * COLUMNS * SLICES * CHANNELS
    corner, scan = _corner(patch, channels, height, width, depth, ROWS, COLUMNS, SLICES)
    low, per_unit = tl.load(low_ptr + scan, mask=here, other=0.0), tl.load(per_unit_ptr + scan, mask=here, other=0.0)
    total = tl.zeros([PATCHES], tl.float32)
    for start in range(0, count, VALUES):
        value = start + tl.arange(0, VALUES)
        known = here[:, None] & (value < count)[None, :]
        inside = _inside(value, height, width, depth, CHANNELS, COLUMNS, SLICES)
        found = _gathered(voxels_ptr, corner, inside, known, low, per_unit, SCALED)
        total += tl.sum(tl.where(known, found, 0.0), 1)
    mean = total / count
    squares = tl.zeros([PATCHES], tl.float32)
    for start in range(0, count, VALUES):
        value = start + tl.arange(0, VALUES)
        known = here[:, None] & (value < count)[None, :]
        inside = _inside(value, height, width, depth, CHANNELS, COLUMNS, SLICES)
        away = tl.where(known, _gathered(voxels_ptr, corner, inside, known, low, per_unit, SCALED) - mean[:, None], 0.0)
        squares += tl.sum(away * away, 1)
    tl.store(mean_ptr + patch, mean, mask=here)
    tl.store(spread_ptr + patch, 1 / tl.sqrt(squares / count + eps), mask=here)


@kernel
def _project(
    voxels_ptr, low_ptr, per_unit_ptr, mean_ptr, spread_ptr,
    matrix_ptr,  # (outputs, values of a patch): norm and Linear folded
    bias_ptr,  # (outputs,)
    projected_ptr,  # (patches, outputs) float32
    patches, outputs, channels, height, width, depth,
    SCALED: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SLICES: tl.constexpr,
    WIDEN: tl.constexpr, PRECISION: tl.constexpr,
    PATCHES: tl.constexpr, OUTPUTS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    patch = tl.program_id(0) * PATCHES + tl.arange(0, PATCHES)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    here, wanted = patch < patches, output < outputs
    count = ROWS * COLUMNS * SLICES * CHANNELS
    mean, spread = tl.load(mean_ptr + patch, mask=here, other=0.0), tl.load(spread_ptr + patch, mask=here, other=0.0)
    corner, scan = _corner(patch, channels, height, width, depth, ROWS, COLUMNS, SLICES)
    low, per_unit = tl.load(low_ptr + scan, mask=here, other=0.0), tl.load(per_unit_ptr + scan, mask=here, other=0.0)
    sums = tl.zeros([PATCHES, OUTPUTS], tl.float32)
    for start in range(0, count, VALUES):
        value = start + tl.arange(0, VALUES)
        known = here[:, None] & (value < count)[None, :]
        inside = _inside(value, height, width, depth, CHANNELS, COLUMNS, SLICES)
        found = _gathered(voxels_ptr, corner, inside, known, low, per_unit, SCALED)
        normed = tl.where(known, (found - mean[:, None]) * spread[:, None], 0.0)
        block = tl.load(
            matrix_ptr + output[None, :] * count + value[:, None],
            mask=wanted[None, :] & (value < count)[:, None],
            other=0.0,
        )
        if WIDEN:
            sums += tl.dot(normed, block.to(tl.float32), input_precision=PRECISION)
        else:
            sums += tl.dot(normed.to(block.dtype), block, input_precision=PRECISION)
    sums += tl.load(bias_ptr + output, mask=wanted, other=0.0).to(tl.float32)[None, :]
    place = projected_ptr + patch[:, None].to(tl.int64) * outputs + output[None, :]
    tl.store(place, sums, mask=here[:, None] & wanted[None, :])


@kernel
def _place(
    projected_ptr,
    gain_ptr, shift_ptr,  # (outputs,): of the norm of a token
    rows_ptr, columns_ptr, depths_ptr,  # (entries, outputs / 3): learned positions
    tokens_ptr,  # (patches, outputs)
    patches, outputs, down, across, deep,  # patches of a scan along rows, columns and depth
    row_step, column_step, depth_step,  # entries of a table per patch
    eps,
    PADDED: tl.constexpr,  # outputs, up to a power of two
):  # fmt: skip
    patch = tl.program_id(0)
    column = tl.arange(0, PADDED)
    here = column < outputs
    token = tl.load(projected_ptr + patch.to(tl.int64) * outputs + column, mask=here, other=0.0)
    mean = tl.sum(token, 0) / outputs
    away = tl.where(here, token - mean, 0.0)
    spread = 1 / tl.sqrt(tl.sum(away * away, 0) / outputs + eps)
    gain = tl.load(gain_ptr + column, mask=here, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + column, mask=here, other=0.0).to(tl.float32)
    third = outputs // 3
    row = (patch // (across * deep) % down + 1) * row_step - 1
    col = (patch // deep % across + 1) * column_step - 1
    piece = (patch % deep + 1) * depth_step - 1
    inside = column % third
    position = tl.load(rows_ptr + row * third + inside, mask=column < third, other=0.0).to(tl.float32)
    middle = (column >= third) & (column < 2 * third)
    position += tl.load(columns_ptr + col * third + inside, mask=middle, other=0.0).to(tl.float32)
    position += tl.load(depths_ptr + piece * third + inside, mask=here & (column >= 2 * third), other=0.0).to(tl.float32)
    placed = away * spread * gain + shift + position
    tl.store(tokens_ptr + patch.to(tl.int64) * outputs + column, placed.to(tokens_ptr.dtype.element_ty), mask=here)


@kernel
def _matrix_gradient(
    voxels_ptr, low_ptr, per_unit_ptr, mean_ptr, spread_ptr,
    gradient_ptr,  # (patches, outputs) float32: of the projected tokens
    matrix_gradient_ptr,  # (outputs, values of a patch)
    patches, outputs, channels, height, width, depth,
    SCALED: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SLICES: tl.constexpr,
    WIDEN: tl.constexpr, PRECISION: tl.constexpr,
    PATCHES: tl.constexpr, OUTPUTS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    value = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    count = ROWS * COLUMNS * SLICES * CHANNELS
    wanted, real = output < outputs, value < count
    inside = _inside(value, height, width, depth, CHANNELS, COLUMNS, SLICES)
    sums = tl.zeros([OUTPUTS, VALUES], tl.float32)
    for start in range(0, patches, PATCHES):
        patch = start + tl.arange(0, PATCHES)
        here = patch < patches
        known = here[:, None] & real[None, :]
        corner, scan = _corner(patch, channels, height, width, depth, ROWS, COLUMNS, SLICES)
        low, per_unit = tl.load(low_ptr + scan, mask=here, other=0.0), tl.load(per_unit_ptr + scan, mask=here, other=0.0)
        mean, spread = tl.load(mean_ptr + patch, mask=here, other=0.0), tl.load(spread_ptr + patch, mask=here, other=0.0)
        found = _gathered(voxels_ptr, corner, inside, known, low, per_unit, SCALED)
        normed = tl.where(known, (found - mean[:, None]) * spread[:, None], 0.0)
        gradient = tl.load(
            gradient_ptr + patch[None, :].to(tl.int64) * outputs + output[:, None],
            mask=here[None, :] & wanted[:, None],
            other=0.0,
        )
        if WIDEN:
            sums += tl.dot(gradient, normed, input_precision=PRECISION)
        else:
            kind = matrix_gradient_ptr.dtype.element_ty
            sums += tl.dot(gradient.to(kind), normed.to(kind), input_precision=PRECISION)
    place = matrix_gradient_ptr + output[:, None].to(tl.int64) * count + value[None, :]
    tl.store(place, sums.to(matrix_gradient_ptr.dtype.element_ty), mask=wanted[:, None] & real[None, :])


if triton is not None:
    _tuned_project = tuned(PROJECT_TILES, ["patches", "outputs"])(_project)
    _tuned_matrix_gradient = tuned(GRADIENT_TILES, ["patches", "outputs"])(_matrix_gradient)


def reference(
    voxels: torch.Tensor,
    matrix: torch.Tensor,
    bias: torch.Tensor,
    gain: torch.Tensor,
    shift: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    depths: torch.Tensor,
    patch: Patch,
    window: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """The same in plain PyTorch, with the matrix of patches written out; shapes as `patch_embedding`."""
    scans, channels, height, width, depth = voxels.shape
    down, across, deep = height // patch.rows, width // patch.columns, depth // patch.slices
    values = voxels.to(torch.promote_types(matrix.dtype, torch.float32))
    if window is not None:
        low, high = window.to(values.dtype).view(scans, 2, 1, 1, 1, 1).unbind(1)
        values = ((values - low) / (high - low)).clamp(0, 1)
    cut = values.view(scans, channels, down, patch.rows, across, patch.columns, deep, patch.slices)
    cut = cut.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4).flatten(0, 3)
    normed = F.layer_norm(cut, cut.shape[-1:], eps=eps)
    tokens = F.layer_norm(F.linear(normed.to(matrix.dtype), matrix, bias), gain.shape, gain, shift, eps)
    parts = []
    for axis, (table, n) in enumerate(zip((rows, columns, depths), (down, across, deep), strict=True)):
        index = torch.arange(1, n + 1, device=table.device) * (len(table) // n) - 1
        part = table[index].view(*(n if a == axis else 1 for a in range(3)), -1)
        parts.append(part.expand(down, across, deep, -1))
    return tokens + torch.cat(parts, -1).flatten(0, 2).repeat(scans, 1)


def patch_embedding(
    voxels: torch.Tensor,
    matrix: torch.Tensor,
    bias: torch.Tensor,
    gain: torch.Tensor,
    shift: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    depths: torch.Tensor,
    patch: Patch | tuple[int, int, int],
    window: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Patch tokens of scans of one shape.

    Args:
        voxels: (scans, channels, height, width, depth), uint8, int16, float16, bfloat16 or float32, as they were stored.
        matrix: (width, values of a patch), LayerNorm and Linear folded; values run along rows, columns, slices, channels.
        bias, gain, shift: (width,): of the folded projection, and of the norm of a token.
        rows, columns, depths: (entries, width / 3): learned positions; patch i of n takes entry (i + 1) · ⌊entries / n⌋ − 1.
        patch: rows, columns and slices of a patch; they divide the scan's.
        window: (scans, 2) float32, the values that become 0 and 1; what lies outside is clipped. Values as they are without.
        eps: of both norms.

    Returns:
        (scans · patches, width), in the dtype of `matrix`; differentiable in all parameters, not in the voxels.

    Raises:
        ValueError: an argument whose shape or dtype does not fit, by name.
    """
    patch = Patch(*patch)
    if voxels.ndim != 5 or voxels.dtype not in VOXELS:
        raise ValueError(
            f"voxels: {tuple(voxels.shape)} {voxels.dtype} is not (scans, channels, height, width, depth) of {VOXELS}."
        )
    if any(n == 0 or n % step for n, step in zip(voxels.shape[2:], patch, strict=True)):
        raise ValueError(f"voxels: {tuple(voxels.shape[2:])} cannot be cut into patches of {tuple(patch)}.")
    values = voxels.shape[1] * patch.rows * patch.columns * patch.slices
    if matrix.ndim != 2 or matrix.shape[1] != values or matrix.shape[0] % 3:
        raise ValueError(f"matrix: shape {tuple(matrix.shape)} is not (width that 3 divides, {values} values of a patch).")
    for name, tensor in (("bias", bias), ("gain", gain), ("shift", shift)):
        if tensor.shape != matrix.shape[:1]:
            raise ValueError(f"{name}: shape {tuple(tensor.shape)} is not ({len(matrix)},).")
    grid = [n // step for n, step in zip(voxels.shape[2:], patch, strict=True)]
    for name, table, n in zip(("rows", "columns", "depths"), (rows, columns, depths), grid, strict=True):
        if table.ndim != 2 or table.shape[1] != len(matrix) // 3 or len(table) < n:
            raise ValueError(f"{name}: shape {tuple(table.shape)} is not ({n} entries or more, {len(matrix) // 3}).")
    if window is not None and window.shape != (len(voxels), 2):
        raise ValueError(f"window: shape {tuple(window.shape)} is not ({len(voxels)} scans, 2).")
    return _forward_op(voxels, matrix, bias, gain, shift, rows, columns, depths, list(patch), window, eps)[0]


def _numbers(voxels: torch.Tensor, patch: Patch) -> tuple[int, int, int, int]:
    """Patches of all scans, and of one along rows, columns and depth."""
    down, across, deep = (n // step for n, step in zip(voxels.shape[2:], patch, strict=True))
    return len(voxels) * down * across * deep, down, across, deep


def _window(voxels: torch.Tensor, window: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    if window is None:
        window = torch.tensor([[0.0, 1.0]], device=voxels.device).expand(len(voxels), 2)
    low, high = window.float().unbind(1)
    return low.contiguous(), (1 / (high - low)).contiguous()


@torch.library.custom_op(f"{NAMESPACE}::patch_embedding_forward", mutates_args=())
def _forward_op(
    voxels: torch.Tensor,
    matrix: torch.Tensor,
    bias: torch.Tensor,
    gain: torch.Tensor,
    shift: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    depths: torch.Tensor,
    patch: list[int],
    window: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    size = Patch(*patch)
    patches, down, across, deep = _numbers(voxels, size)
    outputs = len(matrix)
    projected = matrix.new_empty((patches, outputs), dtype=torch.float32)
    mean, spread = (matrix.new_empty((patches,), dtype=torch.float32) for _ in range(2))
    if patches == 0 or not runs_triton(voxels.device):
        tokens = reference(voxels, matrix, bias, gain, shift, rows, columns, depths, size, window, eps)
        return tokens.contiguous(), projected, mean, spread
    voxels, matrix = voxels.contiguous(), matrix.contiguous()
    low, per_unit = _window(voxels, window)
    shape = voxels.shape[1:]
    sizes = {"SCALED": window is not None, "CHANNELS": shape[0], "ROWS": size.rows, "COLUMNS": size.columns}
    sizes["SLICES"] = size.slices
    _statistics[(triton.cdiv(patches, STATISTICS_PATCHES),)](
        voxels, low, per_unit, mean, spread, patches, *shape, eps, **sizes,
        PATCHES=STATISTICS_PATCHES, VALUES=STATISTICS_VALUES,
    )  # fmt: skip
    _tuned_project[lambda tiles: (triton.cdiv(patches, tiles["PATCHES"]), triton.cdiv(outputs, tiles["OUTPUTS"]))](
        voxels, low, per_unit, mean, spread, matrix, bias, projected, patches, outputs, *shape, **sizes, **precision(matrix)
    )
    tokens = matrix.new_empty((patches, outputs))
    steps = [len(table) // n for table, n in ((rows, down), (columns, across), (depths, deep))]
    _place[(patches,)](
        projected, gain, shift, rows.contiguous(), columns.contiguous(), depths.contiguous(), tokens,
        patches, outputs, down, across, deep, *steps, eps, PADDED=triton.next_power_of_2(outputs),
    )  # fmt: skip
    return tokens, projected, mean, spread


@_forward_op.register_fake
def _(voxels, matrix, bias, gain, shift, rows, columns, depths, patch, window, eps):
    patches = _numbers(voxels, Patch(*patch))[0]
    floats = [matrix.new_empty(shape, dtype=torch.float32) for shape in ((patches, len(matrix)), (patches,), (patches,))]
    return matrix.new_empty((patches, len(matrix))), *floats


@torch.library.custom_op(f"{NAMESPACE}::patch_embedding_backward", mutates_args=())
def _backward_op(
    gradient: torch.Tensor,
    voxels: torch.Tensor,
    matrix: torch.Tensor,
    bias: torch.Tensor,
    gain: torch.Tensor,
    shift: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    depths: torch.Tensor,
    projected: torch.Tensor,
    mean: torch.Tensor,
    spread: torch.Tensor,
    patch: list[int],
    window: torch.Tensor | None,
    eps: float,
) -> list[torch.Tensor]:
    size = Patch(*patch)
    parameters = (matrix, bias, gain, shift, rows, columns, depths)
    patches, down, across, deep = _numbers(voxels, size)
    if patches == 0 or not runs_triton(voxels.device):
        return list(by_autograd(lambda *p: reference(voxels, *p, size, window, eps), parameters, gradient))
    # Small matrices from here on: the norm of tokens and the positions are left to PyTorch.
    wide = gradient.float()
    moments = torch.var_mean(projected, -1, correction=0, keepdim=True)
    inverse = (moments[0] + eps).rsqrt()
    back, gain_gradient, shift_gradient = torch.ops.aten.native_layer_norm_backward(
        wide, projected, [len(matrix)], moments[1], inverse, gain.float(), shift.float(), [True, True, True]
    )
    matrix_gradient = torch.empty_like(matrix, memory_format=torch.contiguous_format)
    low, per_unit = _window(voxels, window)
    shape = voxels.shape[1:]
    values = matrix.shape[1]
    _tuned_matrix_gradient[
        lambda tiles: (triton.cdiv(len(matrix), tiles["OUTPUTS"]), triton.cdiv(values, tiles["VALUES"]))
    ](
        voxels.contiguous(), low, per_unit, mean, spread, back, matrix_gradient, patches, len(matrix), *shape,
        SCALED=window is not None, CHANNELS=shape[0], ROWS=size.rows, COLUMNS=size.columns, SLICES=size.slices,
        **precision(matrix),
    )  # fmt: skip
    found = [matrix_gradient, back.sum(0), gain_gradient, shift_gradient]
    grid = wide.view(len(voxels), down, across, deep, -1).sum(0)
    for part, table, over, n in zip(
        grid.tensor_split(3, -1), (rows, columns, depths), ((1, 2), (0, 2), (0, 1)), (down, across, deep), strict=True
    ):
        index = torch.arange(1, n + 1, device=table.device) * (len(table) // n) - 1
        found.append(torch.zeros_like(table, dtype=torch.float32).index_add(0, index, part.sum(over)))
    return [f.to(p.dtype) for f, p in zip(found, parameters, strict=True)]


@_backward_op.register_fake
def _(
    gradient, voxels, matrix, bias, gain, shift, rows, columns, depths, projected, mean, spread, patch, window, eps
):  # fmt: skip
    return [torch.empty_like(p) for p in (matrix, bias, gain, shift, rows, columns, depths)]


def _keep(ctx, inputs, output) -> None:
    voxels, *parameters, ctx.patch, ctx.window, ctx.eps = inputs
    ctx.save_for_backward(voxels, *parameters, *output[1:])


def _backward(ctx, gradient, *_):
    return (None, *_backward_op(gradient, *ctx.saved_tensors, ctx.patch, ctx.window, ctx.eps), None, None, None)


_forward_op.register_autograd(_backward, setup_context=_keep)
