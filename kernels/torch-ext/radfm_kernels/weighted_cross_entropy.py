"""Σ weight · cross-entropy / Σ weight, fused with the language model's head.

The (tokens, vocabulary) matrix of logits never exists. Rows without weight (most of a prompt) are dropped first; the others
go through the head in chunks, and the logits of a chunk are overwritten by their gradient, from which the gradients of
hidden states and head are taken at once, so the backward pass only scales them. The idea is that of Liger's fused linear
cross-entropy (arXiv 2410.10989, section 3.2) and of Cut Cross-Entropy (arXiv 2411.09009). Float32 inside.
"""

from typing import Any

import torch
import torch.nn.functional as F

from ._ops import add_op_namespace_prefix
from .common import jit, tl, triton, use_kernel, without_autocast

# Logits of a chunk: 2²⁷, which are 256 MB in 16 bits, or 4,194 rows of a vocabulary of 32,000. Every chunk reads and writes
# the sum of the head's gradient, which is larger, so that smaller chunks cost time.
CHUNK_LOGITS = 128 << 20
BLOCK_V = 4096


@jit
def _loss_and_gradient_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,  # (rows, vocab_size), contiguous; overwritten by the gradient of the loss
    labels_ptr,  # (rows,) int64
    weights_ptr,  # (rows,) float32: weight of a row, of about 1 at most
    loss_ptr,  # (rows,) float32, written: weighted loss of a row
    masked_token_ids_ptr,  # (masked,) int64: tokens without a part in the softmax
    vocab_size,
    masked,  # number of masked tokens
    BLOCK_V: tl.constexpr,  # logits that are read at a time
):  # fmt: skip
    row = tl.program_id(0)
    label, weight = tl.load(labels_ptr + row), tl.load(weights_ptr + row)
    row_ptr = logits_ptr + row.to(tl.int64) * vocab_size
    # First pass: log-sum-exp of the row, with a running maximum m and sum l.
    m, l = -float("inf"), 0.0  # noqa: E741
    for start in range(0, vocab_size, BLOCK_V):
        offs_v = start + tl.arange(0, BLOCK_V)
        logits = tl.load(row_ptr + offs_v, mask=offs_v < vocab_size, other=-float("inf")).to(tl.float32)
        for i in range(0, masked):
            logits = tl.where(offs_v == tl.load(masked_token_ids_ptr + i), -float("inf"), logits)
        m_new = tl.maximum(m, tl.max(logits, 0))
        l = l * tl.exp(m - m_new) + tl.sum(tl.exp(logits - m_new), 0)  # noqa: E741
        m = m_new
    lse = m + tl.log(l)
    # Before the second pass, which overwrites the logit of the label.
    label_logit = tl.load(row_ptr + label).to(tl.float32)
    tl.store(loss_ptr + row, (lse - label_logit) * weight)
    # Second pass: the gradient of the logits is (softmax − one-hot) · weight.
    for start in range(0, vocab_size, BLOCK_V):
        offs_v = start + tl.arange(0, BLOCK_V)
        logits = tl.load(row_ptr + offs_v, mask=offs_v < vocab_size, other=-float("inf")).to(tl.float32)
        for i in range(0, masked):
            logits = tl.where(offs_v == tl.load(masked_token_ids_ptr + i), -float("inf"), logits)
        dlogits = (tl.exp(logits - lse) - tl.where(offs_v == label, 1.0, 0.0)) * weight
        tl.store(row_ptr + offs_v, dlogits.to(logits_ptr.dtype.element_ty), mask=offs_v < vocab_size)


def reference(
    hidden_states: torch.Tensor,
    head_weight: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    masked_token_ids: torch.Tensor,
) -> torch.Tensor:
    """Σ weight · cross-entropy in plain PyTorch with all logits written out; `weights` are divided by their sum already."""
    logits = F.linear(hidden_states, head_weight)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).index_fill(1, masked_token_ids, float("-inf"))
    nll = F.cross_entropy(logits, labels.masked_fill(weights == 0, -100), reduction="none", ignore_index=-100)
    return (nll * weights).sum()


def weighted_cross_entropy(
    hidden_states: torch.Tensor,
    head_weight: torch.Tensor,
    labels: torch.Tensor,
    loss_weights: torch.Tensor,
    masked_token_ids: torch.Tensor | None = None,
    total_weight: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """Σ weight · −log p(label) / Σ weight.

    Args:
        hidden_states: (tokens, hidden_size): input of the head, already shifted against the labels.
        head_weight: (vocab_size, hidden_size), in the dtype of `hidden_states`. Under autocast both are cast.
        labels: (tokens,) int64; −100 adds nothing to the loss, but its weight counts in Σ weight.
        loss_weights: (tokens,): weight of each label.
        masked_token_ids: (n,) int64: tokens that are left out of the softmax.
        total_weight: the divisor, Σ weight by default; with gradient accumulation, the sum over all micro-batches.

    Returns:
        A float32 scalar, differentiable in `hidden_states` and `head_weight`.

    Raises:
        ValueError: an argument whose shape or dtype does not fit; the message begins with its name.

    Example, the second token weighs three times as much as the first:
        >>> hidden_states, head_weight = torch.zeros(2, 8), torch.ones(10, 8)
        >>> weighted_cross_entropy(hidden_states, head_weight, torch.tensor([4, 7]), torch.tensor([1.0, 3.0]))
        tensor(2.3026)
    """
    device_type = hidden_states.device.type
    if torch.is_autocast_enabled(device_type):  # as a Linear does
        dtype = torch.get_autocast_dtype(device_type)
        hidden_states, head_weight = hidden_states.to(dtype), head_weight.to(dtype)
    if hidden_states.ndim != 2:
        raise ValueError(f"hidden_states: shape {tuple(hidden_states.shape)} is not (tokens, hidden_size).")
    tokens, hidden_size = hidden_states.shape
    if head_weight.ndim != 2 or head_weight.shape[1] != hidden_size or head_weight.dtype != hidden_states.dtype:
        raise ValueError(
            f"head_weight: {tuple(head_weight.shape)} {head_weight.dtype} "
            f"is not (vocab_size, {hidden_size}) {hidden_states.dtype}."
        )
    if labels.shape != (tokens,) or labels.dtype != torch.int64:
        raise ValueError(f"labels: {tuple(labels.shape)} {labels.dtype} is not ({tokens},) torch.int64.")
    if loss_weights.shape != (tokens,):
        raise ValueError(f"loss_weights: shape {tuple(loss_weights.shape)} is not ({tokens},).")
    if masked_token_ids is None:
        masked_token_ids = labels.new_empty(0)
    loss_weights = loss_weights.float()
    divisor = loss_weights.sum() if total_weight is None else total_weight
    rows = ((loss_weights != 0) & (labels != -100)).nonzero().squeeze(1)
    arguments = (hidden_states[rows], head_weight, labels[rows], loss_weights[rows] / divisor, masked_token_ids)
    if not use_kernel(hidden_states.device):
        return reference(*arguments).float()
    wanted = (tensor.requires_grad and torch.is_grad_enabled() for tensor in (hidden_states, head_weight))
    loss: torch.Tensor = _forward_op(*arguments, *wanted)[0]
    return loss


@torch.library.custom_op(add_op_namespace_prefix("weighted_cross_entropy_forward"), mutates_args=())
@without_autocast
def _forward_op(
    hidden_states: torch.Tensor,
    head_weight: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    masked_token_ids: torch.Tensor,
    want_dhidden: bool,
    want_dhead: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss, its gradients with respect to hidden states and head, and the factor that they still need.

    The gradients cost little more here than later. They are those of weights of about 1: in float16 small weights would
    round them to 0. The factor is a power of two, which no dtype rounds. A gradient that is not wanted has no elements.
    """
    rows, vocab_size = len(hidden_states), len(head_weight)
    loss = hidden_states.new_zeros((), dtype=torch.float32)
    dhidden = torch.empty_like(hidden_states) if want_dhidden else hidden_states.new_empty(0)
    dhead = torch.zeros_like(head_weight, dtype=torch.float32) if want_dhead else head_weight.new_empty(0)
    if rows == 0:
        return loss, dhidden, dhead.to(head_weight.dtype), loss.clone()
    factor = torch.ldexp(torch.ones_like(loss), torch.frexp(weights.abs().max()).exponent)
    weights, labels, masked_token_ids = weights / factor, labels.contiguous(), masked_token_ids.contiguous()
    chunk_rows = max(CHUNK_LOGITS // vocab_size, 1)
    for start in range(0, rows, chunk_rows):
        chunk = slice(start, start + chunk_rows)
        logits = F.linear(hidden_states[chunk], head_weight).contiguous()
        losses = hidden_states.new_empty(len(logits), dtype=torch.float32)
        _loss_and_gradient_kernel[(len(logits),)](
            logits, labels[chunk], weights[chunk], losses, masked_token_ids,
            vocab_size, len(masked_token_ids), BLOCK_V=min(BLOCK_V, triton.next_power_of_2(vocab_size)),
        )  # fmt: skip
        loss += losses.sum()
        if want_dhidden:
            torch.mm(logits, head_weight, out=dhidden[chunk])
        if want_dhead:
            _add_product(dhead, logits.t(), hidden_states[chunk])
    return loss * factor, dhidden, dhead.to(head_weight.dtype), factor


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """total += a · b, where `total` is float32 and the product of 16-bit matrices is not rounded to 16 bits before."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    elif a.device.type == "cuda":
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total += a.float() @ b.float()


@_forward_op.register_fake
def _(
    hidden_states: torch.Tensor,
    head_weight: torch.Tensor,
    _labels: torch.Tensor,
    _weights: torch.Tensor,
    _masked_token_ids: torch.Tensor,
    want_dhidden: bool,
    want_dhead: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    dhidden = torch.empty_like(hidden_states) if want_dhidden else hidden_states.new_empty(0)
    dhead = torch.empty_like(head_weight) if want_dhead else head_weight.new_empty(0)
    loss, factor = (hidden_states.new_empty((), dtype=torch.float32) for _ in range(2))
    return loss, dhidden, dhead, factor


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    *_, ctx.want_dhidden, ctx.want_dhead = inputs
    ctx.save_for_backward(*output[1:])


def _backward(ctx: Any, dloss: torch.Tensor, *_unused: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    dhidden, dhead, factor = ctx.saved_tensors
    scale = dloss * factor
    wanted = ((dhidden, ctx.want_dhidden), (dhead, ctx.want_dhead))
    return (*(part * scale.to(part.dtype) if want else None for part, want in wanted), *[None] * 5)


_forward_op.register_autograd(_backward, setup_context=_save_for_backward)
