"""The report page: what stands on it, that it loads nothing, and how it looks wide and narrow, light and dark."""

import re
import shutil
from pathlib import Path

import pytest
from results import build_data, copy_reference, make_items, most_frequent, predict, write_results, write_two_results

from radfm.radbench import radar
from radfm.radbench.report import write_report
from radfm.radbench.scores import read_scores, score_run, write_json

CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """A perfect model with two baselines, scored."""
    items = make_items(12)
    predictions = predict(items, copy_reference, likelihoods=True)
    for condition in ("most frequent answer", "no image"):
        predictions += predict(items, most_frequent, condition)
    out = write_results(tmp_path_factory.mktemp("results"), items, predictions, "lab/<b>model</b>")
    score_run(out)
    write_report(out, None)
    return out


def test_the_page_has_baselines_intervals_and_published_scores_in_a_table_of_their_own(results):
    page = (results / "report.html").read_text()
    for words in (
        "most frequent answer",
        "no image",
        "95 % interval",
        "· test split",
        "Published scores, not measured here",
        "p (Holm)",
    ):
        assert words in page, words
    measured, published = page.split("Published scores, not measured here")
    assert "Med-Flamingo" in published and "Med-Flamingo" not in measured
    assert "Known faults of RadBench as published" in published


def test_warnings_stand_under_the_kind_of_question_that_they_are_about(results, tmp_path):
    folder = shutil.copytree(results, tmp_path / "results")
    scores = read_scores(folder)
    write_json(
        {**scores, "warnings": ["All of it.", "modality, open: few.", "report, open: composed."]}, folder / "scores.json"
    )
    write_report(folder, None)
    section = (folder / "report.html").read_text().split("What not to conclude")[1].split("</section>")[0]
    assert re.findall(r"<(?:h3|li)>([^<]+)<", section) == [
        *("All of it.", "Modality recognition, open questions", "Few.", "Report generation, open questions", "Composed.")
    ]


def test_the_page_loads_nothing_and_escapes_what_models_say(results):
    page = (results / "report.html").read_text()
    assert "<script" not in page and not re.search(r'(src|href)="(?!data:)', page) and "url(" not in page
    assert "<b>model" not in page and "lab/&lt;b&gt;model" in page


def test_the_summary_has_the_same_numbers(results):
    summary = (results / "summary.md").read_text()
    assert "| scan | 100.0 (" in summary and "| no image |" in summary and "## What not to conclude" in summary


def test_pictures_are_those_of_the_scans(tmp_path, series_zips):
    data = build_data(tmp_path, series_zips)
    out, other = write_two_results(tmp_path, data)
    for folder in (out, other):
        score_run(folder)
        write_report(folder, data)
    page = (other / "report.html").read_text()
    assert "data:image/png;base64," in page and "axial slice 11 of 20" in page
    assert "no picture" not in page and "Answers with low ROUGE-L" in page


def test_a_radar_draws_its_values_and_leaves_gaps():
    svg = radar.draw_radar("three", ["a", "b\nc", "d"], [radar.Series("m", [1.0, 0.5, None], 0)])
    assert svg.count("<polyline") == 1 and svg.count("<circle") == 2 and '<polygon class="line' not in svg
    whole = radar.draw_radar("three", ["a", "b", "c"], [radar.Series("m", [1.0, 0.0, 2.0], 0)])
    x, y = map(float, re.search(r'class="line s0" points="([\d.]+),([\d.]+)', whole).groups())
    assert (x, y) == (radar.WIDTH / 2, radar.HEIGHT / 2 - radar.RADIUS)  # 1 at the top of the first axis
    with pytest.raises(ValueError, match="three and more"):
        radar.draw_radar("two", ["a", "b"], [])


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(results, width, scheme):
    """Nothing sticks out at the side, text and background differ, nothing serious for axe-core."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    axe = Path(__file__).parents[1] / "space" / "vendor" / "axe.min.js"
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"file://{results / 'report.html'}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for summary in page.locator("summary").all():
            summary.click()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.add_script_tag(path=str(axe))
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']}).then((result) => result.violations)")
        serious = [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in found if v["impact"] in ("serious", "critical")]
        browser.close()
    assert serious == [] and len(asked) == 1
