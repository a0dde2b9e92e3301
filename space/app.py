"""The Space: show RadFM a scan and ask. The Hub runs this file; `radfm demo` calls `serve`."""

import atexit
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Gradio reads where to keep uploads, and whether to phone home, when it is imported.
WORK = Path(tempfile.mkdtemp(prefix="radfm-space-"))
os.environ["GRADIO_TEMP_DIR"] = str(WORK / "uploads")
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
atexit.register(shutil.rmtree, WORK, ignore_errors=True)

import gradio as gr  # noqa: E402

import markup  # noqa: E402
from callbacks import Space  # noqa: E402
from examples import EXAMPLES  # noqa: E402

HERE = Path(__file__).parent
MODEL = os.environ.get("RADFM_MODEL", str(HERE.parent))
UPLOAD_BYTES = int(os.environ.get("RADFM_UPLOAD_BYTES", str(1 << 30)))
WAITING = int(os.environ.get("RADFM_QUEUE", "64"))
# An upload is read at once; its file goes with the next sweep after so many seconds.
UPLOAD_SECONDS, SWEEP_SECONDS = 120, 15

TASKS = {
    "Modality": "Which imaging modality is this?",
    "Diagnosis": "Is this scan abnormal? Answer yes or no.",
    "VQA": "Which body part is shown?",
    "Report": "Describe this scan.",
    "Rationale": "What is the diagnosis?",
}


def build(space: Space) -> gr.Blocks:
    """The page and its API."""
    with gr.Blocks(title="RadFM", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(markup.TITLE, elem_id="title", padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=6, min_width=340):
                drop = gr.File(
                    file_count="multiple",
                    label="Drop DICOM files, a zipped series, NIfTI or pictures",
                    elem_id="drop",
                    height=72,
                )
                with gr.Row(elem_id="examples"):
                    examples = [gr.Button(label, size="sm", min_width=100) for label in EXAMPLES]
                notice = gr.HTML(elem_id="notice")
                viewer = gr.HTML(
                    None,
                    html_template=markup.VIEWER,
                    js_on_load=markup.VIEWER_JS,
                    head=markup.HEAD,
                    elem_id="viewer",
                    apply_default_css=False,
                )
                with gr.Accordion("About this scan", open=False):
                    facts = gr.HTML("No scan yet.", elem_id="facts", apply_default_css=False)
            with gr.Column(scale=5, min_width=340):
                chips = gr.HTML(js_on_load=markup.CHIPS_JS, head=markup.HEAD, elem_id="chips", apply_default_css=False)
                chat = gr.Chatbot(
                    label="Conversation",
                    elem_id="chat",
                    height=420,
                    buttons=[],
                    placeholder="Ask anything about your scans, or take one of the tasks below.",
                )
                with gr.Row(elem_id="asking"):
                    question = gr.Textbox(
                        show_label=False,
                        label="Question",
                        placeholder="Ask about your scans",
                        elem_id="question",
                        container=False,
                        scale=6,
                        min_width=100,
                    )
                    send = gr.Button("Ask", variant="primary", scale=1, min_width=72, elem_id="send")
                    stop = gr.Button("Stop", interactive=False, scale=1, min_width=72, elem_id="stop")
                with gr.Row(elem_id="tasks"):
                    tasks = [gr.Button(name, size="sm", min_width=80) for name in TASKS]
                with gr.Row():
                    where = gr.Button("Where the model looked", size="sm", elem_id="where")
                    restart = gr.Button("New conversation", size="sm", elem_id="restart")
                downloads = gr.HTML(elem_id="downloads")

        # First, because the events below would take its name.
        files = gr.File(label="Scans", file_count="multiple", visible=False)
        scan = gr.File(label="Scan", visible=False)
        text = gr.Textbox(label="Question", visible=False)
        answer, in_words = gr.JSON(visible=False), gr.Textbox(label="Answer", visible=False)
        asked: dict[str, Any] = {"concurrency_id": "api", "concurrency_limit": 4}
        # Undocumented, because what is documented is an MCP tool as well, and Gradio's has no working lists of files.
        many = gr.Button(visible=False)
        many.click(space.answer, [files, text], answer, api_name="ask", api_visibility="undocumented", **asked)
        gr.Button(visible=False).click(space.ask_about_scan, [scan, text], in_words, api_name="ask_about_scan", **asked)

        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        asking: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, **private}
        reading: dict[str, Any] = {"concurrency_id": "reading", "concurrency_limit": 4, **private}
        seen = [notice, drop, chips, viewer, facts, downloads]
        said = [chat, question, send, stop, downloads]

        drop.upload(space.show, drop, seen, **reading)
        chips.select(space.select, None, [chips, viewer, facts, downloads], **reading)
        viewer.flat(space.flat, None, viewer, **reading)
        gr.on([question.submit, send.click], space.ask, question, said, **asking)
        for button in tasks:
            button.click(TASKS.get, button, question, queue=False, **private).then(space.ask, question, said, **asking)
        for button in examples:
            shown = button.click(space.example, button, [*seen, question], **reading)
            shown.then(space.ask, question, said, **asking)
        stop.click(space.stop, None, None, queue=False, **private)
        where.click(space.where, None, [viewer, downloads, notice], **asking)
        gr.on([restart.click, chat.clear], space.restart, None, [*seen, chat], **reading)
        blocks.unload(space.leave)
    return blocks


def _sweep(space: Space) -> None:
    while True:
        time.sleep(SWEEP_SECONDS)
        space.sweep(UPLOAD_SECONDS)


def serve(model_id: str = MODEL, port: int | None = None, wait: bool = True) -> tuple[gr.Blocks, str]:
    """Start the Space and load its model; returns when it is stopped, or at once without `wait`: the page, its address."""
    if wait:
        # Stopped by the machine, it still deletes what it holds.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    gr.set_static_paths([markup.STATIC])
    space = Space(model_id, WORK)
    threading.Thread(target=_sweep, args=(space,), daemon=True).start()
    if find_spec("spaces") is not None:
        # Where GPUs are lent, the functions that want one must be known before the page opens.
        _ = space.answers
    blocks = build(space)
    blocks.queue(max_size=WAITING)
    has_mcp = find_spec("mcp") is not None
    _, address, _ = blocks.launch(
        server_port=port,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        max_file_size=UPLOAD_BYTES,
        allowed_paths=[str(WORK / "sessions")],
        mcp_server=has_mcp,
        ssr_mode=False,
        theme=gr.themes.Default(
            primary_hue="teal",
            neutral_hue="slate",
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        ),
        css_paths=[markup.STATIC / "style.css"],
        footer_links=["api"],
    )
    print(f"RadFM is at {address}")
    if not has_mcp:
        print("It is no MCP server, which would need: pip install 'gradio[mcp]'.")
    if wait:
        blocks.block_thread()
    return blocks, address


if __name__ == "__main__":
    serve()
