"""Every DICOM file at hand: each transfer syntax to its reference, frames in their places, odd ways of writing pixels."""

import csv
import io
import zipfile

import numpy as np
import pydicom
import pytest
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from radfm.dicom_elements_radfm import get_items
from radfm.load_scan_radfm import ScanError, list_series, load_scan


@pytest.fixture(scope="module")
def syntaxes(packs):
    with open(packs / "dicom_transfer_syntaxes.csv", newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    with zipfile.ZipFile(packs / "dicom_transfer_syntaxes.zip") as archive:
        return rows, {name: archive.read(name) for name in archive.namelist()}


def stored(content):
    """Voxels as stored: channels first, frames along depth or the first of them."""
    scan = load_scan(content, max_bytes=1 << 30)
    dataset = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True, force=True)
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    return (scan.voxels - intercept) / slope


def as_capture(content):
    """A segmentation, which is refused as such, as a secondary capture of single bits."""
    content = content.replace(b"1.2.840.10008.5.1.4.1.1.66.4", b"1.2.840.10008.5.1.4.1.1.7.1\0")
    return content.replace(b"CS\x04\0SEG ", b"CS\x04\0OT  ")


def test_every_transfer_syntax_against_its_uncompressed_reference(syntaxes):
    rows, files = syntaxes
    seen = set()
    for name, row in rows.items():
        voxels = stored(as_capture(files[name]))
        assert voxels.shape[1:3] == (int(row["rows"]), int(row["cols"])), name
        seen.add(row["transfer_syntax_uid"])
        if row["reference"] in files and row["max_abs_diff_from_reference"]:
            reference = stored(as_capture(files[row["reference"]]))
            allowed = float(row["max_abs_diff_from_reference"])
            assert np.abs(voxels - reference).max() <= allowed, name
    assert len(seen) >= 18


def test_lossless_files_of_the_wheel_are_their_uncompressed_twins(dicom_files):
    for lossless, plain in {
        "MR_small_jp2klossless.dcm": "MR_small.dcm",
        "MR_small_jpeg_ls_lossless.dcm": "MR_small.dcm",
        "MR_small_RLE.dcm": "MR_small.dcm",
        "MR_small_bigendian.dcm": "MR_small.dcm",
        "MR_small_expb.dcm": "MR_small.dcm",
        "rtdose_rle.dcm": "rtdose.dcm",
    }.items():
        wanted = load_scan(dicom_files / plain).voxels
        np.testing.assert_array_equal(load_scan(dicom_files / lossless).voxels, wanted, err_msg=lossless)


def ct_slices(packs):
    with zipfile.ZipFile(packs / "dicom_series_ct.zip") as archive:
        files = [pydicom.dcmread(io.BytesIO(archive.read(name))) for name in archive.namelist()]
    return sorted(files, key=lambda d: float(d.ImagePositionPatient[2]))


def saved(dataset):
    buffer = io.BytesIO()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def enhanced(slices, order, per_frame_slope=False):
    """One multi-frame file of a series' slices, its frames in another order, as enhanced CT writes it."""
    for piece in slices:
        piece.decompress()
    multi = pydicom.dcmread(io.BytesIO(saved(slices[0])))
    multi.SOPInstanceUID = multi.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    multi.NumberOfFrames = len(slices)
    frames, groups = [], []
    for i in order:
        piece, group = slices[i], Dataset()
        position, values = Dataset(), Dataset()
        position.ImagePositionPatient = piece.ImagePositionPatient
        values.RescaleSlope = 2 if per_frame_slope and i % 2 else 1
        values.RescaleIntercept = piece.RescaleIntercept
        group.PlanePositionSequence = Sequence([position])
        group.PixelValueTransformationSequence = Sequence([values])
        groups.append(group)
        pixels = piece.pixel_array // 2 if per_frame_slope and i % 2 else piece.pixel_array
        frames.append(pixels.astype(np.uint16).tobytes())
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = slices[0].ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = slices[0].PixelSpacing, slices[0].SliceThickness
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([orientation]), Sequence([measures])
    multi.SharedFunctionalGroupsSequence, multi.PerFrameFunctionalGroupsSequence = Sequence([shared]), Sequence(groups)
    for word in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        if word in multi:
            delattr(multi, word)
    multi.PixelData = b"".join(frames)
    return saved(multi)


def test_frames_of_an_enhanced_file_go_to_their_places(packs):
    slices, whole = ct_slices(packs), load_scan(packs / "dicom_series_ct.zip")
    order = np.random.default_rng(0).permutation(len(slices))
    scan = load_scan(enhanced(slices, order))
    np.testing.assert_array_equal(scan.voxels, whole.voxels)
    np.testing.assert_allclose(scan.affine, whole.affine, atol=1e-4)


def test_each_frame_keeps_its_own_slope(packs):
    slices, whole = ct_slices(packs), load_scan(packs / "dicom_series_ct.zip")
    scan = load_scan(enhanced(slices, range(len(slices)), per_frame_slope=True))
    assert np.abs(scan.voxels - whole.voxels).max() <= 1


def test_slopes_that_differ_from_slice_to_slice(packs, tmp_path):
    whole = load_scan(packs / "dicom_series_ct.zip")
    for k, piece in enumerate(ct_slices(packs)):
        if k % 2:
            piece.RescaleSlope, piece.RescaleIntercept = 0.5, 100
        piece.save_as(tmp_path / f"{k}.dcm")
    scan = load_scan(tmp_path)
    np.testing.assert_array_equal(scan.voxels[..., ::2], whole.voxels[..., ::2])
    np.testing.assert_allclose(scan.voxels[..., 1], (whole.voxels[..., 1] + 1024) * 0.5 + 100, atol=1e-3)


def test_a_private_scale_beside_the_public_one_is_left_alone(packs):
    piece = ct_slices(packs)[0]
    piece.decompress()
    wanted = load_scan(saved(piece)).voxels
    block = piece.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
    block.add_new(0x0E, "FL", 0.0123)
    np.testing.assert_array_equal(load_scan(saved(piece)).voxels, wanted)


def test_implicit_elements_in_a_file_that_says_explicit(packs):
    piece = ct_slices(packs)[0]
    piece.decompress()
    wanted = load_scan(saved(piece)).voxels
    implicit = io.BytesIO()
    piece.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    piece.save_as(implicit, implicit_vr=True, little_endian=True)
    mangled = implicit.getvalue().replace(b"1.2.840.10008.1.2\0", b"1.2.840.10008.1.2.1\0", 1)
    length = mangled.index(b"\x02\x00\x10\x00UI") + 6
    mangled = mangled[:length] + (20).to_bytes(2, "little") + mangled[length + 2 :]
    np.testing.assert_array_equal(load_scan(mangled).voxels, wanted)


@pytest.mark.parametrize(
    ("orientation", "wanted"),
    [
        ([1, 0, 0, 0, 1, 0], "PLS"),  # supine
        ([-1, 0, 0, 0, -1, 0], "ARS"),  # prone
        ([0, 1, 0, -1, 0, 0], "RPS"),  # decubitus
        ([0, 1, 0, 0, 0, -1], "IPR"),  # sagittal
        ([1, 0, 0, 0, 0, -1], "ILP"),  # coronal, slices from front to back
    ],
)
def test_axes_of_every_way_to_lie(orientation, wanted, packs, tmp_path):
    import nibabel

    normal = np.cross(orientation[:3], orientation[3:])
    for k, piece in enumerate(ct_slices(packs)[:4]):
        piece.ImageOrientationPatient = orientation
        piece.ImagePositionPatient = [float(x) for x in normal * 2 * k]
        piece.save_as(tmp_path / f"{9 - k}.dcm")
    scan = load_scan(tmp_path)
    axes = "".join(nibabel.aff2axcodes(scan.affine))
    assert axes[:2] == wanted[:2] and np.linalg.det(scan.affine[:3, :3]) != 0
    np.testing.assert_array_equal(scan.voxels[..., 0], load_scan(tmp_path / "9.dcm").voxels[..., 0])


def plain(values, **tags):
    """A small uncompressed image with some tags changed."""
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    dataset.Rows, dataset.Columns = values.shape
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.BitsAllocated = values.dtype.itemsize * 8
    dataset.BitsStored, dataset.HighBit = dataset.BitsAllocated, dataset.BitsAllocated - 1
    if "PixelPaddingValue" in dataset:
        del dataset.PixelPaddingValue
    dataset.PixelData = values.tobytes()
    for word, value in tags.items():
        setattr(dataset, word, value)
    return dataset


def test_overlays_in_the_unused_bits_are_left_out():
    values = np.arange(64, dtype=np.uint16).reshape(8, 8)
    scan = load_scan(saved(plain(values | 0xF000, BitsStored=12, HighBit=11)))
    np.testing.assert_array_equal(scan.voxels[0, ..., 0], values)
    signed = np.arange(-32, 32, dtype=np.int16).reshape(8, 8)
    scan = load_scan(saved(plain(signed & 0x0FFF, BitsStored=12, HighBit=11)))
    np.testing.assert_array_equal(scan.voxels[0, ..., 0], signed)


def test_twelve_packed_bits():
    values = np.random.default_rng(0).integers(0, 4096, (8, 6), dtype=np.uint16)
    pairs = values.reshape(-1, 2).astype(np.uint32)
    packed = np.stack([pairs[:, 0] & 255, pairs[:, 0] >> 8 | (pairs[:, 1] & 15) << 4, pairs[:, 1] >> 4], 1).astype(np.uint8)
    dataset = plain(values, BitsAllocated=12, BitsStored=12, HighBit=11)
    dataset.PixelData = packed.tobytes()
    np.testing.assert_array_equal(load_scan(saved(dataset)).voxels[0, ..., 0], values)


def test_padding_becomes_the_lowest_value_that_is_none():
    values = np.full((8, 8), 40, np.int16)
    values[0], values[1] = -2000, -900
    dataset = plain(values)
    dataset.add_new("PixelPaddingValue", "SS", -2000)
    scan = load_scan(saved(dataset))
    assert (scan.voxels[0, 0] == -900).all() and scan.voxels.min() == -900


def test_a_modality_lut_takes_the_place_of_the_rescale():
    values = np.arange(16, dtype=np.uint16).reshape(4, 4)
    dataset, lut = plain(values), Dataset()
    del dataset.RescaleSlope, dataset.RescaleIntercept
    lut.add_new("LUTDescriptor", "US", [16, 0, 16])
    lut.ModalityLUTType = "HU"
    lut.add_new("LUTData", "US", [1000 + 3 * i for i in range(16)])
    dataset.ModalityLUTSequence = Sequence([lut])
    np.testing.assert_array_equal(load_scan(saved(dataset)).voxels[0, ..., 0], 1000 + 3 * values)


def test_all_windows_in_their_order_and_luts_behind_them():
    dataset, lut = plain(np.zeros((4, 4), np.uint16), WindowCenter=[40, 500], WindowWidth=[81, 2001]), Dataset()
    lut.add_new("LUTDescriptor", "US", [256, 10, 8])
    lut.add_new("LUTData", "US", list(range(256)))
    dataset.VOILUTSequence = Sequence([lut])
    assert load_scan(saved(dataset)).windows == [(-0.5, 79.5), (-500.5, 1499.5), (10.0, 265.0)]


def test_pet_becomes_suv_where_the_header_allows_it():
    drug = Dataset()
    drug.RadionuclideTotalDose, drug.RadionuclideHalfLife, drug.RadiopharmaceuticalStartTime = 4e8, 6588, "100000"
    tags = {"Modality": "PT", "Units": "BQML", "DecayCorrection": "START", "SeriesTime": "110000.0", "PatientWeight": 80}
    dataset = plain(np.full((4, 4), 5000, np.uint16), RadiopharmaceuticalInformationSequence=Sequence([drug]), **tags)
    wanted = 5000 * 80_000 / (4e8 * 2 ** (-3600 / 6588))
    np.testing.assert_allclose(load_scan(saved(dataset)).voxels, wanted, rtol=1e-5)
    del dataset.PatientWeight
    scan = load_scan(saved(dataset))
    assert scan.voxels.max() == 5000 and "does not allow SUV" in scan.warnings[0]


def test_an_icon_is_never_taken_for_the_image():
    dataset, icon = plain(np.full((4, 4), 7, np.uint16)), Dataset()
    icon.Rows = icon.Columns = 2
    icon.SamplesPerPixel, icon.PhotometricInterpretation = 1, "MONOCHROME2"
    icon.BitsAllocated = icon.BitsStored = 8
    icon.HighBit, icon.PixelRepresentation, icon.PixelData = 7, 0, b"\x01\x02\x03\x04"
    dataset.IconImageSequence = Sequence([icon])
    assert (load_scan(saved(dataset)).voxels == 7).all()


def test_a_private_sequence_of_unknown_type_is_never_taken_for_the_image():
    dataset = plain(np.full((4, 4), 7, np.uint16))
    dataset.add_new(0x00091001, "UN", b"\xe0\x7f\x10\x00OW\x00\x00\x04\x00\x00\x00\x01\x02\x03\x04")
    assert (load_scan(saved(dataset)).voxels == 7).all()


def test_ct_that_cannot_be_hounsfield_is_doubted():
    windowed = np.random.default_rng(0).integers(0, 255, (8, 8)).astype(np.uint16)
    assert "may have been windowed" in load_scan(saved(plain(windowed))).warnings[0]
    twice = np.full((8, 8), -2024, np.int16)
    twice[2:4] = -984
    assert "rescaled twice?" in load_scan(saved(plain(twice))).warnings[0]
    body = np.full((8, 8), -1000, np.int16)
    body[2:6] = 40
    assert load_scan(saved(plain(body))).warnings == []


def test_a_mosaic_is_refused_clearly():
    dataset = plain(np.zeros((8, 8), np.uint16), ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])
    with pytest.raises(ScanError, match=r"Siemens mosaic.*dcm2niix"):
        load_scan(saved(dataset))


def test_cut_off_pixels_name_the_file_and_the_tag(tmp_path):
    content = saved(plain(np.zeros((64, 64), np.uint16)))
    (tmp_path / "cut.dcm").write_bytes(content[:-3000])
    with pytest.raises(ScanError, match=r"cut\.dcm: Pixel Data \(7FE0,0010\) .* cannot be decoded"):
        load_scan(tmp_path / "cut.dcm")


def test_files_without_preamble_or_meta_and_a_dicomdir(dicom_files, tmp_path):
    content = (dicom_files / "CT_small.dcm").read_bytes()
    wanted = load_scan(content).voxels
    np.testing.assert_array_equal(load_scan(content[128:].removeprefix(b"DICM")).voxels, wanted)
    bare = pydicom.dcmread(io.BytesIO(content))
    buffer = io.BytesIO()
    del bare.file_meta
    bare.preamble = None
    bare.save_as(buffer, implicit_vr=True, little_endian=True, enforce_file_format=False)
    np.testing.assert_array_equal(load_scan(buffer.getvalue()).voxels, wanted)


def test_a_dicomdir_stands_for_the_folder_that_it_lies_in(dicom_files):
    directory = dicom_files / "dicomdirtests" / "DICOMDIR"
    series = list_series(directory)
    assert len(series) > 3 and any(line.endswith("7 images in 7 files") for line in series)
    uid = series[-1].split(" · ")[0]
    assert load_scan(directory, series=uid).voxels.size > 1
    scan = load_scan(directory)
    assert scan.is_volume and "was read, one of 13; the others: " in scan.warnings[-1]


def test_sequences_nested_hundreds_deep_end_in_a_sentence():
    inner = b"\xfe\xff\x0d\xe0\x00\x00\x00\x00\xfe\xff\xdd\xe0\x00\x00\x00\x00"
    deep = (
        b"".join(b"\x08\x00\x15\x11SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" for _ in range(2000)) + inner
    )
    content = saved(plain(np.zeros((4, 4), np.uint16)))
    at = content.index(b"\x08\x00\x16\x00UI")
    with pytest.raises(ScanError):
        load_scan(content[:at] + deep + content[at:])


@pytest.mark.parametrize("cut", [False, True])
def test_a_declared_length_beyond_the_file_gives_what_is_there_or_a_sentence(cut):
    content = bytearray(saved(plain(np.full((4, 4), 7, np.uint16))))
    at = content.index(b"\xe0\x7f\x10\x00")
    content[at + 8 : at + 12] = b"\xf0\xff\xff\x7f"
    if cut:
        with pytest.raises(ScanError, match="cannot be decoded"):
            load_scan(bytes(content[: at + 12 + 20]))
    else:
        assert (load_scan(bytes(content)).voxels == 7).all()


def test_a_header_that_announces_forty_gigabytes_is_refused_before_it_is_read():
    dataset = plain(np.zeros((4, 4), np.uint16))
    dataset.Rows = dataset.Columns = 65535
    dataset.NumberOfFrames = 9
    with pytest.raises(ScanError, match="GB, more than"):
        load_scan(saved(dataset))


def test_the_quick_header_is_pydicoms(packs, dicom_files, syntaxes):
    from radfm.dicom_file_radfm import TAGS
    from radfm.dicom_header_radfm import HEAD_BYTES, plain_header

    contents = [file.read_bytes() for file in sorted(dicom_files.glob("*.dcm"))] + list(syntaxes[1].values())
    read = 0
    for content in contents:
        quick = plain_header(content[: HEAD_BYTES[-1]], TAGS)
        if quick is None:
            continue
        read += 1
        slow = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True, specific_tags=sorted(TAGS))
        assert {int(e.tag): e.value for e in quick[0].to_dataset()} == {
            int(e.tag): e.value for e in slow if int(e.tag) in TAGS
        }
        assert content[quick[1] : quick[1] + 4] == b"\xe0\x7f\x10\x00"
    assert read > 30


def test_a_damaged_run_length_ends_in_a_sentence(dicom_files):
    content = bytearray((dicom_files / "SC_rgb_rle.dcm").read_bytes())
    start = content.index(b"\xe0\x7f\x10\x00")
    ended = 0
    for at in range(start + 100, len(content) - 20, 37):
        damaged = content.copy()
        damaged[at : at + 2] = b"\x7f\x7f"
        try:
            load_scan(bytes(damaged))
        except ScanError:
            ended += 1
    assert ended > 3


def test_a_damaged_group_length_or_a_cut_off_header_ends_in_a_scan_or_a_sentence(dicom_files):
    content = (dicom_files / "JPEGLSNearLossless_08.dcm").read_bytes()
    cut = [content[:at] for at in range(132, 420, 3)]
    longer = [content[:140] + length.to_bytes(4, "little") + content[144:] for length in (0, 7, 10_000, 0xFFFFFFFF)]
    for damaged in (*cut, *longer):
        try:
            assert load_scan(damaged).voxels.size
        except ScanError as error:
            assert "\n" not in str(error)


def test_a_sequence_that_is_stored_as_numbers_of_a_wrong_length_has_no_items():
    dataset = pydicom.Dataset()
    tag = tag_for_keyword("PlaneOrientationSequence")
    dataset._dict[BaseTag(tag)] = RawDataElement(BaseTag(tag), "US", 3, b"abc", 0, False, True)
    assert get_items(dataset, "PlaneOrientationSequence") == ()
