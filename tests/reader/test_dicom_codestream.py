"""Compressed frames whose codestream contradicts the header: a sentence at once, where a codec would work for hours."""

import io

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate, generate_frames

from radfm.load_scan_radfm import ScanError, load_scan

SIZ, SOF, JP2 = b"\xff\x4f\xff\x51", b"\xff\xc0", b"\x00\x00\x00\x0cjP  "


def patched(path, mark, offset, value):
    """The file with a few bytes of its codestream changed, `offset` bytes after a mark."""
    content = bytearray(path.read_bytes())
    at = content.index(mark) + offset
    content[at : at + len(value)] = value
    return bytes(content)


@pytest.mark.parametrize(
    ("name", "mark", "offset", "value", "says"),
    [
        ("693_J2KI.dcm", SIZ, 8, b"\x00\x53\x51\x00", "512×5460224, its header 512×512"),
        ("693_J2KI.dcm", SIZ, 24, b"\x00\x00\x00\x01" * 2, "262144 tiles, more than"),
        ("693_J2KI.dcm", SIZ, 24, b"\x00\x00\x00\x00", "tiles of size 0"),
        ("GDCMJ2K_TextGBR.dcm", SIZ, 0, b"\x00\x00", "JP2 file without a codestream"),
        ("JPEGLSNearLossless_08.dcm", b"\xff\xf7", 5, b"\x7f\xff\xff\xff", "32767×65535, its header 45×10"),
        ("SC_rgb_jpeg_dcmtk.dcm", SOF, 5, b"\xff\xff", "65535×100, its header 100×100"),
        ("SC_rgb_jpeg_dcmtk.dcm", SOF, 1, b"\xda", "has no frame header"),
    ],
)
def test_a_size_that_contradicts_the_header_is_refused(name, mark, offset, value, says, dicom_files):
    with pytest.raises(ScanError, match=rf"Pixel Data \(7FE0,0010\) in JPEG.* cannot be decoded \(.*{says}"):
        load_scan(patched(dicom_files / name, mark, offset, value))


def test_damage_in_a_jp2_file_around_the_codestream_does_not_matter(dicom_files):
    path = dicom_files / "GDCMJ2K_TextGBR.dcm"
    damaged = patched(path, b"uuid\xbc\x45", -4, b"\x00\x00\x00\x00")
    np.testing.assert_array_equal(load_scan(damaged).voxels, load_scan(path).voxels)


def test_a_frame_in_several_fragments_and_an_extended_offset_table_are_one_frame(dicom_files):
    path = dicom_files / "MR_small_jp2klossless.dcm"
    dataset, wanted = pydicom.dcmread(path), load_scan(path).voxels
    frames = list(generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = encapsulate(frames, fragments_per_frame=5)
    np.testing.assert_array_equal(load_scan(written(dataset)).voxels, wanted)
    dataset.PixelData, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = pydicom.encaps.encapsulate_extended(
        frames
    )
    np.testing.assert_array_equal(load_scan(written(dataset)).voxels, wanted)


def written(dataset):
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()
