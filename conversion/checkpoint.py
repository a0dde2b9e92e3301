"""Reading a published checkpoint tensor by tensor: a `.bin`, safetensors, a zip with one in it, in parts or whole.

The published weights are a pickle of more than 50 GB in a zip. Nothing is unpacked to disk and the pickle is never run: its
index is read by an unpickler that knows tensors and nothing else, and each tensor's bytes are read when they are asked for.
Memory-mapping would count every page that was read as memory of this process.
"""

import io
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import safe_open

from .names import ConversionError

STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
WEIGHT_FILES = ("pytorch_model.bin", "model.safetensors", "*.bin", "*.pt", "*.pth", "*.safetensors", "*.zip")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor that was not read yet: which storage it is in, and which part of it."""

    storage: str
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many values it has."""
        return int(torch.Size(self.shape).numel())


class Checkpoint:
    """The tensors of a checkpoint by name, in the order in which they lie in the file; `read` gives one at a time."""

    def __init__(self, source: str | Path):
        self.source = _weights_in(_fetched(source))
        self.tensors: dict[str, StoredTensor] = {}
        if self.source.suffix == ".safetensors":
            self._safetensors = safe_open(self.source, "pt")
            for name in self._safetensors.keys():  # noqa: SIM118 (not a dictionary)
                part = self._safetensors.get_slice(name)
                tensor = self._safetensors.get_tensor(name) if not part.get_shape() else None
                dtype = tensor.dtype if tensor is not None else part[:0].dtype
                self.tensors[name] = StoredTensor(name, dtype, 0, tuple(part.get_shape()), ())
            return
        self._archive = _torch_archive(self.source)
        index = next((n for n in self._archive.namelist() if n.endswith("/data.pkl")), None)
        if index is None:
            raise ConversionError(f"{self.source}: holds no weights as torch.save writes them (no data.pkl).")
        self._folder = index.removesuffix("data.pkl")
        unpickler = _TensorsOnly(io.BytesIO(self._archive.read(index)), str(self.source))
        places = {info.filename: info.header_offset for info in self._archive.infolist()}
        tensors = {name: t for name, t in _flat(unpickler.load()) if isinstance(t, StoredTensor)}
        if not tensors:
            raise ConversionError(f"{self.source}: holds no tensors.")
        missing = [t.storage for t in tensors.values() if f"{self._folder}data/{t.storage}" not in places]
        if missing:
            raise ConversionError(f"{self.source}: is cut off: data/{missing[0]} is not in it.")
        self.tensors = dict(sorted(tensors.items(), key=lambda kv: places[f"{self._folder}data/{kv[1].storage}"]))

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def read(self, name: str) -> torch.Tensor:
        """One tensor, read now."""
        tensor = self.tensors[name]
        if self.source.suffix == ".safetensors":
            return self._safetensors.get_tensor(name)
        data = bytearray(self._archive.read(f"{self._folder}data/{tensor.storage}"))
        values = torch.frombuffer(data, dtype=tensor.dtype) if data else torch.empty(0, dtype=tensor.dtype)
        return values.as_strided(tensor.shape, tensor.stride, tensor.offset)


def _flat(loaded: Any) -> Iterator[tuple[str, Any]]:
    """A state dict, or one under "state_dict" or "model" as trainers wrap it."""
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if isinstance(loaded, dict):
        yield from loaded.items()


class _TensorsOnly(pickle.Unpickler):
    """Reads the index of a checkpoint. Asked for anything but tensors it refuses, so no code of a pickle ever runs."""

    def __init__(self, file: IO[bytes], name: str):
        super().__init__(file)
        self.name = name

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _stored_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise ConversionError(f"{self.name}: its pickle asks for {module}.{name}, which no weights need; it was not run.")

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, *_ = pid
        if kind != "storage":
            raise ConversionError(f"{self.name}: its pickle refers to {kind!r}, which no weights need.")
        return key, dtype


def _stored_tensor(storage: Any, offset: int, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    key, dtype = storage
    return StoredTensor(str(key), dtype, int(offset), tuple(shape), tuple(stride))


def _fetched(source: str | Path) -> Path:
    """A path as it is; the weights of a Hub id in the cache, where an interrupted download is gone on with."""
    if Path(source).exists() or not HUB_ID.fullmatch(str(source)):
        return Path(source)
    try:
        return Path(snapshot_download(str(source), allow_patterns=[*WEIGHT_FILES, "*.z[0-9][0-9]"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConversionError(f"{source}: is no file here, and the Hub does not give it ({reason}).") from error


def _weights_in(source: Path) -> Path:
    if not source.exists():
        raise ConversionError(f"{source}: there is no such file or folder.")
    if not source.is_dir():
        return source
    for pattern in WEIGHT_FILES:
        found = sorted(source.glob(pattern))
        if found:
            return found[0]
    raise ConversionError(f"{source}: holds no weights ({', '.join(WEIGHT_FILES[:2])} or a zip).")


def _torch_archive(source: Path) -> zipfile.ZipFile:
    """The archive that `torch.save` wrote: the file itself, or a member of the zip that it is."""
    try:
        outer = zipfile.ZipFile(_joined(source))
        names = outer.namelist()
        if any(name.endswith("/data.pkl") for name in names):
            return outer
        inner = [name for name in names if name.endswith((".bin", ".pt", ".pth")) and not name.startswith("__MACOSX")]
        if len(inner) != 1:
            raise ConversionError(f"{source}: holds {len(inner)} files of weights; name one, or a zip with one.")
        info = outer.getinfo(inner[0])
        if info.compress_type == zipfile.ZIP_STORED:
            return zipfile.ZipFile(_Window(_joined(source), info))
        return zipfile.ZipFile(outer.open(info))
    except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError) as error:
        raise ConversionError(
            f"{source}: is no whole file of weights ({error}); a part of a split zip needs its other parts beside it."
        ) from error


def _joined(source: Path) -> Any:
    """A file, or all parts of a split zip (`.z01`, `.z02`, …, `.zip`) as if they had been put together again."""
    parts = sorted(source.parent.glob(f"{source.stem}.z[0-9][0-9]"))
    return open(source, "rb") if source.suffix != ".zip" or not parts else _Parts([*parts, source])


class _Placed(io.RawIOBase):
    """A file to read at any place, `at` being where it is."""

    at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at


class _Parts(_Placed):
    """Files read as one. Of a split zip: places in its directory are turned from (part, place) into places in the whole."""

    def __init__(self, parts: list[Path]):
        self.files = [part.open("rb") for part in parts]
        self.starts = [0]
        for part in parts:
            self.starts.append(self.starts[-1] + part.stat().st_size)
        self.at = 0
        self.patched: tuple[int, bytes] | None = None
        self.patched = self._single_disk_directory()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        end = self.starts[-1] if self.patched is None else self.patched[0] + len(self.patched[1])
        self.at = offset + (0, self.at, end)[whence]
        return self.at

    def read(self, size: int = -1) -> bytes:
        end = self.starts[-1] if self.patched is None else self.patched[0] + len(self.patched[1])
        size = max(end - self.at, 0) if size < 0 else max(min(size, end - self.at), 0)
        data = bytearray()
        while len(data) < size:
            if self.patched is not None and self.at >= self.patched[0]:
                start = self.at - self.patched[0]
                piece = self.patched[1][start : start + size - len(data)]
            else:
                part = next(i for i in range(len(self.files)) if self.at < self.starts[i + 1])
                self.files[part].seek(self.at - self.starts[part])
                limit = self.starts[-1] if self.patched is None else self.patched[0]
                piece = self.files[part].read(min(size - len(data), self.starts[part + 1] - self.at, limit - self.at))
            if not piece:
                break
            data += piece
            self.at += len(piece)
        return bytes(data)

    def _single_disk_directory(self) -> tuple[int, bytes]:
        """The central directory rewritten for one disk (APPNOTE 4.3.12 to 4.3.16), and where it starts."""
        tail_at = max(self.starts[-1] - 70_000, 0)
        self.at = tail_at
        tail = self.read()
        end = tail.rfind(b"PK\x05\x06")
        if end < 0:
            raise zipfile.BadZipFile("no end of central directory")
        _, last_disk, disk, _, total, size, offset, _ = struct.unpack("<4s4H2LH", tail[end : end + 22])
        if tail[end - 20 : end - 16] == b"PK\x06\x07":
            _, part, place, _ = struct.unpack("<4sLQL", tail[end - 20 : end])
            self.at = self.starts[min(part, len(self.files) - 1)] + place
            _, _, _, _, last_disk, disk, _, total, size, offset = struct.unpack("<4sQ2H2L4Q", self.read(56))
        if len(self.files) != last_disk + 1:
            raise zipfile.BadZipFile(f"{len(self.files)} of {last_disk + 1} parts are here")
        start = self.starts[disk] + offset
        self.at = start
        directory = self.read(size)
        entries, at = [], 0
        for _ in range(total):
            fields = list(struct.unpack("<4s4B4HL2L5H2L", directory[at : at + 46]))
            name_length, extra_length, comment_length, entry_disk, place = (
                fields[12], fields[13], fields[14], fields[15], fields[18],
            )  # fmt: skip
            name = directory[at + 46 : at + 46 + name_length]
            extra = directory[at + 46 + name_length : at + 46 + name_length + extra_length]
            sizes = [fields[11], fields[10]]
            wide = _zip64_fields(extra, sizes[0], sizes[1], place, entry_disk)
            unpacked, packed, place, entry_disk = wide
            whole = self.starts[entry_disk] + place
            fields[10] = fields[11] = fields[18] = 0xFFFFFFFF
            fields[15] = 0
            new_extra = struct.pack("<2H3Q", 1, 24, unpacked, packed, whole)
            fields[13], fields[14] = len(new_extra), 0
            entries.append(struct.pack("<4s4B4HL2L5H2L", *fields) + name + new_extra)
            at += 46 + name_length + extra_length + comment_length
        body = b"".join(entries)
        end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, total, total, len(body), start)
        locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, start + len(body), 1)
        last = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        return start, body + end64 + locator + last


def _zip64_fields(extra: bytes, unpacked: int, packed: int, place: int, disk: int) -> tuple[int, int, int, int]:
    """Sizes, place and part of a zip's entry, from its zip64 field where they are too large for the plain ones."""
    full = (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFF)
    forms = ("<Q", "<Q", "<Q", "<L")
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack("<2H", extra[at : at + 4])
        if kind == 1:
            values, start = [unpacked, packed, place, disk], at + 4
            for i in range(4):
                if values[i] == full[i]:
                    end = start + struct.calcsize(forms[i])
                    (values[i],) = struct.unpack(forms[i], extra[start:end])
                    start = end
            return values[0], values[1], values[2], values[3]
        at += 4 + length
    return unpacked, packed, place, disk


class _Window(_Placed):
    """The bytes of a member that is stored in a zip without compression, as a file of its own."""

    def __init__(self, file: IO[bytes], member: zipfile.ZipInfo):
        self.file, self.at, self.size = file, 0, member.file_size
        file.seek(member.header_offset)
        header = file.read(30)
        name_length, extra_length = struct.unpack("<2H", header[26:30])
        self.start = member.header_offset + 30 + name_length + extra_length

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def read(self, size: int = -1) -> bytes:
        size = self.size - self.at if size < 0 else min(size, self.size - self.at)
        self.file.seek(self.start + self.at)
        data = self.file.read(max(size, 0))
        self.at += len(data)
        return data
