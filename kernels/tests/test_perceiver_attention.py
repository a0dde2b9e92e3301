"""Latents over patches and themselves, against a concatenation in float64."""

import pytest
import torch
from radfm_kernels.perceiver_attention import perceiver_attention, reference
from testing import against_float64, rand, starts

NAMES = ("query", "key", "value", "latent_key", "latent_value")


def inputs(lengths, latents, heads=2, width=16, dtype=torch.float32):
    rows, patches = len(lengths) * latents, sum(lengths)
    return [rand(n, heads, width, dtype=dtype) for n in (rows, patches, patches, rows, rows)]


def attend(lengths):
    at = starts(*lengths)
    return (
        lambda *tensors: perceiver_attention(*tensors, at, max(lengths)),
        lambda *tensors: reference(*tensors, at, tensors[0].shape[-1] ** -0.5),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("lengths", [(1,), (300,), (16, 1, 513), (0, 40)], ids=str)
def test_result_and_gradients(lengths, dtype):
    against_float64(*attend(lengths), inputs(lengths, 32, width=64, dtype=dtype), dtype, NAMES)


@pytest.mark.parametrize("latents", [1, 4, 20])
def test_any_number_of_latents(latents):
    against_float64(*attend((70, 20)), inputs((70, 20), latents), torch.float32, NAMES)


def test_keys_and_values_of_one_projection():
    together, own = rand(90, 2, 2, 16), rand(64, 2, 2, 16)
    tensors = [rand(64, 2, 16), *together.unbind(1), *own.unbind(1)]
    against_float64(*attend((50, 40)), tensors, torch.float32, NAMES)


def test_the_operator_keeps_its_promises():
    tensors = [t.requires_grad_() for t in inputs((12, 8), 4)]
    operator = torch.ops.radfm_kernels.perceiver_attention_forward.default
    torch.library.opcheck(operator, (*tensors, starts(12, 8), 12, 0.25))


@pytest.mark.parametrize(("number", "name"), list(enumerate(NAMES)))
def test_errors_name_the_argument(number, name):
    tensors = inputs((12, 8), 4)
    tensors[number] = rand(7, 2, 24)
    with pytest.raises(ValueError, match=f"^{name}: "):
        perceiver_attention(*tensors, starts(12, 8), 12)
