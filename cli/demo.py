"""`radfm demo`: the Space on this machine."""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated

import typer

from .common import MODEL_REPOSITORY, check_model, refuse


def demo(
    model: Annotated[str, typer.Option(help="A folder or a Hub id; the demo checkpoint where it is left out.")] = "",
    port: Annotated[int | None, typer.Option(help="The first free one from 7860 where it is left out.")] = None,
) -> None:
    """Show scans to the model in a browser: a viewer, a conversation, where it looked. Nothing leaves this machine.

    Examples:

      radfm demo

      radfm demo --model my-radfm --port 8000
    """
    if find_spec("gradio") is None:
        refuse("radfm demo needs gradio: pip install 'gradio[mcp]'.")
    model = model or str(MODEL_REPOSITORY)
    check_model(model)
    # As on the Hub, where the folder is a repository of its own.
    sys.path.insert(0, str(MODEL_REPOSITORY / "space"))
    try:
        import_module("app").serve(model, port)
    except OSError as error:
        refuse(str(error))
