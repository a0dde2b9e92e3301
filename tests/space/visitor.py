"""A page in Chromium, what went wrong on it, and the conditions that the browser tests wait for."""

import io
import os
import shutil
from pathlib import Path

import numpy as np

CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
WEBGL = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
WITHOUT_WEBGL = ["--no-sandbox", "--disable-gpu", "--disable-3d-apis"]
SCREENS = {
    "wide-light": {"viewport": {"width": 1366, "height": 850}, "color_scheme": "light"},
    "narrow-dark": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "has_touch": True},
}
# The second frame begins when the first is on the screen.
NEXT_FRAME = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
VIEWER = "document.querySelector('#viewer [data-part=viewer]').parentElement.viewer"
# A slow machine under load draws one frame of software WebGL in seconds.
PATIENCE_MS = 300_000


class Visitor:
    """One page. `wrong` collects errors in its console and requests to anywhere but the Space."""

    def __init__(self, browser, address: str, **screen):
        self.page = browser.new_context(**screen).new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.wrong: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self._check(request.url, address))
        self.page.on("dialog", lambda dialog: self._decide(dialog))
        self.dialogs: list[str] = []
        self.confirms = True
        self.page.goto(address)
        self.sees(1)

    def _check(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.wrong.append(f"asked for {url}")

    def _decide(self, dialog) -> None:
        self.dialogs.append(dialog.message)
        dialog.accept() if self.confirms else dialog.dismiss()

    def drop(self, *files) -> None:
        """Drop files on the page."""
        self.page.set_input_files("#drop input[type=file]", [str(file) for file in files])

    def sees(self, number: int) -> None:
        """Wait until scan `number` is shown with all its voxels."""
        shown = f'[data-part=viewer][data-shows="{number}"]'
        self.page.wait_for_selector(f'{shown}[data-quality="full"], {shown}[data-mode="flat"]')
        self.until(f"{VIEWER}.scan.number === {number}")

    def until(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        self.page.wait_for_function(condition)

    def ask(self, question: str) -> str:
        """Ask, wait for the complete answer, return it."""
        before = self.page.locator("#chat .bot").count()
        self.page.fill("#question textarea", question)
        self.page.press("#question textarea", "Enter")
        return self.answer(before)

    def answer(self, before: int) -> str:
        """The answer that follows `before` others, once it is complete."""
        last = "[...document.querySelectorAll('#chat .bot')].at(-1).innerText.trim()"
        self.until(
            f"document.querySelectorAll('#chat .bot').length > {before} && document.querySelector('#stop').disabled"
            f" && !document.querySelector('#send').disabled && !['', '…', 'Loading content'].includes({last})"
        )
        return self.page.locator("#chat .bot").last.inner_text().strip()

    def slice(self) -> int:
        """The index of the slice, from 0."""
        return int(self.page.input_value("[data-part=slice]"))

    def window(self) -> list[float]:
        """Low and high end of the grey window."""
        return self.page.evaluate(f"[{VIEWER}.niivue.volumes[0].cal_min, {VIEWER}.niivue.volumes[0].cal_max]")

    def picture(self) -> np.ndarray:
        """What the stage shows, as grey values, after the next frame was drawn."""
        from PIL import Image

        self.page.evaluate(NEXT_FRAME)
        return np.asarray(Image.open(io.BytesIO(self.page.locator("[data-part=stage]").screenshot())).convert("L"), float)

    def keep(self, name: str) -> None:
        """Keep a screenshot, where RADFM_SCREENSHOTS names a folder."""
        if folder := os.environ.get("RADFM_SCREENSHOTS"):
            self.page.screenshot(path=Path(folder) / f"{name}.png")

    def close(self) -> None:
        """Leave; nothing may have gone wrong."""
        self.page.context.close()
        assert not self.wrong, self.wrong
