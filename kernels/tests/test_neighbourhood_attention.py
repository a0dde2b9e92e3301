"""3D neighbourhood attention against a mask over all pairs in float64."""

import pytest
import torch
from radfm_kernels.neighbourhood_attention import neighbourhood_attention, reference
from radfm_kernels.packed_attention import reference as dense
from testing import against_float64, close, rand

NAMES = ("query", "key", "value")


def count(grids):
    return sum(r * c * d for r, c, d in grids)


def attend(grids, box):
    flat = [n for grid in grids for n in grid]
    return (
        lambda *qkv: neighbourhood_attention(*qkv, grids, box),
        lambda *qkv: reference(*qkv, flat, list(box), qkv[0].shape[-1] ** -0.5),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("grids", "box"),
    [
        ([(1, 1, 1)], (3, 3, 3)),
        ([(6, 5, 7)], (3, 3, 3)),
        ([(9, 4, 3), (2, 3, 11)], (5, 1, 7)),
        ([(8, 8, 1)], (3, 5, 1)),
    ],
    ids=str,
)
def test_result_and_gradients(grids, box, dtype):
    inputs = [rand(count(grids), 2, 16, dtype=dtype) for _ in range(3)]
    against_float64(*attend(grids, box), inputs, dtype, NAMES)


def test_a_box_as_large_as_the_scan_is_full_attention():
    inputs = [rand(60, 2, 16) for _ in range(3)]
    kernel, _ = attend([(3, 4, 5)], (5, 7, 9))
    whole = torch.tensor([0, 60])
    close(kernel(*inputs), dense(*inputs, whole, whole, 0.25), torch.float32, "a box without borders")


def test_a_patch_alone_in_its_box_is_its_value():
    inputs = [rand(24, 2, 16) for _ in range(3)]
    kernel, _ = attend([(2, 3, 4)], (1, 1, 1))
    close(kernel(*inputs), inputs[2], torch.float32, "each patch")


def test_the_operator_keeps_its_promises():
    inputs = [rand(24, 2, 16).requires_grad_() for _ in range(3)]
    operator = torch.ops.radfm_kernels.neighbourhood_attention_forward.default
    torch.library.opcheck(operator, (*inputs, [2, 3, 4], [3, 1, 3], 0.25))


@pytest.mark.parametrize(
    ("grids", "box", "name"),
    [([(2, 2, 2)], (3, 3, 3), "grids"), ([(2, 3, 4)], (2, 3, 3), "box"), ([(2, 3, 4)], (3, 3), "box")],
)
def test_errors_name_the_argument(grids, box, name):
    inputs = [rand(24, 2, 16) for _ in range(3)]
    with pytest.raises(ValueError, match=f"^{name}: "):
        neighbourhood_attention(*inputs, grids, box)
