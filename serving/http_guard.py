"""What is true of every request: key, size, time, a bound on how many, errors in OpenAI's form, one line of log."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi.responses import JSONResponse, StreamingResponse
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import auth, limits
from .errors import ApiError, log_without_values
from .metrics import Metrics

logger = logging.getLogger("radfm.serving")
T = TypeVar("T")

# nginx' status of a client that went away; nothing is sent.
CLIENT_GONE = 499
# How much the last request counts in the mean that Retry-After is made of.
NEWEST_SHARE = 0.1


class ClientGoneError(Exception):
    """Nobody waits for the response any more."""


class Guard:
    """ASGI middleware: the key before anything is read, errors in OpenAI's form, numbers and a line of log at the end."""

    def __init__(self, app: ASGIApp, api_key: str | None, metrics: Metrics):
        self._app, self._api_key, self._metrics = app, api_key, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started, status = time.monotonic(), 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            try:
                auth.check(scope["path"], Headers(scope=scope), self._api_key)
                await self._app(scope, receive, send_and_note)
            except ApiError as error:
                await as_response(error)(scope, receive, send_and_note)
            except (ClientGoneError, ClientDisconnect):
                status = status or CLIENT_GONE
            except Exception as error:
                log_without_values(error)
                if not status:
                    await as_response(ApiError(500, "Something went wrong in the server."))(scope, receive, send_and_note)
        finally:
            self._note(scope, status, time.monotonic() - started)
        return None

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        # The route and not the path, which holds what a client wrote.
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        logger.info("%s %s %d %.2f s", scope["method"], route, status, seconds)


class Admission:
    """How many chat requests are in progress, and how many bytes of theirs are in memory.

    One more than `limits.QUEUE` is told to come back before its body is read.
    """

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self.count = self.num_bytes = 0
        self._mean_seconds = 1.0

    def enter(self) -> "Place":
        """A place for a request. Raises `ApiError` 429 with the seconds until one is likely to be free."""
        if self.count >= limits.QUEUE:
            raise self.queue_full_error()
        self.count += 1
        self._metrics.in_progress.set(self.count)
        return Place(self)

    def queue_full_error(self) -> ApiError:
        """Come back later."""
        message = f"The server has {self.count} requests to answer and takes no more."
        return ApiError(429, message, "queue_full", retry_after=max(round(self._mean_seconds), 1))

    def release(self, seconds: float) -> None:
        """A place is free again."""
        self.count -= 1
        self._metrics.in_progress.set(self.count)
        self._mean_seconds += NEWEST_SHARE * (seconds - self._mean_seconds)


class Place:
    """One request in progress."""

    def __init__(self, admission: Admission):
        self._admission, self._entered = admission, time.monotonic()
        self._num_bytes = 0
        self._has_left = False

    async def read_body(self, request: Request) -> bytearray:
        """The body of a request, within the limits on bytes and time. Raises `ApiError` 408, 413 or 429."""
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > limits.REQUEST_BYTES:
            raise too_large(limits.REQUEST_BYTES)
        body = bytearray()
        try:
            async with asyncio.timeout(limits.UPLOAD_SECONDS):
                async for block in request.stream():
                    body += block
                    self._hold(len(block))
        except TimeoutError:
            raise too_slow() from None
        return body

    def _hold(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        self._admission.num_bytes += num_bytes
        if self._num_bytes > limits.REQUEST_BYTES:
            raise too_large(limits.REQUEST_BYTES)
        if self._admission.num_bytes > limits.BODIES_BYTES:
            raise self._admission.queue_full_error()

    def forget_body(self) -> None:
        """The bytes of the body are no longer in memory."""
        self._admission.num_bytes -= self._num_bytes
        self._num_bytes = 0

    def leave(self) -> None:
        """The request is answered; a second call changes nothing."""
        if not self._has_left:
            self._has_left = True
            self.forget_body()
            self._admission.release(time.monotonic() - self._entered)


class AnswerStream(StreamingResponse):
    """Server-sent events; whatever ends them, the generator is closed and `on_end` is called."""

    def __init__(self, events: AsyncGenerator[bytes], on_end: Callable[[], None]):
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._events, self._on_end = events, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events. A client that does not read them is given up."""
        try:
            async with asyncio.timeout(2 * limits.ANSWER_SECONDS):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            raise ClientGoneError from None
        finally:
            self._on_end()
            await self._events.aclose()


async def until_disconnect(request: Request, work: Coroutine[Any, Any, T], started: float) -> T:
    """The result of `work`. It is cancelled when the client goes away, or has waited for `limits.ANSWER_SECONDS`."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    remaining = started + limits.ANSWER_SECONDS - time.monotonic()
    try:
        await asyncio.wait({task, gone}, timeout=max(remaining, 0), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError if gone.done() else too_late()
        return task.result()
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.wait({task, gone})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def limited_receive(receive: Receive, max_bytes: int) -> Receive:
    """`receive` that raises `ApiError` 413 once a body is longer than `max_bytes`."""
    total = 0

    async def limited() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > max_bytes:
            raise too_large(max_bytes)
        return message

    return limited


def as_response(error: ApiError) -> JSONResponse:
    """An error in OpenAI's form."""
    return JSONResponse(error.body, error.status, error.headers)


def too_large(max_bytes: int) -> ApiError:
    """The body is longer than the server takes."""
    return ApiError(413, f"The body is larger than {max_bytes >> 20} MiB; send a large scan through /v1/files.")


def too_slow() -> ApiError:
    """The body did not come."""
    return ApiError(408, f"The body took longer than {limits.UPLOAD_SECONDS} seconds.")


def too_late() -> ApiError:
    """The answer did not come."""
    message = f"The answer took longer than {limits.ANSWER_SECONDS} seconds."
    return ApiError(503, message, "timeout", retry_after=30)
