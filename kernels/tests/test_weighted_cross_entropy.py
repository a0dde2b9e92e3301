"""The weighted loss through the head, against all logits written out in float64."""

import sys

import pytest
import torch
from radfm_kernels.weighted_cross_entropy import reference, weighted_cross_entropy
from testing import DEVICE, DTYPES, against_float64, assert_close, rand


def random_labels(tokens, vocab_size):
    """Labels and the paper's weights: 0 for most of a prompt, 1 for the answer, 3 for medical terms."""
    labels = torch.randint(0, vocab_size - 3, (tokens,), device=DEVICE)
    weights = torch.tensor([0.0, 0.0, 1.0, 3.0], device=DEVICE)[torch.randint(0, 4, (tokens,), device=DEVICE)]
    weights[-1:] = 1.0
    return labels, weights


def kernel_and_reference(labels, weights, masked_token_ids):
    return (
        lambda hidden, head: weighted_cross_entropy(hidden, head, labels, weights, masked_token_ids),
        lambda hidden, head: reference(hidden, head, labels, weights.double() / weights.sum(), masked_token_ids),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "vocab_size"), [(1, 7), (19, 103), (33, 5001)])
def test_loss_and_gradients(tokens, vocab_size, dtype, monkeypatch):
    # Eight rows a chunk, so that the loop over chunks runs.
    monkeypatch.setattr(sys.modules[reference.__module__], "CHUNK_LOGITS", 8 * vocab_size)
    inputs = [rand(tokens, 24, dtype=dtype), rand(vocab_size, 24, dtype=dtype)]
    labels, weights = random_labels(tokens, vocab_size)
    masked_token_ids = torch.arange(vocab_size - 3, vocab_size, device=DEVICE)
    against_float64(
        *kernel_and_reference(labels, weights, masked_token_ids), inputs, dtype, ("hidden_states", "head_weight")
    )


def test_masked_token_ids_that_are_not_contiguous():
    inputs = [rand(6, 8), rand(11, 8)]
    labels, weights = random_labels(6, 11)
    masked_token_ids = torch.tensor([8, 0, 9, 0, 10, 0], device=DEVICE)[::2]
    kernel, plain = kernel_and_reference(labels, weights, masked_token_ids)
    assert_close(kernel(*inputs), plain(*(t.double() for t in inputs)), torch.float32, "the loss")


def test_ignored_label_counts_in_the_divisor_and_total_weight_replaces_it():
    hidden, head = rand(4, 8), rand(11, 8)
    labels, weights = torch.tensor([1, -100, 2, 3], device=DEVICE), torch.tensor([1.0, 2.0, 0.0, 1.0], device=DEVICE)
    nll = torch.nn.functional.cross_entropy(hidden @ head.t(), labels, reduction="none")
    loss = weighted_cross_entropy(hidden, head, labels, weights)
    assert_close(loss, (nll[0] + nll[3]) / 4, torch.float32, "the loss")
    loss = weighted_cross_entropy(hidden, head, labels, weights, total_weight=10.0)
    assert_close(loss, (nll[0] + nll[3]) / 10, torch.float32, "the loss")


def test_no_row_with_weight_gives_zero():
    hidden, head = rand(3, 8).requires_grad_(), rand(11, 8).requires_grad_()
    labels, weights = torch.zeros(3, dtype=torch.int64, device=DEVICE), torch.zeros(3, device=DEVICE)
    loss = weighted_cross_entropy(hidden, head, labels, weights, total_weight=1.0)
    loss.backward()
    assert loss.item() == 0 and not hidden.grad.any() and not head.grad.any()


def test_rows_without_weight_never_reach_the_head():
    hidden, head = rand(5, 8), rand(11, 8)
    hidden[::2] = float("nan")
    labels, weights = torch.ones(5, dtype=torch.int64, device=DEVICE), torch.tensor([0, 1, 0, 2, 0.0], device=DEVICE)
    assert weighted_cross_entropy(hidden, head, labels, weights).isfinite()


def test_small_weights_in_float16_keep_their_gradient():
    """float16 ends at 6e-8; a loss scaler multiplies afterwards, as in mixed precision."""
    hidden, head = rand(6, 8, dtype=torch.float16).requires_grad_(), rand(11, 8, dtype=torch.float16).requires_grad_()
    labels, weights = random_labels(6, 11)
    loss = weighted_cross_entropy(hidden, head, labels, weights, total_weight=1e6)
    gradients = torch.autograd.grad(loss * 1e6, (hidden, head))
    expected = torch.autograd.grad(weighted_cross_entropy(hidden, head, labels, weights, total_weight=1.0), (hidden, head))
    for name, actual, wanted in zip(("hidden_states", "head_weight"), gradients, expected, strict=True):
        assert_close(actual, wanted, torch.float16, f"the gradient of {name}")


def test_autocast_casts_both_factors():
    hidden, head = rand(6, 8, dtype=torch.bfloat16).requires_grad_(), rand(11, 8).requires_grad_()
    labels, weights = random_labels(6, 11)
    with torch.autocast(hidden.device.type, torch.bfloat16):
        loss = weighted_cross_entropy(hidden, head, labels, weights)
    loss.backward()
    in_16_bits = head.detach().bfloat16().requires_grad_()
    expected = weighted_cross_entropy(hidden, in_16_bits, labels, weights)
    assert_close(loss, expected, torch.float32, "the loss")
    assert_close(head.grad, torch.autograd.grad(expected, in_16_bits)[0], torch.float32, "the gradient of head_weight")


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_input_gets_no_gradient_and_costs_none(frozen, monkeypatch):
    inputs = [rand(6, 8), rand(11, 8)]
    labels, weights = random_labels(6, 11)
    inputs[1 - frozen].requires_grad_()
    module, wanted = sys.modules[reference.__module__], []
    forward = module._forward_op
    monkeypatch.setattr(module, "_forward_op", lambda *arguments: wanted.extend(arguments[-2:]) or forward(*arguments))
    weighted_cross_entropy(*inputs, labels, weights).backward()
    assert inputs[frozen].grad is None and inputs[1 - frozen].grad.any()
    assert wanted == [frozen == 1, frozen == 0]


def test_opcheck():
    inputs = [rand(6, 8).requires_grad_(), rand(11, 8).requires_grad_()]
    labels, weights = random_labels(6, 11)
    operator = torch.ops.radfm_kernels.weighted_cross_entropy_forward.default
    torch.library.opcheck(operator, (*inputs, labels, weights, labels.new_empty(0), True, True))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("hidden_states", rand(2, 3, 4)),
        ("head_weight", rand(11, 7)),
        ("labels", torch.zeros(5, dtype=torch.int32)),
        ("loss_weights", torch.zeros(4)),
    ],
)
def test_errors_name_the_argument(name, wrong):
    labels, weights = torch.zeros(5, dtype=torch.int64, device=DEVICE), torch.ones(5, device=DEVICE)
    right = {"hidden_states": rand(5, 8), "head_weight": rand(11, 8), "labels": labels, "loss_weights": weights}
    with pytest.raises(ValueError, match=f"^{name}: "):
        weighted_cross_entropy(**(right | {name: wrong}))
