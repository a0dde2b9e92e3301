"""The rating page: what is asked, what is kept, what it says; and a rater at work in Chromium."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from results import build_data, copy_reference, make_items, most_frequent, predict, write_results, write_two_results
from scipy import stats

from radfm.radbench.compare import compare, write_comparison
from radfm.radbench.items import BenchError, read_items
from radfm.radbench.rating import agreement
from radfm.radbench.rating.questions import prepare, read_questions
from radfm.radbench.rating.store import Click, RatingStore

CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)


@pytest.fixture
def folders(tmp_path) -> list[Path]:
    """Results of a perfect model and of one that always says the same."""
    items = make_items(8)
    one = write_results(tmp_path / "one", items, predict(items, copy_reference), "lab/one")
    two = write_results(tmp_path / "two", items, predict(items, most_frequent), "lab/two")
    return [one, two]


def test_questions_are_drawn_once_and_kept(folders, tmp_path):
    first = prepare(folders, tmp_path / "r", (), 5, seed=0)
    assert len(first.questions) == 5 and {question.task for question in first.questions} == {"report"}
    assert prepare(folders, tmp_path / "r", ("vqa",), 3, seed=9) == first == read_questions(tmp_path / "r")
    assert prepare(folders, tmp_path / "other", (), 5, seed=1) != first


def test_closed_questions_are_rated_where_they_are_named(folders, tmp_path):
    rating = prepare(folders, tmp_path / "r", ("vqa",), 3, seed=0)
    assert {question.task for question in rating.questions} == {"vqa"}


def test_what_cannot_be_rated_is_said(folders, tmp_path):
    with pytest.raises(BenchError, match="two results folders"):
        prepare(folders[:1], tmp_path / "r", (), 5, 0)
    with pytest.raises(BenchError, match="one model"):
        prepare([folders[0], folders[0]], tmp_path / "r", (), 5, 0)
    with pytest.raises(BenchError, match="'x-ray' is none of"):
        prepare(folders, tmp_path / "r", ("x-ray",), 5, 0)
    prepare(folders, tmp_path / "r", (), 5, 0)
    items = read_items(folders[0] / "items.jsonl")
    third = write_results(tmp_path / "three", items, predict(items, copy_reference), "lab/three")
    with pytest.raises(BenchError, match="lab/one, lab/two"):
        prepare([folders[0], third], tmp_path / "r", (), 5, 0)


def test_the_order_is_blind_and_stays(folders, tmp_path):
    questions = prepare(folders, tmp_path / "r", (), 8, seed=0).questions
    orders = [tuple(question.blind_order(rater, 0)) for question in questions for rater in ("a", "b", "c")]
    assert len(set(orders)) == 2  # each of the two comes first now and then
    assert orders == [tuple(question.blind_order(rater, 0)) for question in questions for rater in ("a", "b", "c")]


def test_clicks_are_on_the_disk_at_once_and_the_last_counts(tmp_path):
    RatingStore(tmp_path).save(Click("ann", "i", "m", 2))
    RatingStore(tmp_path).save(Click("ann", "i", "m", 4, "right lobe"))
    with open(tmp_path / "ratings-ann.jsonl", "a") as lines:
        lines.write('{"rater": "ann", "item": "j", "mod')  # a crash in the middle of a line
    assert RatingStore(tmp_path).load("ann") == {("i", "m"): Click("ann", "i", "m", 4, "right lobe")}
    with pytest.raises(BenchError, match="letters, digits"):
        RatingStore(tmp_path).save(Click("../ann", "i", "m", 2))
    with pytest.raises(BenchError, match="rating 6"):
        RatingStore(tmp_path).save(Click("ann", "i", "m", 6))


def rate(folder: Path, values: dict[tuple[str, str], list[int]]) -> None:
    """(rater, model) → the rating of each question."""
    questions = read_questions(folder).questions
    for (rater, model), ratings in values.items():
        for question, value in zip(questions, ratings, strict=True):
            RatingStore(folder).save(Click(rater, question.item, model, value))


def test_means_and_ranks_by_hand(folders, tmp_path):
    prepare(folders, tmp_path / "r", (), 3, seed=0)
    rate(tmp_path / "r", {("ann", "lab/one"): [5, 4, 3], ("ann", "lab/two"): [1, 4, 4]})
    found = agreement.summarise(tmp_path / "r")
    one, two = found["models"]
    assert (one["model"], one["mean"], one["n"]) == ("lab/one", 4.0, 3) and two["mean"] == 3.0
    assert one["rank"] == pytest.approx((1 + 1.5 + 2) / 3) and two["rank"] == pytest.approx((2 + 1.5 + 1) / 3)
    assert found["alpha"] is None and found["tasks"] == {"report": {"lab/one": 4.0, "lab/two": 3.0}}


def test_agreement_of_two_raters(folders, tmp_path):
    prepare(folders, tmp_path / "r", (), 8, seed=0)
    ann = {"lab/one": [5, 5, 4, 5, 3, 4, 5, 2], "lab/two": [1, 0, 2, 1, 1, 3, 0, 2]}
    generator = np.random.default_rng(0)
    bob = {model: np.clip(np.array(values) + generator.integers(-1, 2, 8), 0, 5).tolist() for model, values in ann.items()}
    rate(tmp_path / "r", {("ann", m): v for m, v in ann.items()} | {("bob", m): v for m, v in bob.items()})
    found = agreement.summarise(tmp_path / "r")
    assert found["raters"] == ["ann", "bob"] and found["units"] == 16
    assert 0.7 < found["alpha"] < 1 and found["alpha_interval"][0] < found["alpha"] < found["alpha_interval"][1]
    ranks = stats.rankdata(-np.array([ann["lab/one"], ann["lab/two"]]), axis=0)
    assert 1 <= found["models"][0]["rank"] < 1.5 and ranks[0].mean() < ranks[1].mean()
    assert found["models"][0]["rank_interval"][0] >= 1


def test_a_rater_who_left_out_an_answer_gives_no_rank(folders, tmp_path):
    prepare(folders, tmp_path / "r", (), 2, seed=0)
    first = read_questions(tmp_path / "r").questions[0]
    RatingStore(tmp_path / "r").save(Click("ann", first.item, "lab/one", 5))
    found = {row["model"]: row for row in agreement.summarise(tmp_path / "r")["models"]}
    assert found["lab/one"]["mean"] == 5 and found["lab/one"]["rank"] is None
    assert found["lab/two"]["n"] == 0 and found["lab/two"]["mean"] is None


def test_ratings_stand_on_the_page_of_a_comparison(folders, tmp_path):
    prepare(folders, tmp_path / "r", (), 3, seed=0)
    rate(tmp_path / "r", {("ann", "lab/one"): [5, 4, 3], ("ann", "lab/two"): [1, 4, 4]})
    write_comparison(compare(folders), tmp_path / "page.html", agreement.summarise(tmp_path / "r"))
    page = (tmp_path / "page.html").read_text()
    assert "Human ratings" in page and "4.00" in page and "no agreement can be given" in page


@pytest.mark.browser
def test_a_rater_at_work(tmp_path, series_zips, monkeypatch):
    """Keys and clicks, a reason, a reload in the middle: everything is kept, and nothing tells which model is which."""
    save = RatingStore.save

    def save_slowly(store: RatingStore, click: Click) -> None:
        time.sleep(1)  # the next click comes before this one is kept
        save(store, click)

    monkeypatch.setattr(RatingStore, "save", save_slowly)
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
    pytest.importorskip("gradio", reason="needs gradio: pip install -e '.[space]'")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    from radfm.radbench.rating.page import serve

    data = build_data(tmp_path, series_zips)
    folders = write_two_results(tmp_path, data)
    rating = prepare(folders, tmp_path / "r", (), 3, seed=0)
    blocks, address = serve(rating, tmp_path / "r", data, port=None, wait=False)

    def kept() -> list[dict]:
        file = tmp_path / "r" / "ratings-ann.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    try:
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(60_000)

            def open_page(question: int, done: int) -> None:
                page.goto(address)
                page.fill("#rater input, #rater textarea", "ann")
                page.click("#start")
                page.wait_for_selector(f'#progress [data-question="{question}"][data-done="{done}"]')

            open_page(1, 0)
            text = page.inner_text("#rating")
            assert "lab/one" not in text and "lab/two" not in text and rating.questions[0].reference in text
            assert page.locator("#scan img").get_attribute("src").startswith("data:image/png")
            caption = page.inner_text("#scan figcaption")
            page.keyboard.press("ArrowUp")
            page.wait_for_function("before => document.querySelector('#scan figcaption').innerText !== before", arg=caption)

            page.keyboard.press("4")
            page.wait_for_function("document.querySelectorAll('#answer-A input:checked').length === 1")
            page.keyboard.press("r")
            page.keyboard.type("misses the nodule, 3 mm")
            page.keyboard.press("Escape")
            page.locator("#answer-B input[type=radio]").nth(1).click()
            page.wait_for_selector('#progress [data-done="1"]')
            order = rating.questions[0].blind_order("ann", 0)
            expected = {order[0]: (4, "misses the nodule, 3 mm"), order[1]: (1, "")}
            # The reason and the second rating are two requests, which may end in any order.
            deadline = time.monotonic() + 60
            while (last := {c["model"]: (c["value"], c["reason"]) for c in kept()}) != expected:
                assert time.monotonic() < deadline, last
                page.wait_for_timeout(100)

            page.keyboard.press("n")
            page.wait_for_selector('html:not([data-busy]) #progress [data-question="2"]')
            page.keyboard.press("5")
            page.wait_for_function("document.querySelectorAll('#answer-A input:checked').length === 1")
            page.keyboard.press("0")
            page.wait_for_selector('#progress [data-done="2"]')

            open_page(3, 2)  # as if the browser had crashed
            for question in (2, 1):
                page.keyboard.press("p")
                page.wait_for_selector(f'html:not([data-busy]) #progress [data-question="{question}"]')
            page.wait_for_function("document.querySelector('#answer-A input:checked')?.value === '4'")
            reason = page.locator("#answer-A .reason textarea, #answer-A .reason input").first
            assert reason.input_value() == "misses the nodule, 3 mm"
            browser.close()
    finally:
        blocks.close()
    assert len(kept()) == 5  # four ratings, one of them again with its reason
    assert agreement.summarise(tmp_path / "r")["models"][0]["n"] == 2
