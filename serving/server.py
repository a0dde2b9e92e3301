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
from .app import build_app
from .chat import Chat, Decoder, Model
from .decoder_url import RemoteDecoder
from .engine import Engine
from .feature_cache import FeatureCache
from .files import FileStore
from .metrics import Metrics
from .scans import ScanReader


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


def serve_model(
    model: RadFMForConditionalGeneration, processor: RadFMProcessor, name: str, bound: socket.socket, api_key: str | None
) -> None:
    """Serve a model until the process is told to stop (SIGINT, SIGTERM).

    Args:
        name: the model's id in requests.
        bound: a socket from `bind`.
        api_key: what clients have to send; None where only programs of this machine may ask.
    """
    metrics = Metrics()
    engine = Engine(model, processor.tokenizer, metrics)
    generation = model.generation_config
    _run(_describe(name, model.config, processor, engine, engine, generation), engine, metrics, bound, api_key)


def serve_front(
    front: RadFMModel,
    processor: RadFMProcessor,
    generation: GenerationConfig,
    decoder: RemoteDecoder,
    name: str,
    bound: socket.socket,
    api_key: str | None,
) -> None:
    """As `serve_model`, with the decoder on another machine."""
    metrics = Metrics()
    # It only encodes scans.
    engine = Engine(front, processor.tokenizer, metrics, batch_tokens=1)
    _run(_describe(name, front.config, processor, engine, decoder, generation), engine, metrics, bound, api_key)


def _describe(
    name: str,
    config: Any,
    processor: RadFMProcessor,
    encoder: Engine,
    decoder: Decoder,
    generation: GenerationConfig,
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


def _run(served: Model, engine: Engine, metrics: Metrics, bound: socket.socket, api_key: str | None) -> None:
    with tempfile.TemporaryDirectory(prefix="radfm-serve-", ignore_cleanup_errors=True) as work:
        _run_in(Path(work), served, engine, metrics, bound, api_key)


def _run_in(work: Path, served: Model, engine: Engine, metrics: Metrics, bound: socket.socket, api_key: str | None) -> None:
    files_folder, reading = work / "files", work / "reading"
    files_folder.mkdir()
    reading.mkdir()
    files = FileStore(files_folder)
    reader = ScanReader(served.processor.image_processor.to_dict(), reading, lambda o: metrics.scans.labels(o).inc())
    cache = FeatureCache(limits.CACHE_BYTES, lambda outcome: metrics.cache.labels(outcome).inc())
    chat = Chat(served, reader, cache, files, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await reader.start()
        engine.start()
        host, port = bound.getsockname()[:2]
        address = f"[{host}]" if ":" in host else host
        print(f"{served.name} is served at http://{address}:{port}/v1", file=sys.stderr, flush=True)
        yield
        engine.stop(limits.STOP_SECONDS)

    app = build_app(chat, files, metrics, api_key, lifespan)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for library in ("uvicorn", "httpx"):
        logging.getLogger(library).setLevel(logging.WARNING)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=limits.STOP_SECONDS
    )
    uvicorn.Server(config).run(sockets=[bound])
