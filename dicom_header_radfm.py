"""The header of a plain DICOM file in one pass: what a series of hundreds of slices needs of each, and nothing else.

pydicom reads every element of a header; here those that nobody asks for are stepped over (PS3.5 7.1). Whatever is not plain
(big endian, deflated, no preamble, a sequence of undefined length, a sequence that is asked for) is left to pydicom.
"""

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

try:
    import pydicom
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import BaseTag, Tag
except ImportError:
    if not TYPE_CHECKING:
        pydicom = None

IMPLICIT, EXPLICIT = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1"
COMPRESSED = b"1.2.840.10008.1.2.4"
# Headers of plain slices are a few kilobytes long, those with private elements a few tens of them.
HEAD_BYTES = (1 << 13, 1 << 16)
LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
EXPLICIT_ELEMENT = struct.Struct("<HH2sH")  # tag, VR and a short length (PS3.5 7.1.2)
TRANSFER_SYNTAX, PIXELS, UNDEFINED = 0x00020010, 0x7FE00008, 0xFFFFFFFF


@dataclass(frozen=True, eq=False)
class PlainHeader:
    """The selected elements of a plain header as they are written: VR (None where it is implicit) and value by tag."""

    elements: dict[int, tuple[str | None, bytes]]
    transfer_syntax: str

    def to_dataset(self) -> "pydicom.Dataset":
        """The same elements as a pydicom dataset."""
        raw = {
            BaseTag(tag): RawDataElement(BaseTag(tag), vr, len(value), value, 0, vr is None, True)
            for tag, (vr, value) in self.elements.items()
        }
        implicit = self.transfer_syntax.encode() == IMPLICIT
        dataset = pydicom.dataset.FileDataset("", raw, is_implicit_VR=implicit, is_little_endian=True)  # type: ignore[arg-type]
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(self.transfer_syntax)
        return dataset


def plain_header(head: bytes, selected: set[int]) -> tuple[PlainHeader, int] | None:
    """Selected elements of a file that starts with `head`, and where its pixel element is; None where it is not plain."""
    end = _end_of_meta(head)
    if head[128:132] != b"DICM" or end > len(head):
        return None
    meta, at = _elements(head, 132, explicit=True, end=end, selected={TRANSFER_SYNTAX})
    if meta is None or TRANSFER_SYNTAX not in meta:
        return None
    syntax = meta[TRANSFER_SYNTAX][1].rstrip(b"\0 ")
    if syntax not in (IMPLICIT, EXPLICIT) and not (syntax.startswith(COMPRESSED) and syntax.isascii()):
        return None
    found, at = _elements(head, at, explicit=syntax != IMPLICIT, end=len(head), selected=selected)
    return None if found is None else (PlainHeader(found, syntax.decode("ascii")), at)


def tags_of(words: list[str]) -> set[int]:
    """Tags by their keywords."""
    return {int(Tag(word)) for word in words} if pydicom is not None else set()


def _end_of_meta(head: bytes) -> int:
    """Where the file meta information ends, from its group length, which is its first element (PS3.10 7.1)."""
    if head[132:140] != b"\x02\x00\x00\x00UL\x04\x00":
        return 0
    return 144 + int.from_bytes(head[140:144], "little")


def _elements(
    head: bytes, at: int, explicit: bool, end: int, selected: set[int]
) -> tuple[dict[int, tuple[str | None, bytes]] | None, int]:
    """The selected elements from `at` up to the pixels or to `end`, each with its VR and value, and where that is."""
    found: dict[int, tuple[str | None, bytes]] = {}
    while at + 12 <= end:
        group, element, letters, length = EXPLICIT_ELEMENT.unpack_from(head, at)
        tag, start = group << 16 | element, at + 8
        if tag >= PIXELS:
            return found, at
        vr: bytes | None = None
        if not explicit:
            length = int.from_bytes(head[at + 4 : start], "little")
        elif letters in LONG_VRS:
            vr, length, start = letters, int.from_bytes(head[start : at + 12], "little"), at + 12
        elif letters.isalpha() and letters.isupper():
            vr = letters
        else:
            return None, at
        if length == UNDEFINED or start + length > end:
            return None, at
        if tag in selected:
            if vr in (b"SQ", b"UN"):
                return None, at
            found[tag] = (vr.decode("ascii") if vr else None, head[start : start + length])
        at = start + length
    return (found, at) if at == end and end < len(head) else (None, at)
