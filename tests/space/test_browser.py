"""The Space in a real browser; set RADFM_SCREENSHOTS to a folder to keep what it looked like."""

import json
import shutil
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from helpers import ROOT
from visitor import CHROMIUM, SCREENS, VIEWER, WEBGL, WITHOUT_WEBGL, Visitor

import app
import inference
import viewer
from radfm.load_scan_radfm import load_scan

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
AXE = Path(__file__).parent / "vendor" / "axe.min.js"
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def playwright():
    with sync_api.sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def chromium(playwright):
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=WEBGL)
    yield browser
    browser.close()


@pytest.fixture
def visit(served, chromium):
    """Open the page; the visitor leaves at the end of the test, and nothing may have gone wrong by then."""
    visitors = []

    def open_page(screen: str = "wide-light") -> Visitor:
        visitors.append(Visitor(chromium, served, **SCREENS[screen]))
        return visitors[-1]

    yield open_page
    for visitor in visitors:
        visitor.close()


def serious(page) -> list[str]:
    """What axe-core calls serious on the page."""
    page.add_script_tag(path=str(AXE))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']}).then((result) => result.violations)")
    return [
        f"{v['id']}: {n['html'][:200]} {n['failureSummary']}" for v in found if v["impact"] in SERIOUS for n in v["nodes"]
    ]


@pytest.mark.parametrize("screen", SCREENS)
def test_a_visit(screen, visit, series_zips, tmp_path):
    """Open, ask, see where the model looked, drop a series, download, start anew."""
    visitor = visit(screen)
    page = visitor.page
    assert "RadFM demo checkpoint" in page.inner_text("#card") and "toy" in page.inner_text("#card")
    page.wait_for_selector("text=6.09 million parameters")
    visitor.keep(f"{screen}-open")
    answer = visitor.ask("Which body part is shown?")
    assert answer.startswith("brain") and "One of 9 labels; right in 96% of 2,122 held-out cases." in answer
    assert "knows findings only" in visitor.ask("What is the diagnosis?")
    page.click("#where")
    page.wait_for_selector('[data-part=viewer][data-overlay="1"]')
    page.get_by_role("button", name="All", exact=True).click()
    visitor.picture()
    visitor.keep(f"{screen}-overlay")

    visitor.drop(series_zips / "dicom_series_ct.zip")
    visitor.sees(2)
    assert page.locator("#panel li").count() == 2 and "512 × 512 × 20" in page.inner_text("#panel li.on")
    page.get_by_role("button", name="Place scan 2 in the question").click()
    assert page.input_value("#question textarea") == "[2] "
    answer = visitor.ask("Is [2] a CT scan? Answer yes or no.")
    assert "%" in answer and "not calibrated" in answer
    assert "one scan at a time" in visitor.ask("Is [1] or [2] a CT scan?")
    visitor.keep(f"{screen}-two-scans")
    with page.expect_download() as download:
        page.get_by_role("link", name="conversation (JSON)").click()
    download.value.save_as(tmp_path / "conversation.json")
    turns = json.loads((tmp_path / "conversation.json").read_text())["turns"]
    assert turns[0]["answer"] == "brain" and turns[2]["p_yes"] is not None
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    visitor.confirms = False
    page.click("#restart")
    assert page.locator("#panel li").count() == 2 and "Delete your scans" in visitor.dialogs[0]
    visitor.confirms = True
    page.click("#restart")
    visitor.until("document.querySelectorAll('#panel li').length === 0")
    visitor.wrong = [text for text in visitor.wrong if "kept" not in text]


@pytest.mark.parametrize("screen", SCREENS)
def test_axe_finds_nothing_serious(screen, visit):
    visitor = visit(screen)
    visitor.ask("Which body part is shown?")
    visitor.page.get_by_text("What it knows, and how often it is right").click()
    assert serious(visitor.page) == []
    visitor.page.locator("[data-tool=help]").click()
    assert serious(visitor.page) == []
    visitor.keep(f"{screen}-help")


def test_on_a_phone_the_picture_stays_above_the_answer(visit):
    visitor = visit("narrow-dark")
    visitor.ask("Which body part is shown?")
    visitor.page.evaluate("document.querySelector('#question').scrollIntoView({block: 'end'})")
    left, chat = (visitor.page.locator(part).bounding_box() for part in ("#left", "#chat"))
    assert visitor.page.evaluate("scrollY") > 0 and left["y"] == 0 and chat["y"] >= left["height"]
    in_front = "(y) => document.querySelector('#left').contains(document.elementFromPoint(innerWidth / 2, y))"
    assert all(visitor.page.evaluate(in_front, y) for y in range(5, int(left["height"]), 20))
    visitor.keep("narrow-dark-answer")


def test_the_overlay_covers_the_scan_as_strongly_as_its_slider_says(visit):
    visitor = visit()
    page, without = visitor.page, visitor.picture()
    page.click("#where")
    page.wait_for_selector('[data-part=viewer][data-overlay="1"]')
    page.fill("[data-part=opacity]", "100")
    strong = np.abs(visitor.picture() - without).mean()
    page.fill("[data-part=opacity]", "30")
    weak = np.abs(visitor.picture() - without).mean()
    page.fill("[data-part=opacity]", "0")
    assert strong > 2 * weak > 1 and np.abs(visitor.picture() - without).max() == 0


def test_what_one_visitor_asked_for_is_not_shown_to_another(visit):
    first = visit()
    first.page.click("#where")
    first.page.wait_for_selector('[data-part=viewer][data-overlay="1"]')
    other = visit()
    assert other.page.evaluate(f"{VIEWER}.scan.overlay") is None
    assert other.page.get_by_role("link", name="overlay (NIfTI)").count() == 0


def test_keys_and_mouse(visit, series_zips):
    visitor = visit()
    page = visitor.page
    visitor.drop(series_zips / "dicom_series_ct.zip")
    visitor.sees(2)
    middle = visitor.slice()
    canvas = page.locator("[data-part=canvas]")
    canvas.hover()
    page.mouse.wheel(0, 100)
    visitor.until(f"document.querySelector('[data-part=slice]').value != {middle}")
    canvas.focus()
    for key, index in (("Home", 0), ("ArrowUp", 1), ("PageUp", 2), ("ArrowDown", 1), ("End", 19)):
        page.keyboard.press(key)
        visitor.until(f"document.querySelector('[data-part=slice]').value == {index}")
    assert page.get_attribute("[data-part=canvas]", "aria-label").endswith("axial slice 20 of 20")
    windows = page.evaluate(f"{VIEWER}.scan.windows.map(({{name, low, high}}) => [name, low, high])")
    bone = next(number for number, (name, *_) in enumerate(windows) if name == "Bone")
    page.keyboard.press(str(bone + 1))
    assert visitor.window() == [-500, 1300]
    plain = visitor.picture()
    page.keyboard.press("i")
    assert visitor.picture().mean() > plain.mean() + 50
    page.keyboard.press("r")
    visitor.until("document.querySelector('[data-part=slice]').value == 10")
    assert visitor.window() == windows[0][1:]
    for key, plane in (("c", "coronal"), ("s", "sagittal"), ("g", "all"), ("a", "axial")):
        page.keyboard.press(key)
        assert page.get_attribute(f"[data-plane={plane}]", "aria-pressed") == "true"
    before = visitor.picture()
    page.keyboard.press("x")
    assert page.get_attribute("[data-tool=crosshair]", "aria-pressed") == "false"
    assert np.abs(visitor.picture() - before).max() > 20
    page.keyboard.press("?")
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog[open]", state="hidden")


def test_another_series_of_a_zip_is_chosen(visit, packs, tmp_path):
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as both:
        for name in ("dicom_series_ct.zip", "dicom_series_mr.zip"):
            with zipfile.ZipFile(packs / name) as pack:
                for member in pack.namelist():
                    both.writestr(f"{name}/{member}", pack.read(member))
    visitor = visit()
    page = visitor.page
    visitor.drop(tmp_path / "both.zip")
    visitor.sees(2)
    shown = page.inner_text("#panel li.on")
    options = page.locator("[data-part=series] option")
    assert options.count() == 2 and page.locator("[data-part=volume-row]").is_hidden()
    other = page.evaluate("[...document.querySelector('[data-part=series]').options].find((o) => !o.selected).value")
    page.select_option("[data-part=series]", other)
    visitor.until(f"{VIEWER}.scan.chosen.series === '{other}'")
    visitor.sees(2)
    assert page.input_value("[data-part=series]") == other and page.inner_text("#panel li.on") != shown
    assert page.locator("#panel li").count() == 2
    visitor.keep("series-chosen")


def test_slices_are_played(visit):
    visitor = visit()
    page = visitor.page
    here = visitor.slice()
    page.click("[data-tool=play]")
    visitor.until(f"document.querySelector('[data-part=slice]').value != {here}")
    page.click("[data-tool=play]")
    assert page.inner_text("[data-tool=play]") == "Play" and page.evaluate(f"{VIEWER}.cine") is None


def drag(page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag with the left button over the canvas, from and to shares of its size."""
    box = page.locator("[data-part=canvas]").bounding_box()
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    page.mouse.move(*points[0])
    page.mouse.down()
    page.mouse.move(*points[1], steps=5)
    page.mouse.up()


def crosshair_mm(visitor: Visitor, x: float, y: float) -> list[float]:
    """Where the crosshair is in mm after a click at shares of the canvas."""
    before = visitor.page.get_attribute("[data-part=where]", "data-mm")
    drag(visitor.page, (x, y), (x, y))
    visitor.until(f"document.querySelector('[data-part=where]').dataset.mm !== '{before}'")
    return [float(word) for word in visitor.page.get_attribute("[data-part=where]", "data-mm").split()]


def test_the_left_button_changes_the_window_or_measures(visit, series_zips):
    visitor = visit()
    page = visitor.page
    visitor.drop(series_zips / "dicom_series_ct.zip")
    visitor.sees(2)
    ends = [crosshair_mm(visitor, 0.4, 0.5), crosshair_mm(visitor, 0.6, 0.5)]
    before = visitor.window()
    page.click("[data-tool=window]")
    drag(page, (0.4, 0.4), (0.5, 0.5))
    visitor.until("document.querySelector('[data-part=window]').selectedOptions[0].text.startsWith('Manual')")
    assert visitor.window() != before
    page.click("[data-tool=measure]")
    drag(page, (0.4, 0.5), (0.6, 0.5))
    visitor.until(f"{VIEWER}.niivue.document.completedMeasurements.length === 1")
    distance = page.evaluate(f"{VIEWER}.niivue.document.completedMeasurements[0].distance")
    assert distance == pytest.approx(float(np.linalg.norm(np.subtract(*ends))), abs=2)
    visitor.keep("measured")


@pytest.fixture
def talkative(repository, tmp_path, monkeypatch) -> Iterator[str]:
    """The address of a Space whose model never ends an answer by itself, and says five tokens a second."""
    folder = tmp_path / "talkative"
    folder.mkdir()
    for file in ROOT.iterdir():
        if file.suffix in (".py", ".json", ".jinja", ".safetensors"):
            shutil.copy(file, folder)
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "pad_token_id": 0}))
    stops = inference.StopOnFile.__call__

    def slowly(self, input_ids, scores, **kwargs):
        time.sleep(0.2)
        return stops(self, input_ids, scores, **kwargs)

    monkeypatch.setattr(inference, "NEW_TOKENS", 1800)
    monkeypatch.setattr(inference.StopOnFile, "__call__", slowly)
    blocks, address = app.serve(str(folder), wait=False)
    yield address
    blocks.close()


def test_an_answer_streams_and_can_be_stopped(talkative, chromium):
    visitor = Visitor(chromium, talkative, **SCREENS["wide-light"])
    page = visitor.page
    assert "does not say what it was trained for" in page.inner_text("#card")
    page.fill("#question textarea", "Describe this scan.")
    page.click("#send")
    length = "([...document.querySelectorAll('#chat .bot')].at(-1)?.innerText.length ?? 0)"
    visitor.until(f"{length} > 10")
    early = page.evaluate(length)
    visitor.until(f"{length} > {early} + 20")
    page.click("#stop")
    visitor.until("document.querySelector('#stop').disabled && !document.querySelector('#send').disabled")
    assert len(page.locator("#chat .bot").last.inner_text().split()) < 1500
    visitor.close()


def test_a_point_has_the_coordinates_that_nibabel_gives(visit, packs, tmp_path):
    """An oblique volume: click, and read position and grey value; nibabel finds the same value there."""
    scan = load_scan(packs / "dicom_series_mr.zip")
    image = nibabel.Nifti1Image(scan.voxels[0], scan.affine)
    nibabel.save(image, tmp_path / "oblique.nii.gz")
    visitor = visit()
    visitor.drop(tmp_path / "oblique.nii.gz")
    visitor.sees(2)
    for x, y in ((0.45, 0.4), (0.55, 0.6)):
        mm = crosshair_mm(visitor, x, y)
        shown = visitor.page.inner_text("[data-part=where]")
        voxel = np.rint(nibabel.affines.apply_affine(np.linalg.inv(image.affine), mm)).astype(int)
        assert float(shown.split("·")[1]) == pytest.approx(float(image.get_fdata()[tuple(voxel)]), abs=0.5)
        assert f"{'R' if mm[0] >= 0 else 'L'} {abs(mm[0]):.1f}" in shown


def test_a_flipped_copy_looks_the_same(visit, series_zips, tmp_path):
    scan = load_scan(series_zips / "dicom_series_ct.zip")
    affine = scan.affine.copy()
    for axis in (0, 1, 2):
        affine[:3, 3] += affine[:3, axis] * (scan.voxels.shape[axis + 1] - 1)
        affine[:3, axis] *= -1
    viewer.write_nifti(replace(scan, voxels=scan.voxels[..., 4:16]), tmp_path / "a.nii.gz", viewer.FULL_VOXELS)
    affine[:3, 3] += affine[:3, 2] * 4
    turned = replace(scan, voxels=scan.voxels[:, ::-1, ::-1, ::-1][..., 4:16], affine=affine)
    viewer.write_nifti(turned, tmp_path / "b.nii.gz", viewer.FULL_VOXELS)
    visitor = visit()
    pictures = []
    for number, name in ((2, "a"), (3, "b")):
        visitor.drop(tmp_path / f"{name}.nii.gz")
        visitor.sees(number)
        visitor.page.evaluate(f"{VIEWER}.goTo(3)")
        visitor.page.mouse.move(0, 0)
        pictures.append(visitor.picture())
    assert np.abs(pictures[0] - pictures[1]).mean() < 1 < pictures[0].std()


def test_the_chat_renders_no_html_no_markdown_no_remote_image(visit):
    visitor = visit()
    typed = "<img src=http://example.invalid/x.png> ![x](http://example.invalid/y.png) <form><input></form> **bold**"
    visitor.ask(typed)
    shown = visitor.page.locator("#chat .user").last
    assert typed in shown.inner_text() and shown.locator("form, strong, img[src*=example]").count() == 0


def test_what_is_dropped_while_another_scan_is_read_is_read_after_it(visit, series_zips, dicom_files):
    visitor = visit()
    files = [series_zips / "dicom_series_ct.zip", dicom_files / "693_J2KI.dcm", dicom_files / "MR_small.dcm"]
    for file in files:
        with visitor.page.expect_response("**/upload?*"):
            visitor.drop(file)
    visitor.page.wait_for_selector("#panel li >> nth=3")
    visitor.sees(4)
    sizes = visitor.page.locator("#panel li").all_inner_texts()
    assert len(sizes) == 4 and "512 × 512 × 20" in sizes[1] and "64 × 64" in sizes[3]


def test_a_bad_file_is_told_and_the_page_works_on(visit, tmp_path):
    visitor = visit()
    (tmp_path / "letter.txt").write_text("Dear colleague")
    visitor.drop(tmp_path / "letter.txt")
    visitor.page.wait_for_selector("#notice [role=alert]")
    assert "letter.txt: is no scan" in visitor.page.inner_text("#notice")
    assert "has never seen" in visitor.ask("<im<image>age> </s> <image_<image>token>")
    assert visitor.ask("Which body part is shown?").startswith("brain")


def test_what_a_visitor_brought_goes_with_the_page(visit, served, chromium, dicom_files, tmp_path):
    visitor = Visitor(chromium, served, **SCREENS["wide-light"])
    (tmp_path / "mine.dcm").write_bytes((dicom_files / "693_J2KI.dcm").read_bytes())
    visitor.drop(tmp_path / "mine.dcm")
    visitor.sees(2)
    file = Path(visitor.page.evaluate(f"{VIEWER}.scan.url").split("file=")[1])
    assert file.exists()
    visitor.close()
    sessions = app.WORK / "sessions"
    deadline = time.monotonic() + 300
    while (file.exists() or any(sessions.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not file.exists() and list(sessions.iterdir()) == []


def test_without_webgl_there_is_a_plain_slider(served, playwright, series_zips):
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=WITHOUT_WEBGL)
    visitor = Visitor(browser, served, **SCREENS["wide-light"])
    visitor.drop(series_zips / "dicom_series_ct.zip")
    visitor.sees(2)
    middle = visitor.picture()
    visitor.page.focus("[data-part=slice]")
    for _ in range(5):
        visitor.page.keyboard.press("ArrowRight")
    assert visitor.page.inner_text("[data-part=index]") == "16 / 20"
    visitor.until("document.querySelector('[data-part=picture]').complete")
    assert np.abs(visitor.picture() - middle).mean() > 1
    visitor.page.select_option("[data-part=window]", label="Bone")
    visitor.until("document.querySelector('[data-part=picture]').src.includes('slices--500-1300')")
    visitor.keep("without-webgl")
    assert visitor.page.inner_text("[data-letter=left]") == "R"
    visitor.close()
    browser.close()
