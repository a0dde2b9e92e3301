"""One stored frame → an array. Also a program of its own: a process that decodes the frames that it is sent.

The codecs for JPEG, JPEG-LS and JPEG 2000 hold Python's lock while they work (measured: two threads decode JPEG 2000 no
faster than one), so many frames are decoded by processes. They are started by path, not forked or spawned: a fork copies the
locks of other threads, and a spawned child runs the caller's main module. That is why this file imports none of the others.
"""

import json
import os
import struct
import sys
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, BinaryIO

import numpy as np

if __name__ == "__main__":
    # pydicom imports requests to download test files. Without it a decoding process starts a fifth sooner.
    sys.modules["requests"] = None  # type: ignore[assignment]

try:
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID
except ImportError:
    if not TYPE_CHECKING:
        encapsulate = get_decoder = UID = None
try:
    from libjpeg.utils import decode as decode_jpeg
except ImportError:
    if not TYPE_CHECKING:
        decode_jpeg = None

# Retired processes of JPEG, which pydicom leaves alone and libjpeg decodes; and frames that are deflated one by one.
RETIRED_JPEG = ("1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55")
DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
# JPEG, JPEG-LS, JPEG 2000 (4.x), RLE (5) and deflated frames (8.1): the syntaxes that hold a frame in an item each.
ENCAPSULATED = ("1.2.840.10008.1.2.4.", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.8.")
READY = b"decoder\n"
# CharLS decodes JPEG-LS four times as fast as libjpeg, which pydicom prefers.
JPEG_LS, CHARLS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"), "pyjpegls"
END_OF_IMAGE = b"\xff\xd9"
# Messages with these are about this program's arrays and not about the file.
PYTHON_WORDS = ("reshape", "buffer", "object", "dtype", "broadcast", "argument", "index ", "plugins", "Error")


@dataclass(frozen=True)
class PixelFormat:
    """How a frame's pixels are stored (PS3.3 C.7.6.3): the elements of that name."""

    transfer_syntax: str
    rows: int
    columns: int
    samples_per_pixel: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    pixel_representation: int
    photometric_interpretation: str
    planar_configuration: int
    pixel_keyword: str

    @property
    def is_encapsulated(self) -> bool:
        """Whether frames are compressed, each in an item of its own."""
        return self.transfer_syntax.startswith(ENCAPSULATED)


def decode_frame(data: bytes, layout: PixelFormat) -> np.ndarray:
    """Stored values, (rows, columns) or (rows, columns, 3); colours in RGB.

    Raises:
        ValueError: the frame cannot be decoded; the message says why.
    """
    try:
        return _decode(data, layout)
    except BaseException as error:
        # The RLE decoder is written in Rust; its panic is a BaseException of a class that no module exports.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(_explain(error)) from error


def _explain(error: BaseException) -> str:
    """What a codec says, in one line, and without the Python exception's name."""
    lines = str(error).strip().splitlines() or ["it is damaged"]
    if "plugins" in lines[0] or "dependencies" in lines[0]:
        lines = [line.strip(" \t") for line in lines[1:]] or ["no codec for it is installed"]
    return "it is damaged" if any(word in lines[0] for word in PYTHON_WORDS) else lines[0][:160]


def _decode(data: bytes, layout: PixelFormat) -> np.ndarray:
    if layout.bits_allocated == 12:
        return _unpack_12_bit(data, layout)
    if layout.transfer_syntax in RETIRED_JPEG:
        if decode_jpeg is None:
            raise ValueError("it needs a codec: pip install pylibjpeg-libjpeg")
        return np.asarray(decode_jpeg(data))
    if layout.transfer_syntax == DEFLATED_FRAMES:
        return _inflate(data, layout)
    options = {key: value for key, value in asdict(layout).items() if key not in ("transfer_syntax", "high_bit")}
    if layout.samples_per_pixel == 1:
        del options["planar_configuration"]
    if layout.pixel_keyword != "PixelData":
        del options["bits_stored"], options["pixel_representation"]
    uid = UID(layout.transfer_syntax)
    options.update(number_of_frames=1, transfer_syntax_uid=uid)
    source = encapsulate([data]) if layout.is_encapsulated else data
    decoder = get_decoder(uid)
    # CharLS (2.4) reads on behind a frame that is cut off, for seconds. What it refuses, another codec may still decode.
    is_whole = data.rstrip(b"\0").endswith(END_OF_IMAGE)
    if layout.transfer_syntax in JPEG_LS and is_whole and CHARLS in decoder.available_plugins:
        with suppress(RuntimeError, ValueError):
            return np.asarray(decoder.as_array(source, index=0, decoding_plugin=CHARLS, **options)[0])
    return np.asarray(decoder.as_array(source, index=0, **options)[0])


def _inflate(data: bytes, layout: PixelFormat) -> np.ndarray:
    count, bits = layout.rows * layout.columns * layout.samples_per_pixel, layout.bits_allocated
    inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, count * max(bits // 8, 1) + 1)
    values = np.frombuffer(inflated, np.uint8 if bits <= 8 else f"<{'i' if layout.pixel_representation else 'u'}{bits // 8}")
    values = np.unpackbits(values, bitorder="little") if bits == 1 else values
    shape = (layout.rows, layout.columns, layout.samples_per_pixel)[: 2 if layout.samples_per_pixel == 1 else 3]
    return values[:count].reshape(shape)


def _unpack_12_bit(data: bytes, layout: PixelFormat) -> np.ndarray:
    """Two values of 12 bits in three bytes (a retired way of PS3.5 8.1.1)."""
    count = layout.rows * layout.columns
    triple = np.frombuffer(data, np.uint8)[: -(-count // 2) * 3].reshape(-1, 3).astype(np.uint16)
    first, second = triple[:, 0] | (triple[:, 1] & 15) << 8, triple[:, 1] >> 4 | triple[:, 2] << 4
    return np.stack([first, second], 1).reshape(-1)[:count].reshape(layout.rows, layout.columns)


def pack_request(data: bytes, layout: PixelFormat) -> bytes:
    """A frame and its format as the decoding process reads them."""
    words = json.dumps(asdict(layout)).encode()
    return struct.pack("<II", len(words), len(data)) + words + data


def read_answer(stream: IO[bytes]) -> np.ndarray:
    """The array that a decoding process sends back. Raises `ValueError` with what it says, and `EOFError` if it is gone."""
    answer = json.loads(_read_exactly(stream, struct.unpack("<I", _read_exactly(stream, 4))[0]))
    if "error" in answer:
        raise ValueError(answer["error"])
    array = np.empty(answer["shape"], np.dtype(answer["dtype"]))
    view = array.reshape(-1).view(np.uint8).data
    read = 0
    while read < len(view):
        count = stream.readinto(view[read:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        read += count
    return array


def _read_exactly(stream: IO[bytes], length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    answers.write(READY)
    answers.flush()
    while head := requests.read(8):
        word_length, data_length = struct.unpack("<II", head)
        layout = PixelFormat(**json.loads(_read_exactly(requests, word_length)))
        data = _read_exactly(requests, data_length)
        try:
            array = np.ascontiguousarray(decode_frame(data, layout))
            words, content = {"shape": array.shape, "dtype": array.dtype.str}, array.reshape(-1).view(np.uint8).data
        except ValueError as error:
            words, content = {"error": str(error)}, memoryview(b"")
        encoded = json.dumps(words).encode()
        answers.write(struct.pack("<I", len(encoded)) + encoded)
        answers.write(content)
        answers.flush()


if __name__ == "__main__":
    # What a codec prints must not get between the answers.
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _serve(sys.stdin.buffer, channel)
    # Nothing is left to clean up, and taking Python down would cost the reader a tenth of a second.
    os._exit(0)
