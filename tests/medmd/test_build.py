"""Builds: the same bytes with any number of workers and after an interruption; what is left out is counted and named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from building import make_plan_of, make_portal
from PIL import Image
from portals import PORTALS, pixels, table

from radfm.medmd.build import BuildOptions, build
from radfm.medmd.plan import PlanOptions, count_shards
from radfm.medmd.schema import DataError
from radfm.medmd.shards import file_sha256, read_records, shard_files
from radfm.medmd.task import STATE

pytestmark = pytest.mark.slow  # builds data sets, again and again


SOURCES = ("nih", "slake", "vqa-rad", "ct-rate", "mednist")


@pytest.fixture
def inputs(tmp_path) -> dict[str, Path]:
    return {name: make_portal(name, tmp_path) for name in SOURCES}


def files_of(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in shard_files(folder)}


def own_scans(folder: Path, rows: int, **columns: str) -> Path:
    """A table of small images, one question each."""
    folder.mkdir(exist_ok=True)
    for i in range(rows):
        Image.fromarray(pixels(i)).save(folder / f"{i}.png")
    cells = [[f"{i}.png", "What is it?", f"thing {i}", f"patient {i}", *columns.values()] for i in range(rows)]
    return table(folder / "rows.csv", ("image", "question", "answer", "group", *columns), cells)


def test_workers_do_not_change_a_byte(inputs, tmp_path):
    one, two = (build(inputs, tmp_path / f"out{n}", BuildOptions(workers=n)) for n in (1, 2))
    assert files_of(tmp_path / "out1") == files_of(tmp_path / "out2")
    assert one == two
    hashes = {json.loads((tmp_path / f"out{n}" / "manifest.json").read_text())["logical_hash"] for n in (1, 2)}
    assert len(hashes) == 1


def test_another_seed_changes_the_order_and_no_answer(inputs, tmp_path):
    build(inputs, tmp_path / "a")
    build(inputs, tmp_path / "b", BuildOptions(PlanOptions(seed=1)))
    orders = [[record.id for file in shard_files(tmp_path / n) for record in read_records(file)] for n in "ab"]
    assert orders[0] != orders[1]
    assert files_of(tmp_path / "a") != files_of(tmp_path / "b")


def test_an_interrupted_build_goes_on_to_the_same_bytes(inputs, tmp_path, monkeypatch):
    build(inputs, tmp_path / "whole")

    class KilledError(Exception):
        pass

    def kill_in_the_last_shard(done: int, total: int) -> None:
        if done == total - 1:
            raise KilledError

    with pytest.raises(KilledError):
        build(inputs, tmp_path / "out", progress=kill_in_the_last_shard)
    assert (tmp_path / "out" / STATE).is_dir() and not (tmp_path / "out" / "manifest.json").exists()
    taken_over = [json.loads(path.read_text()) for path in (tmp_path / "out" / STATE / "shards").glob("*.json")]
    counts = []
    build(inputs, tmp_path / "out", progress=lambda done, total: counts.append(done))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert counts[0] == sum(file["rows"] for result in taken_over for file in result["files"].values()) > 0
    assert not (tmp_path / "out" / STATE).exists()


def test_a_process_that_is_killed_leaves_no_half_shard(tmp_path):
    source = own_scans(tmp_path / "own", 400)
    program = (
        "import os, sys; from pathlib import Path; from radfm.medmd.build import build\n"
        "stop = lambda done, total: os._exit(9) if done == 300 else None\n"
        f"build({{'csv': Path({str(source)!r})}}, Path({str(tmp_path / 'out')!r}), progress=stop)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    assert list((tmp_path / "out").rglob("*.tmp"))
    build({"csv": source}, tmp_path / "out")
    build({"csv": source}, tmp_path / "whole")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_a_shard_that_was_damaged_meanwhile_is_written_again(inputs, tmp_path):
    build(inputs, tmp_path / "whole")
    stops = iter([True])

    def stop_at_the_end(done: int, total: int) -> None:
        if done == total and next(stops, False):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        build(inputs, tmp_path / "out", progress=stop_at_the_end)
    shard_files(tmp_path / "out")[0].write_bytes(b"damaged")
    build(inputs, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_finished_build_is_not_made_again(inputs, tmp_path):
    report = build(inputs, tmp_path / "out")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert build(inputs, tmp_path / "out") == report
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()} == written


def test_a_folder_with_other_data_is_not_written_over(inputs, tmp_path):
    build(inputs, tmp_path / "out")
    with pytest.raises(DataError, match="other data or with other options"):
        build(inputs, tmp_path / "out", BuildOptions(PlanOptions(seed=5)))
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        build(inputs, tmp_path / "letters")


def test_few_broken_scans_are_named_and_many_stop_the_build(tmp_path):
    source = own_scans(tmp_path / "own", 40)
    (tmp_path / "own" / "7.png").write_bytes(b"broken")
    report = build({"csv": source}, tmp_path / "out")
    assert (report["records"], report["unreadable"]["count"]) == (39, 1)
    assert report["unreadable"]["scans"][0]["reason"].startswith("7.png: ")
    for i in (8, 9):
        (tmp_path / "own" / f"{i}.png").unlink()
    with pytest.raises(DataError, match=r"more than 2 rows .* --max-broken"):
        build({"csv": source}, tmp_path / "out2")
    with pytest.raises(DataError, match="more than 2 rows"):
        build({"csv": source}, tmp_path / "out3", BuildOptions(workers=2))
    assert build({"csv": source}, tmp_path / "out4", BuildOptions(max_broken=0.1))["records"] == 37


def test_a_scan_of_the_test_split_leaves_training_whatever_its_name(tmp_path):
    source = own_scans(tmp_path / "own", 10, split="train")
    rows = source.read_text().splitlines()
    (tmp_path / "own" / "copy.png").write_bytes((tmp_path / "own" / "3.png").read_bytes())
    source.write_text("\n".join([*rows, "copy.png,What is it?,a copy,patient x,test"]) + "\n")
    report = build({"csv": source}, tmp_path / "out")
    assert report["dropped"] == {"csv": {"same pixels are in test": 1}}
    records = [record for file in shard_files(tmp_path / "out") for record in read_records(file)]
    assert [record.answer for record in records if record.split == "test"] == ["a copy"]
    assert "thing 3" not in [record.answer for record in records]
    assert report["statistics"]["total"]["records"] == report["records"] == 10


def test_a_patient_is_in_one_split_and_only_as_a_hash(tmp_path):
    source = own_scans(tmp_path / "own", 30)
    text = source.read_text().replace("patient ", "Muster-")
    source.write_text(text + "5.png,Where?,here,Muster-9,\n")
    build({"csv": source}, tmp_path / "out")
    records = [record for file in shard_files(tmp_path / "out") for record in read_records(file)]
    assert len({(record.group, record.split) for record in records}) == len({record.group for record in records})
    assert not any(b"Muster" in path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())


def test_yes_and_no_are_balanced_for_everything_that_is_asked(tmp_path):
    plan, _ = make_plan_of(tmp_path, "mednist", "pneumonia-mnist", "busi", "rsna", "covidx")
    query = (
        "SELECT source, split, topic, SUM(answer = 'yes'), SUM(answer = 'no') FROM rows WHERE topic != '' GROUP BY 1, 2, 3"
    )
    counts = plan.database.execute(query).fetchall()
    assert counts and all(yes == no for *_, yes, no in counts)


@pytest.mark.parametrize(
    ("header", "row", "sentence"),
    [
        ("image,question", "a.png,What?", "no column answer"),
        ("image,question,answer", ",What?,x", "row 2: the column image is empty"),
        ("image,question,answer", "a.png,What?,", "row 2: the column answer is empty"),
        ("image,question,answer", "a.png,,x", "the column question is empty"),
        ("image,question,answer,task", "a.png,What?,x,guess", "task 'guess' is none of"),
        ("image,question,answer,split", "a.png,What?,x,exam", "split 'exam' is none of"),
        ("image,question,answer,findings", "a.png,What?,x,mass=9", "findings are written as"),
    ],
)
def test_a_wrong_table_is_refused_with_its_row(header, row, sentence, tmp_path):
    (tmp_path / "rows.csv").write_text(f"{header}\n{row}\n")
    with pytest.raises(DataError, match=sentence):
        build({"csv": tmp_path / "rows.csv"}, tmp_path / "out")


def test_json_lines_take_lists_of_images_and_findings(tmp_path):
    for i in range(2):
        Image.fromarray(pixels(i)).save(tmp_path / f"{i}.png")
    row = {
        "image": ["0.png", "1.png"],
        "question": "Same?",
        "answer": "No",
        "findings": {"mass": 1},
        "split": "val",
        "group": "p",
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    build({"jsonl": tmp_path / "rows.jsonl"}, tmp_path / "out")
    (record,) = read_records(shard_files(tmp_path / "out")[0])
    assert (len(record.images), record.split, record.answer_type, record.findings[0].name) == (
        2,
        "validation",
        "closed",
        "mass",
    )


def test_large_sets_have_a_multiple_of_64_shards():
    for config in ("2d", "3d"):
        assert all(count_shards(rows, config) % 64 == 0 for rows in (5_000, 100_000, 16_000_000))
        assert count_shards(10, config) == 1


def test_documents_say_what_is_there(inputs, tmp_path):
    report = build(inputs, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(f"| {name} |" in card for name in SOURCES)
    assert "terms to sign" in card and "plots/statistics.png" in card
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    assert "license: other" in card


def test_every_portal_together_is_one_dataset(tmp_path):
    names = sorted(set(PORTALS) - {"radfm-csv"})
    report = build({name: make_portal(name, tmp_path) for name in names}, tmp_path / "out")
    assert report["unreadable"]["count"] == 0
    assert set(report["statistics"]["source"]) | set(report["dropped"]) == set(
        names
    )  # pixels of several portals are the same
