"""What a grey value becomes, and which voxels are left: to the number, on scans drawn for it."""

import doctest
import warnings

import nibabel
import numpy as np
import pytest
import torch

import radfm.image_processing_radfm
from radfm.image_processing_radfm import CT_WINDOWS, RadFMImageProcessor
from radfm.load_scan_radfm import load_scan
from radfm.scan_radfm import Scan

HU = {"air": -1000.0, "lung": -700.0, "fat": -100.0, "water": 0.0, "blood": 60.0, "bone": 700.0}


def phantom():
    """Six stripes of tissue, 16 voxels each."""
    voxels = np.repeat(np.array(list(HU.values()), np.float32), 16)
    return Scan(np.broadcast_to(voxels[None, :, None, None], (1, 96, 96, 1)).copy(), modality="CT")


def test_the_table_of_ct_windows():
    width_and_level = {name: (high - low, (low + high) / 2) for name, (low, high) in CT_WINDOWS.items()}
    assert width_and_level == {
        "soft tissue": (400, 40),
        "lung": (1500, -600),
        "brain": (80, 40),
        "bone": (1800, 400),
        "mediastinum": (350, 50),
        "liver": (150, 30),
        "blood": (200, 80),
    }


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
    for modality in ("MR", "PT"):
        ((low, high),) = processor.intensity_windows(Scan(ramp, modality=modality, windows=[(100.0, 500.0)]))
        assert (low, high) == pytest.approx((5.0, 995.0), abs=0.1), modality
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


def test_a_deep_volume_is_averaged_along_depth_and_not_sampled():
    voxels = np.broadcast_to(np.arange(80) % 2, (16, 16, 80)).astype(np.float32)
    pixels = RadFMImageProcessor(image_size=16, max_slices=16, percentiles=(0, 100)).preprocess(voxels)
    assert pixels.shape[-1] == 16 and pixels.sub(0.5).abs().max() < 0.1


@pytest.mark.parametrize("thick", [0, 1, 2])
def test_depth_is_the_axis_with_the_widest_spacing(thick):
    """Equal numbers of voxels along each axis, so that only the spacing tells how the volume was acquired."""
    spacing = [1.0, 1.0, 1.0]
    spacing[thick] = 5.0
    # Voxel axis 0, 1, 2 runs along R, A, S: sagittal, coronal or axial slices.
    voxels = np.moveaxis(np.broadcast_to(np.arange(8.0), (8, 8, 8)), 2, thick)[None].astype(np.float32)
    view = RadFMImageProcessor().orient_and_crop(Scan(voxels, np.diag([*spacing, 1.0]), tuple(spacing)))
    assert view.spacing == (1.0, 1.0, 5.0)
    assert np.ptp(view.voxels, axis=(0, 1, 2)).max() == 0, "each slice holds one value"


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


def test_spacing_in_millimetres_is_kept_and_the_middle_is_cropped():
    """Without resampling every voxel can be followed: the crop is the middle, the padding is black around it."""
    voxels = np.arange(1, 51 * 101 * 12 + 1, dtype=np.float32).reshape(1, 51, 101, 12)
    scan = Scan(voxels, None, (2.0, 1.0, 3.0))
    same = {"spacing": (2.0, 1.0, 3.0), "percentiles": (0, 100)}
    scaled = torch.from_numpy((voxels - 1) / (voxels.max() - 1))
    assert RadFMImageProcessor(**same).target_size(scan) == (51, 101, 12)
    assert RadFMImageProcessor(spacing=(1.0, 1.0, 1.5)).target_size(scan) == (102, 101, 24), "mm / mm per voxel"
    pixels = RadFMImageProcessor(image_size=64, **same).preprocess(scan)
    torch.testing.assert_close(pixels[:, 6:57], scaled[:, :, 19:83])
    assert pixels[:, :6].sum() == pixels[:, 57:].sum() == 0
    pixels = RadFMImageProcessor(image_size=128, **same).preprocess(scan)
    torch.testing.assert_close(pixels[:, 38:89, 13:114], scaled)
    assert pixels.sum().item() == pytest.approx(scaled.sum().item(), rel=1e-5)


def test_air_around_the_body_is_cropped_and_the_body_stays_where_it_was():
    voxels = np.full((1, 60, 60, 8), -1000, np.float32)
    voxels[:, 20:40, 10:50, 2:7] = 40
    # Rows run to the back, columns to the left, slices to the head: the radiological view already.
    affine = np.array([[0, -2.0, 0, 90], [-1.5, 0, 0, 70], [0, 0, 3.0, -50], [0, 0, 0, 1]])
    scan = Scan(voxels, affine, (1.5, 2.0, 3.0), "CT")
    view = RadFMImageProcessor(crop_to_body=True).orient_and_crop(scan)
    assert view.voxels.shape == (1, 20, 40, 5) and (view.voxels == 40).all()
    np.testing.assert_allclose(view.affine @ [0, 0, 0, 1], affine @ [20, 10, 2, 1])
    np.testing.assert_allclose(view.affine[:3, :3], affine[:3, :3])


def test_a_body_is_found_without_hounsfield_units():
    voxels = np.full((60, 60), 3, np.float32)
    voxels[20:40, 10:50] = np.linspace(100, 1000, 20)[:, None]
    pixels = RadFMImageProcessor(image_size=40, crop_to_body=True, percentiles=(0, 100)).preprocess(voxels)
    assert pixels[0, 0].max() < 0.1 and pixels[0, -1].min() > 0.9, "the body fills the square"


@pytest.mark.parametrize("array", [np.zeros((3, 64, 64), np.float32), torch.zeros(3, 64, 64)])
def test_an_array_that_may_be_rgb_is_a_volume_with_a_warning(array):
    processor = RadFMImageProcessor(image_size=32)
    with pytest.warns(UserWarning, match=r"\(3, 64, 64\) is read as a volume.*give it as \(3, 64, 64, 1\)"):
        assert processor.preprocess(array).shape == (1, 32, 32, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor.preprocess(np.zeros((64, 64, 3), np.uint8))
        processor.preprocess(np.zeros((3, 64, 64, 1), np.float32))
        processor.preprocess(np.zeros((64, 64, 16), np.float32))


def test_settings_of_one_call_leave_the_processor_as_it_was():
    processor = RadFMImageProcessor(image_size=96, ct_window="bone")
    (pixels,) = processor(phantom(), ct_window="lung", return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, RadFMImageProcessor(image_size=96, ct_window="lung").preprocess(phantom()))
    assert torch.equal(processor(phantom())["pixel_values"][0], processor.preprocess(phantom()))


def test_unknown_settings_are_refused_with_the_nearest_known_one():
    for make in (RadFMImageProcessor, lambda **settings: RadFMImageProcessor()(phantom(), **settings)):
        with pytest.raises(TypeError, match="no setting 'keep_aspects'; did you mean 'keep_aspect'"):
            make(keep_aspects=True)


@pytest.mark.parametrize("percentiles", [(99, 1), (50,), (-1, 99), (1, 101)])
def test_what_are_no_percentiles_is_refused(percentiles):
    with pytest.raises(ValueError, match="must be two numbers from 0 to 100, the lower one first"):
        RadFMImageProcessor(percentiles=percentiles)


def test_the_examples_in_the_docstrings_give_what_they_say():
    assert doctest.testmod(radfm.image_processing_radfm).failed == 0


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
