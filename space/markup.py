"""The Space's HTML: the viewer's frame, series panel, model card, notices, downloads, and the conversation as text."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scan_store import StoredScan
    from sessions import Turn
    from tasks import Tasks

HERE = Path(__file__).parent
STATIC = HERE / "static"
SCRIPTS = ("niivue.umd.js", "viewer.js", "viewer_tools.js", "panel.js")


def address(file: Path) -> str:
    """Where the browser finds a file that the Space serves."""
    return f"gradio_api/file={file}"


HEAD = "".join(f'<script src="{address(STATIC / name)}"></script>' for name in SCRIPTS)

TITLE = """
<div class="title">
<h1>RadFM</h1>
<p>Show it a scan and ask. <strong>For research; no medical device, not for diagnosis.</strong></p>
</div>
"""

# (keys, what they do) for the dialog that `?` opens.
KEYS = (
    ("↑ ↓, Page Up, Page Down, wheel", "previous and next slice"),
    ("Home, End", "first and last slice"),
    ("A, C, S, G", "axial, coronal, sagittal, all planes in a grid"),
    ("Left button", "move the crosshair; with a tool: window or measure"),
    ("Right button", "change the window"),
    ("Middle button", "pan"),
    ("W", "left button changes the window, and back"),
    ("M", "left button measures in mm, and back"),
    ("1 … 9", "the windows of the list"),
    ("X", "crosshair on and off"),
    ("I", "invert"),
    ("Space", "play the slices, and stop"),
    ("F", "full screen, and back"),
    ("R", "back to the middle, the first window, no measurements"),
    ("?", "this list"),
)
_KEY_ROWS = "".join(f"<tr><th scope='row'>{html.escape(keys)}</th><td>{what}</td></tr>" for keys, what in KEYS)

VIEWER = f"""
<section class="viewer" data-part="viewer" aria-label="Viewer">
  <div class="line choices" data-part="choices" hidden>
    <label data-part="series-row">Series <select data-part="series"></select></label>
    <label data-part="volume-row">Volume <select data-part="volume"></select></label>
  </div>
  <div class="bar">
    <div class="group" role="group" aria-label="Plane">
      <button type="button" data-plane="axial" aria-pressed="false" disabled>Axial</button>
      <button type="button" data-plane="coronal" aria-pressed="false" disabled>Coronal</button>
      <button type="button" data-plane="sagittal" aria-pressed="false" disabled>Sagittal</button>
      <button type="button" data-plane="all" aria-pressed="false" disabled>All</button>
    </div>
    <label>Window <select data-part="window" disabled></select></label>
    <div class="group" role="group" aria-label="Tools">
      <button type="button" data-tool="window" aria-pressed="false" disabled title="Left button changes the window (W)">
        Window</button>
      <button type="button" data-tool="measure" aria-pressed="false" disabled title="Left button measures in mm (M)">
        Measure</button>
      <button type="button" data-tool="crosshair" aria-pressed="true" disabled title="Crosshair (X)">Crosshair</button>
      <button type="button" data-tool="invert" aria-pressed="false" disabled title="Invert (I)">Invert</button>
      <button type="button" data-tool="play" aria-pressed="false" disabled title="Play the slices (Space)">Play</button>
      <button type="button" data-tool="full" disabled title="Full screen (F)">Full screen</button>
      <button type="button" data-tool="help" title="Keys and mouse (?)" aria-label="Keys and mouse">?</button>
    </div>
  </div>
  <div class="stage" data-part="stage">
    <canvas data-part="canvas" tabindex="0" role="img" aria-label="No scan yet"></canvas>
    <img data-part="picture" alt="" hidden tabindex="0">
    <span data-letter="top"></span><span data-letter="bottom"></span>
    <span data-letter="left"></span><span data-letter="right"></span>
    <p class="empty" data-part="empty">Drop a scan, or take an example, to see it here.</p>
    <p class="loading" data-part="loading" role="status" hidden>Loading all voxels …</p>
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
  <details><summary>About this scan</summary><table class="facts" data-part="facts"></table></details>
  <dialog data-part="help" aria-label="Keys and mouse">
    <h2>Keys and mouse</h2>
    <table class="facts">{_KEY_ROWS}</table>
    <button type="button" data-part="close">Close</button>
  </dialog>
</section>
"""
VIEWER_JS = "radfmViewer(element, props, trigger, watch); // 'flat' 'choose'"
PANEL_JS = "radfmPanel(element, trigger); radfmNameDropZone(); // 'select'"
# The bin deletes scans and conversation, so it asks. The function runs before the event; an exception keeps it from running.
CONFIRM_JS = "() => { if (!confirm('Delete your scans and the conversation?')) throw new Error('kept'); }"


def notice(text: str, bad: bool = False) -> str:
    """A line that says what happens, or what went wrong."""
    role = "alert" if bad else "status"
    return f"<p role='{role}' class='{'bad' if bad else ''}'>{html.escape(text)}</p>" if text else ""


def series_panel(scans: Sequence["StoredScan"], current: int) -> str:
    """The scans of the conversation with thumbnails: a button that shows each, one that places it in the question."""
    items = []
    for n, scan in enumerate(scans, 1):
        title = html.escape(scan.title, quote=True)
        modality = f"{scan.about['modality_name']} · " if scan.about["modality"] else ""
        size = html.escape(modality + scan.about["size"])
        items.append(
            f"<li class='{'on' if n == current else ''}'>"
            f"<button type='button' data-show='{n}' aria-pressed='{str(n == current).lower()}' title='Show {title}'>"
            f"<img src='{address(scan.folder / 'thumbnail.png')}' alt='' width='48' height='48'>"
            f"<span><b>{n}</b> {title}<br><small>{size}</small></span></button>"
            f"<button type='button' data-place='{n}' title='Place scan {n} in the question'"
            f" aria-label='Place scan {n} in the question'>+</button></li>"
        )
    return f"<ul class='series' aria-label='Scans'>{''.join(items)}</ul>" if items else ""


def viewer_value(number: int, scan: "StoredScan", overlaid: bool) -> dict[str, Any]:
    """What the viewer is given of a scan, as JSON; with its overlay where the visitor asked for it."""
    about, coarse = scan.about, scan.folder / "coarse.nii"
    return {
        "number": number,
        "title": scan.title,
        "id": str(scan.folder),
        "coarse": address(coarse) if coarse.exists() else None,
        "url": address(scan.folder / "scan.nii.gz") if scan.complete else None,
        "volume": about["shape"][-1] > 1,
        "plane": about["plane"],
        "placed": about["affine"] is not None,
        "letters": about["letters"],
        "unit": about["unit"],
        "windows": about["windows"],
        "facts": [["File", scan.name], *about["facts"]],
        "series": about.get("series_choices", []),
        "volumes": about.get("volume_choices", []),
        "chosen": about.get("chosen", {}),
        "overlay": address(scan.overlay) if overlaid else None,
        "brightest": about.get("brightest"),
        "pictures": None,
    }


def model_card(tasks: "Tasks", model_id: str, parameters: int | None) -> str:
    """What answers on this page: name, size, what it knows, and how often it is right on held-out cases."""
    name = html.escape(tasks.name or Path(model_id).name)
    size = "" if parameters is None else f", {_count(parameters)} parameters"
    known = html.escape(tasks.about) if tasks.known else "Its repository does not say what it was trained for."
    labels = "".join(
        f"<tr><th scope='row'>{html.escape(topic.replace('_', ' '))}</th><td>{html.escape(', '.join(what))}</td></tr>"
        for topic, what in _labels(tasks)
    )
    knows = f"<h3>What it can name</h3><table class='facts'>{labels}</table>" if labels else ""
    return (
        f"<p><strong>{name}</strong>{size} answers here. {known}</p>"
        f"<details><summary>What it knows, and how often it is right</summary>{knows}{_score_table(tasks)}</details>"
    )


def _count(parameters: int) -> str:
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if parameters >= unit:
            return f"{parameters / unit:.3g} {name}"
    return f"{parameters:,}"


def _labels(tasks: "Tasks") -> list[tuple[str, list[str]]]:
    named = [(name, topic["labels"]) for name, topic in tasks.topics.items() if topic.get("labels")]
    return named + [(finding["about"], finding["labels"]) for finding in tasks.findings]


def _score_table(tasks: "Tasks") -> str:
    """Share of right answers per data set and label, with what always giving the most frequent answer would reach."""
    if not tasks.scores:
        return "<p>Its repository holds no scores on held-out cases.</p>"
    head = "<tr><th scope='col'>Cases of</th><th scope='col'>Question about</th><th scope='col'>n</th>"
    head += "<th scope='col'>Right</th><th scope='col'>Most frequent answer</th></tr>"
    # Rows without a most frequent answer count faults, such as findings named where there is none.
    right = [row for row in tasks.scores if row["most_frequent"] is not None]
    rows = "".join(
        f"<tr><td>{html.escape(row['pack'])}</td><td>{html.escape(row['label'].replace('_', ' '))}</td>"
        f"<td>{row['count']:,}</td><td>{row['model'] / row['count']:.0%}</td>"
        f"<td>{row['most_frequent'] / row['count']:.0%}</td></tr>"
        for row in right
    )
    return (
        f"<h3>Right on held-out cases</h3><div class='scroll' tabindex='0'><table class='scores'>{head}{rows}</table></div>"
    )


def downloads(files: Sequence[tuple[str, Path]]) -> str:
    """Links to files, (label, file) each."""
    links = [f"<a href='{address(file)}' download='{file.name}'>{html.escape(label)}</a>" for label, file in files]
    return f"<p class='downloads'>Download: {' · '.join(links)}</p>" if links else ""


def conversation(turns: Sequence["Turn"]) -> list[dict[str, str]]:
    """Turns as the chat shows them. It renders no Markdown, but tags: they are escaped, so that all of it is text."""
    messages = []
    for turn in turns:
        messages.append({"role": "user", "content": html.escape(turn.shown, quote=False)})
        lines = [turn.answer or "…"]
        if turn.p_yes is not None:
            lines.append(f"yes {turn.p_yes:.0%} · no {1 - turn.p_yes:.0%}: how the model weighs the two; not calibrated")
        lines += [turn.note] if turn.note else []
        messages.append({"role": "assistant", "content": html.escape("\n".join(lines), quote=False)})
    return messages


def example_sources(examples: dict[str, Any]) -> str:
    """Where the examples come from, and their licences."""
    sources = dict.fromkeys(example.source for example in examples.values())
    return f"<p class='sources'>Examples: {html.escape('; '.join(sources))}.</p>"
