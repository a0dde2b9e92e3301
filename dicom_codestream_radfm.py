"""What a compressed frame says of itself, held against its header before a codec sees it (DICOM PS3.5, 8.2 and A.4).

A codec believes the size that its codestream announces and cannot be interrupted: a damaged size costs gigabytes and hours.
"""

import struct

JPEG_START, JPEG_2000_START = b"\xff\xd8", b"\xff\x4f\xff\x51"
JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "
JPEG_SCAN, JPEG_WITHOUT_LENGTH = 0xDA, {0x01, *range(0xD0, 0xD9)}
# SOF0 to SOF15 without DHT, JPG and DAC, which lie among them; and SOF55 of JPEG-LS (ISO 10918-1 B.1, ISO 14495-1 C.1).
JPEG_SIZES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
JPEG_SEQUENTIAL = (0xC0, 0xC1)
MOST_TILES = 65_535


def check_frame(frame: bytes, rows: int, columns: int) -> bytes:
    """An encoded frame as a codec takes it: JPEG 2000 without the JP2 file that some writers leave around it.

    Raises:
        ValueError: a frame of JPEG, JPEG-LS or JPEG 2000 whose size is not that of the header.
    """
    if frame.startswith(JP2_SIGNATURE):
        start = frame.find(JPEG_2000_START)
        if start < 0:
            raise ValueError("it is a JP2 file without a codestream")
        frame = frame[start:]
    if frame.startswith(JPEG_2000_START):
        size = _jpeg_2000_size(frame)
    elif frame.startswith(JPEG_START):
        size = _jpeg_size(frame)
    else:
        return frame
    if size != (rows, columns):
        raise ValueError(f"its codestream is {size[0]}×{size[1]}, its header {rows}×{columns}")
    return frame


def repair_spectral_selection(frame: bytes) -> bytes:
    """A sequential JPEG frame whose scan header ends at coefficient 0, with the 63 that its process always has.

    Some writers of 12-bit JPEG Extended leave the end of spectral selection (Se) at 0; ISO 10918-1 B.2.3 demands 63, and
    codecs refuse anything else.
    """
    at, sequential = 2, False
    while at + 4 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        length = int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker in JPEG_SEQUENTIAL:
            sequential = True
        elif marker == JPEG_SCAN:
            end = at + 2 + length - 2
            if sequential and end < len(frame) and frame[end - 1 : end + 1] == b"\0\0":
                return frame[:end] + b"\x3f" + frame[end + 1 :]
            return frame
        at += 1 if marker == 0xFF else 2 if marker in JPEG_WITHOUT_LENGTH else 2 + length
    return frame


def _jpeg_2000_size(frame: bytes) -> tuple[int, int]:
    """Height and width of the SIZ segment (ISO 15444-1, A.5.1)."""
    if len(frame) < 42:
        raise ValueError("its codestream is cut off")
    width, height, left, top, tile_width, tile_height, tile_left, tile_top, _ = struct.unpack(">8IH", frame[8:42])
    if not tile_width or not tile_height:
        raise ValueError("its codestream has tiles of size 0")
    tiles = -(-(width - tile_left) // tile_width) * -(-(height - tile_top) // tile_height)
    if tiles > MOST_TILES:
        raise ValueError(f"its codestream has {tiles} tiles, more than JPEG 2000 allows")
    return height - top, width - left


def _jpeg_size(frame: bytes) -> tuple[int, int]:
    """Height and width of the first frame header."""
    at = 2
    while at + 9 <= len(frame):
        marker = frame[at + 1]
        if frame[at] != 0xFF or marker == JPEG_SCAN:
            break
        if marker in JPEG_SIZES:
            height, width = struct.unpack(">HH", frame[at + 5 : at + 9])
            return height, width
        if marker == 0xFF:
            at += 1
        elif marker in JPEG_WITHOUT_LENGTH:
            at += 2
        else:
            at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    raise ValueError("its codestream has no frame header")
