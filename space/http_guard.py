"""What is checked of a request before Gradio sees it, and what is written of an error: never a visitor's data."""

import asyncio
import json
import logging
import secrets
import shutil
import sys
import traceback
from collections import OrderedDict
from http.cookies import SimpleCookie
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs

import limits

COOKIE = "radfm_session"
REMEMBERED_HASHES = 10_000
UPLOAD = "/gradio_api/upload"
# MCP clients send scans as data: URLs in the body.
LARGE_BODIES = (UPLOAD, "/gradio_api/mcp")


class RequestGuard:
    """ASGI middleware.

    - A page gets a secret cookie. Gradio's session hash, which stands in URLs, is bound to the secret of its first request;
      with another secret it is refused.
    - A body other than an upload is limited to `BODY_BYTES`, an upload to `UPLOAD_SECONDS` and to the free disk.
    - An exception ends in a response and in one line of log without its message.
    """

    def __init__(self, app: Any, work: Path):
        self._app, self._work = app, work
        self._secrets: OrderedDict[str, str] = OrderedDict()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = False

        async def send_and_note(message: dict[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if scope["path"] == "/" and not _secret(scope):
                    message = {**message, "headers": [*message["headers"], (b"set-cookie", _new_cookie(scope))]}
            await send(message)

        try:
            refused, receive = await self._check(scope, receive)
            if refused:
                return await _respond(send, *refused)
            upload = scope["path"].startswith(UPLOAD) and scope["method"] == "POST"
            async with asyncio.timeout(limits.UPLOAD_SECONDS if upload else None):
                await self._app(scope, receive, send_and_note)
        except TimeoutError:
            if not started:
                await _respond(send, 408, f"The upload took longer than {limits.UPLOAD_SECONDS} seconds.")
        except Exception as error:
            print_without_values(error)
            if not started:
                await _respond(send, 500, "Something went wrong here. Load the page again.")

    async def _check(self, scope: dict[str, Any], receive: Any) -> tuple[tuple[int, str] | None, Any]:
        """A status and sentence where the request is refused, and `receive` with what was read of the body."""
        path, length = scope["path"], int(_header(scope, b"content-length") or 0)
        if path.startswith(UPLOAD) and shutil.disk_usage(self._work).free - length < limits.DISK_RESERVE:
            return (507, "The disk of this Space is full. Try again later."), receive
        hashes = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [])
        if "/heartbeat/" in path:
            hashes.append(path.rsplit("/", 1)[1])
        if scope["method"] == "POST" and not path.startswith(LARGE_BODIES):
            body = await _read_body(receive)
            if body is None:
                return (413, f"A request holds {limits.BODY_BYTES >> 10} KiB at most: upload the scan first."), receive
            hashes += _session_hash(body)
            receive = _replay(body, receive)
        if not all(self._is_owner(session_hash, _secret(scope)) for session_hash in hashes):
            return (403, "This session belongs to another browser."), receive
        return None, receive

    def _is_owner(self, session_hash: str, secret: str) -> bool:
        owner = self._secrets.setdefault(session_hash, secret)
        self._secrets.move_to_end(session_hash)
        if len(self._secrets) > REMEMBERED_HASHES:
            self._secrets.popitem(last=False)
        return secrets.compare_digest(owner, secret)


def _header(scope: dict[str, Any], name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _secret(scope: dict[str, Any]) -> str:
    """The secret that the browser sent, or ""."""
    cookies: SimpleCookie = SimpleCookie()
    cookies.load(_header(scope, b"cookie"))
    return cookies[COOKIE].value if COOKIE in cookies else ""


def _new_cookie(scope: dict[str, Any]) -> bytes:
    # On the Hub a Space is a frame in another site's page: only a partitioned cookie comes back from there.
    https = "https" in (scope["scheme"], _header(scope, b"x-forwarded-proto").split(",")[0])
    where = "SameSite=None; Secure; Partitioned" if https else "SameSite=Lax"
    return f"{COOKIE}={secrets.token_urlsafe(32)}; Path=/; HttpOnly; {where}".encode()


async def _read_body(receive: Any) -> bytes | None:
    """The body of a request, None where it is longer than `BODY_BYTES`."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > limits.BODY_BYTES:
            return None
        if not message.get("more_body"):
            return body


def _replay(body: bytes, receive: Any) -> Any:
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> dict[str, Any]:
        return pending.pop() if pending else await receive()

    return replayed


def _session_hash(body: bytes) -> list[str]:
    try:
        content = json.loads(body)
    except ValueError:
        return []
    session_hash = content.get("session_hash") if isinstance(content, dict) else None
    return [session_hash] if isinstance(session_hash, str) else []


async def _respond(send: Any, status: int, sentence: str) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"detail": sentence}).encode()})


def print_without_values(error: BaseException | None = None) -> None:
    """Print where an exception came from and its class. Its message may hold file names and whole files."""
    error = error or sys.exc_info()[1]
    if error is None:
        return
    place: TracebackType | None = error.__traceback__
    frames = traceback.extract_tb(place)[-1:]
    where = f" at {Path(frames[0].filename).name}:{frames[0].lineno}" if frames else ""
    print(f"{type(error).__name__}{where}", file=sys.stderr)


class _WithoutValues(logging.Filter):
    """Drops exceptions and arguments from the records of libraries that log requests."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            print_without_values(record.exc_info[1])
            return False
        return True


def keep_values_out_of_the_log() -> None:
    """From here on, exceptions in Gradio and its web server are logged without their messages, except with RADFM_DEBUG."""
    if limits.DEBUG:
        return
    # Gradio prints each exception of a callback with this function of the standard library.
    traceback.print_exc = lambda *args, **kwargs: print_without_values()
    for name in ("uvicorn.error", "asyncio", "gradio", "mcp", "httpx"):
        logging.getLogger(name).addFilter(_WithoutValues())
