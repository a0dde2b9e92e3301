"""Patch tokens from raw voxels against the matrix of patches written out, in float64."""

import pytest
import torch
from radfm_kernels.patch_embedding import Patch, patch_embedding, reference
from testing import DEVICE, against_float64, close, rand

NAMES = ("matrix", "bias", "gain", "shift", "rows", "columns", "depths")


def voxels_of(kind, shape):
    if kind.is_floating_point:
        return rand(*shape, dtype=kind)
    low, high = (0, 256) if kind == torch.uint8 else (-1024, 3000)
    return torch.randint(low, high, shape, device=DEVICE).to(kind)


def parameters(voxels, patch, width=48, dtype=torch.float32):
    values = voxels.shape[1] * patch[0] * patch[1] * patch[2]
    shapes = [(width, values), (width,), (width,), (width,), (16, width // 3), (16, width // 3), (32, width // 3)]
    return [rand(*shape, dtype=dtype, scale=0.2) for shape in shapes]


def embed(voxels, patch, window=None):
    return (
        lambda *p: patch_embedding(voxels, *p, patch, window),
        lambda *p: reference(voxels, *p, Patch(*patch), window, 1e-5),
    )


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.float16, torch.float32])
def test_every_kind_of_voxels_within_its_window(kind):
    voxels = voxels_of(kind, (2, 1, 16, 24, 8))
    window = torch.tensor([[-160.0, 240.0], [0.0, 200.0]], device=DEVICE)
    patch = (8, 8, 4)
    against_float64(*embed(voxels, patch, window), parameters(voxels, patch), torch.float32, NAMES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parameters_of_sixteen_bits(dtype):
    voxels = voxels_of(torch.float32, (1, 1, 16, 16, 8))
    kernel, plain = embed(voxels, (8, 8, 4))
    given = parameters(voxels, (8, 8, 4), dtype=dtype)
    close(kernel(*given), plain(*(p.double() for p in given)), dtype, "tokens")


@pytest.mark.parametrize(
    ("shape", "patch"),
    [
        ((1, 1, 8, 8, 1), (8, 8, 1)),
        ((3, 3, 16, 8, 4), (8, 8, 4)),
        ((1, 1, 96, 32, 12), (32, 32, 4)),
        ((2, 1, 10, 15, 3), (5, 5, 3)),
    ],
)
def test_one_patch_colours_and_odd_sizes(shape, patch):
    voxels = voxels_of(torch.float32, shape)
    against_float64(*embed(voxels, patch), parameters(voxels, patch), torch.float32, NAMES)


def test_flat_patches_and_faint_ones():
    voxels = torch.full((1, 1, 16, 8, 4), 700, dtype=torch.int16, device=DEVICE)
    voxels[0, 0, 8:] += torch.randint(0, 2, (8, 8, 4), device=DEVICE).to(torch.int16)
    window = torch.tensor([[-1000.0, 3000.0]], device=DEVICE)
    kernel, plain = embed(voxels, (8, 8, 4), window)
    given = parameters(voxels, (8, 8, 4))
    # A patch of one value has a spread of rounding alone, which eps outweighs; a faint one keeps its contrast.
    close(kernel(*given), plain(*(p.double() for p in given)), torch.float16, "tokens")


def test_voxels_that_are_not_contiguous():
    voxels = voxels_of(torch.float32, (1, 1, 8, 16, 16)).permute(0, 1, 3, 4, 2)
    kernel, plain = embed(voxels, (8, 8, 4))
    given = parameters(voxels, (8, 8, 4))
    close(kernel(*given), plain(*given), torch.float32, "tokens")


def test_the_operator_keeps_its_promises():
    voxels = voxels_of(torch.int16, (1, 1, 8, 8, 4))
    given = [p.requires_grad_() for p in parameters(voxels, (8, 8, 4))]
    operator = torch.ops.radfm_kernels.patch_embedding_forward.default
    window = torch.tensor([[-160.0, 240.0]], device=DEVICE)
    torch.library.opcheck(operator, (voxels, *given, [8, 8, 4], window, 1e-5))


@pytest.mark.parametrize(("number", "name"), list(enumerate(NAMES)))
def test_errors_name_the_argument(number, name):
    voxels = voxels_of(torch.float32, (1, 1, 8, 8, 4))
    given = parameters(voxels, (8, 8, 4))
    given[number] = rand(5, 7)
    with pytest.raises(ValueError, match=f"^{name}: "):
        patch_embedding(voxels, *given, (8, 8, 4))
    with pytest.raises(ValueError, match=r"^voxels: .* cannot be cut"):
        patch_embedding(voxels, *given, (8, 8, 3))
