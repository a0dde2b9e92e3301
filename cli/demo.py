"""`radfm demo`: the Space on this machine."""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated

import typer

from .common import PACKAGE, ModelOption, find_model, refuse


def demo(
    model: ModelOption = "",
    port: Annotated[int | None, typer.Option(help="By default the first free port from 7860.")] = None,
) -> None:
    """Open the Space in a browser: view scans, ask about them, see where the model looked. Nothing leaves this machine.

    Examples:

      radfm demo

      radfm demo --model my-radfm --port 8000
    """
    if find_spec("gradio") is None:
        refuse("radfm demo needs gradio: pip install 'gradio[mcp]'.")
    model = find_model(model)
    # On the Hub the folder is a repository of its own, so its modules import each other by bare names.
    sys.path.insert(0, str(PACKAGE / "space"))
    try:
        import_module("app").serve(model, port)
    except OSError as error:
        refuse(str(error))
