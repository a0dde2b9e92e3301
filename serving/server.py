"""A model and the web application put together, on a socket."""

import logging
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from transformers import GenerationConfig

from radfm.modeling_radfm import RadFMForConditionalGeneration, RadFMModel
from radfm.processing_radfm import RadFMProcessor

from . import limits
from .answers import end_tokens
from .app import build_app
from .chat import Chat, Decoder, Model
from .decoder_url import RemoteDecoder
from .engine import Engine
from .feature_cache import FeatureCache
from .files import FileStore
from .metrics import Metrics
from .scans import ScanReader


def model_app(
    model: RadFMForConditionalGeneration, processor: RadFMProcessor, name: str, api_key: str | None = None
) -> FastAPI:
    """The web application of a model.

    Args:
        name: the model's id in requests.
        api_key: what clients have to send; None where only programs of this machine may ask.
    """
    metrics = Metrics()
    engine = Engine(model, processor.tokenizer, metrics)
    return _app(_describe(name, processor, engine, engine, model.config, model.generation_config), engine, metrics, api_key)


def front_app(
    front: str, decoder_url: str, name: str, device: str = "cpu", api_key: str | None = None, decoder_key: str | None = None
) -> FastAPI:
    """The web application of the front that `radfm convert --split` wrote, before a decoder on another machine.

    Args:
        front: its folder or Hub id.
        decoder_url: of the decoder's API, such as http://vllm:8000/v1.
        name, api_key: as for `model_app`.
        decoder_key: what the decoder's server wants to be sent.
    """
    model = RadFMModel.from_pretrained(front, dtype="auto").eval().to(device)
    processor, generation = RadFMProcessor.from_pretrained(front), GenerationConfig.from_pretrained(front)
    metrics = Metrics()
    # It only encodes scans.
    engine = Engine(model, processor.tokenizer, metrics, batch_tokens=1)
    decoder = RemoteDecoder(decoder_url, model, end_tokens(generation), decoder_key)
    return _app(_describe(name, processor, engine, decoder, model.config, generation), engine, metrics, api_key)


def _describe(
    name: str, processor: RadFMProcessor, encoder: Engine, decoder: Decoder, config: Any, generation: GenerationConfig
) -> Model:
    return Model(
        name=name,
        processor=processor,
        encoder=encoder,
        decoder=decoder,
        context_length=config.text_config.get_text_config().max_position_embeddings,
        new_tokens=generation.max_new_tokens or limits.NEW_TOKENS,
        temperature=(generation.temperature or 1.0) if generation.do_sample else 0.0,
    )


def _app(model: Model, engine: Engine, metrics: Metrics, api_key: str | None) -> FastAPI:
    work = tempfile.TemporaryDirectory(prefix="radfm-serve-", ignore_cleanup_errors=True)
    folders = {name: Path(work.name) / name for name in ("files", "reading")}
    for folder in folders.values():
        folder.mkdir()
    files = FileStore(folders["files"])
    settings = model.processor.image_processor.to_dict()
    reader = ScanReader(settings, folders["reading"], lambda outcome: metrics.scans.labels(outcome).inc())
    cache = FeatureCache(limits.CACHE_BYTES, lambda outcome: metrics.cache.labels(outcome).inc())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with work:
            await reader.start()
            engine.start()
            yield
            engine.stop(limits.STOP_SECONDS)

    return build_app(Chat(model, reader, cache, files, metrics), files, metrics, api_key, lifespan)


def bind(host: str, port: int) -> socket.socket:
    """A socket on an address; port 0 takes a free one. Raises `OSError` where it is taken or not of this machine."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


class _Server(uvicorn.Server):
    """Says where it listens, once it does."""

    def __init__(self, config: uvicorn.Config, sentence: str):
        super().__init__(config)
        self._sentence = sentence

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._sentence, file=sys.stderr, flush=True)


def run(app: FastAPI, name: str, bound: socket.socket) -> None:
    """Serve until the process is told to stop (SIGINT, SIGTERM); answers in progress have `limits.STOP_SECONDS` to end."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for library in ("uvicorn", "httpx"):
        logging.getLogger(library).setLevel(logging.WARNING)
    if not limits.DEBUG:
        # It logs exceptions that nobody waited for with their messages, which may hold names.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=limits.KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=limits.STOP_SECONDS,
    )
    host, port = bound.getsockname()[:2]
    address = f"[{host}]" if ":" in host else host
    _Server(config, f"{name} is served at http://{address}:{port}/v1").run(sockets=[bound])
