"""`radfm bench draw` and `radfm bench run`: what they print, and one sentence with status 2 for bad input."""

import json
from pathlib import Path

import pytest
from bench_data import build_data
from helpers import ROOT
from typer.testing import CliRunner

from radfm.cli.main import app
from radfm.radbench.items import fingerprint, read_items


def bench(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return build_data(tmp_path_factory.mktemp("cli"), patients=2, volumes=0)


def test_draw_freezes_the_same_items_each_time_and_prints_their_fingerprint(data, tmp_path):
    for name in ("one.jsonl", "two.jsonl"):
        status, output = bench("draw", "--data", data, "--out", tmp_path / name)
        assert status == 0 and fingerprint(read_items(tmp_path / name)) in output
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


def test_draw_takes_the_forms_that_are_named(data, tmp_path):
    assert bench("draw", "--data", data, "--out", tmp_path / "items.jsonl", "--form", "yes_no", "--form", "open")[0] == 0
    assert {item.form for item in read_items(tmp_path / "items.jsonl")} == {"yes_no", "open"}


@pytest.mark.slow  # loads the model and writes a report
@pytest.mark.parametrize("model", [(), ("--model", ".")])
def test_run_asks_the_demo_checkpoint_by_default_and_goes_on_to_the_report(model, data, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    status, output = bench("run", *model, "--data", data, "--out", tmp_path / "out", "--stability", "--device", "cpu")
    assert status == 0, output
    assert f"open {tmp_path / 'out' / 'report.html'}" in output.replace("\n", "")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("items.jsonl", "predictions.jsonl", "run.json", "scores.json", "report.html", "summary.md")
    }
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["model"] == ROOT.name
    assert '"flipped scan"' in (tmp_path / "out" / "predictions.jsonl").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("draw", "--data", "nowhere", "--out", "x"), "nowhere: holds no 2d/*.parquet"),
        (("draw", "--data", "DATA", "--out", "x", "--form", "essay"), "form 'essay' is none of open, yes_no"),
        (("run", "--data", "nowhere", "--out", "x"), "nowhere: holds no 2d/*.parquet"),
        (("run", "--data", "DATA", "--out", "x", "--model", "nothing"), "nothing: is neither a folder nor a Hub id"),
        (("run", "--data", "DATA", "--out", "x", "--endpoint", "http://h/v1"), "--endpoint needs --model"),
        (("run", "--data", "DATA", "--out", "x", "--items", "none.jsonl"), "none.jsonl: there is no such file"),
        (("run", "--data", "DATA", "--out", "x", "--device", "tpu9"), "--device tpu9"),
        (("run", "--data", "DATA", "--out", "x", "--dtype", "int3"), "--dtype int3 is none of auto"),
        (("run", "--data", "DATA", "--out", "x", "--train-data", "nowhere"), "nowhere: holds no 2d/*.parquet"),
    ],
)
def test_bad_input_is_one_sentence_before_a_folder_is_made(arguments, sentence, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, output = bench(*(str(data) if argument == "DATA" else argument for argument in arguments))
    assert status == 2
    assert sentence in output and len(output.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("command", ["draw", "run", "compare", "rate", "publish", "score"])
def test_help_teaches_by_example(command):
    status, output = bench(command, "--help")
    assert status == 0 and f"radfm bench {command} " in output
