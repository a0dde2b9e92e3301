"""Several models on the same questions."""

import json
from pathlib import Path

import pytest
from results import copy_reference, make_items, most_frequent, predict, write_results
from typer.testing import CliRunner

from radfm.cli.main import app
from radfm.radbench.compare import compare, comparison_text, main_rows
from radfm.radbench.items import BenchError


@pytest.fixture
def folders(tmp_path) -> list[Path]:
    """A perfect model, and one that always says the same."""
    items = make_items(24)
    one = write_results(tmp_path / "one", items, predict(items, copy_reference), "lab/one")
    return [one, write_results(tmp_path / "two", items, predict(items, most_frequent), "lab/two")]


def test_the_better_model_is_named_with_a_corrected_p(folders):
    comparison = compare(folders)
    assert comparison["models"] == ["lab/one", "lab/two"] and (comparison["shared"], comparison["left_out"]) == (120, 0)
    assert {test["better"] for test in comparison["tests"]} == {"lab/one"}
    assert all(test["p"] <= test["p_holm"] < 0.05 and test["difference"] > 0 for test in comparison["tests"])
    one, two = main_rows(comparison)[("diagnosis", "yes_no"), "accuracy (lenient)"]
    assert one["value"] == 1 and two["value"] == pytest.approx(2 / 3, abs=1e-6) and two["interval"]


def test_turned_round_the_same_model_wins(folders):
    assert {test["better"] for test in compare(folders[::-1])["tests"]} == {"lab/one"}


def test_equal_models_are_not_told_apart(folders, tmp_path):
    items = make_items(24)
    twin = write_results(tmp_path / "twin", items, predict(items, copy_reference), "lab/twin")
    comparison = compare([folders[0], twin])
    assert {(test["better"], test["p"]) for test in comparison["tests"]} == {(None, 1.0)}
    assert "not told apart" in comparison_text(comparison)


def test_only_questions_in_the_same_words_are_compared(folders, tmp_path):
    more = make_items(30)
    third = write_results(tmp_path / "three", more, predict(more, copy_reference), "lab/three")
    comparison = compare([*folders, third])
    assert (comparison["shared"], comparison["left_out"]) == (120, 30) and len(comparison["tests"]) == 5 * 3
    other = [item for item in make_items(2) if item.form == "open"]
    changed = [type(item).from_line(item.to_line().replace("Question", "Another")) for item in other]
    stranger = write_results(tmp_path / "four", changed, predict(changed, copy_reference), "lab/four")
    with pytest.raises(BenchError, match="--items"):
        compare([folders[0], stranger])


def test_two_results_of_one_model_are_told_apart_by_their_folders(folders, tmp_path):
    items = make_items(24)
    again = write_results(tmp_path / "again", items, predict(items, most_frequent), "lab/one")
    names = compare([folders[0], again])["models"]
    assert names == [f"lab/one ({folders[0]})", f"lab/one ({again})"]


def test_the_command_writes_a_page_with_a_radar(folders, tmp_path):
    page = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["bench", "compare", *map(str, folders), "--out", str(page)])
    assert result.exit_code == 0, result.output
    assert "lab/one" in result.output and "p (Holm)" in result.output
    text = page.read_text()
    assert '<svg class="radar"' in text and "lab/two" in text and "<script" not in text
    result = CliRunner().invoke(app, ["bench", "compare", str(folders[0])])
    assert result.exit_code == 2 and "two results folders" in result.output


def test_a_comparison_is_plain_json(folders):
    json.dumps(compare(folders), allow_nan=False)
