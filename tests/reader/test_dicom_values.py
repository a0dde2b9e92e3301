"""Windows, the range of grey values, and SUV."""

import numpy as np
import pytest
from odd_inputs import CT, image, pet, pixels, save, to_bytes

from radfm.load_scan_radfm import load_scan


def test_a_window_that_is_no_number_never_costs_the_scan():
    content = to_bytes(image(pixels(0), CT, WindowCenter="40", WindowWidth="400")).replace(b"DS\x02\x0040", b"DS\x02\x00NA")
    scan = load_scan(content)
    assert list(scan.windows) == [] and "window" in scan.warnings[0]


@pytest.mark.parametrize(
    ("function", "wanted"),
    [(None, (-0.5, 79.5)), ("LINEAR", (-0.5, 79.5)), ("LINEAR_EXACT", (-0.5, 80.5)), ("SIGMOID", (-0.5, 80.5))],
)
def test_voi_functions_are_told_apart(function, wanted):
    tags = {"VOILUTFunction": function} if function else {}
    assert load_scan(to_bytes(image(pixels(0), CT, WindowCenter=40, WindowWidth=81, **tags))).windows == [wanted]


def test_monochrome1_is_inverted_on_the_range_of_its_bits_in_native_units():
    tags = {"PhotometricInterpretation": "MONOCHROME1", "RescaleSlope": 2, "RescaleIntercept": -1000}
    values = pixels(0).astype(np.uint16)
    scan = load_scan(to_bytes(image(values, CT, BitsStored=12, HighBit=11, WindowCenter=0, WindowWidth=101, **tags)))
    np.testing.assert_array_equal(scan.voxels[0, ..., 0], (4095 - values) * 2.0 - 1000)
    middle = 4095 * 2 - 2000
    assert scan.windows == [(middle - 49.5, middle + 50.5)]


PER_BQ = 70_000 / 7e7


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        ({}, 2 * PER_BQ),
        ({"SeriesTime": "150000"}, 2 * PER_BQ),  # made again later
        ({"SeriesTime": "114500"}, 2**0.75 * PER_BQ),
        ({"DecayCorrection": "ADMIN"}, PER_BQ),
        ({"DecayCorrection": "NONE"}, None),
        ({"CorrectedImage": ["DECY", "RAN"]}, None),
        ({"CorrectedImage": ["DECY", "ATTN"]}, 2 * PER_BQ),
        ({"Units": "GML"}, 1.0),
        ({"Units": "CNTS"}, None),
        ({"drug": {"RadiopharmaceuticalStartTime": None, "RadiopharmaceuticalStartDateTime": "20240101110000"}}, 2 * PER_BQ),
        ({"drug": {"RadiopharmaceuticalStartDateTime": "20231231120000"}}, 2**24 * PER_BQ),  # days are kept
        (
            {
                "drug": {"RadiopharmaceuticalStartTime": "233000"},  # before midnight
                "SeriesTime": "003000",
                "AcquisitionTime": "003000",
            },
            2 * PER_BQ,
        ),
        ({"drug": {"RadiopharmaceuticalStartDateTime": "20240101130000"}}, None),
        ({"PatientWeight": None}, None),
    ],
)  # fmt: skip
def test_suv_by_the_rules_of_qiba(tags, wanted):
    scan = load_scan(to_bytes(pet(**tags, WindowCenter=500.5, WindowWidth=1001)))
    if wanted is None:
        assert scan.voxels.max() == 1000 and "does not allow SUV" in scan.warnings[0]
    else:
        np.testing.assert_allclose(scan.voxels, 1000 * wanted, rtol=1e-5)
        assert scan.windows[0] == pytest.approx((0, 1000 * wanted), abs=1e-9 * wanted)


def test_the_earliest_acquisition_of_a_series_counts(tmp_path):
    slices = [pet(k, AcquisitionTime=f"12{10 * k:02}00", SeriesTime="150000") for k in range(4)]
    np.testing.assert_allclose(load_scan(save(tmp_path / "beds", slices)).voxels, 2000 * PER_BQ, rtol=1e-5)


def test_philips_counts_have_a_factor():
    dataset = pet(Units="CNTS")
    block = dataset.private_block(0x7053, "Philips PET Private Group", create=True)
    block.add_new(0x00, "DS", "0.000551")
    np.testing.assert_allclose(load_scan(to_bytes(dataset)).voxels, 0.551, rtol=1e-5)
