"""The files in a folder or an archive, with bounds on their number and their bytes.

A zip or tar archive gives the files that the folder it was made of would give. Members are unpacked in memory and never to
the disk: a name that climbs out of the archive has nowhere to go, and links and devices are not followed.
"""

import gzip
import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from .scan_radfm import ReadContext, ScanError, gigabytes, one_line

# The largest studies (whole-body CT and PET, cardiac cine) have some ten thousand files.
MAX_FILES = 100_000
# How much of a file is read to recognise it: DICOM's preamble and meta header end before 1 KiB, tar's mark lies at 257. A
# gzip stream gives that much from its first 8 KiB in every case but a longer file name or comment in its header.
HEAD_BYTES, UNPACKED_HEAD_BYTES = 8192, 1024
GZIP = b"\x1f\x8b"
# What file managers add to a folder, and to an archive of it.
JUNK_FOLDERS = ("__MACOSX",)
JUNK_FILES = (".ds_store", "thumbs.db", "desktop.ini")
JUNK_PREFIX = "._"
# Voxels without a header of their own; kept when an archive is unpacked, because a header may belong to them.
RAW_SUFFIXES = (".img", ".img.gz", ".raw", ".raw.gz", ".zraw")


@dataclass(frozen=True)
class SourceFile:
    """One file to read.

    Args:
        name: as error messages name it; that of the archive, a slash and the member's for a member.
        content: where it lies on the disk, or its bytes.
        members: the files of the same archive by their names, where it is a member of one.
    """

    name: str
    content: Path | bytes
    members: dict[str, bytes] = field(default_factory=dict, repr=False, compare=False)

    @property
    def base_name(self) -> str:
        """The file's name without its folders."""
        return self.name.replace("\\", "/").rsplit("/", 1)[-1]

    def open(self) -> IO[bytes]:
        """A stream of the stored bytes."""
        return open(self.content, "rb") if isinstance(self.content, Path) else io.BytesIO(self.content)

    def open_unpacked(self) -> IO[bytes]:
        """A stream of the bytes, through gzip where the file is compressed with it, whatever its name."""
        stream = self.open()
        is_gzip = stream.read(2) == GZIP
        stream.seek(0)
        return cast(IO[bytes], _GzipStream(stream)) if is_gzip else stream

    def stored_head(self) -> bytes:
        """The first bytes as they are stored."""
        with self.open() as stream:
            return stream.read(HEAD_BYTES)

    def head(self) -> bytes:
        """The first bytes, unpacked where they are compressed with gzip."""
        return unpacked_head(self.stored_head())

    def sibling(self, base_name: str) -> "SourceFile | None":
        """The file of that name in the same folder; None where there is none."""
        if "/" in base_name or "\\" in base_name or base_name in ("", ".", ".."):
            return None
        name = self.name[: len(self.name) - len(self.base_name)] + base_name
        if isinstance(self.content, Path):
            path = self.content.with_name(base_name)
            return SourceFile(name, path) if path.is_file() else None
        content = self.members.get(name)
        return None if content is None else SourceFile(name, content, self.members)


class _GzipStream(gzip.GzipFile):
    """`gzip.GzipFile` that closes the stream below it."""

    def __init__(self, stream: IO[bytes]):
        super().__init__(fileobj=stream, mode="rb")
        self.myfileobj = cast(Any, stream)  # the attribute that GzipFile closes with itself


def unpacked_head(head: bytes) -> bytes:
    """The first bytes of a file, unpacked where they are compressed with gzip; as they are where that fails."""
    if head[:2] != GZIP:
        return head
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(head, UNPACKED_HEAD_BYTES)
    except zlib.error:
        return head


def unpack_gzip(file: SourceFile, limit: int, context: ReadContext) -> SourceFile:
    """A file compressed with gzip as its bytes, at most `limit` of them.

    Raises:
        ScanError: there are more.
        OSError, EOFError, zlib.error: the stream is damaged or cut short.
    """
    with file.open_unpacked() as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise _bomb(context)
    return SourceFile(file.name, content, file.members)


def folder_files(folder: Path, context: ReadContext) -> list[SourceFile]:
    """The files of a folder and of the folders in it, sorted by name, without what file managers add."""
    files = []
    for place, _, names in os.walk(
        folder, onerror=lambda error: context.warnings.append(_unreadable(error.filename, error))
    ):
        for name in names:
            path = Path(place, name)
            if not _is_junk(path.relative_to(folder).as_posix()) and path.is_file():
                files.append(path)
        if len(files) > MAX_FILES:
            raise context.error(f"holds more than {MAX_FILES} files; name a folder with one study in it.")
    return [SourceFile(str(path), path) for path in sorted(files)]


def _unreadable(name: str, error: OSError) -> str:
    return one_line(f"{name} cannot be read ({error.strerror or 'input/output error'}) and was left out.")


def archive_files(file: SourceFile, context: ReadContext, is_wanted: Callable[[bytes], bool]) -> list[SourceFile]:
    """The files of a zip or tar archive, also of a gzipped tar, sorted by name. Raises `ScanError`.

    Args:
        file: the archive.
        context: a member that cannot be read is named in its warnings.
        is_wanted: whether a file that starts with these bytes (unpacked from gzip) is to be unpacked; of the others only
            the first bytes are.
    """
    read = _zip_members if file.head()[:2] == b"PK" else _tar_members
    members: dict[str, bytes] = {}
    for name, content in read(file, context, is_wanted):
        members[one_line(f"{file.name}/{name}")] = content
    return [SourceFile(name, content, members) for name, content in sorted(members.items())]


def _is_junk(name: str) -> bool:
    *folders, base_name = name.replace("\\", "/").split("/")
    if any(folder in JUNK_FOLDERS for folder in folders):
        return True
    return base_name.startswith(JUNK_PREFIX) or base_name.lower() in JUNK_FILES


def _is_kept(name: str, start: bytes, is_wanted: Callable[[bytes], bool]) -> bool:
    return name.lower().endswith(RAW_SUFFIXES) or is_wanted(unpacked_head(start))


def _zip_members(file: SourceFile, context: ReadContext, is_wanted: Callable[[bytes], bool]) -> Iterator[tuple[str, bytes]]:
    left = context.options.max_bytes
    stream = file.open_unpacked()
    try:
        archive = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, ValueError, OSError) as error:
        stream.close()
        raise context.error("the zip archive is damaged or cut short; copy or download it again.") from error
    with stream, archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir() and not _is_junk(entry.filename)]
        if len(entries) > MAX_FILES:
            raise context.error(f"holds more than {MAX_FILES} files; make an archive of one study.")
        if entries and all(entry.flag_bits & ENCRYPTED for entry in entries):
            raise context.error("the zip archive is encrypted; unpack it with its password and read the folder.")
        unread = 0
        for entry in entries:
            try:
                with archive.open(entry) as member:
                    content = member.read(HEAD_BYTES)
                    if _is_kept(entry.filename, content, is_wanted):
                        content += member.read(max(left - len(content), 0) + 1)
            # zipfile raises RuntimeError for encryption and NotImplementedError for a method of compression it lacks.
            except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError, ValueError):
                context.warnings.append(
                    one_line(f"{entry.filename} is damaged or encrypted in the archive and was left out.")
                )
                unread += 1
                continue
            left -= len(content)
            if left < 0:
                raise _bomb(context)
            yield entry.filename, content
        if unread and unread == len(entries):
            raise context.error("each file in the zip archive is damaged or encrypted; copy or download it again.")


# Bit 0 of a zip entry's general purpose flag (PKWARE's APPNOTE 4.4.4).
ENCRYPTED = 1


def _tar_members(file: SourceFile, context: ReadContext, is_wanted: Callable[[bytes], bool]) -> Iterator[tuple[str, bytes]]:
    with file.open_unpacked() as stream:
        bounded = _BoundedStream(stream, context)
        try:
            # As a stream ("r|"): nothing seeks, so the bound holds for headers and for sparse files, too.
            with tarfile.open(fileobj=cast(IO[bytes], bounded), mode="r|") as archive:
                for number, entry in enumerate(archive):
                    if number > MAX_FILES:
                        raise context.error(f"holds more than {MAX_FILES} files; make an archive of one study.")
                    # Not links and devices, nor sparse files, which are no scans and may claim any size.
                    if not entry.isreg() or entry.issparse() or _is_junk(entry.name):
                        continue
                    member = archive.extractfile(entry)
                    assert member is not None  # regular files have content
                    content = member.read(HEAD_BYTES)
                    if _is_kept(entry.name, content, is_wanted):
                        content += member.read()
                        if len(content) != entry.size:
                            raise tarfile.ReadError
                    yield entry.name, content
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
            if isinstance(error, ScanError):
                raise
            raise context.error("the tar archive is damaged or cut short; copy or download it again.") from error


class _BoundedStream:
    """Reads another stream, and raises a `ScanError` once more than `max_bytes` came out of it."""

    def __init__(self, stream: IO[bytes], context: ReadContext):
        self.stream, self.context = stream, context
        self.left = context.options.max_bytes

    def read(self, size: int) -> bytes:
        content = self.stream.read(size)
        self.left -= len(content)
        if self.left < 0:
            raise _bomb(self.context)
        return content


def _bomb(context: ReadContext) -> ScanError:
    return context.error(f"unpacks to more than {gigabytes(context.options.max_bytes)} (max_bytes).")
