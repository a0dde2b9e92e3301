"""3D neighbourhood attention: each patch sees the patches of its scan in a box around itself, so cost grows with the volume.

Patches are taken in bricks: a program has one brick of queries and walks over the bricks of keys that their boxes touch. At
a border a box is cut off, not moved. The box is symmetric, so the backward pass walks over queries as the forward over
keys.
"""

import torch

from ._ops import NAMESPACE
from .common import LOG2_E, WIDTHS, by_autograd, kernel, precision, runs_triton, strided, tl, triton, tuned

# Patches of a brick along rows, columns and depth: the last is the one that lies side by side in memory.
BRICKS = [
    ({"ROWS": 4, "COLUMNS": 4, "SLICES": 4}, 4, 3),
    ({"ROWS": 2, "COLUMNS": 4, "SLICES": 8}, 4, 3),
    ({"ROWS": 2, "COLUMNS": 4, "SLICES": 4}, 4, 2),
    ({"ROWS": 4, "COLUMNS": 4, "SLICES": 8}, 8, 2),
]


@kernel
def _brick(
    number,  # of a brick in its scan
    first,  # row of the scan's first patch
    down, across, deep,  # patches of the scan along rows, columns and depth
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """Place of each patch of a brick: its row in the pack, where it lies along each axis, and whether it exists."""
    bricks_across, bricks_deep = tl.cdiv(across, COLUMNS), tl.cdiv(deep, SLICES)
    lane = tl.arange(0, ROWS * COLUMNS * SLICES)
    row = number // (bricks_across * bricks_deep) * ROWS + lane // (COLUMNS * SLICES)
    column = number // bricks_deep % bricks_across * COLUMNS + lane // SLICES % COLUMNS
    piece = number % bricks_deep * SLICES + lane % SLICES
    there = (row < down) & (column < across) & (piece < deep)
    return (first + (row * across + column) * deep + piece).to(tl.int64), row, column, piece, there


@kernel
def _touched(
    number,  # of a brick in its scan
    down, across, deep,
    reach_rows, reach_columns, reach_slices,  # how far a box goes to each side
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """First brick along each axis that the boxes of a brick touch, and how many."""
    bricks_across, bricks_deep = tl.cdiv(across, COLUMNS), tl.cdiv(deep, SLICES)
    row = number // (bricks_across * bricks_deep) * ROWS
    column = number // bricks_deep % bricks_across * COLUMNS
    piece = number % bricks_deep * SLICES
    top, left, near = (
        tl.maximum(row - reach_rows, 0) // ROWS,
        tl.maximum(column - reach_columns, 0) // COLUMNS,
        tl.maximum(piece - reach_slices, 0) // SLICES,
    )
    bottom = tl.minimum(row + ROWS - 1 + reach_rows, down - 1) // ROWS
    right = tl.minimum(column + COLUMNS - 1 + reach_columns, across - 1) // COLUMNS
    far = tl.minimum(piece + SLICES - 1 + reach_slices, deep - 1) // SLICES
    return top, left, near, bottom - top + 1, right - left + 1, far - near + 1


@kernel
def _seen(row, column, piece, there, other_row, other_column, other_piece, other_there, reach_rows, reach_columns,
          reach_slices):  # fmt: skip
    """(patches of one brick, patches of the other): which see each other."""
    return (
        (tl.abs(row[:, None] - other_row[None, :]) <= reach_rows)
        & (tl.abs(column[:, None] - other_column[None, :]) <= reach_columns)
        & (tl.abs(piece[:, None] - other_piece[None, :]) <= reach_slices)
        & there[:, None]
        & other_there[None, :]
    )


@kernel
def _forward(
    query_ptr, key_ptr, value_ptr, output_ptr,  # (patches, heads, width)
    lse_ptr,  # (heads, patches) float32: log2 of the sum of exponentials
    starts_ptr,  # (scans + 1,) int32
    grids_ptr,  # (scans, 3) int32: patches along rows, columns and depth
    scale,  # of the scores, times log2(e)
    patches,
    reach_rows, reach_columns, reach_slices,
    query_row, query_head, key_row, key_head, value_row, value_head, output_row, output_head,  # strides
    WIDTH: tl.constexpr, WIDEN: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    number, head, scan = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = tl.load(starts_ptr + scan)
    down, across = tl.load(grids_ptr + 3 * scan), tl.load(grids_ptr + 3 * scan + 1)
    deep = tl.load(grids_ptr + 3 * scan + 2)
    bricks_across, bricks_deep = tl.cdiv(across, COLUMNS), tl.cdiv(deep, SLICES)
    if number < tl.cdiv(down, ROWS) * bricks_across * bricks_deep:
        columns = tl.arange(0, WIDTH)
        at, row, column, piece, there = _brick(number, first, down, across, deep, ROWS, COLUMNS, SLICES)
        query = tl.load(query_ptr + at[:, None] * query_row + head * query_head + columns, mask=there[:, None], other=0.0)
        if WIDEN:
            query = query.to(tl.float32)
        top, left, near, tall, wide, long = _touched(
            number, down, across, deep, reach_rows, reach_columns, reach_slices, ROWS, COLUMNS, SLICES
        )
        highest = tl.full([ROWS * COLUMNS * SLICES], -float("inf"), tl.float32)
        total = tl.zeros([ROWS * COLUMNS * SLICES], tl.float32)
        output = tl.zeros([ROWS * COLUMNS * SLICES, WIDTH], tl.float32)
        for step in range(0, tall * wide * long):
            other = ((top + step // (wide * long)) * bricks_across + left + step // long % wide) * bricks_deep
            other += near + step % long
            of, other_row, other_column, other_piece, other_there = _brick(
                other, first, down, across, deep, ROWS, COLUMNS, SLICES
            )
            key = tl.load(key_ptr + of[:, None] * key_row + head * key_head + columns, mask=other_there[:, None], other=0.0)
            value = tl.load(
                value_ptr + of[:, None] * value_row + head * value_head + columns, mask=other_there[:, None], other=0.0
            )
            if WIDEN:
                key, value = key.to(tl.float32), value.to(tl.float32)
            scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
            seen = _seen(row, column, piece, there, other_row, other_column, other_piece, other_there,
                         reach_rows, reach_columns, reach_slices)  # fmt: skip
            scores = tl.where(seen, scores, -float("inf"))
            # A brick may lie outside of some patches' boxes altogether: no score yet, and none here.
            higher = tl.maximum(tl.maximum(highest, tl.max(scores, 1)), -1e30)
            weights, shrink = tl.exp2(scores - higher[:, None]), tl.exp2(highest - higher)
            total = total * shrink + tl.sum(weights, 1)
            output = output * shrink[:, None] + tl.dot(weights.to(value.dtype), value, input_precision=PRECISION)
            highest = higher
        output = output / tl.where(there, total, 1.0)[:, None]
        place = output_ptr + at[:, None] * output_row + head * output_head + columns
        tl.store(place, output.to(output_ptr.dtype.element_ty), mask=there[:, None])
        tl.store(lse_ptr + head * patches + at, highest + tl.log2(tl.where(there, total, 1.0)), mask=there)


@kernel
def _backward(
    query_ptr, key_ptr, value_ptr,
    gradient_ptr,  # (patches, heads, width): of the output
    lse_ptr, delta_ptr,  # (heads, patches) float32; delta is Σ output · gradient
    query_gradient_ptr, key_gradient_ptr, value_gradient_ptr,  # (patches, heads, width), contiguous
    starts_ptr, grids_ptr,
    scale,  # of the scores, without log2(e)
    patches,
    reach_rows, reach_columns, reach_slices,
    query_row, query_head, key_row, key_head, value_row, value_head, gradient_row, gradient_head,  # strides
    WIDTH: tl.constexpr, WIDEN: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """A brick as queries, for their gradient, and as keys, for theirs and the values', over the same bricks around it."""
    number, head, scan = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = tl.load(starts_ptr + scan)
    down, across = tl.load(grids_ptr + 3 * scan), tl.load(grids_ptr + 3 * scan + 1)
    deep = tl.load(grids_ptr + 3 * scan + 2)
    bricks_across, bricks_deep = tl.cdiv(across, COLUMNS), tl.cdiv(deep, SLICES)
    if number < tl.cdiv(down, ROWS) * bricks_across * bricks_deep:
        columns = tl.arange(0, WIDTH)
        at, row, column, piece, there = _brick(number, first, down, across, deep, ROWS, COLUMNS, SLICES)
        here = there[:, None]
        query = tl.load(query_ptr + at[:, None] * query_row + head * query_head + columns, mask=here, other=0.0)
        key = tl.load(key_ptr + at[:, None] * key_row + head * key_head + columns, mask=here, other=0.0)
        value = tl.load(value_ptr + at[:, None] * value_row + head * value_head + columns, mask=here, other=0.0)
        gradient = tl.load(gradient_ptr + at[:, None] * gradient_row + head * gradient_head + columns, mask=here, other=0.0)
        if WIDEN:
            query, key = query.to(tl.float32), key.to(tl.float32)
            value, gradient = value.to(tl.float32), gradient.to(tl.float32)
        lse = tl.load(lse_ptr + head * patches + at, mask=there, other=0.0)
        delta = tl.load(delta_ptr + head * patches + at, mask=there, other=0.0)
        top, left, near, tall, wide, long = _touched(
            number, down, across, deep, reach_rows, reach_columns, reach_slices, ROWS, COLUMNS, SLICES
        )
        query_gradient = tl.zeros([ROWS * COLUMNS * SLICES, WIDTH], tl.float32)
        key_gradient = tl.zeros([ROWS * COLUMNS * SLICES, WIDTH], tl.float32)
        value_gradient = tl.zeros([ROWS * COLUMNS * SLICES, WIDTH], tl.float32)
        for step in range(0, tall * wide * long):
            other = ((top + step // (wide * long)) * bricks_across + left + step // long % wide) * bricks_deep
            other += near + step % long
            of, other_row, other_column, other_piece, other_there = _brick(
                other, first, down, across, deep, ROWS, COLUMNS, SLICES
            )
            known = other_there[:, None]
            their_query = tl.load(query_ptr + of[:, None] * query_row + head * query_head + columns, mask=known, other=0.0)
            their_key = tl.load(key_ptr + of[:, None] * key_row + head * key_head + columns, mask=known, other=0.0)
            their_value = tl.load(value_ptr + of[:, None] * value_row + head * value_head + columns, mask=known, other=0.0)
            their_gradient = tl.load(
                gradient_ptr + of[:, None] * gradient_row + head * gradient_head + columns, mask=known, other=0.0
            )
            if WIDEN:
                their_query, their_key = their_query.to(tl.float32), their_key.to(tl.float32)
                their_value, their_gradient = their_value.to(tl.float32), their_gradient.to(tl.float32)
            their_lse = tl.load(lse_ptr + head * patches + of, mask=other_there, other=0.0)
            their_delta = tl.load(delta_ptr + head * patches + of, mask=other_there, other=0.0)
            seen = _seen(row, column, piece, there, other_row, other_column, other_piece, other_there,
                         reach_rows, reach_columns, reach_slices)  # fmt: skip
            # This brick asks the other.
            scores = tl.dot(query, tl.trans(their_key), input_precision=PRECISION) * scale * 1.4426950408889634
            weights = tl.where(seen, tl.exp2(scores - lse[:, None]), 0.0)
            change = tl.dot(gradient, tl.trans(their_value), input_precision=PRECISION) - delta[:, None]
            query_gradient += tl.dot((weights * change).to(key.dtype), their_key, input_precision=PRECISION)
            # The other asks this brick: rows are its patches' scores, turned over.
            scores = tl.dot(key, tl.trans(their_query), input_precision=PRECISION) * scale * 1.4426950408889634
            weights = tl.where(seen, tl.exp2(scores - their_lse[None, :]), 0.0)
            value_gradient += tl.dot(weights.to(value.dtype), their_gradient, input_precision=PRECISION)
            change = tl.dot(value, tl.trans(their_gradient), input_precision=PRECISION) - their_delta[None, :]
            key_gradient += tl.dot((weights * change).to(key.dtype), their_query, input_precision=PRECISION)
        place = at[:, None] * gradient_row + head * gradient_head + columns
        kind = query_gradient_ptr.dtype.element_ty
        tl.store(query_gradient_ptr + place, (query_gradient * scale).to(kind), mask=here)
        tl.store(key_gradient_ptr + place, (key_gradient * scale).to(kind), mask=here)
        tl.store(value_gradient_ptr + place, value_gradient.to(kind), mask=here)


if triton is not None:
    _tuned_forward = tuned(BRICKS, ["reach_rows", "reach_columns", "reach_slices", "WIDTH"])(_forward)
    _tuned_backward = tuned(BRICKS[:3], ["reach_rows", "reach_columns", "reach_slices", "WIDTH"])(_backward)


def reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grids: list[int],
    box: list[int],
    scaling: float,
) -> torch.Tensor:
    """The same with a mask over all pairs of a scan's patches; shapes as `neighbourhood_attention`, `grids` flat."""
    outputs, start = [], 0
    for down, across, deep in zip(*[iter(grids)] * 3, strict=True):
        axes = [torch.arange(n, device=query.device) for n in (down, across, deep)]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)
        reach = torch.tensor(box, device=query.device) // 2
        seen = ((places[:, None] - places[None]).abs() <= reach).all(-1)
        q, k, v = (t[start : start + len(places)] for t in (query, key, value))
        scores = (torch.einsum("qhd,khd->hqk", q, k) * scaling).masked_fill(~seen, float("-inf"))
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
        start += len(places)
    return torch.cat(outputs) if outputs else torch.zeros_like(query)


def neighbourhood_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grids: list[tuple[int, int, int]],
    box: tuple[int, int, int],
    scaling: float | None = None,
) -> torch.Tensor:
    """Attention of each patch over the box of patches around it.

    Args:
        query, key, value: (patches of all scans, heads, width), width 16, 32, 64 or 128; rows, columns, depth of a scan
            follow each other, depth fastest.
        grids: of each scan, its patches along rows, columns and depth.
        box: patches of a box along rows, columns and depth, odd; cut off at a scan's border.
        scaling: of the scores; width ** -0.5 where it is left out.

    Returns:
        (patches, heads, width); float32 inside, rounded once. Differentiable in q, k and v.

    Raises:
        ValueError: an argument whose shape, dtype or device does not fit, by name.
    """
    if query.ndim != 3 or query.shape[-1] not in WIDTHS:
        raise ValueError(f"query: shape {tuple(query.shape)} is not (patches, heads, one of {WIDTHS}).")
    for name, tensor in (("key", key), ("value", value)):
        if tensor.shape != query.shape or tensor.dtype != query.dtype or tensor.device != query.device:
            raise ValueError(f"{name}: {tuple(tensor.shape)} {tensor.dtype} on {tensor.device} does not fit the query.")
    if sum(r * c * d for r, c, d in grids) != len(query):
        raise ValueError(f"grids: {grids} have another number of patches than the query's {len(query)}.")
    if len(box) != 3 or any(n < 1 or n % 2 == 0 for n in box):
        raise ValueError(f"box: {tuple(box)} is not three odd numbers of patches.")
    flat = [n for grid in grids for n in grid]
    return _forward_op(query, key, value, flat, list(box), query.shape[-1] ** -0.5 if scaling is None else scaling)[0]


def _layout(grids: list[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    table = torch.tensor(grids, dtype=torch.int32).view(-1, 3)
    starts = torch.nn.functional.pad(table.prod(1).cumsum(0), (1, 0)).to(torch.int32)
    return starts.to(device), table.to(device)


def _most_bricks(grids: list[int], tiles: dict[str, int]) -> int:
    brick = (tiles["ROWS"], tiles["COLUMNS"], tiles["SLICES"])
    counts = [
        torch.tensor([-(-n // step) for n, step in zip(grid, brick, strict=True)]).prod().item()
        for grid in zip(*[iter(grids)] * 3, strict=True)
    ]
    return int(max(counts))


@torch.library.custom_op(f"{NAMESPACE}::neighbourhood_attention_forward", mutates_args=())
def _forward_op(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grids: list[int], box: list[int], scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, heads, width = query.shape
    lse = query.new_zeros((heads, rows), dtype=torch.float32)
    if rows == 0 or not runs_triton(query.device):
        return reference(query, key, value, grids, box, scaling).contiguous(), lse
    query, key, value = strided(query, key, value)
    output = query.new_empty(query.shape)
    starts, table = _layout(grids, query.device)
    _tuned_forward[lambda tiles: (_most_bricks(grids, tiles), heads, len(table))](
        query, key, value, output, lse, starts, table, scaling * LOG2_E, rows, *(n // 2 for n in box),
        *(step for t in (query, key, value, output) for step in t.stride()[:2]), WIDTH=width, **precision(query),
    )  # fmt: skip
    return output, lse


@_forward_op.register_fake
def _(query, key, value, grids, box, scaling):
    rows, heads, _ = query.shape
    return query.new_empty(query.shape), query.new_empty((heads, rows), dtype=torch.float32)


@torch.library.custom_op(f"{NAMESPACE}::neighbourhood_attention_backward", mutates_args=())
def _backward_op(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    grids: list[int],
    box: list[int],
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, heads, width = query.shape
    inputs = (query, key, value)
    if rows == 0 or not runs_triton(query.device):
        dq, dk, dv = by_autograd(lambda *tensors: reference(*tensors, grids, box, scaling), inputs, gradient)
        return dq, dk, dv
    query, key, value = strided(*inputs)
    gradient = gradient.contiguous()
    delta = (gradient.float() * output.float()).sum(-1).t().contiguous()
    found = [query.new_empty(query.shape) for _ in range(3)]
    starts, table = _layout(grids, query.device)
    _tuned_backward[lambda tiles: (_most_bricks(grids, tiles), heads, len(table))](
        query, key, value, gradient, lse, delta, *found, starts, table, scaling, rows, *(n // 2 for n in box),
        *(step for t in (query, key, value, gradient) for step in t.stride()[:2]), WIDTH=width, **precision(query),
    )  # fmt: skip
    return found[0], found[1], found[2]


@_backward_op.register_fake
def _(gradient, query, key, value, output, lse, grids, box, scaling):
    return tuple(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (query, key, value))


def _keep(ctx, inputs, output) -> None:
    *tensors, ctx.grids, ctx.box, ctx.scaling = inputs
    ctx.save_for_backward(*tensors, *output)


def _gradients(ctx, gradient, _):
    return (*_backward_op(gradient, *ctx.saved_tensors, ctx.grids, ctx.box, ctx.scaling), None, None, None)


_forward_op.register_autograd(_gradients, setup_context=_keep)
