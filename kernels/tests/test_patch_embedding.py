"""Patch tokens from voxels where they lie, against the matrix of patches written out in float64."""

import pytest
import torch
from radfm_kernels.patch_embedding import patch_embedding, reference
from testing import NON_CONTIGUOUS_GRADIENTS, against_float64, assert_close, rand

NAMES = ("weight", "bias", "norm_weight", "norm_bias", "row_positions", "column_positions", "depth_positions")


def random_parameters(voxels, patch_size, features=48, dtype=torch.float32):
    values = voxels.shape[1] * patch_size[0] * patch_size[1] * patch_size[2]
    vector, third = (features,), features // 3
    shapes = [(features, values), vector, vector, vector, (16, third), (16, third), (32, third)]
    return [rand(*shape, dtype=dtype, scale=0.2) for shape in shapes]


def kernel_and_reference(voxels, patch_size):
    return (
        lambda *parameters: patch_embedding(voxels, *parameters, patch_size),
        lambda *parameters: reference(voxels, *parameters, patch_size=patch_size, eps=1e-5),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_of_voxels(dtype):
    voxels = rand(2, 1, 16, 24, 8, dtype=dtype)
    parameters = random_parameters(voxels, (8, 8, 4))
    against_float64(*kernel_and_reference(voxels, (8, 8, 4)), parameters, torch.float32, NAMES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parameters_of_16_bits(dtype):
    voxels = rand(1, 1, 16, 16, 8)
    parameters = random_parameters(voxels, (8, 8, 4), dtype=dtype)
    against_float64(*kernel_and_reference(voxels, (8, 8, 4)), parameters, dtype, NAMES)


@pytest.mark.parametrize(
    ("shape", "patch_size"),
    [
        ((1, 1, 8, 8, 1), (8, 8, 1)),
        ((3, 3, 16, 8, 4), (8, 8, 4)),
        ((1, 1, 96, 32, 12), (32, 32, 4)),
        ((2, 1, 10, 15, 3), (5, 5, 3)),
    ],
)
def test_one_patch_three_channels_and_odd_sizes(shape, patch_size):
    voxels = rand(*shape)
    parameters = random_parameters(voxels, patch_size)
    against_float64(*kernel_and_reference(voxels, patch_size), parameters, torch.float32, NAMES)


def test_autocast_does_not_round_the_tokens():
    voxels = rand(1, 1, 16, 16, 4)
    parameters = random_parameters(voxels, (8, 8, 4))
    kernel, _ = kernel_and_reference(voxels, (8, 8, 4))
    with torch.autocast(voxels.device.type, torch.bfloat16):
        tokens = kernel(*parameters)
    assert tokens.dtype == torch.float32
    assert_close(tokens, kernel(*parameters), torch.float32, "the tokens")


def test_patches_of_one_value_and_of_low_contrast():
    """eps decides where the variance is 0; a variance of E[x²] − E[x]² would lose a contrast of 1 in 4,000."""
    voxels = torch.full_like(rand(1, 1, 16, 8, 4), 0.425)
    voxels[0, 0, 8:] += (rand(8, 8, 4) > 0) / 4000
    parameters = random_parameters(voxels, (8, 8, 4))
    kernel, plain = kernel_and_reference(voxels, (8, 8, 4))
    assert_close(kernel(*parameters), plain(*(p.double() for p in parameters)), torch.float16, "the tokens")


def test_voxels_that_are_not_contiguous():
    voxels = rand(1, 1, 8, 16, 16).permute(0, 1, 3, 4, 2)
    parameters = random_parameters(voxels, (8, 8, 4))
    against_float64(*kernel_and_reference(voxels, (8, 8, 4)), parameters, torch.float32, NAMES)


def test_parameters_that_are_not_contiguous():
    voxels = rand(1, 1, 16, 16, 8)
    parameters = [p.repeat_interleave(2, -1)[..., ::2] for p in random_parameters(voxels, (8, 8, 4))]
    against_float64(*kernel_and_reference(voxels, (8, 8, 4)), parameters, torch.float32, NAMES)


@pytest.mark.parametrize("gradient", NON_CONTIGUOUS_GRADIENTS)
def test_gradient_of_the_output_that_is_not_contiguous(gradient):
    voxels = rand(2, 1, 16, 16, 8)
    parameters = random_parameters(voxels, (8, 8, 4))
    against_float64(*kernel_and_reference(voxels, (8, 8, 4)), parameters, torch.float32, NAMES, gradient)


def test_opcheck():
    voxels = rand(1, 1, 8, 8, 4)
    parameters = [p.requires_grad_() for p in random_parameters(voxels, (8, 8, 4))]
    operator = torch.ops.radfm_kernels.patch_embedding_forward.default
    torch.library.opcheck(operator, (voxels, *parameters, [8, 8, 4], 1e-5))


@pytest.mark.parametrize(("number", "name"), list(enumerate(NAMES)))
def test_errors_name_the_argument(number, name):
    voxels = rand(1, 1, 8, 8, 4)
    parameters = random_parameters(voxels, (8, 8, 4))
    parameters[number] = rand(5, 7)
    with pytest.raises(ValueError, match=f"^{name}: "):
        patch_embedding(voxels, *parameters, (8, 8, 4))


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        (rand(1, 1, 8, 8, 4).to(torch.int16), r"voxels: \(1, 1, 8, 8, 4\) torch\.int16 is not"),
        (rand(1, 8, 8, 4), r"voxels: \(1, 8, 8, 4\) torch\.float32 is not"),
        (rand(1, 1, 8, 8, 5), r"voxels: \(8, 8, 5\) cannot be cut into patches"),
    ],
)
def test_voxels_that_do_not_fit(voxels, message):
    parameters = random_parameters(rand(1, 1, 8, 8, 4), (8, 8, 4))
    with pytest.raises(ValueError, match=f"^{message}"):
        patch_embedding(voxels, *parameters, (8, 8, 4))
