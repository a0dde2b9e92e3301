"""The Space's own HTML: the viewer's frame, chips, notices and downloads."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STATIC = HERE / "static"


def address(file: Path) -> str:
    """Where the browser finds a file that the Space serves."""
    return f"gradio_api/file={file}"


HEAD = "".join(f'<script src="{address(STATIC / name)}"></script>' for name in ("niivue.umd.js", "viewer.js"))

TITLE = """
<h1>RadFM</h1>
<p>Show it a scan and ask. <strong>For research; no medical device, not for diagnosis.</strong></p>
"""

VIEWER = """
<section class="viewer" data-part="viewer" aria-label="Viewer">
  <div class="bar">
    <div class="group" role="group" aria-label="Plane">
      <button type="button" data-plane="axial" aria-pressed="false" disabled>Axial</button>
      <button type="button" data-plane="coronal" aria-pressed="false" disabled>Coronal</button>
      <button type="button" data-plane="sagittal" aria-pressed="false" disabled>Sagittal</button>
      <button type="button" data-plane="all" aria-pressed="false" disabled>All</button>
    </div>
    <label>Window <select data-part="window" disabled></select></label>
    <div class="group">
      <button type="button" data-part="drag" aria-pressed="false" disabled
        title="Drag with the left button to change the window; the right button always does">Drag window</button>
      <button type="button" data-part="invert" aria-pressed="false" disabled>Invert</button>
    </div>
  </div>
  <div class="stage" data-part="stage">
    <canvas data-part="canvas" aria-label="The scan; the wheel and Page Up and Down change the slice"></canvas>
    <img data-part="picture" alt="" hidden>
    <span data-letter="top"></span><span data-letter="bottom"></span>
    <span data-letter="left"></span><span data-letter="right"></span>
    <p class="empty" data-part="empty">Drop a scan, or take an example, to see it here.</p>
  </div>
  <div class="line">
    <label>Slice <input type="range" min="0" max="0" value="0" data-part="slice" disabled></label>
    <output data-part="index"></output>
  </div>
  <div class="line" data-part="overlay-row" hidden>
    <label>Overlay <input type="range" min="0" max="100" value="45" data-part="opacity"></label>
    <span data-part="caption"></span>
  </div>
  <p class="where" data-part="where" aria-live="off"></p>
</section>
"""
VIEWER_JS = "radfmViewer(element, props, trigger, watch); // 'flat'"
CHIPS_JS = "radfmChips(element, trigger); // 'select'"


def notice(words: str, bad: bool = False) -> str:
    """A line that says what happens, or what went wrong."""
    return (
        f"<p role='{'alert' if bad else 'status'}' class='{'bad' if bad else ''}'>{html.escape(words)}</p>" if words else ""
    )


def chips(names: Sequence[str], current: int) -> str:
    """The scans of the conversation: a button that shows each, and one that places it in the question."""
    chip = (
        "<li class='{kind}'><button type='button' data-show='{n}' aria-pressed='{pressed}' title='Show {name}'>"
        "<b>{n}</b> {name}</button><button type='button' data-place='{n}' title='Place scan {n} in the question'"
        " aria-label='Place scan {n} in the question'>+</button></li>"
    )
    items = [
        chip.format(
            n=n, name=html.escape(name, quote=True), pressed=str(n == current).lower(), kind="on" if n == current else ""
        )
        for n, name in enumerate(names, 1)
    ]
    return f"<ul class='chips' aria-label='Scans'>{''.join(items)}</ul>" if items else ""


def facts_table(rows: Sequence[tuple[str, str]]) -> str:
    """What is known of a scan, as a table."""
    cells = "".join(
        f"<tr><th scope='row'>{html.escape(what)}</th><td>{html.escape(value)}</td></tr>" for what, value in rows
    )
    return f"<table class='facts'>{cells}</table>"


def downloads(files: Sequence[tuple[str, Path]]) -> str:
    """Links to files, (label, file) each."""
    links = [f"<a href='{address(file)}' download='{file.name}'>{html.escape(label)}</a>" for label, file in files]
    return f"<p class='downloads'>Download: {' · '.join(links)}</p>" if links else ""


def conversation(turns: Sequence[Any]) -> list[dict[str, str]]:
    """Turns as the chat shows them."""
    messages = []
    for turn in turns:
        messages.append({"role": "user", "content": turn.question})
        answer = turn.answer or "…"
        if turn.yes is not None:
            answer += (
                f"\n\n*yes {turn.yes:.0%} · no {1 - turn.yes:.0%}: how the model weighs these two words; not calibrated*"
            )
        messages.append({"role": "assistant", "content": answer})
    return messages
