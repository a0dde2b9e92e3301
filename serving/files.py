"""/v1/files: scans that are uploaded once and asked about by their id. They are bounded, temporary and never given back."""

import asyncio
import hashlib
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from . import limits
from .errors import ApiError
from .scans import Source

PURPOSES = ("user_data", "vision")
COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class StoredFile:
    """An uploaded file: where it lies, its SHA-256, and what the API says about it. Times are seconds since 1970."""

    id: str
    path: Path
    digest: str
    num_bytes: int
    filename: str
    purpose: str
    created_at: int
    expires_at: int

    @property
    def as_object(self) -> dict[str, Any]:
        """OpenAI's file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.num_bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


class FileStore:
    """Uploaded files in a folder. Used by one event loop."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._files: dict[str, StoredFile] = {}

    @property
    def num_bytes(self) -> int:
        """The bytes of all files."""
        return sum(file.num_bytes for file in self._files.values())

    async def add(self, upload: IO[bytes], size: int, filename: str, purpose: str, seconds: int | None) -> StoredFile:
        """Store an upload.

        Raises:
            ApiError: 400 for an unknown purpose, an unusable expiry or an empty file; 429 where there is no room.
        """
        if purpose not in PURPOSES:
            raise ApiError(400, f"purpose: this server knows {' and '.join(PURPOSES)} alone.", param="purpose")
        seconds = limits.FILE_SECONDS if seconds is None else seconds
        if not 1 <= seconds <= limits.LONGEST_FILE_SECONDS:
            longest = limits.LONGEST_FILE_SECONDS
            raise ApiError(400, f"expires_after[seconds]: must lie between 1 and {longest}.", param="expires_after")
        if size == 0:
            raise ApiError(400, "file: is empty.", param="file")
        self.require_room(size)
        identifier = f"file-{secrets.token_hex(16)}"
        path = self._folder / identifier
        digest = await asyncio.to_thread(_copy, upload, path)
        now = int(time.time())
        file = StoredFile(identifier, path, digest, size, filename, purpose, now, now + seconds)
        self._files[identifier] = file
        return file

    def require_room(self, size: int) -> None:
        """Raise `ApiError` 429 where a file of so many bytes cannot be kept."""
        self.delete_expired()
        free = shutil.disk_usage(self._folder).free - limits.DISK_RESERVE
        if len(self._files) >= limits.FILES or self.num_bytes + size > limits.FILES_BYTES or size > free:
            next_expiry = min((file.expires_at for file in self._files.values()), default=int(time.time()) + 60)
            wait = max(next_expiry - int(time.time()), 1)
            raise ApiError(429, "There is no room for more files: delete some, or wait until they expire.", retry_after=wait)

    def get(self, identifier: str) -> StoredFile:
        """A file. Raises `ApiError` 404 for an unknown or expired id."""
        self.delete_expired()
        if identifier not in self._files:
            raise ApiError(404, "There is no file with this id; it may have expired.", "file_not_found", "file_id")
        return self._files[identifier]

    def list(self) -> list[StoredFile]:
        """All files, the newest first."""
        self.delete_expired()
        return sorted(self._files.values(), key=lambda file: file.created_at, reverse=True)

    def delete(self, identifier: str) -> None:
        """Delete a file. A scan that is being read from it is read to its end."""
        self.get(identifier).path.unlink(missing_ok=True)
        del self._files[identifier]

    def delete_expired(self) -> None:
        """Delete what nobody can ask about any more."""
        now = time.time()
        for file in [file for file in self._files.values() if file.expires_at <= now]:
            file.path.unlink(missing_ok=True)
            del self._files[file.id]

    def source(self, identifier: str) -> Source:
        """A file as the source of a scan. Raises `ApiError` 404."""
        file = self.get(identifier)
        return Source(file.path, file.digest)


def _copy(upload: IO[bytes], path: Path) -> str:
    """Copy an upload to the disk; its SHA-256."""
    digest = hashlib.sha256()
    upload.seek(0)
    with path.open("xb") as file:
        while block := upload.read(COPY_BYTES):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()
