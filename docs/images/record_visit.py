"""Record a visit of the Space as `space.webp`, and its end as `space.png`: drop a scan, scroll, ask, see the overlay.

    python docs/images/record_visit.py              # needs Chromium, and what the browser tests need

The scan is a brain MR of nibabel's test data (MIT licence). The pointer is drawn into the screenshots, which have none.
"""

import io
import sys
from pathlib import Path

import nibabel
from PIL import Image, ImageDraw
from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "tests" / "space"), str(ROOT / "benchmarks")]

from running_space import running_space  # noqa: E402
from visitor import CHROMIUM, NEXT_FRAME, WEBGL, Visitor  # noqa: E402

SCAN = Path(nibabel.__file__).parent / "tests" / "data" / "example4d.nii.gz"
QUESTION = "Which body part is shown?"
SIZE = {"width": 1180, "height": 760}
# The outline of the pointer, in pixels from its tip.
POINTER = ((0, 0), (0, 17), (4, 13), (7, 19), (10, 18), (7, 12), (12, 12))
SHORT, LONG, END = 160, 1100, 3000  # milliseconds


class Recording:
    """Frames of a page, each with the time for which it is shown."""

    def __init__(self, page: Page):
        self.page = page
        self.frames: list[Image.Image] = []
        self.milliseconds: list[int] = []
        self.pointer = (SIZE["width"] / 2, SIZE["height"] / 2)

    def keep(self, milliseconds: int) -> None:
        """Keep what the page shows, after its next frame."""
        self.page.evaluate(NEXT_FRAME)
        frame = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        x, y = self.pointer
        outline = [(x + dx, y + dy) for dx, dy in POINTER]
        ImageDraw.Draw(frame).polygon(outline, fill="white", outline="black")
        self.frames.append(frame)
        self.milliseconds.append(milliseconds)

    def point(self, selector: str, across: float = 0.5, down: float = 0.5) -> None:
        """Move the pointer to an element, at shares of its width and height."""
        box = self.page.locator(selector).bounding_box()
        assert box is not None
        self.pointer = (box["x"] + across * box["width"], box["y"] + down * box["height"])
        self.page.mouse.move(*self.pointer)

    def click(self, selector: str) -> None:
        """Click an element, and keep the pointer over it."""
        self.point(selector)
        self.keep(LONG // 2)
        self.page.click(selector)

    def scroll(self, visitor: Visitor, slices: int) -> None:
        """Turn the wheel, one slice a frame."""
        for _ in range(abs(slices)):
            before = visitor.slice()
            self.page.mouse.wheel(0, 100 if slices > 0 else -100)
            visitor.until(f"document.querySelector('[data-part=slice]').value != {before}")
            self.keep(SHORT)


def record(visitor: Visitor) -> Recording:
    """The visit, from the empty page to the overlay."""
    page = visitor.page
    page.wait_for_selector("text=million parameters")
    page.click("#restart")
    visitor.until("document.querySelectorAll('#panel li').length === 0")
    recording = Recording(page)
    recording.point("#drop")
    recording.keep(LONG)
    visitor.drop(SCAN)
    visitor.sees(1)
    recording.keep(LONG)
    recording.point("[data-part=canvas]", 0.6, 0.4)
    recording.scroll(visitor, 6)
    recording.scroll(visitor, -6)
    recording.click("[data-plane=all]")
    recording.keep(LONG)
    recording.click("#question textarea")
    for end in range(4, len(QUESTION) + 4, 4):
        page.fill("#question textarea", QUESTION[:end])
        recording.keep(SHORT // 2)
    before = page.locator("#chat .bot").count()
    recording.click("#send")
    visitor.answer(before)
    recording.keep(2 * LONG)
    recording.click("#where")
    page.wait_for_selector('[data-part=viewer][data-overlay="1"]')
    recording.keep(END)
    return recording


def main() -> None:
    """Start the Space, record, write both images."""
    with running_space() as space, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=WEBGL)
        visitor = Visitor(browser, space.address, viewport=SIZE, color_scheme="light")
        recording = record(visitor)
        visitor.close()
    first, *others = recording.frames
    others[-1].save(HERE / "space.png", optimize=True)
    file = HERE / "space.webp"
    first.save(file, save_all=True, append_images=others, duration=recording.milliseconds, loop=0, quality=70, method=2)
    print(f"{file.name}: {len(recording.frames)} frames, {file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
