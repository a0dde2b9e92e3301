"""What a grey value becomes, and which voxels are left: to the number, on scans drawn for it."""

import nibabel
import numpy as np
import pytest
import torch

from radfm.image_processing_radfm import CT_WINDOWS, RadFMImageProcessor
from radfm.load_scan_radfm import load_scan
from radfm.scan_radfm import Scan

HU = {"air": -1000.0, "lung": -700.0, "fat": -100.0, "water": 0.0, "blood": 60.0, "bone": 700.0}


def phantom():
    """Six stripes of tissue, 16 voxels each."""
    voxels = np.repeat(np.array(list(HU.values()), np.float32), 16)
    return Scan(np.broadcast_to(voxels[None, :, None, None], (1, 96, 96, 1)).copy(), modality="CT")


@pytest.mark.parametrize("window", [*CT_WINDOWS, (-200.0, 200.0)])
def test_ct_windows_to_the_number(window):
    processor = RadFMImageProcessor(image_size=96, ct_window=window)
    low, high = CT_WINDOWS.get(window, window)
    pixels = processor.preprocess(phantom())
    for i, hu in enumerate(HU.values()):
        wanted = min(max((hu - low) / (high - low), 0), 1)
        assert pixels[0, 16 * i + 8, 48, 0].item() == pytest.approx(wanted, abs=1e-6)


def test_an_unknown_window_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="ct_window='lungs' is not one of soft tissue, lung, brain, bone"):
        RadFMImageProcessor(ct_window="lungs")


def test_the_files_own_window_for_pictures_and_x_rays_and_percentiles_for_mr():
    ramp = np.linspace(0, 1000, 64 * 64, dtype=np.float32).reshape(1, 64, 64, 1)
    processor = RadFMImageProcessor(image_size=64)
    assert processor.intensity_windows(Scan(ramp, modality="DX", windows=[(100.0, 500.0)])) == [(100.0, 500.0)]
    ((low, high),) = processor.intensity_windows(Scan(ramp, modality="MR", windows=[(100.0, 500.0)]))
    assert (low, high) == pytest.approx((5.0, 995.0), abs=0.1)
    assert processor.intensity_windows(load_scan(np.full((4, 4), 7, np.uint8))) == [(0.0, 255.0)]


def test_a_blank_scan_stays_a_number():
    pixels = RadFMImageProcessor(image_size=32).preprocess(np.zeros((8, 8), np.float32))
    assert torch.isfinite(pixels).all()


@pytest.mark.parametrize(("depth", "slices"), [(1, 1), (2, 4), (6, 4), (7, 8), (20, 20), (50, 48), (64, 64), (300, 64)])
def test_depth_goes_to_the_nearest_multiple_of_the_patch(depth, slices):
    pixels = RadFMImageProcessor(image_size=32).preprocess(np.random.default_rng(0).normal(size=(40, 40, depth)))
    assert pixels.shape == (1, 32, 32, slices) and pixels.dtype == torch.float32
    assert pixels.min() >= 0 and pixels.max() <= 1


def test_proportions_are_kept_in_millimetres():
    voxels = np.ones((1, 20, 40, 1), np.float32)
    voxels[0, 0, 0, 0] = 0
    tall = Scan(voxels, np.diag([4.0, 1, 1, 1]), (4.0, 1.0, 1.0))
    assert RadFMImageProcessor(image_size=80, keep_aspect=True).target_size(tall) == (80, 40, 1)
    assert RadFMImageProcessor(image_size=80).target_size(tall) == (80, 80, 1)
    pixels = RadFMImageProcessor(image_size=80, keep_aspect=True, percentiles=(0, 100)).preprocess(
        load_scan(voxels[0, :, :, 0])
    )
    assert pixels[0, 40, 40, 0] == 1 and pixels[0, 5, 40, 0] == 0, "black above and below what is wider than high"


def test_a_slanted_edge_shrinks_without_aliasing():
    stripes = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    pixels = RadFMImageProcessor(image_size=32).preprocess(stripes)
    assert pixels.sub(0.5).abs().max() < 0.05


def test_colour_is_kept_or_becomes_grey():
    colour = np.zeros((8, 8, 3), np.uint8)
    colour[..., 1] = 255
    assert RadFMImageProcessor(image_size=8).preprocess(colour)[:, 4, 4, 0].tolist() == [0, 1, 0]
    grey = RadFMImageProcessor(image_size=8, num_channels=1).preprocess(colour)
    assert grey.shape[0] == 1 and grey[0, 4, 4, 0].item() == pytest.approx(0.587)


def test_one_volume_stored_three_ways_reaches_the_model_the_same(nifti_files):
    image = nibabel.load(nifti_files / "anatomical.nii")
    processor = RadFMImageProcessor(image_size=48, keep_aspect=True)
    wanted = processor.preprocess(image)
    for axes in ("LAS", "PIR"):
        turn = nibabel.orientations.ornt_transform(
            nibabel.orientations.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(axes)
        )
        torch.testing.assert_close(processor.preprocess(image.as_reoriented(turn)), wanted)


def test_what_decides_a_grey_value_is_saved(tmp_path):
    processor = RadFMImageProcessor(
        image_size=96,
        max_slices=32,
        keep_aspect=True,
        ct_window=["brain", "bone", (0, 9)],
        percentiles=(1, 99),
        spacing=(1, 2, 3),
    )
    processor.save_pretrained(tmp_path)
    again = RadFMImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    torch.testing.assert_close(again.preprocess(phantom()), processor.preprocess(phantom()))


def test_three_windows_are_three_channels():
    processor = RadFMImageProcessor(image_size=96, ct_window=["lung", "soft tissue", (-500, 1300)])
    pixels = processor.preprocess(phantom())
    for channel, (low, high) in enumerate((CT_WINDOWS["lung"], CT_WINDOWS["soft tissue"], CT_WINDOWS["bone"])):
        for i, hu in enumerate(HU.values()):
            wanted = min(max((hu - low) / (high - low), 0), 1)
            assert pixels[channel, 16 * i + 8, 48, 0].item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("window", [(5, 5), ("lung",), (1, 2, 3, 4)])
def test_what_is_no_window_is_refused(window):
    with pytest.raises(ValueError, match="is no window"):
        RadFMImageProcessor(ct_window=window)


def test_spacing_in_millimetres_is_kept_and_the_rest_cut_or_black():
    voxels = np.ones((1, 50, 100, 12), np.float32)
    voxels[:, 25, 50, 6] = 9
    scan = Scan(voxels, np.diag([2.0, 1.0, 3.0, 1]), (2.0, 1.0, 3.0))
    processor = RadFMImageProcessor(image_size=64, spacing=(1.0, 1.0, 3.0), percentiles=(0, 100))
    view = processor.orient_and_crop(scan)
    assert processor.target_size(view) == (100, 100, 12)
    assert processor.preprocess(scan).shape == (1, 64, 64, 12), "cut around the middle"
    small = RadFMImageProcessor(image_size=128, spacing=(1.0, 1.0, 3.0), percentiles=(0, 100)).preprocess(scan)
    assert small.shape == (1, 128, 128, 12) and small[0, :14].sum() == 0 and small[0, 60:70, 60:70].sum() > 0


def test_air_around_the_body_is_cut_away():
    voxels = np.full((1, 60, 60, 1), -1000, np.float32)
    voxels[:, 20:40, 10:50] = 40
    scan = Scan(voxels, np.diag([-1.0, -1.0, 1, 1]), (1.0, 1.0, 1.0), "CT")
    processor = RadFMImageProcessor(image_size=40, crop_to_body=True, keep_aspect=True)
    view = processor.orient_and_crop(scan)
    assert view.voxels.shape == (1, 20, 40, 1) or view.voxels.shape == (1, 40, 20, 1)
    pixels = processor.preprocess(scan)
    assert (pixels > 0.4).float().mean() == pytest.approx(0.5, abs=0.02)


def test_the_published_preset_stretches_from_lowest_to_highest():
    processor = RadFMImageProcessor(image_size=8, preset="published")
    volume = np.arange(4 * 4 * 6, dtype=np.float32).reshape(4, 4, 6)
    pixels = processor.preprocess(volume)
    assert pixels.shape == (1, 8, 8, 4), "of two depths that are equally near, the smaller"
    index = [int(k * 6 / 4) for k in range(4)]
    np.testing.assert_allclose(pixels[0, ::2, ::2].numpy(), volume[..., index] / 95, atol=1e-6)
    picture = np.full((5, 7), 51, np.uint8)
    np.testing.assert_allclose(processor.preprocess(picture).numpy(), 0.2, atol=1e-6)
    with pytest.raises(ValueError, match="neither 'radfm' nor 'published'"):
        RadFMImageProcessor(preset="other")
