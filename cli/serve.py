"""`radfm serve`: a model behind OpenAI's API."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from .ask import check_packages
from .common import ModelOption, default_device, find_model, refuse

if TYPE_CHECKING:
    from fastapi import FastAPI

KEY_VARIABLE = "RADFM_API_KEY"
PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "multipart", "httpx")


def serve(
    model: ModelOption = "",
    host: Annotated[str, typer.Option(help="Address to listen on. Any but this machine's own demands a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    model_name: Annotated[str, typer.Option(help="The model's id in requests; by default its Hub id or folder name.")] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …, or auto to spread; a GPU where there is one.")] = "",
    bits: Annotated[int | None, typer.Option(help="Load the decoder in 4 or 8 bits (needs bitsandbytes).")] = None,
    decoder_url: Annotated[str, typer.Option(help="Where the decoder is, as http://vllm:8000/v1; --model is a front.")] = "",
    decoder_key: Annotated[str, typer.Option(envvar="RADFM_DECODER_KEY", help="API key of the decoder's server.")] = "",
    api_key: Annotated[
        str | None, typer.Option(envvar=KEY_VARIABLE, help="What clients must send. Others see it in the process list.")
    ] = None,
) -> None:
    """Serve a model with OpenAI's API: chat with scans, files, metrics. Stop it with Ctrl-C or SIGTERM.

    Examples:

      radfm serve --model my-radfm

      RADFM_API_KEY=… radfm serve --model owner/name --host 0.0.0.0 --device cuda --bits 4

      radfm serve --model my-radfm-split/front --decoder-url http://vllm:8000/v1
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        refuse(f"radfm serve needs {missing[0]}: pip install 'radfm[serve]'.")
    try:
        from radfm.serving.auth import is_loopback
    except ValueError as error:  # a limit in the environment that is no number
        refuse(str(error))
    api_key = api_key or None
    if api_key is None and not is_loopback(host):
        refuse(f"--host {host} lets other machines ask: set an API key, in {KEY_VARIABLE} or with --api-key.")
    model = find_model(model)
    with _interrupt_ends_process():
        from radfm.serving.server import bind, run

        try:
            bound = bind(host, port)
        except (OSError, UnicodeError) as error:
            _refuse_address(host, port, error)
        name = model_name or (Path(model).resolve().name if Path(model).is_dir() else model)
        app = _load_app(model, name, device, bits, decoder_url, api_key, decoder_key)
        try:
            # Only now, so that nobody waits for a model that is being loaded; a second server may have been as far as this.
            bound.listen()
        except OSError as error:
            _refuse_address(host, port, error)
    run(app, name, bound)


@contextmanager
def _interrupt_ends_process() -> Iterator[None]:
    """Ctrl-C ends the process at once and silently, instead of an exception in the middle of an import."""
    previous = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _refuse_address(host: str, port: int, error: OSError | UnicodeError) -> NoReturn:
    reason = error.strerror if isinstance(error, OSError) else None
    refuse(f"--host {host} --port {port}: cannot be listened on ({reason or error}).")


def _load_app(
    model: str, name: str, device: str, bits: int | None, decoder_url: str, api_key: str | None, decoder_key: str
) -> "FastAPI":
    """The web application of a model, or of a front. Ends the command where it cannot be loaded."""
    from transformers.utils import logging

    from radfm.processing_radfm import RadFMProcessor
    from radfm.serving.server import front_app, model_app

    from .chat import load_model

    is_front = _check_parts(model, decoder_url)
    check_packages(bits, device)
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    device = device or default_device()
    try:
        if is_front:
            return front_app(model, decoder_url, name, device, api_key, decoder_key or None)
        return model_app(load_model(model, device, bits), RadFMProcessor.from_pretrained(model), name, api_key)
    except (OSError, ValueError) as error:
        refuse(f"{model}: cannot be loaded as RadFM ({str(error).strip().splitlines()[0]})")


def _check_parts(model: str, decoder_url: str) -> bool:
    """Whether the model is the front of a split one. Ends the command where that does not fit `--decoder-url`."""
    from radfm.configuration_radfm import RadFMConfig

    if (Path(model) / "adapter_config.json").is_file():
        return False
    try:
        config = RadFMConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        refuse(f"{model}: cannot be loaded as RadFM ({str(error).strip().splitlines()[0]})")
    is_front = config.architectures == ["RadFMModel"]
    if is_front and not decoder_url:
        refuse(f"{model}: holds no decoder: say where it runs with --decoder-url.")
    if decoder_url and not is_front:
        refuse(f"{model}: holds its decoder: make a front with `radfm convert {model} OUT --split`, and serve OUT/front.")
    return is_front
