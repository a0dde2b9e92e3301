"""Pixels: palettes, padding, damaged and compressed frames, decoding by processes and in threads."""

import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
from odd_inputs import COLUMNS, CT, ENHANCED_CT, ROWS, ULTRASOUND, enhanced, image, pixels, save, stack, to_bytes
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from radfm import dicom_decode_radfm
from radfm.load_scan_radfm import ScanError, load_scan


@pytest.mark.parametrize("compressed", [False, True])
def test_a_palette_gives_colours_in_every_syntax(compressed):
    index = np.arange(ROWS * COLUMNS, dtype=np.uint8).reshape(ROWS, COLUMNS)
    tags = {"PhotometricInterpretation": "PALETTE COLOR", "Modality": "US"}
    dataset = image(index, ULTRASOUND, **tags)
    tables = {"Red": 255 - np.arange(256), "Green": np.arange(256) // 2, "Blue": np.full(256, 7)}
    for colour, table in tables.items():
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 8])
        setattr(dataset, f"{colour}PaletteColorLookupTableData", table.astype(np.uint8).tobytes())
    if compressed:
        dataset.compress(RLELossless, generate_instance_uid=False)
    voxels = load_scan(to_bytes(dataset)).voxels[..., 0]
    np.testing.assert_array_equal(voxels, np.stack([table[index] for table in tables.values()]))


@pytest.mark.parametrize(("vr", "value"), [("US", 63536), ("SS", -2000)])
def test_padding_written_in_the_wrong_sign_is_padding(vr, value):
    values = pixels(0)
    values[0] = -2000
    dataset = image(values, CT)
    dataset.add_new("PixelPaddingValue", vr, value)
    scan = load_scan(to_bytes(dataset))
    assert (scan.voxels[0, 0] == 6).all() and scan.voxels.min() == 6


def test_a_range_of_padding():
    values = pixels(0)
    values[0], values[1] = -2000, -1990
    dataset = image(values, CT)
    dataset.add_new("PixelPaddingValue", "SS", -2000)
    dataset.add_new("PixelPaddingRangeLimit", "SS", -1980)
    assert load_scan(to_bytes(dataset)).voxels.min() == 12


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_a_missing_last_delimiter_is_a_warning(syntax):
    dataset = image(np.arange(64 * 64, dtype=np.int16).reshape(64, 64), CT)
    dataset.compress(syntax, generate_instance_uid=False)
    content = to_bytes(dataset)
    assert content.endswith(b"\xfe\xff\xdd\xe0\0\0\0\0")
    scan = load_scan(content[:-8])
    np.testing.assert_array_equal(scan.voxels[0, ..., 0].ravel(), np.arange(64 * 64))
    assert "delimiter" in scan.warnings[0]


def test_a_frame_that_is_cut_off_is_refused():
    dataset = image(np.random.default_rng(0).integers(0, 99, (64, 64)).astype(np.int16), CT)
    dataset.compress(RLELossless, generate_instance_uid=False)
    with pytest.raises(ScanError, match="cut off"):
        load_scan(to_bytes(dataset)[:-100])


def test_pixels_of_length_zero_are_named():
    with pytest.raises(ScanError, match=r"Pixel Data \(7FE0,0010\) is empty"):
        load_scan(to_bytes(image(pixels(0), CT, PixelData=b"")))


def test_a_spectral_selection_that_ends_at_zero_is_read(dicom_files):
    file = dicom_files / "JPGExtended.dcm"
    content = file.read_bytes()
    scan_header = content.index(b"\xff\xda", content.rindex(b"\xe0\x7f\x10\x00"))
    at = scan_header + 2 + int.from_bytes(content[scan_header + 2 : scan_header + 4], "big") - 2
    assert content[at - 1 : at + 1] == b"\x00\x3f"
    wanted = load_scan(file).voxels
    np.testing.assert_array_equal(load_scan(content[:at] + b"\0" + content[at + 1 :]).voxels, wanted)


def test_frames_in_several_fragments_are_found_with_and_without_an_offset_table():
    values = np.random.default_rng(0).integers(0, 2000, (4, 64, 64)).astype(np.int16)
    frames = [{"position": (0, 0, 5 * k)} for k in range(4)]
    dataset = enhanced(frames, values, ENHANCED_CT)
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    encoded = list(generate_frames(dataset.PixelData, number_of_frames=4))
    for has_bot in (True, False):
        dataset.PixelData = encapsulate(encoded, fragments_per_frame=3, has_bot=has_bot)
        np.testing.assert_array_equal(load_scan(to_bytes(dataset)).voxels[0], values.transpose(1, 2, 0))


def test_decoding_time_is_proportional_to_the_frames():
    values = np.random.default_rng(0).integers(0, 2000, (24, 128, 128)).astype(np.int16)
    contents = {}
    for count in (6, 24):
        dataset = enhanced([{"position": (0, 0, k)} for k in range(count)], values[:count], ENHANCED_CT)
        dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
        contents[count] = to_bytes(dataset)
    seconds = {}
    for count, content in contents.items():
        load_scan(content)
        tries = []
        for _ in range(3):
            start = time.process_time()
            load_scan(content)
            tries.append(time.process_time() - start)
        seconds[count] = min(tries)
    assert seconds[24] < 8 * seconds[6]  # once for each frame of each frame would be 16 times


def compressed_stack():
    slices = stack(6)
    for k, dataset in enumerate(slices):
        dataset.Rows = dataset.Columns = 64
        dataset.PixelData = np.random.default_rng(k).integers(0, 2000, (64, 64)).astype(np.int16).tobytes()
        dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    return slices


def test_processes_decode_what_this_process_decodes(tmp_path, monkeypatch):
    from radfm import dicom_frames_radfm

    slices = compressed_stack()
    source = save(tmp_path / "series", slices)
    wanted = load_scan(source).voxels
    started = []

    class Counted(dicom_frames_radfm.DecodingProcess):
        def decode(self, data, layout):
            values = super().decode(data, layout)
            started.append(self._process.pid if self._is_ready else None)
            return values

    monkeypatch.setattr(dicom_frames_radfm, "PIXELS_FOR_PROCESSES", 1)
    monkeypatch.setattr(dicom_frames_radfm, "_cores", lambda: 2)
    monkeypatch.setattr(dicom_frames_radfm, "DecodingProcess", Counted)
    np.testing.assert_array_equal(load_scan(source).voxels, wanted)
    assert len(started) == 6 and None not in started
    monkeypatch.setattr(dicom_frames_radfm.sys, "executable", "")
    np.testing.assert_array_equal(load_scan(source).voxels, wanted)


def test_many_threads_read_the_same_and_change_nothing_global(tmp_path):
    import logging

    source = save(tmp_path / "series", stack(6))
    odd = to_bytes(image(pixels(0), CT, WindowCenter="40", WindowWidth="400")).replace(b"DS\x02\x0040", b"DS\x02\x00NA")
    wanted = load_scan(source).voxels
    filters, levels = list(warnings.filters), {name: logging.getLogger(name).level for name in ("pydicom", "nibabel.global")}
    differences = []

    def work():
        for _ in range(6):
            differences.append(np.abs(load_scan(source).voxels - wanted).max())
            load_scan(odd)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert differences == [0] * 24
    assert warnings.filters == filters
    assert {name: logging.getLogger(name).level for name in levels} == levels


def test_a_script_without_a_main_guard_may_read_compressed_series(tmp_path):
    slices = compressed_stack()
    source = save(tmp_path / "series", slices)
    script = tmp_path / "script.py"
    script.write_text(
        "import radfm.dicom_frames_radfm as frames\nfrom radfm.load_scan_radfm import load_scan\n"
        f"frames.PIXELS_FOR_PROCESSES, frames._cores = 1, lambda: 2\nprint(load_scan({str(source)!r}))\n"
    )
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert run.stdout.splitlines() == ["Scan(MR, 1×64×64×6, 4×4×5 mm)"], run.stderr


def encode_jpeg_ls(dataset):
    """The same image, compressed without loss by CharLS, whose encoder takes the precision from the largest value."""
    import jpeg_ls

    assert dataset.pixel_array.max() > 255
    frame = jpeg_ls.encode_array(np.ascontiguousarray(dataset.pixel_array.astype(np.uint16)))
    dataset.PixelData = encapsulate([bytes(frame)])
    dataset.PixelRepresentation = 0
    dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
    return dataset


def test_either_codec_of_jpeg_ls_gives_the_values_that_were_encoded(monkeypatch):
    dataset = image(pixels(0) + 1000, CT, RescaleSlope=1, RescaleIntercept=0)
    plain = load_scan(to_bytes(dataset)).voxels
    content = to_bytes(encode_jpeg_ls(dataset))
    np.testing.assert_array_equal(load_scan(content).voxels, plain)
    monkeypatch.setattr(dicom_decode_radfm, "CHARLS", "not installed")
    np.testing.assert_array_equal(load_scan(content).voxels, plain)


def test_jpeg_ls_that_charls_refuses_is_decoded_by_the_other_codec(monkeypatch):
    content = to_bytes(encode_jpeg_ls(image(pixels(0) + 1000, CT)))
    wanted = load_scan(content).voxels
    decoder = dicom_decode_radfm.get_decoder(JPEGLSLossless)
    tried = []

    def refuse(*_):
        tried.append("pyjpegls")
        raise RuntimeError("invalid JPEG-LS stream")

    monkeypatch.setitem(decoder._available, "pyjpegls", refuse)
    np.testing.assert_array_equal(load_scan(content).voxels, wanted)
    assert tried


def test_jpeg_ls_that_is_cut_off_is_not_given_to_charls(monkeypatch):
    dataset = encode_jpeg_ls(image(pixels(0) + 1000, CT))
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    dataset.PixelData = encapsulate([frame.rstrip(b"\0")[:-2]])
    decoder = dicom_decode_radfm.get_decoder(JPEGLSLossless)
    monkeypatch.setitem(decoder._available, "pyjpegls", lambda *_: pytest.fail("CharLS was called"))
    assert load_scan(to_bytes(dataset)).voxels.shape[1:3] == pixels(0).shape
