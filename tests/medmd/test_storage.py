"""What is stored of a scan: JPEG and PNG without metadata, rendered images, volumes that read back as they were."""

import io

import nibabel
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from portals import dicom, pixels

from radfm.load_scan_radfm import ScanError, load_scan
from radfm.medmd.hashing import hash_distance
from radfm.medmd.image_metadata import DamagedImageError, metadata_of, strip_metadata
from radfm.medmd.scans import StorageOptions, store_scans
from radfm.medmd.volumes import average

FULL = StorageOptions(volume_size=None)


def jpeg(progressive: bool = False, orientation: int | None = None) -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "Muster^Erika"
    if orientation:
        exif[0x0112] = orientation
    image = Image.fromarray(pixels(1, (64, 80)))
    image.save(buffer, "JPEG", exif=exif, comment=b"Muster^Erika", progressive=progressive)
    return buffer.getvalue() + b"Muster^Erika behind the end"


def png() -> bytes:
    buffer, info = io.BytesIO(), PngImagePlugin.PngInfo()
    info.add_text("Patient", "Muster^Erika")
    info.add_itxt("Comment", "Muster^Erika", zip=True)
    Image.fromarray(pixels(1, (64, 80))).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content", [jpeg(), jpeg(progressive=True), jpeg(orientation=6), png()], ids=["jpeg", "progressive", "turned", "png"]
)
def test_metadata_goes_and_pixels_stay_byte_for_byte(content):
    stripped = strip_metadata(content)
    assert b"Muster" in content and b"Muster" not in stripped
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(stripped))), np.asarray(Image.open(io.BytesIO(content))))
    assert metadata_of(content) and not metadata_of(stripped)
    assert strip_metadata(stripped) == stripped


def test_an_orientation_stays_for_readers_that_turn_the_picture(tmp_path):
    (tmp_path / "turned.jpg").write_bytes(jpeg(orientation=6))
    row = store_scans(tmp_path, ["turned.jpg"], FULL)[0]
    assert Image.open(io.BytesIO(row.stored.bytes)).getexif() == {0x0112: 6}
    assert b"Muster" not in row.stored.bytes


@pytest.mark.parametrize("content", [jpeg()[:400], png()[:200], b"\xff\xd8\xff"], ids=["jpeg", "png", "head"])
def test_a_picture_that_ends_early_is_refused_by_name(content, tmp_path):
    with pytest.raises(DamagedImageError):
        strip_metadata(content)
    (tmp_path / "short.jpg").write_bytes(content)
    with pytest.raises(ScanError, match=r"short\.jpg"):
        store_scans(tmp_path, ["short.jpg"], FULL)


def test_a_jpeg_is_passed_through_and_not_coded_again(tmp_path):
    image = Image.fromarray(pixels(1))
    image.save(tmp_path / "a.jpg", quality=70)
    row = store_scans(tmp_path, ["a.jpg"], FULL)[0]
    assert row.stored.bytes == (tmp_path / "a.jpg").read_bytes()
    assert (row.shape, row.stored.path[-4:]) == ((40, 48), ".jpg")


def test_a_sixteen_bit_png_is_rendered_between_its_percentiles(tmp_path):
    values = np.arange(4000, dtype=np.uint16).reshape(50, 80) * 16
    Image.fromarray(values).save(tmp_path / "deep.png")
    row = store_scans(tmp_path, ["deep.png"], FULL)[0]
    grey = np.asarray(Image.open(io.BytesIO(row.stored.bytes)))
    low, high = np.percentile(values, (0.5, 99.5))
    np.testing.assert_allclose(grey, np.clip((values - low) / (high - low), 0, 1) * 255, atol=0.51)


def test_a_radiograph_keeps_nothing_of_its_header_but_the_modality(tmp_path):
    dicom(tmp_path / "a.dcm", 1)
    row = store_scans(tmp_path, ["a.dcm"], StorageOptions(image_size=20))[0]
    assert row.modality == "X-ray"
    assert (row.shape, b"Muster" in row.stored.bytes) == ((17, 20), False)


def test_a_volume_at_full_size_reads_back_as_it_was(nifti_files):
    for name in ("example4d.nii.gz", "anatomical.nii"):
        row = store_scans(nifti_files, [name], FULL)[0]
        before, after = load_scan(nifti_files / name), load_scan(row.stored.bytes)
        np.testing.assert_array_equal(after.voxels, before.voxels)
        np.testing.assert_allclose(after.affine, before.affine, atol=1e-4)
        assert row.shape == before.voxels.shape[1:]


def test_a_shrunk_volume_stays_where_it_was_in_the_patient(tmp_path):
    """A blob's centre of mass in mm does not move when the volume is averaged down."""
    grid = np.stack(np.meshgrid(*map(np.arange, (96, 120, 40)), indexing="ij"))
    data = (1000 * np.exp(-(((grid - np.array([40, 70, 22])[:, None, None, None]) / 8.0) ** 2).sum(0))).astype(np.int16)
    affine = np.array([[-0.9, 0, 0, 50], [0, 0.8, 0.1, -70], [0, -0.1, 2.5, 10], [0, 0, 0, 1]], dtype=float)
    nibabel.save(nibabel.Nifti1Image(data, affine), tmp_path / "blob.nii.gz")
    row = store_scans(tmp_path, ["blob.nii.gz"], StorageOptions(volume_size=(64, 16)))[0]
    assert row.shape == (51, 64, 16)

    def centre(scan):
        weights = scan.voxels[0] / scan.voxels[0].sum()
        index = [float((weights * axis).sum()) for axis in np.meshgrid(*map(np.arange, weights.shape), indexing="ij")]
        return (scan.affine @ [*index, 1])[:3]

    np.testing.assert_allclose(centre(load_scan(row.stored.bytes)), centre(load_scan(tmp_path / "blob.nii.gz")), atol=0.15)


def test_a_fractional_volume_is_stored_within_a_step_of_its_range(tmp_path):
    data = np.random.default_rng(0).normal(size=(10, 11, 12)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii")
    row = store_scans(tmp_path, ["a.nii"], FULL)[0]
    assert np.abs(load_scan(row.stored.bytes).voxels[0] - data).max() <= np.ptp(data) / 65535


def test_a_case_of_image_and_volume_is_stored_as_volumes(tmp_path, nifti_files):
    Image.fromarray(pixels(1)).save(tmp_path / "a.png")
    rows = store_scans(tmp_path, ["a.png", str(nifti_files / "anatomical.nii")], FULL)
    assert [row.shape for row in rows] == [(40, 48, 1), load_scan(nifti_files / "anatomical.nii").voxels.shape[1:]]
    np.testing.assert_array_equal(load_scan(rows[0].stored.bytes).voxels[0, :, :, 0], pixels(1))


def test_a_hash_of_a_picture_survives_compression_and_size(tmp_path):
    smooth = Image.fromarray(pixels(1, (9, 11))).resize((220, 180), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "a.png")
    smooth.resize((110, 90)).save(tmp_path / "b.jpg", quality=60)
    Image.fromarray(pixels(2, (9, 11))).resize((220, 180), Image.Resampling.BICUBIC).save(tmp_path / "c.png")
    a, b, c = (store_scans(tmp_path, [name], FULL)[0].image_hash for name in ("a.png", "b.jpg", "c.png"))
    assert hash_distance(a, b) <= 8 < 60 < hash_distance(a, c)


@pytest.mark.parametrize("reference", ["no.png", "a.zip::no.png", "a.npz::no::0", "a.npz::x::9"])
def test_what_is_not_there_is_named(reference, tmp_path):
    import zipfile

    zipfile.ZipFile(tmp_path / "a.zip", "w").close()
    np.savez(tmp_path / "a.npz", x=pixels(1, (2, 4, 4)))
    with pytest.raises(ScanError, match=reference.split("::")[0]):
        store_scans(tmp_path, [reference], FULL)


def test_an_average_is_a_sum_in_order_so_that_no_bit_depends_on_the_processor_or_its_threads():
    """A matrix product gave other last bits in a process with another number of threads, and so another file."""
    old = np.random.default_rng(0).normal(0, 500, (7, 400)).astype(np.float32)
    sevenths = [[(0, 3), (1, 3), (2, 1)], [(2, 2), (3, 3), (4, 2)], [(4, 1), (5, 3), (6, 3)]]
    new = np.zeros((3, 400), np.float32)
    for row, terms in enumerate(sevenths):
        for place, share in terms:
            new[row] += old[place] * np.float32(share / 7)
    assert np.array_equal(average(old[None], 1, 3)[0], new)
