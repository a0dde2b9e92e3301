"""Σ weight · cross-entropy / Σ weight of next words, fused with the decoder's head.

Rows of weight 0 (most of a prompt) are left out before anything is computed. The others go through the head in chunks: the
logits of a chunk become their own gradient in place, and the gradients of hidden states and head are collected on the way,
so a matrix (tokens, vocabulary) never exists. Like Cut Cross-Entropy and Liger's fused loss; float32 inside.
"""

import torch
import torch.nn.functional as F

from ._ops import NAMESPACE
from .common import kernel, runs_triton, tl, triton

# Logits that exist at a time: 1,024 rows of 32,000 words are 64 MB in 16 bits.
CHUNK_LOGITS = 32 << 20
WORDS = 4096


@kernel
def _loss_and_gradient(
    logits_ptr,  # (rows, vocabulary): become the gradient of the loss
    label_ptr,  # (rows,) int64
    weight_ptr,  # (rows,) float32: of a row's loss, divided by the sum of all
    loss_ptr,  # (rows,) float32: weighted
    silent_ptr,  # (silent words,) int64: never said
    vocabulary, silent,
    WORDS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    label, weight = tl.load(label_ptr + row), tl.load(weight_ptr + row)
    place = logits_ptr + row.to(tl.int64) * vocabulary
    highest, total = -float("inf"), 0.0
    for start in range(0, vocabulary, WORDS):
        word = start + tl.arange(0, WORDS)
        logits = tl.load(place + word, mask=word < vocabulary, other=-float("inf")).to(tl.float32)
        for number in range(0, silent):
            logits = tl.where(word == tl.load(silent_ptr + number), -float("inf"), logits)
        higher = tl.maximum(highest, tl.max(logits, 0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(logits - higher), 0)
        highest = higher
    lse = highest + tl.log(total)
    said = tl.load(place + label).to(tl.float32)
    tl.store(loss_ptr + row, (lse - said) * weight)
    for start in range(0, vocabulary, WORDS):
        word = start + tl.arange(0, WORDS)
        logits = tl.load(place + word, mask=word < vocabulary, other=-float("inf")).to(tl.float32)
        for number in range(0, silent):
            logits = tl.where(word == tl.load(silent_ptr + number), -float("inf"), logits)
        gradient = (tl.exp(logits - lse) - tl.where(word == label, 1.0, 0.0)) * weight
        tl.store(place + word, gradient.to(logits_ptr.dtype.element_ty), mask=word < vocabulary)


def reference(
    hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, silent: torch.Tensor
) -> torch.Tensor:
    """The same with all logits written out; shapes as `weighted_cross_entropy`."""
    logits = F.linear(hidden, head)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).index_fill(1, silent, float("-inf"))
    nll = F.cross_entropy(logits, labels.masked_fill(weights == 0, -100), reduction="none", ignore_index=-100)
    return (nll * weights).sum()


def weighted_cross_entropy(
    hidden: torch.Tensor,
    head: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    silent: torch.Tensor | None = None,
    total: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """Σ w · −log p(label) / Σ w.

    Args:
        hidden: (tokens, width): what the head turns into logits; already moved against the labels.
        head: (vocabulary, width), in the dtype of `hidden`.
        labels: (tokens,) int64; −100 costs nothing, and its weight still counts in the sum that divides.
        weights: (tokens,): the weight of each label.
        silent: (words,) int64: words that are never said and have no part in the softmax.
        total: what to divide by in place of Σ w.

    Returns:
        A float32 number, differentiable in `hidden` and `head`.

    Raises:
        ValueError: an argument whose shape or dtype does not fit, by name.
    """
    if hidden.ndim != 2:
        raise ValueError(f"hidden: shape {tuple(hidden.shape)} is not (tokens, width).")
    if head.ndim != 2 or head.shape[1] != hidden.shape[1] or head.dtype != hidden.dtype:
        raise ValueError(f"head: {tuple(head.shape)} {head.dtype} is not (vocabulary, {hidden.shape[1]}) {hidden.dtype}.")
    if labels.shape != hidden.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels: {tuple(labels.shape)} {labels.dtype} is not ({len(hidden)},) int64.")
    if weights.shape != hidden.shape[:1]:
        raise ValueError(f"weights: shape {tuple(weights.shape)} is not ({len(hidden)},).")
    if silent is None:
        silent = labels.new_empty(0)
    weights = weights.float()
    divisor = weights.sum() if total is None else total
    kept = (weights != 0) & (labels != -100)
    rows = kept.nonzero().squeeze(1)
    return _forward_op(hidden[rows], head, labels[rows], weights[rows] / divisor, silent)[0]


@torch.library.custom_op(f"{NAMESPACE}::weighted_cross_entropy_forward", mutates_args=())
def _forward_op(
    hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, silent: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss, and its gradients by hidden states and head, which cost little more here than later."""
    rows, vocabulary = len(hidden), len(head)
    loss = hidden.new_zeros((), dtype=torch.float32)
    hidden_gradient, head_gradient = torch.zeros_like(hidden), torch.zeros_like(head, dtype=torch.float32)
    if rows and not runs_triton(hidden.device):
        with torch.enable_grad():
            leaves = [hidden.detach().requires_grad_(), head.detach().requires_grad_()]
            loss = reference(*leaves, labels, weights, silent)
            found = torch.autograd.grad(loss, leaves)
        return loss.detach().float(), found[0], found[1].contiguous()
    for start in range(0, rows, max(CHUNK_LOGITS // vocabulary, 1)):
        chunk = slice(start, start + max(CHUNK_LOGITS // vocabulary, 1))
        logits = F.linear(hidden[chunk], head).contiguous()
        losses = hidden.new_empty(len(logits), dtype=torch.float32)
        _loss_and_gradient[(len(logits),)](
            logits, labels[chunk].contiguous(), weights[chunk].contiguous(), losses, silent, vocabulary, len(silent),
            WORDS=min(WORDS, triton.next_power_of_2(vocabulary)),
        )  # fmt: skip
        loss += losses.sum()
        hidden_gradient[chunk] = logits @ head
        head_gradient += (logits.t() @ hidden[chunk]).float()
    return loss, hidden_gradient, head_gradient.to(head.dtype)


@_forward_op.register_fake
def _(hidden, head, labels, weights, silent):
    return hidden.new_empty((), dtype=torch.float32), torch.empty_like(hidden), torch.empty_like(head)


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*output[1:])


def _backward(ctx, gradient, *_):
    hidden_gradient, head_gradient = ctx.saved_tensors
    return (
        hidden_gradient * gradient.to(hidden_gradient.dtype),
        head_gradient * gradient.to(head_gradient.dtype),
        *[None] * 3,
    )


_forward_op.register_autograd(_backward, setup_context=_keep)
