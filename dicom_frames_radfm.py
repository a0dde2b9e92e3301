"""The stored frames of files: found, read and decoded once each (PS3.5 8 and A.4).

A native frame is read from its place in the file. Compressed frames are found by walking over the items once, so that one
frame of a long film costs one frame, and are decoded by all cores where that pays.
"""

import io
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from . import dicom_decode_radfm
from .dicom_codestream_radfm import check_frame, repair_spectral_selection
from .dicom_decode_radfm import JPEG_LS, READY, PixelFormat, decode_frame, pack_request, read_answer
from .dicom_elements_radfm import as_dataset, get_integer, get_text, has_element
from .dicom_file_radfm import NATIVE, PIXEL_ELEMENTS, Instance
from .scan_radfm import ReadContext

try:  # noqa: SIM105 - transformers refuses remote code whose optional imports stand elsewhere
    from pydicom.uid import UID
except ImportError:
    pass

PIXEL_TAGS = {0x7FE00010: "PixelData", 0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData"}
PIXEL_VRS = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN")
ITEM, DELIMITER, UNDEFINED = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0", 0xFFFFFFFF
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
FRAME_STARTS = (b"\xff\xd8", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  ")
QUICK_BITS = (1, 8, 16, 32)
# Native files are read side by side: part of the time goes into waiting for the disk, and numpy converts without Python's
# lock.
THREADS = 2
# Starting a decoding process costs 0.6 seconds of a core. Decoding so many pixels of JPEG or JPEG 2000 costs about 3, and so
# many of JPEG-LS about 2, so that two processes save time. Run-length and deflated frames decode far faster and need none.
PIXELS_FOR_PROCESSES, JPEG_LS_PIXELS_FOR_PROCESSES = 16_000_000, 64_000_000
SLOW_SYNTAXES = "1.2.840.10008.1.2.4."
CLOSING_SECONDS = 5

Store = Callable[[int, np.ndarray], None]


@dataclass(frozen=True)
class FrameTask:
    """A frame to decode, and the number under which it is stored."""

    instance: Instance
    frame: int
    number: int


def read_format(instance: Instance) -> PixelFormat:
    """How an instance's pixels are stored."""
    header = instance.header
    bits = get_integer(header, "BitsAllocated", 16)
    keyword = next((word for word in PIXEL_ELEMENTS if has_element(header, word)), "PixelData")
    return PixelFormat(
        instance.transfer_syntax,
        get_integer(header, "Rows"),
        get_integer(header, "Columns"),
        get_integer(header, "SamplesPerPixel", 1),
        bits,
        get_integer(header, "BitsStored", bits),
        get_integer(header, "HighBit", get_integer(header, "BitsStored", bits) - 1),
        get_integer(header, "PixelRepresentation"),
        get_text(header, "PhotometricInterpretation") or "MONOCHROME2",
        get_integer(header, "PlanarConfiguration"),
        keyword,
    )


def decode_frames(tasks: Sequence[FrameTask], store: Store, context: ReadContext) -> None:
    """Decode frames, in any order, and hand each to `store` with its number.

    Raises:
        ScanError: a frame cannot be read or decoded; names the file and the reason.
    """
    files: dict[int, list[FrameTask]] = {}
    for task in tasks:
        files.setdefault(id(task.instance), []).append(task)
    native: list[list[FrameTask]] = []
    compressed: list[list[FrameTask]] = []
    for group in files.values():
        (compressed if read_format(group[0].instance).is_encapsulated else native).append(group)
    if native:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda group: _decode_native(group, store, context), native))
    if compressed:
        _decode_compressed(compressed, store, context)


def _decode_native(group: Sequence[FrameTask], store: Store, context: ReadContext) -> None:
    with PixelElement(group[0].instance, context) as pixels:
        for task in group:
            data = pixels.read_frame(task.frame)
            quick = read_uncompressed(data, pixels.layout, task.frame)
            store(task.number, pixels.decode(data) if quick is None else quick)


def _decode_compressed(groups: Sequence[Sequence[FrameTask]], store: Store, context: ReadContext) -> None:
    first = read_format(groups[0][0].instance)
    pixels = sum(map(len, groups)) * first.rows * first.columns
    count = min(_cores(), sum(map(len, groups)))
    enough = JPEG_LS_PIXELS_FOR_PROCESSES if first.transfer_syntax in JPEG_LS else PIXELS_FOR_PROCESSES
    slow = first.transfer_syntax.startswith(SLOW_SYNTAXES) and pixels >= enough
    encoded, lock = _encoded_frames(groups, context), threading.Lock()
    with ExitStack() as stack:
        processes = [stack.enter_context(DecodingProcess()) for _ in range(count)] if slow and count > 1 else []

        def work(process: "DecodingProcess | None") -> None:
            while True:
                with lock:
                    found = next(encoded, None)
                if found is None:
                    return
                task, element, data = found
                store(task.number, element.decode(data, process))

        if not processes:
            work(None)
            return
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(work, processes))


def _encoded_frames(
    groups: Sequence[Sequence[FrameTask]], context: ReadContext
) -> "Iterator[tuple[FrameTask, PixelElement, bytes]]":
    for group in groups:
        with PixelElement(group[0].instance, context) as pixels:
            for task in group:
                yield task, pixels, pixels.read_frame(task.frame)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_uncompressed(data: bytes, layout: PixelFormat, frame: int) -> np.ndarray | None:
    """Stored values (rows, columns) of a native grey frame; None for what is stored less plainly."""
    bits, unused = layout.bits_allocated, layout.bits_allocated - layout.bits_stored
    plain = layout.samples_per_pixel == 1 and layout.pixel_keyword == "PixelData"
    if not plain or bits not in QUICK_BITS or unused < 0 or layout.high_bit != layout.bits_stored - 1:
        return None
    shape = (layout.rows, layout.columns)
    if bits == 1:  # frames of single bits need not start at a byte (PS3.5 8.1.1)
        count = layout.rows * layout.columns
        return np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[frame * count % 8 :][:count].reshape(shape)
    order = ">" if layout.transfer_syntax == NATIVE[2] else "<"
    values = np.frombuffer(data, f"{order}{'i' if layout.pixel_representation else 'u'}{bits // 8}").reshape(shape)
    # Bits above those that are stored may hold an old overlay: shifted out, the sign kept.
    return values if unused == 0 else (values << unused) >> unused


@dataclass
class _Fragments:
    """Items of an encapsulated pixel element: offset of the item's tag, offset of its data, length."""

    offsets: list[int] = field(default_factory=list)
    items: list[tuple[int, int, int]] = field(default_factory=list)
    is_closed: bool = True


class PixelElement:
    """The pixel element of one file, open for reading frames."""

    def __init__(self, instance: Instance, context: ReadContext):
        self.instance = instance
        self.context = context
        self.layout = read_format(instance)
        self._stream: BinaryIO = io.BytesIO()
        self._start, self._length = 0, 0
        self._frames: list[list[tuple[int, int]]] | None = None

    def __enter__(self) -> "PixelElement":
        if self.instance.pixels_at < 0:
            value = getattr(as_dataset(self.instance.header), self.layout.pixel_keyword, None) or b""
            self._stream, self._length = io.BytesIO(value), len(value)
        else:
            self._stream = self.instance.open()
            self._find_value()
        self._size = self._stream.seek(0, os.SEEK_END)
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def read_frame(self, frame: int) -> bytes:
        """The bytes of one frame, as a codec takes them. Raises `ScanError`."""
        if not self._length:
            raise self.instance.error(f"{self._name()} is empty: there is no image in the file.")
        if not self.layout.is_encapsulated:
            return self._read_native(frame)
        if self._frames is None:
            self._frames = self._find_frames()
        if frame >= len(self._frames):
            raise self.instance.error(
                f"{self._name()} holds {len(self._frames)} of {self.instance.frames} frames, and no frame {frame}."
            )
        data = b"".join(self._read_at(offset, length) for offset, length in self._frames[frame])
        try:
            data = check_frame(data, self.layout.rows, self.layout.columns)
        except ValueError as error:
            raise self._error(str(error)) from error
        return repair_spectral_selection(data) if self.layout.transfer_syntax == JPEG_EXTENDED else data

    def decode(self, data: bytes, process: "DecodingProcess | None" = None) -> np.ndarray:
        """A frame's stored values, of the size in the header. Raises `ScanError`."""
        layout = self.layout
        try:
            values = process.decode(data, layout) if process is not None else decode_frame(data, layout)
        except ValueError as error:
            raise self._error(str(error)) from error
        channels = 1 if values.ndim == 2 else values.shape[-1]
        if values.shape[:2] != (layout.rows, layout.columns) or (layout.samples_per_pixel == 1) != (channels == 1):
            raise self._error(f"it is decoded to {'×'.join(map(str, values.shape))} values")
        return values[..., 0] if values.ndim == 3 and channels == 1 else values[..., :3] if values.ndim == 3 else values

    def _name(self) -> str:
        return "Pixel Data (7FE0,0010)" if self.layout.pixel_keyword == "PixelData" else self.layout.pixel_keyword

    def _error(self, reason: str) -> Exception:
        return self.instance.error(
            f"{self._name()} in {UID(self.layout.transfer_syntax).name} cannot be decoded ({reason})."
        )

    def _find_value(self) -> None:
        """Where the element's value starts, and how long it says it is (PS3.5 7.1)."""
        syntax = self.layout.transfer_syntax
        order = ">" if syntax == NATIVE[2] else "<"
        self._stream.seek(self.instance.pixels_at)
        head = self._stream.read(12)
        if len(head) < 8:
            raise self._error("it is cut off")
        group, element = struct.unpack(order + "HH", head[:4])
        keyword = PIXEL_TAGS.get(group << 16 | element)
        if keyword is None:
            raise self.instance.error("is DICOM without an image in it.")
        self.layout = PixelFormat(**{**vars(self.layout), "pixel_keyword": keyword})
        # A file may say explicit and be implicit: then a length stands where the two letters of the VR should be.
        explicit = head[4:6] in PIXEL_VRS and len(head) == 12
        self._start = self.instance.pixels_at + (12 if explicit else 8)
        (self._length,) = struct.unpack(order + "I", head[8:12] if explicit else head[4:8])

    def _read_at(self, offset: int, length: int) -> bytes:
        self._stream.seek(offset)
        data = self._stream.read(length)
        if len(data) < length:
            raise self._error(f"it is cut off: {len(data)} of {length} bytes are there")
        return data

    def _read_native(self, frame: int) -> bytes:
        layout = self.layout
        bits = layout.rows * layout.columns * layout.samples_per_pixel * layout.bits_allocated
        if layout.photometric_interpretation == "YBR_FULL_422":  # two pixels share their colour (PS3.3 C.7.6.3.1.2)
            bits = bits * 2 // 3
        start, end = frame * bits // 8, -(-(frame + 1) * bits // 8)
        if self._length != UNDEFINED and self._length < end and self._start + self._length <= self._size:
            raise self._error(f"it holds {self._length} bytes, and frame {frame} ends at {end}")
        return self._read_at(self._start + start, end - start)

    def _find_frames(self) -> list[list[tuple[int, int]]]:
        """For each frame where its fragments lie (PS3.5 A.4)."""
        found, frames = self._walk_items(), self.instance.frames
        fragments = [(offset, length) for _, offset, length in found.items]
        if not fragments:
            raise self._error("it holds no frame")
        extended = self._extended_offsets()
        base = found.items[0][0]
        if extended:
            return [[(base + offset + 8, length)] for offset, length in extended]
        if len(fragments) == frames:
            return [[fragment] for fragment in fragments]
        if frames == 1:
            return [fragments]
        if len(found.offsets) == frames:
            starts = [base + offset for offset in found.offsets]
        else:
            starts = [at for at, offset, _ in found.items if self._read_at(offset, 8).startswith(FRAME_STARTS)]
            if len(starts) != frames:
                if len(fragments) < frames:
                    return [[fragment] for fragment in fragments]
                raise self._error(f"{len(fragments)} fragments cannot be divided among {frames} frames")
        grouped: list[list[tuple[int, int]]] = [[] for _ in starts]
        number = -1
        for at, offset, length in found.items:
            while number + 1 < len(starts) and at >= starts[number + 1]:
                number += 1
            grouped[max(number, 0)].append((offset, length))
        return grouped

    def _extended_offsets(self) -> list[tuple[int, int]]:
        header = as_dataset(self.instance.header)
        tables = [header.get(word) for word in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
        if not all(isinstance(table, bytes) and len(table) == 8 * self.instance.frames for table in tables):
            return []
        offsets, lengths = (np.frombuffer(table, "<u8").tolist() for table in tables)
        return list(zip(offsets, lengths, strict=True))

    def _walk_items(self) -> _Fragments:
        found, at, first = _Fragments(), self._start, True
        while True:
            self._stream.seek(at)
            head = self._stream.read(8)
            if head[:4] != ITEM or len(head) < 8:
                # A dataset in memory has lost its delimiter to the parser; in a file it is missing.
                found.is_closed = head[:4] == DELIMITER or self.instance.pixels_at < 0
                break
            length = int.from_bytes(head[4:], "little")
            if first:
                table = self._read_at(at + 8, length)
                found.offsets = np.frombuffer(table[: length // 4 * 4], "<u4").tolist()
                first = False
            else:
                found.items.append((at, at + 8, length))
            at += 8 + length
        if not found.is_closed and found.items:
            self.context.warnings.append(
                f"{Path(self.instance.name).name}: the pixels end without their closing delimiter (FFFE,E0DD); "
                "the file may have been cut off."
            )
        return found


class DecodingProcess:
    """A process that decodes the frames that it is sent; where none can be started, this process decodes them itself."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready: bool | None = None

    def __enter__(self) -> "DecodingProcess":
        if sys.executable and not getattr(sys, "frozen", False):
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            command = [sys.executable, "-P", str(dicom_decode_radfm.__file__)]
            pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
            with suppress(OSError):  # a sandbox may allow no processes
                self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=quiet, env=environment)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if stream is not None:
                    stream.close()
        try:
            self._process.wait(CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def decode(self, data: bytes, layout: PixelFormat) -> np.ndarray:
        """As `decode_frame`."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return decode_frame(data, layout)
        if self._is_ready is None:
            self._is_ready = process.stdout.read(len(READY)) == READY
        if not self._is_ready:
            return decode_frame(data, layout)
        try:
            process.stdin.write(pack_request(data, layout))
            process.stdin.flush()
            return read_answer(process.stdout)
        except (EOFError, OSError) as error:
            raise ValueError("the codec crashed on it") from error
