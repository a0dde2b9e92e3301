"""Variable-length attention: each query of a scan attends to all keys of that scan, and to no other scan's.

The scans of a batch lie one behind the other in one tensor, and `cu_seqlens` says where each begins, as in flash-attn's
`flash_attn_varlen_func`. The algorithm is FlashAttention-2 (Dao 2023, arXiv 2307.08691) without a causal mask:

- forward (section 3.1.1, algorithm 1): a program per tile of queries walks over the keys with an online softmax, and keeps
  the log-sum-exp of each row;
- backward (section 3.1.2, algorithm 2): the probabilities are computed again from the log-sum-exp. The paper adds to dq with
  atomics (section 3.2); here dq has a kernel of its own, a program per tile of queries, so that equal tile sizes give equal
  bits. The price is that the scores are computed twice.

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

# The last one of each list fits the shared memory of every card in every dtype: `RADFM_KERNELS_DETERMINISTIC=1` takes it.
FORWARD_CONFIGS = [
    ({"BLOCK_M": 128, "BLOCK_N": 64}, 4, 3),
    ({"BLOCK_M": 128, "BLOCK_N": 128}, 8, 3),
    ({"BLOCK_M": 128, "BLOCK_N": 64}, 8, 3),
    ({"BLOCK_M": 64, "BLOCK_N": 64}, 4, 4),
    ({"BLOCK_M": 64, "BLOCK_N": 32}, 4, 1),
]
DQ_CONFIGS = [
    ({"BLOCK_M": 128, "BLOCK_N": 64}, 8, 3),
    ({"BLOCK_M": 128, "BLOCK_N": 32}, 4, 3),
    ({"BLOCK_M": 64, "BLOCK_N": 64}, 4, 3),
    ({"BLOCK_M": 32, "BLOCK_N": 32}, 4, 1),
]
DKDV_CONFIGS = [
    ({"BLOCK_M": 64, "BLOCK_N": 128}, 8, 3),
    ({"BLOCK_M": 32, "BLOCK_N": 128}, 4, 3),
    ({"BLOCK_M": 64, "BLOCK_N": 64}, 4, 3),
    ({"BLOCK_M": 32, "BLOCK_N": 32}, 4, 1),
]


# In all kernels row offsets are int64, because row · stride can pass 2³¹. Scores are in units of log2: exp(x) is computed as
# exp2(x · log2(e)), for which cards have an instruction. Whole tiles are loaded and added without a mask; only what is left
# of a scan at its end has one.
@jit
def _load_tiles(  # type: ignore[no-untyped-def]
    a_ptrs, b_ptrs,  # (rows, HEAD_DIM): two tensors at the same rows of a scan
    row_mask,  # (rows,): rows of the scan
    MASKED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Both tiles; rows beyond the end of the scan are 0."""
    if MASKED:
        a = tl.load(a_ptrs, mask=row_mask[:, None], other=0.0)
        b = tl.load(b_ptrs, mask=row_mask[:, None], other=0.0)
    else:
        a, b = tl.load(a_ptrs), tl.load(b_ptrs)
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return a, b


@jit
def _attend_to_tile(  # type: ignore[no-untyped-def]
    q,  # (BLOCK_M, HEAD_DIM)
    k_ptrs, v_ptrs,  # (BLOCK_N, HEAD_DIM): where the keys and values of the tile lie
    m_i, l_i, acc,  # (BLOCK_M,), (BLOCK_M,), (BLOCK_M, HEAD_DIM): largest score, sum of exponentials, output so far
    keys_left,  # keys from the first one of the tile to the end of the scan
    scale_log2,
    MASKED: tl.constexpr,  # the tile passes the end of the scan
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Algorithm 1, lines 8 to 10: add one tile of keys, and rescale what was summed before to the new maximum."""
    key_mask = tl.arange(0, BLOCK_N) < keys_left
    k, v = _load_tiles(k_ptrs, v_ptrs, key_mask, MASKED, UPCAST)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if MASKED:
        scores = tl.where(key_mask[None, :], scores, -float("inf"))
    m_new = tl.maximum(m_i, tl.max(scores, 1) * scale_log2)
    p = tl.exp2(scores * scale_log2 - m_new[:, None])
    alpha = tl.exp2(m_i - m_new)
    l_i = l_i * alpha + tl.sum(p, 1)
    acc = acc * alpha[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
    return m_new, l_i, acc


@jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    q_ptr,  # (total_q, heads, HEAD_DIM)
    k_ptr, v_ptr,  # (total_k, heads, HEAD_DIM)
    o_ptr,  # (total_q, heads, HEAD_DIM), written
    lse_ptr,  # (heads, total_q) float32, written: log2 of a row's sum of exponentials
    cu_seqlens_q_ptr, cu_seqlens_k_ptr,  # (scans + 1,) int32: first query and key of each scan, and the end of the last
    scale_log2,  # softmax scale · log2(e), above 0
    total_q,  # queries of all scans
    q_stride_m, q_stride_h,  # strides of q between rows and between heads; the last axis has stride 1, here and below
    k_stride_n, k_stride_h, v_stride_n, v_stride_h,
    o_stride_m, o_stride_h,
    max_seqlen_q,  # most queries of a scan, up to a power of two; only the autotuner reads it
    HEAD_DIM: tl.constexpr,
    UPCAST: tl.constexpr,  # convert the operands of products to float32
    PRECISION: tl.constexpr,  # of products of float32: ieee, tf32x3 or tf32
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,  # queries and keys of a tile
):  # fmt: skip
    tile, head, scan = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    q_start, q_end = tl.load(cu_seqlens_q_ptr + scan), tl.load(cu_seqlens_q_ptr + scan + 1)
    k_start, k_end = tl.load(cu_seqlens_k_ptr + scan), tl.load(cu_seqlens_k_ptr + scan + 1)
    offs_m = q_start + tile * BLOCK_M + tl.arange(0, BLOCK_M)
    if q_start + tile * BLOCK_M < q_end:  # the grid has the tiles of the longest scan
        offs_d = tl.arange(0, HEAD_DIM)
        query_mask = offs_m < q_end
        row_m = offs_m.to(tl.int64)
        q = tl.load(q_ptr + row_m[:, None] * q_stride_m + head * q_stride_h + offs_d, mask=query_mask[:, None], other=0.0)
        if UPCAST:
            q = q.to(tl.float32)
        m_i = tl.full([BLOCK_M], -float("inf"), tl.float32)
        l_i = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
        row_n = (k_start + tl.arange(0, BLOCK_N)).to(tl.int64)
        k_ptrs = k_ptr + row_n[:, None] * k_stride_n + head * k_stride_h + offs_d
        v_ptrs = v_ptr + row_n[:, None] * v_stride_n + head * v_stride_h + offs_d
        whole_tiles = (k_end - k_start) // BLOCK_N
        for _ in range(whole_tiles):
            m_i, l_i, acc = _attend_to_tile(
                q, k_ptrs, v_ptrs, m_i, l_i, acc, BLOCK_N, scale_log2, False, UPCAST, PRECISION, BLOCK_N
            )
            k_ptrs += BLOCK_N * k_stride_n
            v_ptrs += BLOCK_N * v_stride_n
        keys_left = k_end - k_start - whole_tiles * BLOCK_N
        if keys_left > 0:
            m_i, l_i, acc = _attend_to_tile(
                q, k_ptrs, v_ptrs, m_i, l_i, acc, keys_left, scale_log2, True, UPCAST, PRECISION, BLOCK_N
            )
        # A scan without keys has l_i = 0, and its output is 0.
        o = acc / tl.where(l_i > 0, l_i, 1.0)[:, None]
        o_ptrs = o_ptr + row_m[:, None] * o_stride_m + head * o_stride_h + offs_d
        tl.store(o_ptrs, o.to(o_ptr.dtype.element_ty), mask=query_mask[:, None])
        tl.store(lse_ptr + head * total_q + offs_m, m_i + tl.log2(l_i), mask=query_mask)


@jit
def _add_to_dq(  # type: ignore[no-untyped-def]
    dq,  # (BLOCK_M, HEAD_DIM): sum so far, not yet multiplied by the scale
    q, do,  # (BLOCK_M, HEAD_DIM)
    lse, delta,  # (BLOCK_M,)
    k_ptrs, v_ptrs,  # (BLOCK_N, HEAD_DIM): where the keys and values of the tile lie
    keys_left,  # keys from the first one of the tile to the end of the scan
    scale_log2,
    MASKED: tl.constexpr,  # the tile passes the end of the scan
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Algorithm 2, lines 11 to 15, without dk and dv."""
    key_mask = tl.arange(0, BLOCK_N) < keys_left
    k, v = _load_tiles(k_ptrs, v_ptrs, key_mask, MASKED, UPCAST)
    p = tl.exp2(tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2 - lse[:, None])
    if MASKED:  # a score of 0 beside an lse far below 0 is infinite
        p = tl.where(key_mask[None, :], p, 0.0)
    ds = p * (tl.dot(do, tl.trans(v), input_precision=PRECISION) - delta[:, None])
    return dq + tl.dot(ds.to(k.dtype), k, input_precision=PRECISION)


@jit
def _dq_kernel(  # type: ignore[no-untyped-def]
    q_ptr,  # (total_q, heads, HEAD_DIM)
    k_ptr, v_ptr,  # (total_k, heads, HEAD_DIM)
    o_ptr,  # (total_q, heads, HEAD_DIM), contiguous: of the forward pass
    do_ptr,  # (total_q, heads, HEAD_DIM): gradient of the output
    lse_ptr,  # (heads, total_q) float32, of the forward pass
    delta_ptr,  # (heads, total_q) float32, written: Σ o · do of each row (D in algorithm 2, line 4), which dk needs too
    dq_ptr,  # (total_q, heads, HEAD_DIM), written
    cu_seqlens_q_ptr, cu_seqlens_k_ptr,  # (scans + 1,) int32: first query and key of each scan, and the end of the last
    scale, scale_log2,  # softmax scale, and the same · log2(e)
    total_q, heads,  # queries of all scans
    q_stride_m, q_stride_h,  # strides between rows and between heads, for each tensor
    k_stride_n, k_stride_h, v_stride_n, v_stride_h,
    do_stride_m, do_stride_h,
    dq_stride_m, dq_stride_h,
    max_seqlen_q,  # most queries of a scan, up to a power of two; only the autotuner reads it
    HEAD_DIM: tl.constexpr,
    UPCAST: tl.constexpr,  # convert the operands of products to float32
    PRECISION: tl.constexpr,  # of products of float32: ieee, tf32x3 or tf32
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,  # queries and keys of a tile
):  # fmt: skip
    tile, head, scan = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    q_start, q_end = tl.load(cu_seqlens_q_ptr + scan), tl.load(cu_seqlens_q_ptr + scan + 1)
    k_start, k_end = tl.load(cu_seqlens_k_ptr + scan), tl.load(cu_seqlens_k_ptr + scan + 1)
    offs_m = q_start + tile * BLOCK_M + tl.arange(0, BLOCK_M)
    if q_start + tile * BLOCK_M < q_end:
        offs_d = tl.arange(0, HEAD_DIM)
        query_mask = offs_m < q_end
        row_m = offs_m.to(tl.int64)
        q = tl.load(q_ptr + row_m[:, None] * q_stride_m + head * q_stride_h + offs_d, mask=query_mask[:, None], other=0.0)
        do = tl.load(
            do_ptr + row_m[:, None] * do_stride_m + head * do_stride_h + offs_d, mask=query_mask[:, None], other=0.0
        )
        o = tl.load(o_ptr + (row_m[:, None] * heads + head) * HEAD_DIM + offs_d, mask=query_mask[:, None], other=0.0)
        delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
        tl.store(delta_ptr + head * total_q + offs_m, delta, mask=query_mask)
        lse = tl.load(lse_ptr + head * total_q + offs_m, mask=query_mask, other=0.0)
        if UPCAST:
            q, do = q.to(tl.float32), do.to(tl.float32)
        dq = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
        row_n = (k_start + tl.arange(0, BLOCK_N)).to(tl.int64)
        k_ptrs = k_ptr + row_n[:, None] * k_stride_n + head * k_stride_h + offs_d
        v_ptrs = v_ptr + row_n[:, None] * v_stride_n + head * v_stride_h + offs_d
        whole_tiles = (k_end - k_start) // BLOCK_N
        for _ in range(whole_tiles):
            dq = _add_to_dq(dq, q, do, lse, delta, k_ptrs, v_ptrs, BLOCK_N, scale_log2, False, UPCAST, PRECISION, BLOCK_N)
            k_ptrs += BLOCK_N * k_stride_n
            v_ptrs += BLOCK_N * v_stride_n
        keys_left = k_end - k_start - whole_tiles * BLOCK_N
        if keys_left > 0:
            dq = _add_to_dq(dq, q, do, lse, delta, k_ptrs, v_ptrs, keys_left, scale_log2, True, UPCAST, PRECISION, BLOCK_N)
        # dq has strides of its own: those of do are a caller's choice, and only by chance the same.
        dq_ptrs = dq_ptr + row_m[:, None] * dq_stride_m + head * dq_stride_h + offs_d
        tl.store(dq_ptrs, (dq * scale).to(dq_ptr.dtype.element_ty), mask=query_mask[:, None])


@jit
def _add_to_dk_dv(  # type: ignore[no-untyped-def]
    dk, dv,  # (BLOCK_N, HEAD_DIM): sums so far, dk not yet multiplied by the scale
    k, v,  # (BLOCK_N, HEAD_DIM)
    q_ptrs, do_ptrs,  # (BLOCK_M, HEAD_DIM): where the queries of the tile and their gradients lie
    lse_ptrs, delta_ptrs,  # (BLOCK_M,)
    queries_left,  # queries from the first one of the tile to the end of the scan
    scale_log2,
    MASKED: tl.constexpr,  # the tile passes the end of the scan
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Algorithm 2, lines 11 to 16, without dq. Keys are rows here, so that no matrix is transposed on the way.

    A query beyond the end is all zeros, and adds nothing; a key beyond the end is in a row that is not stored.
    """
    query_mask = tl.arange(0, BLOCK_M) < queries_left
    q, do = _load_tiles(q_ptrs, do_ptrs, query_mask, MASKED, UPCAST)
    if MASKED:
        lse = tl.load(lse_ptrs, mask=query_mask, other=0.0)
        delta = tl.load(delta_ptrs, mask=query_mask, other=0.0)
    else:
        lse, delta = tl.load(lse_ptrs), tl.load(delta_ptrs)
    p = tl.exp2(tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale_log2 - lse[None, :])
    dv += tl.dot(p.to(do.dtype), do, input_precision=PRECISION)
    ds = p * (tl.dot(v, tl.trans(do), input_precision=PRECISION) - delta[None, :])
    dk += tl.dot(ds.to(q.dtype), q, input_precision=PRECISION)
    return dk, dv


@jit
def _dkdv_kernel(  # type: ignore[no-untyped-def]
    q_ptr,  # (total_q, heads, HEAD_DIM)
    k_ptr, v_ptr,  # (total_k, heads, HEAD_DIM)
    do_ptr,  # (total_q, heads, HEAD_DIM): gradient of the output
    lse_ptr,  # (heads, total_q) float32, of the forward pass
    delta_ptr,  # (heads, total_q) float32, of `_dq_kernel`
    dk_ptr, dv_ptr,  # (total_k, heads, HEAD_DIM), written
    cu_seqlens_q_ptr, cu_seqlens_k_ptr,  # (scans + 1,) int32: first query and key of each scan, and the end of the last
    scale, scale_log2,  # softmax scale, and the same · log2(e)
    total_q,  # queries of all scans
    q_stride_m, q_stride_h,  # strides between rows and between heads, for each tensor
    k_stride_n, k_stride_h, v_stride_n, v_stride_h,
    do_stride_m, do_stride_h,
    dk_stride_n, dk_stride_h, dv_stride_n, dv_stride_h,
    max_seqlen_q,  # most queries of a scan, up to a power of two; only the autotuner reads it
    HEAD_DIM: tl.constexpr,
    UPCAST: tl.constexpr,  # convert the operands of products to float32
    PRECISION: tl.constexpr,  # of products of float32: ieee, tf32x3 or tf32
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,  # queries and keys of a tile
):  # fmt: skip
    tile, head, scan = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    q_start, q_end = tl.load(cu_seqlens_q_ptr + scan), tl.load(cu_seqlens_q_ptr + scan + 1)
    k_start, k_end = tl.load(cu_seqlens_k_ptr + scan), tl.load(cu_seqlens_k_ptr + scan + 1)
    offs_n = k_start + tile * BLOCK_N + tl.arange(0, BLOCK_N)
    if k_start + tile * BLOCK_N < k_end:
        offs_d = tl.arange(0, HEAD_DIM)
        key_mask = offs_n < k_end
        row_n = offs_n.to(tl.int64)
        k = tl.load(k_ptr + row_n[:, None] * k_stride_n + head * k_stride_h + offs_d, mask=key_mask[:, None], other=0.0)
        v = tl.load(v_ptr + row_n[:, None] * v_stride_n + head * v_stride_h + offs_d, mask=key_mask[:, None], other=0.0)
        if UPCAST:
            k, v = k.to(tl.float32), v.to(tl.float32)
        dk = tl.zeros([BLOCK_N, HEAD_DIM], tl.float32)
        dv = tl.zeros([BLOCK_N, HEAD_DIM], tl.float32)
        offs_m = q_start + tl.arange(0, BLOCK_M)
        row_m = offs_m.to(tl.int64)
        q_ptrs = q_ptr + row_m[:, None] * q_stride_m + head * q_stride_h + offs_d
        do_ptrs = do_ptr + row_m[:, None] * do_stride_m + head * do_stride_h + offs_d
        lse_ptrs, delta_ptrs = lse_ptr + head * total_q + offs_m, delta_ptr + head * total_q + offs_m
        whole_tiles = (q_end - q_start) // BLOCK_M
        for _ in range(whole_tiles):
            dk, dv = _add_to_dk_dv(
                dk, dv, k, v, q_ptrs, do_ptrs, lse_ptrs, delta_ptrs,
                BLOCK_M, scale_log2, False, UPCAST, PRECISION, BLOCK_M,
            )  # fmt: skip
            q_ptrs += BLOCK_M * q_stride_m
            do_ptrs += BLOCK_M * do_stride_m
            lse_ptrs += BLOCK_M
            delta_ptrs += BLOCK_M
        queries_left = q_end - q_start - whole_tiles * BLOCK_M
        if queries_left > 0:
            dk, dv = _add_to_dk_dv(
                dk, dv, k, v, q_ptrs, do_ptrs, lse_ptrs, delta_ptrs,
                queries_left, scale_log2, True, UPCAST, PRECISION, BLOCK_M,
            )  # fmt: skip
        dk_ptrs = dk_ptr + row_n[:, None] * dk_stride_n + head * dk_stride_h + offs_d
        dv_ptrs = dv_ptr + row_n[:, None] * dv_stride_n + head * dv_stride_h + offs_d
        tl.store(dk_ptrs, (dk * scale).to(dk_ptr.dtype.element_ty), mask=key_mask[:, None])
        tl.store(dv_ptrs, dv.to(dv_ptr.dtype.element_ty), mask=key_mask[:, None])


if triton is not None:
    _tuned_forward = autotune(FORWARD_CONFIGS, ["max_seqlen_q", "HEAD_DIM"])(_forward_kernel)
    _tuned_dq = autotune(DQ_CONFIGS, ["max_seqlen_q", "HEAD_DIM"])(_dq_kernel)
    _tuned_dkdv = autotune(DKDV_CONFIGS, ["max_seqlen_q", "HEAD_DIM"])(_dkdv_kernel)


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """softmax(q · kᵀ · scaling) · v of each scan, in plain PyTorch; shapes as `packed_attention`."""
    outputs = [
        (torch.einsum("qhd,khd->hqk", scan_q, scan_k) * scaling).softmax(-1).matmul(scan_v.transpose(0, 1)).transpose(0, 1)
        for scan_q, scan_k, scan_v in zip(
            q.tensor_split(cu_seqlens_q[1:-1].tolist()),
            k.tensor_split(cu_seqlens_k[1:-1].tolist()),
            v.tensor_split(cu_seqlens_k[1:-1].tolist()),
            strict=True,
        )
    ]
    return torch.cat(outputs)


def packed_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scaling: float | None = None,
) -> torch.Tensor:
    """Attention of each scan's queries over that scan's keys; the arguments are those of `flash_attn_varlen_func`.

    Args:
        q: (queries of all scans, heads, head_dim), head_dim 16, 32, 64 or 128; float16, bfloat16 or float32.
        k, v: (keys of all scans, heads, head_dim), dtype and device of `q`.
        cu_seqlens_q, cu_seqlens_k: (scans + 1,) int32 on the device of `q`: scan i has rows `cu_seqlens[i]` to
            `cu_seqlens[i + 1]`.
        max_seqlen_q, max_seqlen_k: rows of the longest scan, or more. Not checked, because that would wait for the card:
            rows beyond a smaller number are not computed.
        scaling: factor of the scores, above 0; head_dim ** -0.5 by default.

    Returns:
        (queries of all scans, heads, head_dim) in the dtype of `q`; float32 inside, rounded once. Differentiable in q, k, v.

    Raises:
        ValueError: an argument whose shape, dtype or device does not fit; the message begins with its name.

    Example, two scans of 12 and 8 patches:
        >>> q = k = v = torch.ones(20, 2, 16)
        >>> cu_seqlens = torch.tensor([0, 12, 20], dtype=torch.int32)
        >>> packed_attention(q, k, v, cu_seqlens, cu_seqlens, 12, 12).shape
        torch.Size([20, 2, 16])
    """
    _check(q, k, v, cu_seqlens_q, cu_seqlens_k)
    if scaling is None:
        scaling = q.shape[-1] ** -0.5
    if scaling <= 0:
        raise ValueError(f"scaling: {scaling} is not above 0.")
    if not use_kernel(q.device):
        return reference(q, k, v, cu_seqlens_q, cu_seqlens_k, scaling)
    forward = _forward_op if needs_dispatcher(q, k, v) else _forward
    o: torch.Tensor = forward(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scaling)[0]
    return o


def _check(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor
) -> None:
    if q.ndim != 3 or q.shape[-1] not in HEAD_DIMS:
        raise ValueError(f"q: shape {tuple(q.shape)} is not (rows, heads, head_dim of {', '.join(map(str, HEAD_DIMS))}).")
    for name, tensor in (("k", k), ("v", v)):
        if tensor.ndim != 3 or tensor.shape[1:] != q.shape[1:] or len(tensor) != len(k):
            raise ValueError(f"{name}: shape {tuple(tensor.shape)} does not fit q of shape {tuple(q.shape)}.")
        if tensor.dtype != q.dtype or tensor.device != q.device:
            raise ValueError(f"{name}: {tensor.dtype} on {tensor.device}, but q is {q.dtype} on {q.device}.")
    for name, cu_seqlens in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        if cu_seqlens.dtype != torch.int32 or cu_seqlens.ndim != 1 or len(cu_seqlens) < 1 or cu_seqlens.device != q.device:
            raise ValueError(
                f"{name}: {tuple(cu_seqlens.shape)} {cu_seqlens.dtype} on {cu_seqlens.device} "
                f"is not (scans + 1,) torch.int32 on {q.device}."
            )
    if len(cu_seqlens_q) != len(cu_seqlens_k):
        raise ValueError(f"cu_seqlens_k: has {len(cu_seqlens_k) - 1} scans, but cu_seqlens_q {len(cu_seqlens_q) - 1}.")


def _forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    total_q, heads, head_dim = q.shape
    lse = q.new_zeros((heads, total_q), dtype=torch.float32)
    if total_q == 0:
        return q.clone(), lse
    q, k, v, cu_seqlens_q, cu_seqlens_k = with_unit_stride(q, k, v, cu_seqlens_q, cu_seqlens_k)
    o = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    scans = len(cu_seqlens_q) - 1
    _tuned_forward[lambda blocks: (triton.cdiv(max_seqlen_q, blocks["BLOCK_M"]), heads, scans)](
        q, k, v, o, lse, cu_seqlens_q, cu_seqlens_k, scaling * LOG2_E, total_q,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *o.stride()[:2],
        triton.next_power_of_2(max_seqlen_q), HEAD_DIM=head_dim, **dot_options(q),
    )  # fmt: skip
    return o, lse


_forward_op = torch.library.custom_op(add_op_namespace_prefix("packed_attention_forward"), _forward, mutates_args=())


@_forward_op.register_fake
def _(q: torch.Tensor, *_rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    o = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    return o, q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


@torch.library.custom_op(add_op_namespace_prefix("packed_attention_backward"), mutates_args=())
def _backward_op(
    do: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    o: torch.Tensor,
    lse: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    total_q, heads, head_dim = q.shape
    if total_q == 0 or len(k) == 0:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    q, k, v, do, cu_seqlens_q, cu_seqlens_k = with_unit_stride(q, k, v, do, cu_seqlens_q, cu_seqlens_k)
    delta = torch.empty_like(lse)
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    scans = len(cu_seqlens_q) - 1
    rest = (cu_seqlens_q, cu_seqlens_k, scaling, scaling * LOG2_E, total_q)
    strides = (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *do.stride()[:2])
    tuning = triton.next_power_of_2(max_seqlen_q)
    # In this order: dq also writes delta.
    _tuned_dq[lambda blocks: (triton.cdiv(max_seqlen_q, blocks["BLOCK_M"]), heads, scans)](
        q, k, v, o.contiguous(), do, lse, delta, dq, *rest, heads, *strides, *dq.stride()[:2], tuning,
        HEAD_DIM=head_dim, **dot_options(q),
    )  # fmt: skip
    _tuned_dkdv[lambda blocks: (triton.cdiv(max_seqlen_k, blocks["BLOCK_N"]), heads, scans)](
        q, k, v, do, lse, delta, dk, dv, *rest, *strides, *dk.stride()[:2], *dv.stride()[:2], tuning,
        HEAD_DIM=head_dim, **dot_options(q),
    )  # fmt: skip
    return dq, dk, dv


@_backward_op.register_fake
def _(
    do: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_rest: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    return dq, dk, dv


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    q, k, v, cu_seqlens_q, cu_seqlens_k, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens_q, cu_seqlens_k)


def _backward(ctx: Any, do: torch.Tensor, _dlse: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    gradients = _backward_op(do, *ctx.saved_tensors, *ctx.options)
    return (*gradients, None, None, None, None, None)


_forward_op.register_autograd(_backward, setup_context=_save_for_backward)
