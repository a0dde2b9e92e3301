"""Attention of packed scans against softmax(q·kᵀ)·v scan by scan in float64."""

import pytest
import torch
from radfm_kernels.packed_attention import packed_attention, reference
from testing import DEVICE, against_float64, close, rand, starts

SHAPES = {
    "one patch": (1,),
    "one scan, less than a tile": (37,),
    "a tile and one": (129,),
    "a mix": (16, 1, 200, 64),
    "empty scans among others": (0, 17, 0, 5, 0),
    "nothing": (0,),
}


def attend(queries, keys):
    at, of = starts(*queries), starts(*keys)
    return (
        lambda q, k, v: packed_attention(q, k, v, at, of, max(queries), max(keys)),
        lambda q, k, v: reference(q, k, v, at, of, q.shape[-1] ** -0.5),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("lengths", SHAPES.values(), ids=SHAPES.keys())
def test_result_and_gradients(lengths, dtype):
    inputs = [rand(sum(lengths), 2, 64, dtype=dtype) for _ in range(3)]
    against_float64(*attend(lengths, lengths), inputs, dtype, ("query", "key", "value"))


@pytest.mark.parametrize("width", [16, 32, 128])
def test_other_head_widths_and_more_keys_than_queries(width):
    queries, keys = (4, 32), (150, 70)
    inputs = [rand(sum(n), 3, width) for n in (queries, keys, keys)]
    against_float64(*attend(queries, keys), inputs, torch.float32, ("query", "key", "value"))


def test_inputs_that_are_not_contiguous():
    together = rand(90, 3, 2, 64)
    query, key, value = together.unbind(1)
    kernel, plain = attend((50, 40), (50, 40))
    close(kernel(query, key, value), plain(query, key, value), torch.float32, "a view of q, k and v in one")
    turned = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (query, key, value)]
    close(kernel(*turned), plain(query, key, value), torch.float32, "heads innermost")


def test_large_scores_do_not_overflow():
    inputs = [rand(70, 1, 64, scale=30.0) for _ in range(3)]
    kernel, plain = attend((70,), (70,))
    # Scores of thousands have rounding errors of 1e-3, and so have their exponentials.
    torch.testing.assert_close(kernel(*inputs), plain(*inputs), rtol=1e-2, atol=1e-1)


def test_the_operator_keeps_its_promises():
    inputs = [rand(20, 2, 16).requires_grad_() for _ in range(3)]
    at = starts(12, 8)
    operator = torch.ops.radfm_kernels.packed_attention_forward.default
    torch.library.opcheck(operator, (*inputs, at, at, 12, 12, 0.25))


def test_it_passes_through_compile_and_export():
    class Attend(torch.nn.Module):
        def forward(self, q, k, v, at):
            return packed_attention(q * 2, k, v, at, at, 12, 12) + 1

    inputs = [rand(20, 2, 16) for _ in range(3)]
    wanted = Attend()(*inputs, starts(12, 8))
    compiled = torch.compile(Attend(), backend="aot_eager", fullgraph=True)
    close(compiled(*inputs, starts(12, 8)), wanted, torch.float32, "compiled")
    exported = torch.export.export(Attend(), (*inputs, starts(12, 8))).module()
    close(exported(*inputs, starts(12, 8)), wanted, torch.float32, "exported")


def test_twice_is_the_same_to_the_bit():
    inputs = [rand(150, 2, 64).requires_grad_() for _ in range(3)]
    kernel, _ = attend((100, 50), (100, 50))
    runs = [torch.autograd.grad(kernel(*inputs).square().sum(), inputs) for _ in range(2)]
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"q": rand(5, 2, 48)}, "query: shape"),
        ({"k": rand(5, 3, 64)}, "key: shape"),
        ({"v": rand(5, 2, 64, dtype=torch.float16)}, r"value: torch\.float16"),
        ({"at": torch.tensor([0, 5], device=DEVICE)}, "query_starts: needs"),
        ({"of": starts(2, 3)}, "key_starts: is of 2 scans"),
    ],
)
def test_errors_name_the_argument(change, names):
    given = {"q": rand(5, 2, 64), "k": rand(5, 2, 64), "v": rand(5, 2, 64), "at": starts(5), "of": starts(5), **change}
    with pytest.raises(ValueError, match=f"^{names}"):
        packed_attention(given["q"], given["k"], given["v"], given["at"], given["of"], 5, 5)
