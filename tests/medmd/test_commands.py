"""`radfm data`: what is printed, and one sentence with status 2 for bad input."""

import json

import pytest
from building import make_portal
from typer.testing import CliRunner

from radfm.cli.main import app


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    return result.exit_code, result.output


def test_the_list_has_every_source_with_licence_and_address():
    from radfm.medmd.sources import all_sources

    status, output = run("list")
    assert status == 0
    assert all(
        source.name in output and source.url in output and source.licence in output for source in all_sources().values()
    )
    assert "mimic" not in run("list", "--access", "open")[1]
    assert "no_chest" not in run("list", "--name", "ct-rate")[1] and "dataset/" in run("list", "--name", "ct-rate")[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("build", "--source", "slake", "--out", "x"), "--source slake: write NAME=FOLDER"),
        (("build", "--source", "slak=DIR", "--out", "x"), "there is no source 'slak', but slake"),
        (("build", "--source", "slake=no-such-folder", "--out", "x"), "no-such-folder: there is no such file or folder"),
        (("build", "--source", "slake=.", "--out", "x", "--runner", "spark"), "--runner spark is neither local nor ray"),
        (("build", "--source", "slake=.", "--out", "x", "--volume-size", "big"), "--volume-size big: write IN_PLANE,SLICES"),
        (("filter", "nowhere", "--out", "x"), "nowhere: has no manifest.json"),
        (("check", "nowhere"), "nowhere: holds no 2d/*.parquet"),
        (("list", "--access", "mine"), "--access mine is none of open"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, output = run(*arguments)
    assert status == 2
    assert sentence in output and len(output.strip().splitlines()) == 1


def test_build_filter_and_check_follow_each_other(tmp_path):
    root = make_portal("nih", tmp_path)
    status, output = run("build", "--source", f"nih={root}", "--out", tmp_path / "medmd")
    assert status == 0 and "records in" in output
    assert run("filter", tmp_path / "medmd", "--out", tmp_path / "radmd")[0] == 0
    status, output = run("check", tmp_path / "radmd", "--json")
    assert status == 0 and json.loads(output)["problems"] == {}
    next((tmp_path / "radmd" / "2d").glob("*.parquet")).write_bytes(b"damaged")
    status, output = run("check", tmp_path / "radmd")
    assert status == 2
