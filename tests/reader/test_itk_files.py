"""MetaImage and NRRD against SimpleITK itself, and against what their headers state."""

import zipfile

import numpy as np
import pytest

from radfm.load_scan_radfm import ScanError, list_volumes, load_scan

sitk = pytest.importorskip("SimpleITK")


def an_image(turn=0.0):
    """A volume of 5 × 6 × 7 (x, y, z) with its own spacing, origin and direction."""
    values = np.random.default_rng(0).integers(-500, 500, (7, 6, 5)).astype(np.int16)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.5, 0.75, 3.0))
    image.SetOrigin((10.0, -20.0, 30.0))
    cos, sin = np.cos(turn), np.sin(turn)
    image.SetDirection((cos, -sin, 0, sin, cos, 0, 0, 0, 1))
    return image


@pytest.mark.parametrize("name", ["a.mha", "a.mhd", "a.nrrd", "a.nhdr"])
@pytest.mark.parametrize("compressed", [False, True])
def test_every_voxel_lies_where_itk_says(name, compressed, tmp_path):
    image = an_image(0.3)
    sitk.WriteImage(image, str(tmp_path / name), useCompression=compressed)
    scan = load_scan(tmp_path / name)
    assert scan.voxels.shape == (1, 5, 6, 7) and scan.voxels.dtype == np.float32
    np.testing.assert_allclose(scan.spacing, (0.5, 0.75, 3.0))
    for index in ((0, 0, 0), (4, 0, 0), (0, 5, 2), (3, 1, 6)):
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(scan.affine @ [*index, 1], [-x, -y, z, 1], atol=1e-6)
        assert scan.voxels[(0, *index)] == image[index]


def test_header_and_voxels_in_a_zip_and_under_any_name(tmp_path):
    image = an_image()
    sitk.WriteImage(image, str(tmp_path / "a.mhd"))
    sitk.WriteImage(image, str(tmp_path / "b.mha"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.mhd", "in/a.mhd")
        archive.write(tmp_path / "a.raw", "in/a.raw")
    (tmp_path / "volume").write_bytes((tmp_path / "b.mha").read_bytes())
    wanted = load_scan(tmp_path / "b.mha")
    for path in ("a.mhd", "a.zip", "volume"):
        scan = load_scan(tmp_path / path)
        np.testing.assert_array_equal(scan.voxels, wanted.voxels)
        np.testing.assert_array_equal(scan.affine, wanted.affine)
    np.testing.assert_array_equal(load_scan((tmp_path / "b.mha").read_bytes()).voxels, wanted.voxels)


@pytest.mark.parametrize("line", ["../secret.raw", "/etc/passwd", "LIST", "a%02d.raw 1 7 1"])
def test_a_header_opens_no_file_outside_its_folder(line, tmp_path):
    (tmp_path / "in").mkdir()
    sitk.WriteImage(an_image(), str(tmp_path / "in" / "a.mhd"))
    (tmp_path / "secret.raw").write_bytes((tmp_path / "in" / "a.raw").read_bytes())
    header = (tmp_path / "in" / "a.mhd").read_text().replace("a.raw", line)
    (tmp_path / "in" / "a.mhd").write_text(header)
    with pytest.raises(ScanError, match=r"a\.mhd: is a MetaImage header whose voxels lie elsewhere") as refused:
        load_scan(tmp_path / "in" / "a.mhd")
    assert "\n" not in str(refused.value)


def test_an_orientation_that_is_not_stated_is_not_made_up(tmp_path):
    sitk.WriteImage(an_image(), str(tmp_path / "a.mhd"))
    kept = [line for line in (tmp_path / "a.mhd").read_text().splitlines(True) if not line.startswith("TransformMatrix")]
    (tmp_path / "a.mhd").write_text("".join(kept))
    (tmp_path / "b.nrrd").write_bytes(b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n\n12345678")
    for path in ("a.mhd", "b.nrrd"):
        scan = load_scan(tmp_path / path)
        assert scan.affine is None and "left and right are unknown" in scan.warnings[0]


def test_volumes_in_time_are_chosen_by_their_number(tmp_path):
    values = np.arange(2 * 3 * 4 * 5, dtype=np.int16).reshape(2, 3, 4, 5)
    sitk.WriteImage(sitk.GetImageFromArray(values, isVector=False), str(tmp_path / "a.mha"))
    assert list_volumes(tmp_path / "a.mha") == ["0", "1"]
    assert "Only volume 0 of 2" in load_scan(tmp_path / "a.mha").warnings[0]
    np.testing.assert_array_equal(load_scan(tmp_path / "a.mha", volume=1).voxels[0], values[1].T)
    with pytest.raises(ScanError, match="volumes 0 to 1, and no volume 2"):
        load_scan(tmp_path / "a.mha", volume=2)


def test_diffusion_weightings_of_an_nrrd_are_volumes_and_colours_are_channels(tmp_path):
    values = np.arange(3 * 4 * 5 * 7, dtype=np.int16).reshape(3, 4, 5, 7)
    sitk.WriteImage(sitk.GetImageFromArray(values, isVector=True), str(tmp_path / "a.nrrd"))
    assert len(list_volumes(tmp_path / "a.nrrd")) == 7
    np.testing.assert_array_equal(load_scan(tmp_path / "a.nrrd", volume=6).voxels[0], values[..., 6].T)
    colours = np.random.default_rng(0).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(tmp_path / "b.mha"))
    scan = load_scan(tmp_path / "b.mha")
    np.testing.assert_array_equal(scan.voxels[..., 0], colours.transpose(2, 0, 1))


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_damaged_files_and_large_sizes_are_refused_in_a_sentence(name, tmp_path):
    sitk.WriteImage(an_image(), str(tmp_path / name))
    content = (tmp_path / name).read_bytes()
    with pytest.raises(ScanError, match=f"{name}: a volume of size .* needs"):
        load_scan(tmp_path / name, max_bytes=100)
    for damaged in (content[:-100], content[:60], content.replace(b"5 6 7", b"5 6 -7"), content.replace(b"5 6 7", b"5 6")):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ScanError, match=rf"{name}: .*(damaged|no scan|elsewhere|size)") as refused:
            load_scan(tmp_path / name)
        assert "\n" not in str(refused.value) and "Exception" not in str(refused.value)
