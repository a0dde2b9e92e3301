"""Perceiver attention: the latents of each scan attend to the scan's patches and to the latents themselves.

The keys and values of patches and latents are not concatenated (Flamingo's Perceiver Resampler, arXiv 2204.14198, appendix
A.1.1, attends to their concatenation). A scan has 32 queries and thousands of keys, too few queries to fill a card, so the
keys are split as in Flash-Decoding: each program attends to one span of `SPAN` patches, the last one to the latents, and the
softmaxes of the spans are joined afterwards. The backward pass walks over the same spans: each writes its part of dk and dv,
and a share of dq; the shares are summed in a fixed order, so that equal tile sizes give equal bits.

All sums are float32.
"""

from typing import Any

import torch

from ._ops import add_op_namespace_prefix
from .common import (
    HEAD_DIMS,
    LOG2_E,
    autotune,
    dot_options,
    jit,
    needs_dispatcher,
    tl,
    triton,
    use_kernel,
    with_unit_stride,
)

# Patches of a program: 16 programs per scan and head at the 4,096 patches of a CT.
SPAN = 256
# The last one fits the shared memory of every card in every dtype.
CONFIGS = [({"BLOCK_N": 64}, 4, 3), ({"BLOCK_N": 128}, 4, 3), ({"BLOCK_N": 128}, 8, 2), ({"BLOCK_N": 32}, 4, 1)]
# `tl.dot` needs 16 rows or more.
MIN_DOT_ROWS = 16
# Rows of a program that joins spans.
JOIN_ROWS = 16


@jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    q_ptr,  # (scans · LATENTS, heads, HEAD_DIM)
    k_ptr,  # (patches of all scans, heads, HEAD_DIM)
    v_ptr,  # (patches of all scans, heads, HEAD_DIM)
    latent_k_ptr,  # (scans · LATENTS, heads, HEAD_DIM)
    latent_v_ptr,  # (scans · LATENTS, heads, HEAD_DIM)
    acc_ptr,  # (spans, scans · LATENTS, heads, HEAD_DIM) float32, written: a span's output, not yet divided by its l
    m_ptr,  # (spans, scans · LATENTS, heads) float32, written: a span's largest score, in units of log2
    l_ptr,  # (spans, scans · LATENTS, heads) float32, written: a span's sum of exponentials
    cu_seqlens_ptr,  # (scans + 1,) int32: first patch of each scan, and the end of the last
    scale_log2,  # softmax scale · log2(e)
    rows,  # scans · LATENTS
    heads,
    spans,  # spans of the longest scan's patches, and one for the latents
    q_stride_m, q_stride_h,  # strides between rows and between heads; the last axis has stride 1, here and below
    k_stride_n, k_stride_h,
    v_stride_n, v_stride_h,
    latent_k_stride_n, latent_k_stride_h,
    latent_v_stride_n, latent_v_stride_h,
    LATENTS: tl.constexpr,  # of a scan
    BLOCK_M: tl.constexpr,  # LATENTS up to a power of two, 16 or more
    SPAN: tl.constexpr,  # patches of a span
    HEAD_DIM: tl.constexpr,
    UPCAST: tl.constexpr,  # convert the operands of products to float32
    PRECISION: tl.constexpr,  # of products of float32: ieee, tf32x3 or tf32
    BLOCK_N: tl.constexpr,  # keys of a tile
):  # fmt: skip
    span, head, scan = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    offs_d, offs_latent = tl.arange(0, HEAD_DIM), tl.arange(0, BLOCK_M)
    query_mask = offs_latent < LATENTS
    offs_m = scan * LATENTS + offs_latent
    q = tl.load(q_ptr + offs_m[:, None] * q_stride_m + head * q_stride_h + offs_d, mask=query_mask[:, None], other=0.0)
    if UPCAST:
        q = q.to(tl.float32)
    if span == spans - 1:
        start, end = scan * LATENTS, scan * LATENTS + LATENTS
        span_k_ptr, k_row, k_head = latent_k_ptr, latent_k_stride_n, latent_k_stride_h
        span_v_ptr, v_row, v_head = latent_v_ptr, latent_v_stride_n, latent_v_stride_h
    else:
        # Spans beyond a shorter scan are empty: m is -inf and l is 0, and they add nothing when spans are joined.
        start = tl.load(cu_seqlens_ptr + scan) + span * SPAN
        end = tl.minimum(start + SPAN, tl.load(cu_seqlens_ptr + scan + 1))
        span_k_ptr, k_row, k_head = k_ptr, k_stride_n, k_stride_h
        span_v_ptr, v_row, v_head = v_ptr, v_stride_n, v_stride_h
    m_i = tl.full([BLOCK_M], -float("inf"), tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    for start_n in range(start, end, BLOCK_N):
        offs_n = (start_n + tl.arange(0, BLOCK_N)).to(tl.int64)
        key_mask = offs_n < end
        k = tl.load(span_k_ptr + offs_n[:, None] * k_row + head * k_head + offs_d, mask=key_mask[:, None], other=0.0)
        v = tl.load(span_v_ptr + offs_n[:, None] * v_row + head * v_head + offs_d, mask=key_mask[:, None], other=0.0)
        if UPCAST:
            k, v = k.to(tl.float32), v.to(tl.float32)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        scores = tl.where(key_mask[None, :], scores, -float("inf"))
        # Online softmax: rescale what was summed so far to the new maximum.
        m_new = tl.maximum(m_i, tl.max(scores, 1))
        p, alpha = tl.exp2(scores - m_new[:, None]), tl.exp2(m_i - m_new)
        l_i = l_i * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        m_i = m_new
    out_rows = (span * rows + offs_m) * heads + head
    tl.store(acc_ptr + out_rows[:, None].to(tl.int64) * HEAD_DIM + offs_d, acc, mask=query_mask[:, None])
    tl.store(m_ptr + out_rows, m_i, mask=query_mask)
    tl.store(l_ptr + out_rows, l_i, mask=query_mask)


@jit
def _join_kernel(  # type: ignore[no-untyped-def]
    acc_ptr,  # (spans, scans · LATENTS, heads, HEAD_DIM) float32, of `_forward_kernel`
    m_ptr, l_ptr,  # (spans, scans · LATENTS, heads) float32, of `_forward_kernel`
    o_ptr,  # (scans · LATENTS, heads, HEAD_DIM), written
    lse_ptr,  # (scans · LATENTS, heads) float32, written: log2 of the sum of exponentials over all spans
    rows,  # scans · LATENTS · heads
    spans,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,  # rows of a program
):  # fmt: skip
    """The softmax over all spans, out of the softmaxes of the spans."""
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_d, row_mask = tl.arange(0, HEAD_DIM), offs_m < rows
    m_i = tl.full([BLOCK_M], -float("inf"), tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    o = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    for i in range(spans):
        # From the last span on: it holds the latents and is never empty, so that m is a number from then on.
        row = (spans - 1 - i).to(tl.int64) * rows + offs_m
        m = tl.load(m_ptr + row, mask=row_mask, other=0.0)
        m_new = tl.maximum(m_i, m)
        alpha, share = tl.exp2(m_i - m_new), tl.exp2(m - m_new)
        l_i = l_i * alpha + tl.load(l_ptr + row, mask=row_mask, other=1.0) * share
        acc = tl.load(acc_ptr + row[:, None] * HEAD_DIM + offs_d, mask=row_mask[:, None], other=0.0)
        o = o * alpha[:, None] + acc * share[:, None]
        m_i = m_new
    o_ptrs = o_ptr + offs_m[:, None].to(tl.int64) * HEAD_DIM + offs_d
    tl.store(o_ptrs, (o / l_i[:, None]).to(o_ptr.dtype.element_ty), mask=row_mask[:, None])
    tl.store(lse_ptr + offs_m, m_i + tl.log2(l_i), mask=row_mask)


@jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    q_ptr,  # (scans · LATENTS, heads, HEAD_DIM)
    k_ptr,  # (patches of all scans, heads, HEAD_DIM)
    v_ptr,  # (patches of all scans, heads, HEAD_DIM)
    latent_k_ptr,  # (scans · LATENTS, heads, HEAD_DIM)
    latent_v_ptr,  # (scans · LATENTS, heads, HEAD_DIM)
    o_ptr, do_ptr,  # (scans · LATENTS, heads, HEAD_DIM), contiguous: output, and gradient of the output
    lse_ptr,  # (scans · LATENTS, heads) float32: log2 of the sum of exponentials over all spans
    dq_ptr,  # (spans, scans · LATENTS, heads, HEAD_DIM) float32, written: a span's share of dq
    dk_ptr,  # as k, contiguous, written
    dv_ptr,  # as v, contiguous, written
    latent_dk_ptr,  # as latent_k, contiguous, written
    latent_dv_ptr,  # as latent_v, contiguous, written
    cu_seqlens_ptr,  # (scans + 1,) int32: first patch of each scan, and the end of the last
    scale,  # softmax scale, without log2(e): gradients need it too
    rows,  # scans · LATENTS
    heads,
    spans,  # spans of the longest scan's patches, and one for the latents
    q_stride_m, q_stride_h,  # strides between rows and between heads
    k_stride_n, k_stride_h,
    v_stride_n, v_stride_h,
    latent_k_stride_n, latent_k_stride_h,
    latent_v_stride_n, latent_v_stride_h,
    LATENTS: tl.constexpr,  # of a scan
    BLOCK_M: tl.constexpr,  # LATENTS up to a power of two, 16 or more
    SPAN: tl.constexpr,  # patches of a span
    HEAD_DIM: tl.constexpr,
    UPCAST: tl.constexpr,  # convert the operands of products to float32
    PRECISION: tl.constexpr,  # of products of float32: ieee, tf32x3 or tf32
    BLOCK_N: tl.constexpr,  # keys of a tile
):  # fmt: skip
    span, head, scan = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    offs_d, offs_latent = tl.arange(0, HEAD_DIM), tl.arange(0, BLOCK_M)
    query_mask = offs_latent < LATENTS
    offs_m = scan * LATENTS + offs_latent
    q = tl.load(q_ptr + offs_m[:, None] * q_stride_m + head * q_stride_h + offs_d, mask=query_mask[:, None], other=0.0)
    row_offs = (offs_m[:, None] * heads + head) * HEAD_DIM + offs_d
    do = tl.load(do_ptr + row_offs, mask=query_mask[:, None], other=0.0)
    o = tl.load(o_ptr + row_offs, mask=query_mask[:, None], other=0.0)
    lse = tl.load(lse_ptr + offs_m * heads + head, mask=query_mask, other=0.0)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    if UPCAST:
        q, do = q.to(tl.float32), do.to(tl.float32)
    if span == spans - 1:
        start, end = scan * LATENTS, scan * LATENTS + LATENTS
        span_k_ptr, k_row, k_head = latent_k_ptr, latent_k_stride_n, latent_k_stride_h
        span_v_ptr, v_row, v_head = latent_v_ptr, latent_v_stride_n, latent_v_stride_h
        span_dk_ptr, span_dv_ptr = latent_dk_ptr, latent_dv_ptr
    else:
        start = tl.load(cu_seqlens_ptr + scan) + span * SPAN
        end = tl.minimum(start + SPAN, tl.load(cu_seqlens_ptr + scan + 1))
        span_k_ptr, k_row, k_head = k_ptr, k_stride_n, k_stride_h
        span_v_ptr, v_row, v_head = v_ptr, v_stride_n, v_stride_h
        span_dk_ptr, span_dv_ptr = dk_ptr, dv_ptr
    dq = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    for start_n in range(start, end, BLOCK_N):
        offs_n = (start_n + tl.arange(0, BLOCK_N)).to(tl.int64)
        key_mask = offs_n < end
        k = tl.load(span_k_ptr + offs_n[:, None] * k_row + head * k_head + offs_d, mask=key_mask[:, None], other=0.0)
        v = tl.load(span_v_ptr + offs_n[:, None] * v_row + head * v_head + offs_d, mask=key_mask[:, None], other=0.0)
        if UPCAST:
            k, v = k.to(tl.float32), v.to(tl.float32)
        # 1.4426950408889634 is log2(e), a literal because a kernel cannot read the module's float.
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale * 1.4426950408889634
        p = tl.where(query_mask[:, None] & key_mask[None, :], tl.exp2(scores - lse[:, None]), 0.0)
        dv = tl.dot(tl.trans(p.to(do.dtype)), do, input_precision=PRECISION)
        ds = p * (tl.dot(do, tl.trans(v), input_precision=PRECISION) - delta[:, None])
        dk = tl.dot(tl.trans(ds.to(q.dtype)), q, input_precision=PRECISION) * scale
        dq += tl.dot(ds.to(k.dtype), k, input_precision=PRECISION)
        # A key is in one span alone, and its queries in one tile: dk and dv are complete here.
        offs = (offs_n[:, None] * heads + head) * HEAD_DIM + offs_d
        tl.store(span_dk_ptr + offs, dk.to(span_dk_ptr.dtype.element_ty), mask=key_mask[:, None])
        tl.store(span_dv_ptr + offs, dv.to(span_dv_ptr.dtype.element_ty), mask=key_mask[:, None])
    dq_offs = ((span * rows + offs_m) * heads + head)[:, None].to(tl.int64) * HEAD_DIM + offs_d
    tl.store(dq_ptr + dq_offs, dq * scale, mask=query_mask[:, None])


if triton is not None:
    _tuned_forward = autotune(CONFIGS, ["spans", "HEAD_DIM"])(_forward_kernel)
    _tuned_backward = autotune(CONFIGS, ["spans", "HEAD_DIM"])(_backward_kernel)


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    latent_k: torch.Tensor,
    latent_v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """softmax(q · [k, latent_k]ᵀ · scaling) · [v, latent_v] of each scan in PyTorch; shapes as `perceiver_attention`."""
    scans = len(cu_seqlens) - 1
    outputs = []
    for scan in range(scans):
        start, end = int(cu_seqlens[scan]), int(cu_seqlens[scan + 1])
        scan_q, scan_latent_k, scan_latent_v = (t.view(scans, -1, *t.shape[1:])[scan] for t in (q, latent_k, latent_v))
        all_k, all_v = torch.cat([k[start:end], scan_latent_k]), torch.cat([v[start:end], scan_latent_v])
        p = (torch.einsum("qhd,khd->hqk", scan_q, all_k) * scaling).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", p, all_v))
    return torch.cat(outputs) if outputs else torch.zeros_like(q)


def perceiver_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    latent_k: torch.Tensor,
    latent_v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scaling: float | None = None,
) -> torch.Tensor:
    """Attention of each scan's latents over the scan's patches and over the latents.

    Args:
        q, latent_k, latent_v: (scans · latents, heads, head_dim), head_dim 16, 32, 64 or 128; float16, bfloat16 or float32.
        k, v: (patches of all scans, heads, head_dim), dtype and device of `q`.
        cu_seqlens: (scans + 1,) int32 on the device of `q`: scan i has patches `cu_seqlens[i]` to `cu_seqlens[i + 1]`.
        max_seqlen: patches of the longest scan, or more. Not checked, because that would wait for the card: patches beyond a
            smaller number are left out.
        scaling: factor of the scores; head_dim ** -0.5 by default.

    Returns:
        (scans · latents, heads, head_dim) in the dtype of `q`; float32 inside, rounded once. Differentiable in all tensors
        but `cu_seqlens`.

    Raises:
        ValueError: an argument whose shape, dtype or device does not fit; the message begins with its name.

    Example, 32 latents over scans of 12 and 8 patches:
        >>> q = latent_k = latent_v = torch.ones(2 * 32, 4, 16)
        >>> k = v = torch.ones(20, 4, 16)
        >>> cu_seqlens = torch.tensor([0, 12, 20], dtype=torch.int32)
        >>> perceiver_attention(q, k, v, latent_k, latent_v, cu_seqlens, 12).shape
        torch.Size([64, 4, 16])
    """
    scans = len(cu_seqlens) - 1
    if q.ndim != 3 or q.shape[-1] not in HEAD_DIMS or (scans and len(q) % scans):
        raise ValueError(f"q: shape {tuple(q.shape)} is not ({scans} scans · latents, heads, head_dim of {HEAD_DIMS}).")
    for name, tensor, rows in (
        ("k", k, len(k)),
        ("v", v, len(k)),
        ("latent_k", latent_k, len(q)),
        ("latent_v", latent_v, len(q)),
    ):
        if tensor.shape != (rows, *q.shape[1:]) or tensor.dtype != q.dtype or tensor.device != q.device:
            raise ValueError(f"{name}: {tuple(tensor.shape)} {tensor.dtype} on {tensor.device} does not fit q.")
    if cu_seqlens.dtype != torch.int32 or cu_seqlens.ndim != 1 or cu_seqlens.device != q.device:
        raise ValueError(
            f"cu_seqlens: {tuple(cu_seqlens.shape)} {cu_seqlens.dtype} on {cu_seqlens.device} "
            f"is not (scans + 1,) torch.int32 on {q.device}."
        )
    if scaling is None:
        scaling = q.shape[-1] ** -0.5
    if not use_kernel(q.device):
        return reference(q, k, v, latent_k, latent_v, cu_seqlens, scaling)
    forward = _forward_op if needs_dispatcher(q, k, v, latent_k, latent_v) else _forward
    o: torch.Tensor = forward(q, k, v, latent_k, latent_v, cu_seqlens, max_seqlen, scaling)[0]
    return o


def _span_count(max_seqlen: int) -> int:
    """Spans of the longest scan's patches, and one for the latents."""
    return -(-max_seqlen // SPAN) + 1


def _constants(q: torch.Tensor, scans: int) -> dict[str, Any]:
    latents = len(q) // scans
    block_m = max(triton.next_power_of_2(latents), MIN_DOT_ROWS)
    return {"LATENTS": latents, "BLOCK_M": block_m, "SPAN": SPAN, "HEAD_DIM": q.shape[-1], **dot_options(q)}


def _forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    latent_k: torch.Tensor,
    latent_v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, heads, head_dim = q.shape
    if rows == 0:
        return torch.zeros_like(q), q.new_zeros((rows, heads), dtype=torch.float32)
    q, k, v, latent_k, latent_v, cu_seqlens = with_unit_stride(q, k, v, latent_k, latent_v, cu_seqlens)
    scans, spans = len(cu_seqlens) - 1, _span_count(max_seqlen)
    acc = q.new_empty((spans, rows, heads, head_dim), dtype=torch.float32)
    m, l = (q.new_empty((spans, rows, heads), dtype=torch.float32) for _ in range(2))  # noqa: E741
    _tuned_forward[(spans, heads, scans)](
        q, k, v, latent_k, latent_v, acc, m, l, cu_seqlens, scaling * LOG2_E, rows, heads, spans,
        *(step for t in (q, k, v, latent_k, latent_v) for step in t.stride()[:2]), **_constants(q, scans),
    )  # fmt: skip
    o, lse = q.new_empty((rows, heads, head_dim)), torch.empty_like(m[0])
    _join_kernel[(triton.cdiv(rows * heads, JOIN_ROWS),)](
        acc, m, l, o, lse, rows * heads, spans, HEAD_DIM=head_dim, BLOCK_M=JOIN_ROWS
    )
    return o, lse


_forward_op = torch.library.custom_op(add_op_namespace_prefix("perceiver_attention_forward"), _forward, mutates_args=())


@_forward_op.register_fake
def _(q: torch.Tensor, *_rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


@torch.library.custom_op(add_op_namespace_prefix("perceiver_attention_backward"), mutates_args=())
def _backward_op(
    do: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    latent_k: torch.Tensor,
    latent_v: torch.Tensor,
    o: torch.Tensor,
    lse: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scaling: float,
) -> list[torch.Tensor]:
    rows, heads, head_dim = q.shape
    inputs = (q, k, v, latent_k, latent_v)
    if rows == 0:
        return [torch.zeros_like(t) for t in inputs]
    q, k, v, latent_k, latent_v, cu_seqlens = with_unit_stride(*inputs, cu_seqlens)
    scans, spans = len(cu_seqlens) - 1, _span_count(max_seqlen)
    dq = q.new_empty((spans, rows, heads, head_dim), dtype=torch.float32)
    dk, dv, latent_dk, latent_dv = (t.new_empty(t.shape) for t in (k, v, latent_k, latent_v))
    _tuned_backward[(spans, heads, scans)](
        q, k, v, latent_k, latent_v, o.contiguous(), do.contiguous(), lse, dq, dk, dv, latent_dk, latent_dv,
        cu_seqlens, scaling, rows, heads, spans,
        *(step for t in (q, k, v, latent_k, latent_v) for step in t.stride()[:2]), **_constants(q, scans),
    )  # fmt: skip
    return [dq.sum(0).to(q.dtype), dk, dv, latent_dk, latent_dv]


@_backward_op.register_fake
def _(_do: torch.Tensor, *tensors: Any) -> list[torch.Tensor]:
    return [t.new_empty(t.shape) for t in tensors[:5]]


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    *tensors, cu_seqlens, ctx.max_seqlen, ctx.scaling = inputs
    ctx.save_for_backward(*tensors, *output, cu_seqlens)


def _backward(ctx: Any, do: torch.Tensor, _dlse: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return (*_backward_op(do, *ctx.saved_tensors, ctx.max_seqlen, ctx.scaling), None, None, None)


_forward_op.register_autograd(_backward, setup_context=_save_for_backward)
