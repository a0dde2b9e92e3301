"""Parts of chat requests."""

import base64
from typing import Any

MODALITY = "Which imaging modality is this?"


def data_url(content: bytes, kind: str = "application/octet-stream") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def file(content: bytes, name: str = "scan", **choice: Any) -> dict[str, Any]:
    return {"type": "file", "file": {"filename": name, "file_data": data_url(content), **choice}}


def image(content: bytes, kind: str = "image/png", **choice: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(content, kind), **choice}}


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]
