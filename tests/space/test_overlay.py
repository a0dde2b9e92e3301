"""Where the overlay lies: on the patches that the model saw, in the patient's coordinates."""

import nibabel
import numpy as np
import pytest
from space_helpers import flipped, oblique_volume

import overlay
import prepare
import viewer
from radfm.image_processing_radfm import RadFMImageProcessor
from radfm.scan_radfm import Scan

SETTINGS = [
    {"keep_aspect": True},
    {},
    {"crop_to_body": True},
    {"spacing": (1.0, 1.0, 2.0)},
    {"preset": "published"},
]


def processor(**settings) -> RadFMImageProcessor:
    return RadFMImageProcessor(image_size=24, max_slices=16, patch_depth=4, num_channels=1, **settings)


def patch_means(pixels: np.ndarray) -> np.ndarray:
    """The mean of each patch of 4 × 4 × 4 voxels of (height, width, depth)."""
    rows, columns, slices = (n // 4 for n in pixels.shape)
    return pixels.reshape(rows, 4, columns, 4, slices, 4).mean((1, 3, 5)).astype(np.float32)


def sample(values: np.ndarray, affine: np.ndarray, mm: np.ndarray) -> float:
    """The overlay at a place in the patient; 0 outside."""
    index = np.rint(nibabel.affines.apply_affine(np.linalg.inv(affine), mm)).astype(int)
    return float(values[tuple(index)]) if all(0 <= i < n for i, n in zip(index, values.shape, strict=True)) else 0.0


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_overlay_is_bright_where_the_bright_patch_was(settings):
    """A bright block in a scan lights up patches of `pixel_values`; the overlay of these is bright at the block."""
    scan = oblique_volume()
    scan.voxels[:] = 0.2
    scan.voxels[0, 13:16, 9:11, 11:13] = 9
    images = processor(**settings)
    patches = patch_means(images([scan])["pixel_values"][0][0].numpy())
    values, affine = overlay.place_on_patches(patches + 1e-3, prepare.model_view(scan, images))
    block = nibabel.affines.apply_affine(scan.affine, [14, 9.5, 11.5])
    assert sample(values, affine, block) > 0.9 * values.max()
    corner = nibabel.affines.apply_affine(scan.affine, [1, 1, 1])
    assert sample(values, affine, corner) < 0.5 * values.max()


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_overlay_of_a_flipped_copy_lies_at_the_same_places(settings):
    if settings.get("preset"):
        pytest.skip("the published preset shows a scan as it is stored, so a flipped copy has other patches")
    attention = np.random.default_rng(1).random((6, 6, 4)).astype(np.float32)
    images = processor(**settings)
    one, other = (
        overlay.place_on_patches(attention, prepare.model_view(s, images))
        for s in (oblique_volume(), flipped(oblique_volume()))
    )
    for voxel in ((3, 3, 3), (20, 10, 8), (28, 18, 22)):
        mm = nibabel.affines.apply_affine(oblique_volume().affine, voxel)
        assert sample(*one, mm) == pytest.approx(sample(*other, mm))


def test_each_voxel_has_the_patch_that_it_fell_into():
    """A scan whose grey values are columns: each overlay patch lies over the columns that were averaged in it."""
    voxels = np.broadcast_to(np.arange(24, dtype=np.float32), (1, 24, 24))[..., None].copy()
    images = processor()
    scan = Scan(voxels, windows=[(0.0, 23.0)])
    attention = np.broadcast_to(np.arange(1, 7, dtype=np.float32)[None, :, None], (6, 6, 1)).copy()
    values, affine = overlay.place_on_patches(attention, prepare.model_view(scan, images))
    at = [sample(values, affine, viewer.affine_of(scan) @ [5, column, 0, 1] @ np.eye(4)[:, :3]) for column in range(24)]
    assert np.allclose(np.array(at) / at[0], np.repeat(np.arange(1, 7), 4))


def test_one_is_the_mean_and_padding_is_left_out():
    """A scan of half the width of the square: the patches of black beside it count for nothing."""
    scan = Scan(np.ones((1, 24, 8, 1), np.float32), spacing=(1.0, 1.0, 1.0))
    view = prepare.model_view(scan, processor(keep_aspect=True))
    attention = np.full((6, 6, 1), 100.0, np.float32)
    attention[:, 2:4] = 3
    values, _ = overlay.place_on_patches(attention, view)
    assert np.allclose(values, 1) and values.shape == (36, 12, 6)


def test_the_file_is_small_and_opens_above_the_mean(tmp_path):
    scan = Scan(np.zeros((1, 512, 512, 100), np.float32), np.diag([1.0, 1.0, 2.0, 1.0]), (1.0, 1.0, 2.0))
    attention = np.random.default_rng(1).random((6, 6, 4)).astype(np.float32)
    values, affine = overlay.place_on_patches(attention, prepare.model_view(scan, processor()))
    overlay.write(values, affine, tmp_path / "overlay.nii.gz")
    assert (tmp_path / "overlay.nii.gz").stat().st_size < 100_000
    assert nibabel.load(tmp_path / "overlay.nii.gz").header["cal_min"] == 1
