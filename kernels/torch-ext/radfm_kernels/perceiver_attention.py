"""Perceiver attention: a few latents of each scan ask all patches of their scan and themselves, without a concatenation.

One scan has 32 queries and thousands of keys, too few rows to fill a card: keys are split into spans, each program attends
to one span (the last one to the latents' own keys), and the spans' softmaxes are joined afterwards (Flash-Decoding). The
backward pass walks over the same spans; each writes its own gradients of keys and values, and its share of the queries'.
"""

import torch

from ._ops import NAMESPACE
from .common import LOG2_E, WIDTHS, by_autograd, kernel, precision, runs_triton, strided, tl, triton, tuned

# Keys that one program attends to: 16 programs a scan and head at 4,096 patches.
SPAN = 256
TILES = [({"KEYS": 64}, 4, 3), ({"KEYS": 128}, 4, 3), ({"KEYS": 128}, 8, 2)]
SMALLEST_DOT = 16


@kernel
def _span(
    query_ptr,  # (scans · latents, heads, width)
    key_ptr, value_ptr,  # (patches of all scans, heads, width)
    own_key_ptr, own_value_ptr,  # (scans · latents, heads, width)
    part_ptr,  # (spans, scans · latents, heads, width) float32: each span's output, not divided by its total
    highest_ptr, total_ptr,  # (spans, scans · latents, heads) float32: each span's largest score and sum of exponentials
    starts_ptr,  # (scans + 1,) int32: rows of each scan's patches
    scale,  # of the scores, times log2(e)
    rows, heads, spans,  # rows: scans · latents
    query_row, query_head, key_row, key_head, value_row, value_head,  # strides
    own_key_row, own_key_head, own_value_row, own_value_head,
    LATENTS: tl.constexpr,
    PADDED: tl.constexpr,  # latents, up to a power of two
    SPAN: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    span, head, scan = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    columns, latents = tl.arange(0, WIDTH), tl.arange(0, PADDED)
    here = latents < LATENTS
    row = scan * LATENTS + latents
    query = tl.load(query_ptr + row[:, None] * query_row + head * query_head + columns, mask=here[:, None], other=0.0)
    if WIDEN:
        query = query.to(tl.float32)
    if span == spans - 1:
        first, last = scan * LATENTS, scan * LATENTS + LATENTS
        keys, values, row_of_key, head_of_key = own_key_ptr, own_value_ptr, own_key_row, own_key_head
        row_of_value, head_of_value = own_value_row, own_value_head
    else:
        first = tl.load(starts_ptr + scan) + span * SPAN
        last = tl.minimum(first + SPAN, tl.load(starts_ptr + scan + 1))
        keys, values, row_of_key, head_of_key = key_ptr, value_ptr, key_row, key_head
        row_of_value, head_of_value = value_row, value_head
    highest = tl.full([PADDED], -float("inf"), tl.float32)
    total = tl.zeros([PADDED], tl.float32)
    output = tl.zeros([PADDED, WIDTH], tl.float32)
    for start in range(first, last, KEYS):
        at = (start + tl.arange(0, KEYS)).to(tl.int64)
        known = at < last
        key = tl.load(keys + at[:, None] * row_of_key + head * head_of_key + columns, mask=known[:, None], other=0.0)
        value = tl.load(values + at[:, None] * row_of_value + head * head_of_value + columns, mask=known[:, None], other=0.0)
        if WIDEN:
            key, value = key.to(tl.float32), value.to(tl.float32)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        scores = tl.where(known[None, :], scores, -float("inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights, shrink = tl.exp2(scores - higher[:, None]), tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weights, 1)
        output = output * shrink[:, None] + tl.dot(weights.to(value.dtype), value, input_precision=PRECISION)
        highest = higher
    place = (span * rows + row) * heads + head
    tl.store(part_ptr + place[:, None].to(tl.int64) * WIDTH + columns, output, mask=here[:, None])
    tl.store(highest_ptr + place, highest, mask=here)
    tl.store(total_ptr + place, total, mask=here)


@kernel
def _span_backward(
    query_ptr, key_ptr, value_ptr, own_key_ptr, own_value_ptr,  # as in the forward pass
    gradient_ptr,  # (scans · latents, heads, width): of the output
    lse_ptr, delta_ptr,  # (scans · latents, heads) float32: log2 of the sum of exponentials; Σ output · gradient
    part_ptr,  # (spans, scans · latents, heads, width) float32: each span's share of the queries' gradient
    key_gradient_ptr, value_gradient_ptr,  # (patches, heads, width)
    own_key_gradient_ptr, own_value_gradient_ptr,  # (scans · latents, heads, width)
    starts_ptr,
    scale,  # of the scores, without log2(e)
    rows, heads, spans,
    query_row, query_head, key_row, key_head, value_row, value_head,
    own_key_row, own_key_head, own_value_row, own_value_head,
    LATENTS: tl.constexpr, PADDED: tl.constexpr, SPAN: tl.constexpr, WIDTH: tl.constexpr, WIDEN: tl.constexpr,
    PRECISION: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    span, head, scan = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    columns, latents = tl.arange(0, WIDTH), tl.arange(0, PADDED)
    here = latents < LATENTS
    row = scan * LATENTS + latents
    query = tl.load(query_ptr + row[:, None] * query_row + head * query_head + columns, mask=here[:, None], other=0.0)
    gradient = tl.load(gradient_ptr + (row[:, None] * heads + head) * WIDTH + columns, mask=here[:, None], other=0.0)
    lse = tl.load(lse_ptr + row * heads + head, mask=here, other=0.0)
    delta = tl.load(delta_ptr + row * heads + head, mask=here, other=0.0)
    if WIDEN:
        query, gradient = query.to(tl.float32), gradient.to(tl.float32)
    if span == spans - 1:
        first, last = scan * LATENTS, scan * LATENTS + LATENTS
        keys, values, row_of_key, head_of_key = own_key_ptr, own_value_ptr, own_key_row, own_key_head
        row_of_value, head_of_value = own_value_row, own_value_head
        to_keys, to_values = own_key_gradient_ptr, own_value_gradient_ptr
    else:
        first = tl.load(starts_ptr + scan) + span * SPAN
        last = tl.minimum(first + SPAN, tl.load(starts_ptr + scan + 1))
        keys, values, row_of_key, head_of_key = key_ptr, value_ptr, key_row, key_head
        row_of_value, head_of_value = value_row, value_head
        to_keys, to_values = key_gradient_ptr, value_gradient_ptr
    found = tl.zeros([PADDED, WIDTH], tl.float32)
    for start in range(first, last, KEYS):
        at = (start + tl.arange(0, KEYS)).to(tl.int64)
        known = at < last
        key = tl.load(keys + at[:, None] * row_of_key + head * head_of_key + columns, mask=known[:, None], other=0.0)
        value = tl.load(values + at[:, None] * row_of_value + head * head_of_value + columns, mask=known[:, None], other=0.0)
        if WIDEN:
            key, value = key.to(tl.float32), value.to(tl.float32)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale * 1.4426950408889634
        weights = tl.where(here[:, None] & known[None, :], tl.exp2(scores - lse[:, None]), 0.0)
        value_gradient = tl.dot(tl.trans(weights.to(gradient.dtype)), gradient, input_precision=PRECISION)
        change = weights * (tl.dot(gradient, tl.trans(value), input_precision=PRECISION) - delta[:, None])
        key_gradient = tl.dot(tl.trans(change.to(query.dtype)), query, input_precision=PRECISION) * scale
        found += tl.dot(change.to(key.dtype), key, input_precision=PRECISION)
        place = (at[:, None] * heads + head) * WIDTH + columns
        tl.store(to_keys + place, key_gradient.to(to_keys.dtype.element_ty), mask=known[:, None])
        tl.store(to_values + place, value_gradient.to(to_values.dtype.element_ty), mask=known[:, None])
    place = ((span * rows + row) * heads + head)[:, None].to(tl.int64) * WIDTH + columns
    tl.store(part_ptr + place, found * scale, mask=here[:, None])


if triton is not None:
    _tuned_span = tuned(TILES, ["spans", "WIDTH"])(_span)
    _tuned_span_backward = tuned(TILES, ["spans", "WIDTH"])(_span_backward)


def reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    latent_key: torch.Tensor,
    latent_value: torch.Tensor,
    starts: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """softmax(q·[k, own k]ᵀ · scaling) · [v, own v] of each scan, in plain PyTorch; shapes as `perceiver_attention`."""
    scans = len(starts) - 1
    outputs = []
    for scan in range(scans):
        first, last = int(starts[scan]), int(starts[scan + 1])
        q, own_k, own_v = (t.view(scans, -1, *t.shape[1:])[scan] for t in (query, latent_key, latent_value))
        k, v = torch.cat([key[first:last], own_k]), torch.cat([value[first:last], own_v])
        weights = (torch.einsum("qhd,khd->hqk", q, k) * scaling).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, v))
    return torch.cat(outputs) if outputs else torch.zeros_like(query)


def perceiver_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    latent_key: torch.Tensor,
    latent_value: torch.Tensor,
    starts: torch.Tensor,
    max_patches: int,
    scaling: float | None = None,
) -> torch.Tensor:
    """Attention of each scan's latents over its patches and over themselves.

    Args:
        query, latent_key, latent_value: (scans · latents, heads, width), width 16, 32, 64 or 128.
        key, value: (patches of all scans, heads, width), in the dtype of `query`.
        starts: (scans + 1,) int32 on the same device: scan i owns patches `starts[i]` to `starts[i + 1]`.
        max_patches: the longest scan's.
        scaling: of the scores; width ** -0.5 where it is left out.

    Returns:
        (scans · latents, heads, width); float32 inside, rounded once. Differentiable in all but `starts`.

    Raises:
        ValueError: an argument whose shape, dtype or device does not fit, by name.
    """
    scans = len(starts) - 1
    if query.ndim != 3 or query.shape[-1] not in WIDTHS or (scans and len(query) % scans):
        raise ValueError(f"query: shape {tuple(query.shape)} is not ({scans} scans · latents, heads, one of {WIDTHS}).")
    for name, tensor, rows in (
        ("key", key, len(key)),
        ("value", value, len(key)),
        ("latent_key", latent_key, len(query)),
        ("latent_value", latent_value, len(query)),
    ):
        if tensor.shape != (rows, *query.shape[1:]) or tensor.dtype != query.dtype or tensor.device != query.device:
            raise ValueError(f"{name}: {tuple(tensor.shape)} {tensor.dtype} on {tensor.device} does not fit the query.")
    if starts.dtype != torch.int32 or starts.ndim != 1 or starts.device != query.device:
        raise ValueError(f"starts: needs (scans + 1,) int32 on {query.device}, and is {tuple(starts.shape)} {starts.dtype}.")
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    return _forward_op(query, key, value, latent_key, latent_value, starts, max_patches, scaling)[0]


def _spans(max_patches: int) -> int:
    """Spans of the longest scan's patches, and one for the latents."""
    return -(-max_patches // SPAN) + 1


def _sizes(query: torch.Tensor, scans: int) -> dict[str, int]:
    latents = len(query) // scans
    padded = max(triton.next_power_of_2(latents), SMALLEST_DOT)
    return {"LATENTS": latents, "PADDED": padded, "SPAN": SPAN, "WIDTH": query.shape[-1], **precision(query)}


@torch.library.custom_op(f"{NAMESPACE}::perceiver_attention_forward", mutates_args=())
def _forward_op(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    latent_key: torch.Tensor,
    latent_value: torch.Tensor,
    starts: torch.Tensor,
    max_patches: int,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, heads, width = query.shape
    if rows == 0 or not runs_triton(query.device):
        lse = query.new_zeros((rows, heads), dtype=torch.float32)
        return reference(query, key, value, latent_key, latent_value, starts, scaling).contiguous(), lse
    query, key, value, latent_key, latent_value = strided(query, key, value, latent_key, latent_value)
    scans, spans = len(starts) - 1, _spans(max_patches)
    parts = query.new_empty((spans, rows, heads, width), dtype=torch.float32)
    highest, total = (query.new_empty((spans, rows, heads), dtype=torch.float32) for _ in range(2))
    _tuned_span[(spans, heads, scans)](
        query, key, value, latent_key, latent_value, parts, highest, total, starts, scaling * LOG2_E, rows, heads, spans,
        *(step for t in (query, key, value, latent_key, latent_value) for step in t.stride()[:2]), **_sizes(query, scans),
    )  # fmt: skip
    lse = torch.logsumexp(highest / LOG2_E + total.log(), 0) * LOG2_E
    shares = torch.exp2(highest - lse)
    return (parts * shares[..., None]).sum(0).to(query.dtype), lse


@_forward_op.register_fake
def _(query, key, value, latent_key, latent_value, starts, max_patches, scaling):
    rows, heads, _ = query.shape
    return query.new_empty(query.shape), query.new_empty((rows, heads), dtype=torch.float32)


@torch.library.custom_op(f"{NAMESPACE}::perceiver_attention_backward", mutates_args=())
def _backward_op(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    latent_key: torch.Tensor,
    latent_value: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    starts: torch.Tensor,
    max_patches: int,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, heads, width = query.shape
    inputs = (query, key, value, latent_key, latent_value)
    if rows == 0:
        a, b, c, d, e = (torch.zeros_like(t) for t in inputs)
        return a, b, c, d, e
    if not runs_triton(query.device):
        a, b, c, d, e = by_autograd(lambda *tensors: reference(*tensors, starts, scaling), inputs, gradient)
        return a, b, c, d, e
    query, key, value, latent_key, latent_value = strided(*inputs)
    gradient = gradient.contiguous()
    delta = (gradient.float() * output.float()).sum(-1)
    scans, spans = len(starts) - 1, _spans(max_patches)
    parts = query.new_empty((spans, rows, heads, width), dtype=torch.float32)
    found = [t.new_empty(t.shape) for t in inputs]
    _tuned_span_backward[(spans, heads, scans)](
        query, key, value, latent_key, latent_value, gradient, lse, delta, parts, *found[1:], starts,
        scaling, rows, heads, spans,
        *(step for t in (query, key, value, latent_key, latent_value) for step in t.stride()[:2]), **_sizes(query, scans),
    )  # fmt: skip
    return parts.sum(0).to(query.dtype), found[1], found[2], found[3], found[4]


@_backward_op.register_fake
def _(gradient, query, key, value, latent_key, latent_value, output, lse, starts, max_patches, scaling):
    return tuple(t.new_empty(t.shape) for t in (query, key, value, latent_key, latent_value))


def _keep(ctx, inputs, output) -> None:
    *tensors, starts, ctx.max_patches, ctx.scaling = inputs
    ctx.save_for_backward(*tensors, *output, starts)


def _backward(ctx, gradient, _):
    return (*_backward_op(gradient, *ctx.saved_tensors, ctx.max_patches, ctx.scaling), None, None, None)


_forward_op.register_autograd(_backward, setup_context=_keep)
