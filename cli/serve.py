"""`radfm serve`: a model behind OpenAI's API."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import ModelOption, find_model, refuse

if TYPE_CHECKING:
    from radfm.modeling_radfm import RadFMForConditionalGeneration

KEY_VARIABLE = "RADFM_API_KEY"
PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "multipart", "httpx")


def serve(
    model: ModelOption = "",
    host: Annotated[str, typer.Option(help="Address to listen on. Any but this machine's own demands a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    model_name: Annotated[str, typer.Option(help="The model's id in requests; by default its Hub id or folder name.")] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …, or auto to spread; a GPU where there is one.")] = "",
    bits: Annotated[int | None, typer.Option(help="Load the decoder in 4 or 8 bits (needs bitsandbytes).")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar=KEY_VARIABLE, help="What clients must send. Others see it in the process list.")
    ] = None,
) -> None:
    """Serve a model with OpenAI's API: chat with scans, files, metrics. Stop it with Ctrl-C or SIGTERM.

    Examples:

      radfm serve --model my-radfm

      RADFM_API_KEY=… radfm serve --model owner/name --host 0.0.0.0 --device cuda --bits 4
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        refuse(f"radfm serve needs {missing[0]}: pip install 'radfm[serve]'.")
    from radfm.serving.auth import is_loopback

    api_key = api_key or None
    if api_key is None and not is_loopback(host):
        refuse(f"--host {host} lets other machines ask: set an API key, in {KEY_VARIABLE} or with --api-key.")
    model = find_model(model)
    try:
        from radfm.serving.server import bind, serve_model
    except ValueError as error:  # a limit in the environment that is no number
        refuse(str(error))
    try:
        bound = bind(host, port)
    except OSError as error:
        refuse(f"--host {host} --port {port}: cannot be listened on ({error.strerror or error}).")
    from radfm.processing_radfm import RadFMProcessor

    loaded = _load(model, device, bits)
    name = model_name or (Path(model).resolve().name if Path(model).is_dir() else model)
    serve_model(loaded, RadFMProcessor.from_pretrained(model), name, bound, api_key)


def _load(model: str, device: str, bits: int | None) -> "RadFMForConditionalGeneration":
    """The model. Ends the command with status 2 where it cannot be loaded."""
    from transformers.utils import logging

    from .ask import _check_packages
    from .chat import load_model

    _check_packages(bits, device)
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        return load_model(model, device, bits)
    except (OSError, ValueError) as error:
        refuse(f"{model}: cannot be loaded as RadFM ({str(error).strip().splitlines()[0]})")
