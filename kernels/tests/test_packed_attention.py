"""Packed attention against softmax(q · kᵀ) · v of each scan in float64."""

import pytest
import torch
from radfm_kernels.common import needs_dispatcher
from radfm_kernels.packed_attention import packed_attention, reference
from testing import DEVICE, DTYPES, NON_CONTIGUOUS_GRADIENTS, against_float64, assert_close, cu_seqlens_of, rand

NAMES = ("q", "k", "v")
LENGTHS = {
    "one patch": (1,),
    "one scan, less than a tile": (37,),
    "a tile and one": (129,),
    "a mix": (16, 1, 200, 64),
    "empty scans among others": (0, 17, 0, 5, 0),
    "nothing": (0,),
}


def kernel_and_reference(query_lengths, key_lengths):
    cu_seqlens_q, cu_seqlens_k = cu_seqlens_of(*query_lengths), cu_seqlens_of(*key_lengths)
    return (
        lambda q, k, v: packed_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, max(query_lengths), max(key_lengths)),
        lambda q, k, v: reference(q, k, v, cu_seqlens_q, cu_seqlens_k, q.shape[-1] ** -0.5),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_output_and_gradients(lengths, dtype):
    inputs = [rand(sum(lengths), 2, 64, dtype=dtype) for _ in NAMES]
    against_float64(*kernel_and_reference(lengths, lengths), inputs, dtype, NAMES)


@pytest.mark.parametrize("head_dim", [16, 32, 128])
def test_other_head_dims_and_more_keys_than_queries(head_dim):
    query_lengths, key_lengths = (4, 32), (150, 70)
    inputs = [rand(sum(lengths), 3, head_dim) for lengths in (query_lengths, key_lengths, key_lengths)]
    against_float64(*kernel_and_reference(query_lengths, key_lengths), inputs, torch.float32, NAMES)


def test_q_k_v_as_views_of_one_tensor():
    inputs = rand(90, 3, 2, 64).unbind(1)
    against_float64(*kernel_and_reference((50, 40), (50, 40)), inputs, torch.float32, NAMES)


def test_inputs_whose_last_axis_is_not_contiguous():
    inputs = [rand(90, 64, 2).transpose(1, 2) for _ in NAMES]
    against_float64(*kernel_and_reference((50, 40), (50, 40)), inputs, torch.float32, NAMES)


@pytest.mark.parametrize("gradient", NON_CONTIGUOUS_GRADIENTS)
@pytest.mark.parametrize("lengths", [(50, 40), (37,)], ids=str)
def test_gradient_of_the_output_that_is_not_contiguous(lengths, gradient):
    inputs = [rand(sum(lengths), 2, 32) for _ in NAMES]
    against_float64(*kernel_and_reference(lengths, lengths), inputs, torch.float32, NAMES, gradient)


def test_cu_seqlens_that_is_not_contiguous():
    inputs = [rand(90, 2, 16) for _ in NAMES]
    every_second = cu_seqlens_of(50, 40).repeat_interleave(2)[::2]
    output = packed_attention(*inputs, every_second, every_second, 50, 50)
    assert_close(output, reference(*inputs, every_second, every_second, 0.25), torch.float32, "the output")


def test_large_scores_do_not_overflow():
    inputs = [rand(70, 1, 64, scale=30.0) for _ in NAMES]
    kernel, plain = kernel_and_reference((70,), (70,))
    # Scores of thousands have rounding errors of 1e-3, and so have their exponentials.
    torch.testing.assert_close(kernel(*inputs), plain(*inputs), rtol=1e-2, atol=1e-1)


def test_gradients_where_all_scores_are_far_below_zero():
    """Beside them the exponential of a key beyond the end, of score 0, is infinite. Such scores have few digits left."""
    q = torch.full((37, 1, 64), 8.0, device=DEVICE)
    inputs = [q, rand(37, 1, 64) - q, rand(37, 1, 64)]
    against_float64(*kernel_and_reference((37,), (37,)), inputs, torch.float16, NAMES)


def test_an_operator_is_called_through_the_dispatcher_where_somebody_traces():
    inputs, cu_seqlens = [rand(20, 2, 16) for _ in NAMES], cu_seqlens_of(12, 8)
    assert not needs_dispatcher(*inputs)
    traced = torch.jit.trace(lambda q, k, v: packed_attention(q, k, v, cu_seqlens, cu_seqlens, 12, 12), inputs)
    other = [rand(20, 2, 16) for _ in NAMES]
    expected = packed_attention(*other, cu_seqlens, cu_seqlens, 12, 12)
    assert_close(traced(*other), expected, torch.float32, "the output of the traced function")
    inputs[1].requires_grad_()
    assert needs_dispatcher(*inputs)
    with torch.no_grad():
        assert not needs_dispatcher(*inputs)


def test_opcheck():
    inputs = [rand(20, 2, 16).requires_grad_() for _ in NAMES]
    cu_seqlens = cu_seqlens_of(12, 8)
    operator = torch.ops.radfm_kernels.packed_attention_forward.default
    torch.library.opcheck(operator, (*inputs, cu_seqlens, cu_seqlens, 12, 12, 0.25))


def test_compile_and_export():
    class Attention(torch.nn.Module):
        def forward(self, q, k, v, cu_seqlens):
            return packed_attention(q * 2, k, v, cu_seqlens, cu_seqlens, 12, 12) + 1

    inputs = (*(rand(20, 2, 16) for _ in NAMES), cu_seqlens_of(12, 8))
    expected = Attention()(*inputs)
    compiled = torch.compile(Attention(), backend="aot_eager", fullgraph=True)
    assert_close(compiled(*inputs), expected, torch.float32, "the compiled module")
    exported = torch.export.export(Attention(), inputs).module()
    assert_close(exported(*inputs), expected, torch.float32, "the exported module")


def test_two_runs_are_equal_to_the_bit():
    inputs = [rand(150, 2, 64).requires_grad_() for _ in NAMES]
    kernel, _ = kernel_and_reference((100, 50), (100, 50))
    first, second = (torch.autograd.grad(kernel(*inputs).square().sum(), inputs) for _ in range(2))
    for name, a, b in zip(NAMES, first, second, strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"q": rand(5, 2, 48)}, "q: shape"),
        ({"k": rand(5, 3, 64)}, "k: shape"),
        ({"v": rand(5, 2, 64, dtype=torch.float16)}, r"v: torch\.float16"),
        ({"cu_seqlens_q": torch.tensor([0, 5], device=DEVICE)}, r"cu_seqlens_q: \(2,\) torch\.int64"),
        ({"cu_seqlens_k": cu_seqlens_of(2, 3)}, "cu_seqlens_k: has 2 scans"),
        ({"scaling": 0.0}, "scaling: 0.0 is not above 0"),
    ],
)
def test_errors_name_the_argument(wrong, message):
    right = {name: rand(5, 2, 64) for name in NAMES} | dict.fromkeys(("cu_seqlens_q", "cu_seqlens_k"), cu_seqlens_of(5))
    with pytest.raises(ValueError, match=f"^{message}"):
        packed_attention(**(right | wrong), max_seqlen_q=5, max_seqlen_k=5)
