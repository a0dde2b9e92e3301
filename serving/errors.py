"""Errors as OpenAI's API words them, and what the log says of them: never a path, a scan or a patient's data."""

import sys
import traceback
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from radfm.scan_radfm import one_line

from . import limits

# The longest part of a request that a message repeats, such as the name of an unknown field.
LONGEST_NAME = 60


class ApiError(Exception):
    """A refusal with its HTTP status, in OpenAI's form.

    Args:
        status: 4xx for what the client has to change, 429 and 503 (with `retry_after`) for what it may send again.
        message: one sentence.
        code: OpenAI's word for programs, such as "model_not_found".
        param: the field that is wrong.
        retry_after: seconds after which the client may come back.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None, retry_after: int | None = None
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """The HTTP headers that belong to the error."""
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})

    @property
    def body(self) -> dict[str, Any]:
        """{"error": {"message", "type", "param", "code"}}."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def from_validation(error: ValidationError) -> ApiError:
    """The first fault of a request as an `ApiError` with status 400. Values of the request are not repeated."""
    first = error.errors(include_url=False, include_input=False)[0]
    kind, where = first["type"], field_name(first["loc"])
    if kind == "json_invalid":
        return ApiError(400, "The body is no JSON.")
    if kind == "extra_forbidden":
        reason = "is not supported by this server; leave it out."
    elif kind == "missing":
        reason = "is missing."
    elif kind in ("union_tag_invalid", "union_tag_not_found"):
        reason = "has no type that is supported: text, file or image_url."
    else:
        message = first["msg"].removeprefix("Value error, ")
        reason = message[0].lower() + message[1:] + ("" if message.endswith(".") else ".")
    return ApiError(400, f"{where}: {reason}" if where else reason, param=where or None)


def field_name(location: tuple[int | str, ...]) -> str:
    """pydantic's location of a field as a reader writes it.

    >>> field_name(("messages", 0, "content", 1, "file", "file", "series"))
    'messages[0].content[1].file.series'
    """
    name = ""
    for i, step in enumerate(location):
        if isinstance(step, int):
            name += f"[{step}]"
        elif not (i >= 2 and location[i - 2] == "content" and isinstance(location[i - 1], int)):  # the tag of a union
            name += ("." if name else "") + one_line(step[:LONGEST_NAME])
    return name


def log_without_values(error: BaseException) -> None:
    """Print the class of an exception and the line that raised it. Its message may hold file names and whole files."""
    if limits.DEBUG:
        traceback.print_exception(error)
        return
    frames = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" at {Path(frames[0].filename).name}:{frames[0].lineno}" if frames else ""
    print(f"{type(error).__name__}{where}", file=sys.stderr)
