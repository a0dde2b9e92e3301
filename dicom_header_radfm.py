"""The header of a plain DICOM file in one pass: what a series of hundreds of slices needs of each, and nothing else.

pydicom reads every element of a header; here those that nobody asks for are stepped over (PS3.5 7.1). Whatever is not plain
(big endian, deflated, no preamble, a sequence of undefined length, a sequence that is asked for) is left to pydicom.
"""

import struct
from typing import Any

try:
    import pydicom
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import BaseTag, Tag
except ImportError:
    pydicom = None  # type: ignore[assignment]

IMPLICIT, EXPLICIT = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1"
COMPRESSED = b"1.2.840.10008.1.2.4"
# Headers of plain slices are a few kilobytes long.
HEAD_BYTES = 1 << 16
LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
TRANSFER_SYNTAX, PIXELS, UNDEFINED = 0x00020010, 0x7FE00008, 0xFFFFFFFF


def plain_header(head: bytes, wanted: set[int]) -> tuple[Any, int] | None:
    """The wanted elements of a file that starts with `head`, and where its pixel element is; None where it is not plain."""
    end = _end_of_meta(head)
    if head[128:132] != b"DICM" or end > len(head):
        return None
    meta, at = _elements(head, 132, explicit=True, end=end, wanted={TRANSFER_SYNTAX})
    if meta is None or TRANSFER_SYNTAX not in meta:
        return None
    syntax = meta[TRANSFER_SYNTAX][1].rstrip(b"\0 ")
    if syntax not in (IMPLICIT, EXPLICIT) and not (syntax.startswith(COMPRESSED) and syntax.isascii()):
        return None
    found, at = _elements(head, at, explicit=syntax != IMPLICIT, end=len(head), wanted=wanted)
    if found is None:
        return None
    raw: Any = {
        BaseTag(tag): RawDataElement(
            BaseTag(tag), vr.decode("ascii") if vr else None, len(value), value, 0, vr is None, True
        )
        for tag, (vr, value) in found.items()
    }
    dataset = pydicom.dataset.FileDataset("", raw, is_implicit_VR=syntax == IMPLICIT, is_little_endian=True)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax.decode("ascii"))
    return dataset, at


def tags_of(words: list[str]) -> set[int]:
    """Tags by their keywords."""
    return {int(Tag(word)) for word in words} if pydicom is not None else set()


def _end_of_meta(head: bytes) -> int:
    """Where the file meta information ends, from its group length, which is its first element (PS3.10 7.1)."""
    if head[132:140] != b"\x02\x00\x00\x00UL\x04\x00":
        return 0
    return 144 + int.from_bytes(head[140:144], "little")


def _elements(
    head: bytes, at: int, explicit: bool, end: int, wanted: set[int]
) -> tuple[dict[int, tuple[bytes | None, bytes]] | None, int]:
    """The wanted elements from `at` up to the pixels or to `end`, each with its VR and value, and where that is."""
    found: dict[int, tuple[bytes | None, bytes]] = {}
    while at + 12 <= end:
        group, element = struct.unpack_from("<HH", head, at)
        tag = group << 16 | element
        if tag >= PIXELS:
            return found, at
        vr: bytes | None = None
        if explicit:
            vr = head[at + 4 : at + 6]
            if vr in LONG_VRS:
                length, start = int.from_bytes(head[at + 8 : at + 12], "little"), at + 12
            elif vr.isalpha() and vr.isupper():
                length, start = int.from_bytes(head[at + 6 : at + 8], "little"), at + 8
            else:
                return None, at
        else:
            length, start = int.from_bytes(head[at + 4 : at + 8], "little"), at + 8
        if length == UNDEFINED or start + length > end:
            return None, at
        if tag in wanted:
            if vr in (b"SQ", b"UN"):
                return None, at
            found[tag] = (vr, head[start : start + length])
        at = start + length
    return (found, at) if at == end and end < len(head) else (None, at)
