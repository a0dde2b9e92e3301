"""The routes of the server."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from . import limits
from .answers import Piece
from .chat import Chat, Reply, event
from .errors import LONGEST_NAME, ApiError
from .files import FileStore
from .http_guard import (
    Admission,
    AnswerStream,
    Guard,
    as_response,
    limited_receive,
    too_late,
    too_slow,
    until_disconnect,
)
from .metrics import Metrics
from .protocol import parse_chat_request

FILE_FIELDS = ("file", "purpose", "expires_after[anchor]", "expires_after[seconds]")
# The other fields of an upload, and the lines between them, have less than this many bytes.
BESIDE_THE_FILE = limits.MIB
STREAM_END = b"data: [DONE]\n\n"


def build_app(
    chat: Chat, files: FileStore, metrics: Metrics, api_key: str | None, lifespan: Callable[[FastAPI], Any]
) -> FastAPI:
    """The web application.

    Args:
        api_key: what clients have to send; None where only programs of this machine may ask.
        lifespan: starts and stops what the application uses.
    """
    # No pages about the API: FastAPI's load scripts from another site.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, api_key=api_key, metrics=metrics)
    app.add_exception_handler(HTTPException, _unknown_route)
    _add_chat_routes(app, chat, Admission(metrics))
    _add_file_routes(app, files)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def show_metrics() -> Response:
        metrics.cache_bytes.set(chat.cache.num_bytes)
        metrics.files_bytes.set(files.num_bytes)
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return app


def _add_chat_routes(app: FastAPI, chat: Chat, admission: Admission) -> None:
    @app.post("/v1/chat/completions")
    async def create_chat_completion(request: Request) -> Response:
        started = time.monotonic()
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise ApiError(400, "The body has to be JSON, with the header Content-Type: application/json.")
        place = admission.enter()
        try:
            chat_request = await asyncio.to_thread(parse_chat_request, await place.read_body(request))
            reply, prompt, sampling = await until_disconnect(request, chat.prepare(chat_request), started)
            del chat_request
            place.forget_body()
            pieces = chat.pieces(reply, prompt, sampling, started)
            if reply.request.stream:
                return AnswerStream(_stream(reply, pieces, started), on_end=place.leave)
            completion = reply.completion(await until_disconnect(request, _collect(pieces), started))
        except BaseException:
            place.leave()
            raise
        place.leave()
        return JSONResponse(completion)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_model_object(chat)]}

    @app.get("/v1/models/{name:path}")
    async def get_model(name: str) -> dict[str, Any]:
        chat.require_model(name)
        return _model_object(chat)


def _model_object(chat: Chat) -> dict[str, Any]:
    return {"id": chat.model.name, "object": "model", "created": chat.created, "owned_by": "radfm"}


async def _collect(pieces: AsyncIterator[Piece]) -> list[Piece]:
    return [piece async for piece in pieces]


async def _stream(reply: Reply, pieces: AsyncGenerator[Piece], started: float) -> AsyncGenerator[bytes]:
    try:
        yield event(reply.first_chunk())
        while (piece := await _next_piece(pieces, started)) is not None:
            yield event(reply.chunk(piece))
        if reply.has_usage_chunk:
            yield event(reply.usage_chunk())
        yield STREAM_END
    except ApiError as error:  # the status is sent already, so the error is the last event
        yield event(error.body)
    finally:
        await pieces.aclose()


async def _next_piece(pieces: AsyncIterator[Piece], started: float) -> Piece | None:
    try:
        async with asyncio.timeout(max(started + limits.ANSWER_SECONDS - time.monotonic(), 0)):
            return await anext(pieces, None)
    except TimeoutError:
        raise too_late() from None


def _add_file_routes(app: FastAPI, files: FileStore) -> None:
    uploading = asyncio.Semaphore(limits.UPLOADS)

    @app.post("/v1/files")
    async def create_file(request: Request) -> dict[str, Any]:
        if uploading.locked():
            raise ApiError(429, f"{limits.UPLOADS} files are being uploaded; try again later.", retry_after=10)
        length = request.headers.get("content-length", "")
        files.require_room(max(int(length) - BESIDE_THE_FILE, 0) if length.isdigit() else 0)
        async with uploading, _form(request) as form:
            unknown = [name for name in form if name not in FILE_FIELDS]
            if unknown:
                raise ApiError(400, f"{unknown[0][:LONGEST_NAME]}: is not supported by this server; leave it out.")
            upload, purpose = form.get("file"), form.get("purpose")
            if not isinstance(upload, UploadFile) or not isinstance(purpose, str):
                raise ApiError(400, "Give a file and its purpose.")
            if form.get("expires_after[anchor]", "created_at") != "created_at":
                raise ApiError(400, "expires_after[anchor]: has to be created_at.", param="expires_after")
            seconds = form.get("expires_after[seconds]")
            if seconds is not None and not str(seconds).isdigit():
                raise ApiError(400, "expires_after[seconds]: is no whole number.", param="expires_after")
            kept = None if seconds is None else int(str(seconds))
            stored = await files.add(upload.file, upload.size or 0, upload.filename or "scan", purpose, kept)
            return stored.as_object

    @app.get("/v1/files")
    async def list_files() -> dict[str, Any]:
        return {"object": "list", "data": [file.as_object for file in files.list()], "has_more": False}

    @app.get("/v1/files/{identifier}")
    async def get_file(identifier: str) -> dict[str, Any]:
        return files.get(identifier).as_object

    @app.delete("/v1/files/{identifier}")
    async def delete_file(identifier: str) -> dict[str, Any]:
        files.delete(identifier)
        return {"id": identifier, "object": "file", "deleted": True}


@asynccontextmanager
async def _form(request: Request) -> AsyncIterator[FormData]:
    """The fields of an upload, within the limits on bytes and time. Raises `ApiError` 400, 408 or 413."""
    receive = limited_receive(request.receive, limits.UPLOAD_BYTES + BESIDE_THE_FILE)
    limited = Request(request.scope, receive)
    try:
        async with asyncio.timeout(limits.UPLOAD_SECONDS):
            form = await limited.form(max_files=1, max_fields=len(FILE_FIELDS))
    except TimeoutError:
        raise too_slow() from None
    except (MultiPartException, HTTPException):
        raise ApiError(400, "The body has to be multipart/form-data with the fields file and purpose.") from None
    try:
        yield form
    finally:
        await form.close()


async def _unknown_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = f"This server has no {request.method} at this path; see /v1/models, /v1/chat/completions and /v1/files."
    return as_response(ApiError(error.status_code, sentence, "unknown_route"))
