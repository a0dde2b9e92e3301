"""The Space in a real browser, the whole way; set RADFM_SCREENSHOTS to a folder to keep what it looked like."""

import io
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from helpers import ROOT

from radfm.load_scan_radfm import load_scan

pytest.importorskip("gradio", reason="needs gradio: pip install -e '.[space]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.skipif(not (ROOT / "model.safetensors").exists(), reason="needs the demo checkpoint in the root"),
]

import app  # noqa: E402
import inference  # noqa: E402
import viewer  # noqa: E402

WEBGL = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
WITHOUT_WEBGL = ["--no-sandbox", "--disable-gpu", "--disable-3d-apis"]
SCREENS = {
    "wide-light": {"viewport": {"width": 1366, "height": 850}, "color_scheme": "light"},
    "narrow-dark": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "has_touch": True},
}
VIEWER = "document.querySelector('#viewer [data-part=viewer]').parentElement.viewer"


@pytest.fixture(scope="module")
def served():
    blocks, address = app.serve(wait=False)
    yield address
    blocks.close()


@pytest.fixture(scope="module")
def talkative(tmp_path_factory):
    """A Space whose model never ends an answer by itself."""
    folder = tmp_path_factory.mktemp("talkative")
    for file in ROOT.iterdir():
        if file.suffix in (".py", ".json", ".jinja", ".safetensors"):
            shutil.copy(file, folder)
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "pad_token_id": 0}))
    before, inference.NEW_TOKENS = inference.NEW_TOKENS, 1800
    blocks, address = app.serve(str(folder), wait=False)
    yield address
    blocks.close()
    inference.NEW_TOKENS = before


@pytest.fixture(scope="module")
def playwright():
    with sync_api.sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def chromium(playwright):
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=WEBGL)
    yield browser
    browser.close()


class Visitor:
    """One page, and what went wrong on it."""

    def __init__(self, browser, address: str, **screen):
        self.page = browser.new_context(**screen).new_page()
        self.page.set_default_timeout(60_000)
        self.wrong: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self._check(request.url, address))
        self.page.goto(address)
        self.page.wait_for_selector("#drop input[type=file]", state="attached")
        self.page.wait_for_selector("#viewer [data-part=viewer]", state="attached")
        self.page.wait_for_function(f"{VIEWER} !== undefined")

    def _check(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.wrong.append(f"asked for {url}")

    def drop(self, *files) -> None:
        self.page.set_input_files("#drop input[type=file]", [str(file) for file in files])

    def sees(self, number: int) -> None:
        self.page.wait_for_selector(f'[data-part=viewer][data-shows="{number}"]')

    def ask(self, question: str) -> str:
        before = self.page.locator("#chat .bot").count()
        self.page.fill("#question textarea", question)
        self.page.press("#question textarea", "Enter")
        self.page.wait_for_function(
            f"document.querySelectorAll('#chat .bot').length > {before} && document.querySelector('#stop').disabled"
        )
        return self.page.locator("#chat .bot").last.inner_text()

    def slice(self) -> int:
        return int(self.page.input_value("[data-part=slice]"))

    def window(self) -> list[float]:
        return self.page.evaluate(f"[{VIEWER}.niivue.volumes[0].cal_min, {VIEWER}.niivue.volumes[0].cal_max]")

    def picture(self) -> np.ndarray:
        from PIL import Image

        self.page.wait_for_timeout(300)
        return np.asarray(Image.open(io.BytesIO(self.page.locator("[data-part=stage]").screenshot())).convert("L"), float)

    def keep(self, name: str) -> None:
        if folder := os.environ.get("RADFM_SCREENSHOTS"):
            self.page.wait_for_timeout(800)
            self.page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.mark.parametrize("screen", SCREENS)
def test_the_whole_way(screen, served, chromium, series_zips, nifti_files, tmp_path):
    visitor = Visitor(chromium, served, **SCREENS[screen])
    page = visitor.page
    visitor.keep(f"{screen}-empty")
    visitor.drop(series_zips / "dicom_series_ct.zip")
    visitor.sees(1)

    middle = visitor.slice()
    page.locator("[data-part=canvas]").hover()
    page.mouse.wheel(0, 100)
    page.wait_for_function(f"document.querySelector('[data-part=slice]').value != {middle}")
    before = visitor.slice()
    page.focus("[data-part=slice]")
    page.keyboard.press("ArrowRight")
    assert visitor.slice() == before + 1 and page.inner_text("[data-part=index]") == f"{before + 2} / 20"

    page.select_option("[data-part=window]", label="Bone")
    assert visitor.window() == [-500, 1300]
    bone = visitor.picture()
    page.click("[data-part=drag]")
    box = page.locator("[data-part=canvas]").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 130, steps=5)
    page.mouse.up()
    page.wait_for_function("document.querySelector('[data-part=window]').selectedOptions[0].text.startsWith('Own')")
    assert visitor.window() != [-500, 1300]
    page.select_option("[data-part=window]", label="Bone")
    page.click("[data-part=invert]")
    assert visitor.picture().mean() > bone.mean() + 50
    page.click("[data-part=invert]")
    page.click("[data-part=drag]")
    page.select_option("[data-part=window]", label="Soft tissue")

    assert visitor.ask("Which imaging modality is this?").strip() == "CT"
    assert (
        "yes" in visitor.ask("Is this a CT scan? Answer yes or no.") and "%" in page.locator("#chat .bot").last.inner_text()
    )
    page.get_by_role("button", name="VQA").click()
    page.wait_for_function("document.querySelectorAll('#chat .bot').length == 3 && document.querySelector('#stop').disabled")
    visitor.keep(f"{screen}-asked")

    page.click("#where")
    page.wait_for_selector("[data-part=overlay-row]", state="visible")
    assert page.evaluate(f"{VIEWER}.niivue.volumes.length") == 2
    page.get_by_role("button", name="All", exact=True).click()
    visitor.keep(f"{screen}-overlay")
    with page.expect_download() as download:
        page.get_by_role("link", name="overlay (NIfTI)").click()
    download.value.save_as(tmp_path / "overlay.nii.gz")
    image, scan = nibabel.load(tmp_path / "overlay.nii.gz"), load_scan(series_zips / "dicom_series_ct.zip")
    assert image.shape == scan.voxels.shape[1:] and np.allclose(image.affine, scan.affine, atol=1e-3)
    with page.expect_download() as download:
        page.get_by_role("link", name="conversation (JSON)").click()
    download.value.save_as(tmp_path / "conversation.json")
    turns = json.loads((tmp_path / "conversation.json").read_text())["turns"]
    assert [turn["answer"] for turn in turns][:2] == ["CT", "yes"] and turns[1]["yes"] > 0.5

    visitor.drop(nifti_files / "example4d.nii.gz")
    visitor.sees(2)
    page.get_by_role("button", name="Place scan 2 in the question").click()
    assert page.input_value("#question textarea") == "[2] "
    assert visitor.ask("Which body part does [2] show?").strip()
    assert "2 · example4d.nii.gz" in page.locator("#chat .user").last.inner_text()
    page.get_by_role("button", name="About this scan").click()
    assert "example4d.nii.gz" in page.inner_text("#facts")
    visitor.keep(f"{screen}-two-scans")
    page.get_by_role("button", name="dicom_series_ct.zip").first.click()
    visitor.sees(1)

    (tmp_path / "letter.txt").write_text("Dear colleague")
    visitor.drop(tmp_path / "letter.txt")
    page.wait_for_selector("#notice [role=alert]")
    assert "letter.txt: is no scan" in page.inner_text("#notice")
    visitor.keep(f"{screen}-bad-file")

    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.click("#restart")
    page.wait_for_function("document.querySelectorAll('#chips li').length == 0")
    assert visitor.wrong == []
    page.context.close()


def test_an_answer_streams_and_can_be_stopped(talkative, chromium, dicom_files):
    visitor = Visitor(chromium, talkative, **SCREENS["wide-light"])
    page = visitor.page
    visitor.drop(dicom_files / "693_J2KI.dcm")
    visitor.sees(1)
    page.fill("#question textarea", "Describe this scan.")
    page.click("#send")
    said = "[...document.querySelectorAll('#chat .bot')].at(-1)?.innerText.length ?? 0"
    page.wait_for_function(f"({said}) > 10")
    early = page.evaluate(said)
    page.wait_for_function(f"({said}) > {early} + 20")
    page.click("#stop")
    page.wait_for_function("document.querySelector('#stop').disabled && !document.querySelector('#send').disabled")
    stopped = page.evaluate(said)
    page.wait_for_timeout(1500)
    assert page.evaluate(said) == stopped and len(page.locator("#chat .bot").last.inner_text().split()) < 1500
    assert visitor.wrong == []
    page.context.close()


def test_a_point_has_the_coordinates_that_nibabel_gives(served, chromium, series_zips, tmp_path):
    """An oblique volume: click, and read position and grey value; nibabel finds the same value there."""
    scan = load_scan(series_zips / "dicom_series_mr.zip")
    image = nibabel.Nifti1Image(scan.voxels[0], scan.affine)
    nibabel.save(image, tmp_path / "oblique.nii.gz")
    visitor = Visitor(chromium, served, **SCREENS["wide-light"])
    visitor.drop(tmp_path / "oblique.nii.gz")
    visitor.sees(1)
    for x, y in ((0.45, 0.4), (0.55, 0.6)):
        box = visitor.page.locator("[data-part=canvas]").bounding_box()
        visitor.page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
        visitor.page.wait_for_timeout(300)
        mm = [float(word) for word in visitor.page.get_attribute("[data-part=where]", "data-mm").split()]
        said = visitor.page.inner_text("[data-part=where]")
        voxel = np.rint(nibabel.affines.apply_affine(np.linalg.inv(image.affine), mm)).astype(int)
        assert float(said.split("·")[1]) == pytest.approx(float(image.get_fdata()[tuple(voxel)]), abs=0.5)
        assert f"{'R' if mm[0] >= 0 else 'L'} {abs(mm[0]):.1f}" in said
    assert visitor.wrong == []
    visitor.page.context.close()


def test_what_a_visitor_brought_goes_with_the_page(served, chromium, dicom_files):
    visitor = Visitor(chromium, served, **SCREENS["wide-light"])
    visitor.drop(dicom_files / "693_J2KI.dcm")
    visitor.sees(1)
    file = Path(visitor.page.evaluate(f"{VIEWER}.scan.url").split("file=")[1])
    assert file.exists()
    visitor.page.context.close()
    deadline = time.monotonic() + 20
    sessions = app.WORK / "sessions"
    while any(sessions.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not file.exists() and list(sessions.iterdir()) == []


def test_a_flipped_copy_looks_the_same(served, chromium, series_zips, tmp_path):
    scan = load_scan(series_zips / "dicom_series_ct.zip")
    affine = scan.affine.copy()
    for axis in (0, 1, 2):
        affine[:3, 3] += affine[:3, axis] * (scan.voxels.shape[axis + 1] - 1)
        affine[:3, axis] *= -1
    viewer.write_nifti(replace(scan, voxels=scan.voxels[..., 4:16]), tmp_path / "a.nii.gz")
    affine[:3, 3] += affine[:3, 2] * 4
    viewer.write_nifti(
        replace(scan, voxels=scan.voxels[:, ::-1, ::-1, ::-1][..., 4:16], affine=affine), tmp_path / "b.nii.gz"
    )
    visitor = Visitor(chromium, served, **SCREENS["wide-light"])
    pictures = []
    for number, name in ((1, "a"), (2, "b")):
        visitor.drop(tmp_path / f"{name}.nii.gz")
        visitor.sees(number)
        visitor.page.evaluate(f"{VIEWER}.goTo(3)")
        visitor.page.mouse.move(0, 0)
        pictures.append(visitor.picture())
    visitor.keep("flipped")
    assert np.abs(pictures[0] - pictures[1]).mean() < 1 < pictures[0].std()
    visitor.page.context.close()


def test_without_webgl_there_is_a_plain_slider(served, playwright, series_zips):
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=WITHOUT_WEBGL)
    visitor = Visitor(browser, served, **SCREENS["wide-light"])
    visitor.drop(series_zips / "dicom_series_ct.zip")
    visitor.sees(1)
    middle = visitor.picture()
    visitor.page.focus("[data-part=slice]")
    for _ in range(5):
        visitor.page.keyboard.press("ArrowRight")
    assert visitor.page.inner_text("[data-part=index]") == "16 / 20"
    assert np.abs(visitor.picture() - middle).mean() > 1
    visitor.page.select_option("[data-part=window]", label="Bone")
    visitor.page.wait_for_function("document.querySelector('[data-part=picture]').src.includes('slices--500-1300')")
    visitor.keep("without-webgl")
    assert visitor.page.inner_text("[data-letter=left]") == "R" and visitor.wrong == []
    browser.close()
