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

# Gradio reads where to keep uploads, and whether to report usage, when it is imported.
WORK = Path(tempfile.mkdtemp(prefix="radfm-space-"))
os.environ["GRADIO_TEMP_DIR"] = str(WORK / "uploads")
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
atexit.register(shutil.rmtree, WORK, ignore_errors=True)

import gradio as gr  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402

import http_guard  # noqa: E402
import limits  # noqa: E402
import markup  # noqa: E402
from callbacks import Callbacks  # noqa: E402
from examples import EXAMPLES, slug  # noqa: E402

HERE = Path(__file__).parent
MODEL = os.environ.get("RADFM_MODEL", str(HERE.parent))
THUMBNAILS = markup.STATIC / "examples"


def build(callbacks: Callbacks) -> gr.Blocks:
    """The page and its API."""
    tasks = callbacks.tasks.questions()
    with gr.Blocks(title="RadFM", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(markup.TITLE, elem_id="title", padding=False)
        card = gr.HTML(elem_id="card", apply_default_css=False)
        with gr.Row(elem_id="examples"):
            examples = [
                gr.Button(label, size="sm", min_width=150, icon=str(THUMBNAILS / f"{slug(label)}.png")) for label in EXAMPLES
            ]
        gr.HTML(markup.example_sources(EXAMPLES), elem_id="sources")
        with gr.Row(equal_height=False, elem_id="main"):
            with gr.Column(scale=6, min_width=340, elem_id="left"):
                viewer = gr.HTML(
                    None,
                    html_template=markup.VIEWER,
                    js_on_load=markup.VIEWER_JS,
                    head=markup.HEAD,
                    elem_id="viewer",
                    apply_default_css=False,
                )
            with gr.Column(scale=5, min_width=340, elem_id="right"):
                drop = gr.File(
                    file_count="multiple",
                    label="Drop DICOM files, a zipped series, NIfTI or images",
                    elem_id="drop",
                    height=72,
                )
                notice = gr.HTML(elem_id="notice")
                panel = gr.HTML(js_on_load=markup.PANEL_JS, head=markup.HEAD, elem_id="panel", apply_default_css=False)
                chat = gr.Chatbot(
                    label="Conversation",
                    elem_id="chat",
                    height=320,
                    buttons=[],
                    render_markdown=False,
                    latex_delimiters=[],
                    feedback_options=None,
                    placeholder="Ask about your scan, or take one of the tasks below.",
                )
                with gr.Row(elem_id="asking"):
                    question = gr.Textbox(
                        show_label=False,
                        label="Question",
                        placeholder="Ask about your scans",
                        elem_id="question",
                        container=False,
                        max_length=limits.QUESTION_CHARACTERS,
                        scale=6,
                        min_width=100,
                    )
                    send = gr.Button("Ask", variant="primary", scale=1, min_width=72, elem_id="send")
                    stop = gr.Button("Stop", interactive=False, scale=1, min_width=72, elem_id="stop")
                with gr.Row(elem_id="tasks"):
                    buttons = [gr.Button(label, size="sm", min_width=80) for label in tasks]
                    where = gr.Button("Where the model looked", size="sm", elem_id="where")
                    restart = gr.Button("New conversation", size="sm", elem_id="restart")
                downloads = gr.HTML(elem_id="downloads")

        # First, because the events below would take its name.
        files = gr.File(label="Scans", file_count="multiple", visible=False)
        scan = gr.File(label="Scan", visible=False)
        text = gr.Textbox(label="Question", visible=False)
        answer, as_text = gr.JSON(visible=False), gr.Textbox(label="Answer", visible=False)
        # One queue for whoever wants an answer, page and API, first come, first served.
        model: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
        # Undocumented, because what is documented is an MCP tool as well, and Gradio's has no working lists of files.
        gr.Button(visible=False).click(
            callbacks.answer, [files, text], answer, api_name="ask", api_visibility="undocumented", **model
        )
        gr.Button(visible=False).click(callbacks.ask_about_scan, [scan, text], as_text, api_name="ask_about_scan", **model)

        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        # Gradio writes the position in the queue over the component that shows progress.
        asking: dict[str, Any] = {**model, **private, "show_progress": "minimal", "show_progress_on": chat}
        reading: dict[str, Any] = {"concurrency_id": "reading", "concurrency_limit": 1, **private}
        reading |= {"show_progress": "minimal", "show_progress_on": notice}
        drawing: dict[str, Any] = {"concurrency_id": "drawing", "concurrency_limit": 4, **private}
        seen = [notice, drop, panel, viewer, downloads]
        ask_outputs = [chat, question, send, stop, downloads]

        opened = blocks.load(callbacks.open, None, [card, *seen], **reading)
        # By default Gradio drops an event that comes while the last one of its kind is still being answered.
        dropped = drop.upload(callbacks.drop, drop, seen, trigger_mode="multiple", **reading)
        panel.select(callbacks.select, None, [panel, viewer, downloads], trigger_mode="always_last", **drawing)
        viewer.flat(callbacks.flat, None, viewer, trigger_mode="always_last", **drawing)
        chosen = viewer.choose(callbacks.choose, None, seen, **reading)
        for read in (opened, dropped, chosen):
            read.then(callbacks.ask_waiting, None, ask_outputs, **asking)
        gr.on([question.submit, send.click], callbacks.ask, question, ask_outputs, **asking)
        for button in buttons:
            fill = button.click(tasks.get, button, question, queue=False, **private)
            fill.then(callbacks.ask, question, ask_outputs, **asking)
        for button in examples:
            shown = button.click(callbacks.example, button, [*seen, question], **reading)
            shown.then(callbacks.ask, question, ask_outputs, **asking)
        stop.click(callbacks.stop, None, None, queue=False, **private)
        where.click(callbacks.show_attention, None, [viewer, downloads, notice], **asking)
        gr.on([restart.click, chat.clear], callbacks.restart, None, [*seen, chat], js=markup.CONFIRM_JS, **drawing)
        blocks.unload(callbacks.leave)
    return blocks


def _sweep(callbacks: Callbacks) -> None:
    while True:
        time.sleep(limits.SWEEP_SECONDS)
        callbacks.sweep()


def serve(model_id: str = MODEL, port: int | None = None, wait: bool = True) -> tuple[gr.Blocks, str]:
    """Start the Space and load its model; returns when it is stopped, or at once without `wait`: the page, its address."""
    if wait:
        # Stopped by the machine, it still deletes what it holds.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    http_guard.keep_values_out_of_the_log()
    gr.set_static_paths([markup.STATIC])
    callbacks = Callbacks(model_id, WORK)
    atexit.register(callbacks.close)
    threading.Thread(target=_sweep, args=(callbacks,), daemon=True).start()
    if find_spec("spaces") is not None:
        # On ZeroGPU the functions that want a GPU must be known before the page opens.
        _ = callbacks.model
    blocks = build(callbacks)
    blocks.queue(max_size=limits.QUEUE)
    has_mcp = find_spec("mcp") is not None
    _, address, _ = blocks.launch(
        server_port=port,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        max_file_size=limits.UPLOAD_BYTES,
        allowed_paths=[str(WORK / "sessions"), str(WORK / "scans")],
        app_kwargs={"middleware": [Middleware(http_guard.RequestGuard, work=WORK)]},
        mcp_server=has_mcp,
        ssr_mode=False,
        # Gradio keeps 75 KiB of settings for each session, by default for 10,000 of them.
        state_session_capacity=limits.SESSIONS,
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
