"""`filter` leaves out what is no radiology and says why; `check` finds what was planted."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from building import make_portal
from PIL import Image, PngImagePlugin
from portals import pixels, table

from radfm.medmd.build import build
from radfm.medmd.check import check
from radfm.medmd.figures import is_chart, is_compound
from radfm.medmd.filter import FilterOptions, filter_dataset
from radfm.medmd.schema import DataError, Record, Stored
from radfm.medmd.shards import ShardWriter, read_records, shard_files

pytestmark = pytest.mark.slow  # builds and filters data sets


def smooth(seed: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    return Image.fromarray(pixels(seed, (10, 12))).resize(size, Image.Resampling.BICUBIC)


def own(folder: Path, rows: list[tuple[str, str, str, str]], images: dict[str, Image.Image]) -> Path:
    """A dataset of own scans: rows of image, question, answer, split."""
    folder.mkdir()
    for name, image in images.items():
        image.save(folder / name)
    table(folder / "rows.csv", ("image", "question", "answer", "split"), rows)
    build({"csv": folder / "rows.csv"}, folder / "out")
    return folder / "out"


@pytest.fixture
def sound(tmp_path) -> Path:
    images = {f"{i}.png": smooth(i) for i in range(12)}
    rows = [(f"{i}.png", "What is it?", f"thing {i}", "test" if i < 3 else "train") for i in range(12)]
    return own(tmp_path / "own", rows, images)


def plant(folder: Path, change) -> None:
    """Replace the first training record by what `change` makes of it (a list of records)."""
    path = next(path for path in shard_files(folder) if path.name.startswith("train-"))
    records = list(read_records(path))
    writer = ShardWriter(path, path.parent.name)
    for record in [*change(records[0]), *records[1:]]:
        writer.add(record)
    writer.close()


def kinds(folder: Path) -> set[str]:
    """Problems that `check` finds, without those that every change of a file brings."""
    return set(check(folder)["problems"]) - {"file changed since it was written", "content differs from the logical hash"}


def test_a_sound_dataset_has_no_problem(sound):
    report = check(sound)
    assert (report["problems"], report["suspected"], report["records"]) == ({}, {}, 12)


def test_a_planted_leak_of_a_patient_is_found(sound):
    test = next(record for path in shard_files(sound) for record in read_records(path) if record.split == "test")
    plant(sound, lambda record: [replace(record, group=test.group)])
    assert kinds(sound) == {"patient in two splits"}


def test_a_planted_leak_of_a_scan_is_found_exact_or_recompressed(sound):
    test = next(record for path in shard_files(sound) for record in read_records(path) if record.split == "test")
    scan = {name: getattr(test, name) for name in ("images", "image_sha256", "image_hash", "shapes")}
    plant(sound, lambda record: [replace(record, **scan)])
    assert kinds(sound) == {"scan in two splits"}
    plant(sound, lambda record: [replace(record, image_sha256=("00" * 32,))])
    report = check(sound)
    assert kinds(sound) == set() and report["suspected"]["nearly a scan of another split"]["count"] == 1


def test_a_planted_duplicate_is_found(sound):
    plant(sound, lambda record: [record, record])
    assert kinds(sound) == {"same id twice", "same scans and words twice"}
    plant(sound, lambda record: [replace(record, id="csv/other/vqa/0")])
    assert kinds(sound) == {"same scans and words twice"}


def with_image(record: Record, content: bytes) -> Record:
    return replace(record, images=(Stored(content, record.images[0].path),))


def test_a_planted_patient_name_is_found_in_file_field_and_text(sound, tmp_path):
    def name_in_file(record: Record) -> list[Record]:
        info, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
        info.add_text("Patient", "Muster^Erika")
        Image.open(io.BytesIO(record.images[0].bytes)).save(buffer, "PNG", pnginfo=info)
        return [with_image(record, buffer.getvalue())]

    plant(sound, name_in_file)
    assert kinds(sound) == {"may name a patient"}
    for extra in ({"PatientName": "x"}, {"note": "Muster^Erika"}, {"note": "MRN: 1234567"}, {"note": "DOB 1.1.1950"}):
        plant(sound, lambda record, extra=extra: [replace(record, extra=extra)])
        assert "may name a patient" in kinds(sound), extra


def test_a_name_in_a_volume_header_is_found(tmp_path):
    import gzip

    import nibabel

    out = tmp_path / "out"
    build({"ct-rate": make_portal("ct-rate", tmp_path)}, out)
    assert kinds(out) == set()

    def name(record: Record) -> list[Record]:
        image = nibabel.Nifti1Image.from_bytes(gzip.decompress(record.images[0].bytes))
        image.header["descrip"] = b"Muster Erika"
        return [with_image(record, gzip.compress(image.to_bytes()))]

    plant(out, name)
    assert kinds(out) == {"may name a patient"}


def test_a_broken_scan_and_a_wrong_shape_are_found(sound):
    plant(sound, lambda record: [with_image(record, record.images[0].bytes[:60])])
    assert kinds(sound) == {"broken scan"}
    other = io.BytesIO()
    smooth(50, (30, 30)).save(other, "PNG")
    plant(sound, lambda record: [with_image(record, other.getvalue())])
    assert kinds(sound) == {"wrong shape"}


def test_changed_and_missing_files_are_found(sound):
    plant(sound, lambda record: [replace(record, body_part="knee")])
    assert set(check(sound)["problems"]) == {"file changed since it was written", "content differs from the logical hash"}
    shard_files(sound)[0].unlink()
    assert "files differ from the manifest" in check(sound)["problems"]
    (sound / "manifest.json").unlink()
    assert "no manifest" in check(sound)["problems"]
    with pytest.raises(DataError, match="radfm data build"):
        check(sound / "plots")


def chart() -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3))
    figure.add_subplot().plot([1, 3, 2, 5])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def panels() -> Image.Image:
    page = Image.new("L", (300, 200), 255)
    page.paste(smooth(1, (140, 200)), (0, 0))
    page.paste(smooth(2, (140, 200)), (160, 0))
    return page


def test_charts_and_gutters_are_told_from_radiographs():
    assert is_chart(chart()) and not is_chart(smooth(1))
    assert is_compound(panels()) and not is_compound(smooth(1))


def test_no_radiological_image_of_the_packs_is_taken_for_a_chart(packs):
    import zipfile

    for pack in ("mednist", "busi_breast_us", "brain_tumor_t1ce", "ct_planes_nysbu"):
        with zipfile.ZipFile(packs / f"{pack}.zip") as archive:
            names = sorted(archive.namelist())
            images = [Image.open(io.BytesIO(archive.read(name))) for name in names[:: max(len(names) // 150, 1)]]
        thrown_away = sum(is_chart(image) or is_compound(image) for image in images)
        assert thrown_away <= 0.02 * len(images), (pack, thrown_away, len(images))


def test_medmd_becomes_radmd_and_every_drop_has_its_reason(tmp_path):
    root = make_portal("pmc-vqa", tmp_path)
    text = (root / "train.csv").read_text()
    for name, image in (("PMC3_F1", chart()), ("PMC3_F2", panels()), ("PMC3_F3", smooth(7))):
        (root / "images").mkdir(exist_ok=True)
        image.save(root / "images" / f"{name}.jpg")
        text += f"{name}.jpg,What does the CT of {name} show?,Mass,A:Mass,B:Cyst,C:Stone,D:Air,A\n"
    (root / "train.csv").write_text(text)
    inputs = {"pmc-vqa": root, "pmc-oa": make_portal("pmc-oa", tmp_path), "nih": make_portal("nih", tmp_path)}
    before = build(inputs, tmp_path / "medmd")
    report = filter_dataset(tmp_path / "medmd", tmp_path / "radmd")
    dropped = report["dropped"]
    assert set(dropped["pmc-oa"]) == {"source in the style of papers"}
    assert dropped["pmc-vqa"] == {"chart": 1, "compound figure": 1, "no word of radiology in the text": 2}
    assert report["records"] + sum(sum(reasons.values()) for reasons in dropped.values()) == before["records"]
    assert kinds(tmp_path / "radmd") == set()
    assert json.loads((tmp_path / "radmd" / "manifest.json").read_text())["filter"] == {"min_side": 28, "papers": False}


def test_near_duplicates_small_and_broken_scans_are_left_out(tmp_path):
    images = {f"{i}.png": smooth(i) for i in range(6)}
    images |= {"small.png": smooth(20, (20, 60)), "near3.jpg": smooth(3, (90, 75)), "near0.jpg": smooth(0, (90, 75))}
    rows = [(f"{i}.png", "What is it?", f"thing number {i} of six", "test" if i == 0 else "train") for i in range(6)]
    rows += [("small.png", "What?", "small", "train"), ("near3.jpg", "What is it?", "thing number 3 of six", "train")]
    rows += [
        ("near3.jpg", "Where is it?", "at quite another place", "train"),
        ("near0.jpg", "What?", "a test image", "train"),
    ]
    out = own(tmp_path / "own", rows, images)
    plant(out, lambda record: [replace(with_image(record, b"\x89PNG\r\n\x1a\n"), id="csv/broken/vqa/0"), record])
    report = filter_dataset(out, tmp_path / "radmd")
    reasons = {"side shorter than 28": 1, "same scan with the same text": 1, "nearly a scan of test": 1, "broken scan": 1}
    assert report["dropped"] == {"csv": reasons}
    assert report["records"] == 7
    assert kinds(tmp_path / "radmd") == set()


def test_what_is_not_finished_is_not_filtered(tmp_path, sound):
    with pytest.raises(DataError, match=r"no manifest\.json"):
        filter_dataset(tmp_path, tmp_path / "x")
    with pytest.raises(DataError, match="not empty"):
        filter_dataset(sound, sound)
    with pytest.raises(DataError, match="no record is left"):
        filter_dataset(sound, tmp_path / "y", FilterOptions(min_side=1000))
