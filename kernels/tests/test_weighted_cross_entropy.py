"""The weighted loss through the head, against all logits written out in float64."""

import sys

import pytest
import torch
from radfm_kernels.weighted_cross_entropy import reference, weighted_cross_entropy
from testing import DEVICE, against_float64, close, rand


def prompt_and_answer(rows, words):
    """Labels and the paper's weights: most of a prompt 0, an answer's words 1, medical terms 3."""
    labels = torch.randint(0, words - 3, (rows,), device=DEVICE)
    weights = torch.tensor([0.0, 0.0, 1.0, 3.0], device=DEVICE)[torch.randint(0, 4, (rows,), device=DEVICE)]
    weights[-1:] = 1.0
    return labels, weights


def losses(labels, weights, silent):
    return (
        lambda hidden, head: weighted_cross_entropy(hidden, head, labels, weights, silent),
        lambda hidden, head: reference(hidden, head, labels, weights.double() / weights.sum(), silent),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "words"), [(1, 7), (19, 103), (33, 5001)])
def test_result_and_gradients(rows, words, dtype, monkeypatch):
    monkeypatch.setattr(sys.modules[reference.__module__], "CHUNK_LOGITS", 8 * words)
    inputs = [rand(rows, 24, dtype=dtype), rand(words, 24, dtype=dtype)]
    labels, weights = prompt_and_answer(rows, words)
    silent = torch.arange(words - 3, words, device=DEVICE)
    against_float64(*losses(labels, weights, silent), inputs, dtype, ("hidden", "head"))


def test_a_label_that_costs_nothing_still_divides_and_a_total_takes_the_place_of_the_sum():
    hidden, head = rand(4, 8), rand(11, 8)
    labels, weights = torch.tensor([1, -100, 2, 3], device=DEVICE), torch.tensor([1.0, 2.0, 0.0, 1.0], device=DEVICE)
    nll = torch.nn.functional.cross_entropy(hidden @ head.t(), labels, reduction="none")
    close(weighted_cross_entropy(hidden, head, labels, weights), (nll[0] + nll[3]) / 4, torch.float32, "the loss")
    close(
        weighted_cross_entropy(hidden, head, labels, weights, total=10.0), (nll[0] + nll[3]) / 10, torch.float32, "the loss"
    )


def test_no_row_of_weight_costs_nothing():
    hidden, head = rand(3, 8).requires_grad_(), rand(11, 8).requires_grad_()
    loss = weighted_cross_entropy(hidden, head, torch.zeros(3, dtype=torch.int64, device=DEVICE), torch.zeros(3, device=DEVICE), total=1.0)  # fmt: skip # noqa: E501
    loss.backward()
    assert loss.item() == 0 and not hidden.grad.any() and not head.grad.any()


def test_rows_of_weight_zero_never_reach_the_head():
    hidden, head = rand(5, 8), rand(11, 8)
    hidden[::2] = float("nan")
    labels, weights = torch.ones(5, dtype=torch.int64, device=DEVICE), torch.tensor([0, 1, 0, 2, 0.0], device=DEVICE)
    assert weighted_cross_entropy(hidden, head, labels, weights).isfinite()


def test_the_operator_keeps_its_promises():
    inputs = [rand(6, 8).requires_grad_(), rand(11, 8).requires_grad_()]
    labels, weights = prompt_and_answer(6, 11)
    operator = torch.ops.radfm_kernels.weighted_cross_entropy_forward.default
    torch.library.opcheck(operator, (*inputs, labels, weights, labels.new_empty(0)))


@pytest.mark.parametrize(
    ("number", "wrong", "name"),
    [
        (0, rand(2, 3, 4), "hidden"),
        (1, rand(11, 7), "head"),
        (2, torch.zeros(5, dtype=torch.int32), "labels"),
        (3, torch.zeros(4), "weights"),
    ],
)
def test_errors_name_the_argument(number, wrong, name):
    given = [rand(5, 8), rand(11, 8), torch.zeros(5, dtype=torch.int64, device=DEVICE), torch.ones(5, device=DEVICE)]
    given[number] = wrong
    with pytest.raises(ValueError, match=f"^{name}: "):
        weighted_cross_entropy(*given)
