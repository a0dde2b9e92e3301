"""JPEG and PNG files without what they say beside the picture: EXIF, comments, text chunks, dates. Pixels are not decoded.

What decides how the picture looks stays: colour profiles, gamma, transparency, and the EXIF orientation where it is not 1.
"""

import re
import struct
import zlib
from collections.abc import Iterator

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
PNG_KEPT = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"bKGD", b"pHYs"}
_APP0, _APP2, _APP14, _COM, _SOS, _EOI = 0xE0, 0xE2, 0xEE, 0xFE, 0xDA, 0xD9
_STANDALONE = {0x01, *range(0xD0, 0xD8)}  # TEM and restart markers have no length (ITU-T T.81, table B.1)
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


class DamagedImageError(ValueError):
    """A JPEG or PNG whose segments do not add up; one line."""


def strip_metadata(content: bytes, orientation: int = 1) -> bytes:
    """The same picture, byte for byte where it is one, without metadata and without what follows its end.

    Args:
        content: a JPEG or PNG file.
        orientation: the EXIF orientation (1 to 8) to keep; 1, the default of every reader, is not written.

    Raises:
        DamagedImageError: the file ends early or is neither.
    """
    if content.startswith(JPEG):
        return _strip_jpeg(content, orientation)
    if content.startswith(PNG):
        return _strip_png(content, orientation)
    raise DamagedImageError("is neither a JPEG nor a PNG")


def metadata_of(content: bytes) -> list[str]:
    """The names of the segments and chunks that `strip_metadata` would remove."""
    if content.startswith(JPEG):
        return [_jpeg_name(marker) for marker, segment in _jpeg_segments(content) if not _is_kept(marker, segment[4:])]
    if content.startswith(PNG):
        return [kind.decode("latin-1") for kind, _ in _png_chunks(content) if kind not in PNG_KEPT]
    return []


def _is_kept(marker: int, body: bytes) -> bool:
    if marker == _APP0:
        return body.startswith(b"JFIF\0")
    if marker == _APP2:
        return body.startswith(b"ICC_PROFILE\0")
    return marker == _APP14 or (marker != _COM and not 0xE0 <= marker <= 0xEF)


def _jpeg_name(marker: int) -> str:
    return "COM" if marker == _COM else f"APP{marker - 0xE0}"


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, segment with its marker) up to the end of the image; entropy-coded data count to the scan header."""
    at = 2
    while True:
        while content[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        if at + 2 > len(content) or content[at] != 0xFF:
            raise DamagedImageError("is a JPEG that ends early or has no marker where one must be")
        marker = content[at + 1]
        if marker == _EOI:
            return
        if marker in _STANDALONE:
            at += 2
            continue
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == _SOS:
            match = _SCAN_END.search(content, end)
            end = len(content) + 1 if match is None else match.start()
        if end > len(content):
            raise DamagedImageError("is a JPEG that ends early")
        yield marker, content[at:end]
        at = end


def _strip_jpeg(content: bytes, orientation: int) -> bytes:
    pieces = [b"\xff\xd8"]
    if orientation != 1:
        body = b"Exif\0\0" + _orientation_tag(orientation)
        pieces.append(b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body)
    pieces += [segment for marker, segment in _jpeg_segments(content) if _is_kept(marker, segment[4:])]
    return b"".join((*pieces, b"\xff\xd9"))


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, whole chunk) up to the end of the image."""
    at = len(PNG)
    while True:
        if at + 12 > len(content):
            raise DamagedImageError("is a PNG that ends early")
        length = int.from_bytes(content[at : at + 4], "big")
        end = at + 12 + length
        if end > len(content):
            raise DamagedImageError("is a PNG that ends early")
        kind = content[at + 4 : at + 8]
        yield kind, content[at:end]
        if kind == b"IEND":
            return
        at = end


def _strip_png(content: bytes, orientation: int) -> bytes:
    pieces = [PNG]
    for kind, chunk in _png_chunks(content):
        if kind == b"IDAT" and orientation != 1:
            body = b"eXIf" + _orientation_tag(orientation)
            pieces.append(struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)))
            orientation = 1
        if kind in PNG_KEPT:
            pieces.append(chunk)
    return b"".join(pieces)


def _orientation_tag(orientation: int) -> bytes:
    """A TIFF block with one entry: tag 0x0112, SHORT (EXIF 2.32, section 4.6.4)."""
    return struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)
