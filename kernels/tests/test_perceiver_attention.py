"""Latents over patches and latents, against their concatenation in float64."""

import pytest
import torch
from radfm_kernels.perceiver_attention import perceiver_attention, reference
from testing import DTYPES, NON_CONTIGUOUS_GRADIENTS, against_float64, cu_seqlens_of, rand

NAMES = ("q", "k", "v", "latent_k", "latent_v")


def random_inputs(lengths, latents, heads=2, head_dim=16, dtype=torch.float32):
    rows, patches = len(lengths) * latents, sum(lengths)
    return [rand(n, heads, head_dim, dtype=dtype) for n in (rows, patches, patches, rows, rows)]


def kernel_and_reference(lengths):
    cu_seqlens = cu_seqlens_of(*lengths)
    return (
        lambda *tensors: perceiver_attention(*tensors, cu_seqlens, max(lengths)),
        lambda *tensors: reference(*tensors, cu_seqlens, tensors[0].shape[-1] ** -0.5),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [(1,), (300,), (16, 1, 513), (0, 40)], ids=str)
def test_output_and_gradients(lengths, dtype):
    against_float64(*kernel_and_reference(lengths), random_inputs(lengths, 32, head_dim=64, dtype=dtype), dtype, NAMES)


@pytest.mark.parametrize("latents", [1, 4, 20])
def test_any_number_of_latents(latents):
    against_float64(*kernel_and_reference((70, 20)), random_inputs((70, 20), latents), torch.float32, NAMES)


def test_keys_and_values_as_views_of_one_projection():
    key_value, latent_key_value = rand(90, 2, 2, 16), rand(64, 2, 2, 16)
    inputs = [rand(64, 2, 16), *key_value.unbind(1), *latent_key_value.unbind(1)]
    against_float64(*kernel_and_reference((50, 40)), inputs, torch.float32, NAMES)


@pytest.mark.parametrize("gradient", NON_CONTIGUOUS_GRADIENTS)
def test_gradient_of_the_output_that_is_not_contiguous(gradient):
    against_float64(*kernel_and_reference((50, 40)), random_inputs((50, 40), 8), torch.float32, NAMES, gradient)


def test_opcheck():
    inputs = [t.requires_grad_() for t in random_inputs((12, 8), 4)]
    operator = torch.ops.radfm_kernels.perceiver_attention_forward.default
    torch.library.opcheck(operator, (*inputs, cu_seqlens_of(12, 8), 12, 0.25))


@pytest.mark.parametrize(("number", "name"), list(enumerate(NAMES)))
def test_errors_name_the_argument(number, name):
    inputs = random_inputs((12, 8), 4)
    inputs[number] = rand(7, 2, 24)
    with pytest.raises(ValueError, match=f"^{name}: "):
        perceiver_attention(*inputs, cu_seqlens_of(12, 8), 12)


def test_cu_seqlens_of_64_bits_are_refused():
    with pytest.raises(ValueError, match=r"^cu_seqlens: \(3,\) torch\.int64"):
        perceiver_attention(*random_inputs((12, 8), 4), cu_seqlens_of(12, 8).long(), 12)
