"""Whether the frames of an object lie in space or follow in time."""

import numpy as np
import pytest
from odd_inputs import (
    AXIAL,
    COLUMNS,
    CT,
    NUCLEAR,
    ROWS,
    RT_DOSE,
    SEGMENTATION,
    TOMOSYNTHESIS,
    ULTRASOUND,
    ULTRASOUND_FILM,
    enhanced,
    image,
    item,
    pixels,
    save,
    to_bytes,
)
from pydicom.sequence import Sequence

from radfm.load_scan_radfm import ScanError, load_scan

FRAMES = np.stack([pixels(k) for k in range(6)])


def check_volume(scan, modality, spacing=(4, 4, 5)):
    assert scan.modality == modality and scan.voxels.shape == (1, ROWS, COLUMNS, 6)
    assert scan.spacing == pytest.approx(spacing)
    np.testing.assert_allclose(scan.affine[:3, 2], [0, 0, 5], atol=1e-9)
    assert scan.voxels[0, 0, 0].tolist() == [100 * k for k in range(6)]


def test_tomosynthesis_is_a_volume():
    frames = [{"position": (0, 0, 5 * k)} for k in range(6)]
    check_volume(load_scan(to_bytes(enhanced(frames, FRAMES, TOMOSYNTHESIS, Modality="MG"))), "MG")


def test_a_dose_is_a_volume_in_gray():
    tags = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": AXIAL, "PixelSpacing": [4, 4]}
    dataset = image(
        FRAMES, RT_DOSE, GridFrameOffsetVector=[5.0 * k for k in range(6)], DoseGridScaling=0.5, DoseUnits="GY", **tags
    )
    scan = load_scan(to_bytes(dataset))
    assert "dose in Gy" in scan.warnings[0]
    scan.voxels *= 2
    check_volume(scan, "RTDOSE")


def test_reconstructed_nuclear_slices_lie_where_the_detector_says():
    detector = item(ImagePositionPatient=[-100, -120, -20], ImageOrientationPatient=AXIAL)
    dataset = image(
        FRAMES, NUCLEAR, ImageType=["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"], SpacingBetweenSlices=5,
        PixelSpacing=[4, 4], DetectorInformationSequence=detector, SliceVector=[1, 2, 3, 4, 5, 6],
    )  # fmt: skip
    scan = load_scan(to_bytes(dataset))
    check_volume(scan, "NM")
    assert scan.affine[:3, 3].tolist() == pytest.approx([100, 120, -20])


def test_the_sign_of_the_spacing_of_nuclear_slices_is_their_direction():
    detector = item(ImagePositionPatient=[0, 0, 0], ImageOrientationPatient=AXIAL)
    tags = {"PixelSpacing": [4, 4], "DetectorInformationSequence": detector, "SpacingBetweenSlices": -5}
    dataset = image(FRAMES, NUCLEAR, ImageType=["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"], **tags)
    scan = load_scan(to_bytes(dataset))
    assert scan.affine[2, 3] == pytest.approx(-25) and scan.voxels[0, 0, 0].tolist() == [500 - 100 * k for k in range(6)]


@pytest.mark.parametrize("kind", ["DYNAMIC", "WHOLE BODY", "TOMO", "GATED"])
def test_other_nuclear_frames_are_images_to_choose_from(kind):
    dataset = image(FRAMES, NUCLEAR, ImageType=["ORIGINAL", "PRIMARY", kind, "EMISSION"], PixelSpacing=[4, 4])
    scan = load_scan(to_bytes(dataset), volume=4)
    assert scan.voxels.shape[-1] == 1 and scan.voxels[0, 0, 0, 0] == 400 and scan.affine is None
    assert "of 6" in scan.warnings[0]


def test_plain_ct_with_frames_and_one_position():
    tags = {"ImagePositionPatient": [-10, -20, -100], "ImageOrientationPatient": AXIAL, "PixelSpacing": [4, 4]}
    scan = load_scan(to_bytes(image(FRAMES, CT, SpacingBetweenSlices=5, **tags)))
    assert "Only the first of 6 frames says where it lies" in scan.warnings[0]
    check_volume(scan, "CT")


def test_a_segmentation_says_that_it_is_none():
    with pytest.raises(ScanError, match="is a segmentation"):
        load_scan(to_bytes(image(FRAMES.astype(np.uint8), SEGMENTATION, Modality="SEG")))


def test_a_mosaic_is_cut_into_its_slices(tmp_path):
    rows = np.concatenate([np.concatenate([pixels(3 * r + c) for c in range(3)], 1) for r in range(3)], 0)
    orientation, position = [1, 0, 0, 0, 1, 0], [-36, -48, 10]
    volumes = []
    for v in range(2):
        dataset = image(
            rows + 1000 * v, ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"], PixelSpacing=[4, 4], SpacingBetweenSlices=5,
            ImagePositionPatient=position, ImageOrientationPatient=orientation, AcquisitionNumber=v + 1,
            InstanceNumber=v + 1,
        )  # fmt: skip
        dataset.private_block(0x19, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 7)
        volumes.append(dataset)
    scan = load_scan(save(tmp_path / "mosaics", volumes))
    assert scan.voxels.shape == (1, ROWS, COLUMNS, 7) and "2 volumes" in scan.warnings[0]
    for k in range(7):
        np.testing.assert_array_equal(scan.voxels[0, ..., k], pixels(k))
    # A slice as large as the mosaic would start at -36, -48; the tile lies in its middle.
    assert scan.affine[:3, 3].tolist() == [36 - 4 * COLUMNS, 48 - 4 * ROWS, 10]
    assert load_scan(tmp_path / "mosaics", volume=1).voxels[0, 0, 0, 0] == 1000


def test_the_pixel_size_of_ultrasound_stands_in_its_region():
    region = item(
        RegionSpatialFormat=1, PhysicalUnitsXDirection=3, PhysicalUnitsYDirection=3, PhysicalDeltaX=0.02,
        PhysicalDeltaY=0.03,
        RegionLocationMinX0=0, RegionLocationMinY0=0, RegionLocationMaxX1=5, RegionLocationMaxY1=7,
    )  # fmt: skip
    spectrum = item(
        RegionSpatialFormat=3, PhysicalUnitsXDirection=4, PhysicalUnitsYDirection=7, PhysicalDeltaX=1.0, PhysicalDeltaY=1.0
    )
    regions = Sequence([spectrum[0], region[0]])
    dataset = image(pixels(0).astype(np.uint8), ULTRASOUND, Modality="US", SequenceOfUltrasoundRegions=regions)
    assert load_scan(to_bytes(dataset)).spacing[:2] == pytest.approx((0.3, 0.2))


def test_one_frame_of_a_long_film_costs_one_frame():
    frames = np.zeros((200, 256, 256), np.uint8)
    frames[:, 0, 0] = np.arange(200)
    content = to_bytes(image(frames, ULTRASOUND_FILM, Modality="US"))
    scan = load_scan(content, volume=199, max_bytes=1 << 20)  # all of them would need 52 MB
    assert scan.voxels.shape == (1, 256, 256, 1) and scan.voxels[0, 0, 0, 0] == 199
    assert "frame 199 of 200" in scan.warnings[0]
