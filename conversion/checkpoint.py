"""Reading a published checkpoint tensor by tensor: a `.bin`, safetensors, or a zip that holds one `.bin`.

The published weights are a pickle of more than 50 GB in a zip. Nothing is unpacked to disk, and the pickle is never run: an
unpickler that knows tensors and nothing else reads its index, and each tensor's bytes are read when they are needed.
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
from safetensors import SafetensorError, safe_open

from .names import ConversionError

# The storage classes that torch.save names in its pickles.
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
ZIP_HEADER_BYTES = 30  # of a member's local header, before its name (APPNOTE 4.3.7)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that has not been read yet: its storage, and its part of that in numbers of values, as in torch."""

    storage: str
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def check(self, name: str, storage_bytes: int) -> None:
        """Raise `ConversionError` unless shape and stride describe separate values within the storage."""
        numbers = (self.offset, *self.shape, *self.stride)
        if len(self.shape) != len(self.stride) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ConversionError(f"{name}: shape {self.shape} and stride {self.stride} describe no tensor.")
        axes = sorted((stride, size) for size, stride in zip(self.shape, self.stride, strict=True) if size > 1)
        extent = 1
        for stride, size in axes:
            if stride < extent:
                raise ConversionError(f"{name}: its values overlap (shape {self.shape}, stride {self.stride}).")
            extent = stride * (size - 1) + extent
        if 0 not in self.shape and (self.offset + extent) * self.dtype.itemsize > storage_bytes:
            raise ConversionError(f"{name}: shape {self.shape} needs more than the {storage_bytes} bytes that are stored.")


class Checkpoint:
    """The tensors of a checkpoint by name, in the order in which they lie in the file.

    Args:
        source: a file, a folder with one, or a Hub id, which is downloaded into the cache.

    Raises:
        ConversionError: the source holds no weights, or is damaged or hostile.
    """

    def __init__(self, source: str | Path):
        self.source = _find_weights(_download(source))
        self.tensors: dict[str, StoredTensor] = {}
        if self.source.suffix == ".safetensors":
            self._read_safetensors_index()
        else:
            self._read_pickle_index()
        if not self.tensors:
            raise ConversionError(f"{self.source}: holds no tensors.")

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor."""
        tensor = self.tensors[name]
        if self.source.suffix == ".safetensors":
            return self._safetensors.get_tensor(name)
        try:
            data = bytearray(self._archive.read(f"{self._folder}data/{tensor.storage}"))
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise ConversionError(f"{self.source}: {name} cannot be read ({error}).") from error
        values = torch.frombuffer(data, dtype=tensor.dtype) if data else torch.empty(0, dtype=tensor.dtype)
        return values.as_strided(tensor.shape, tensor.stride, tensor.offset)

    def _read_safetensors_index(self) -> None:
        try:
            self._safetensors = safe_open(self.source, "pt")
        except (SafetensorError, OSError) as error:
            raise ConversionError(f"{self.source}: is no whole safetensors file ({error}).") from error
        for name in self._safetensors.keys():  # noqa: SIM118 (not a dictionary)
            part = self._safetensors.get_slice(name)
            shape = tuple(part.get_shape())
            dtype = part[:0].dtype if shape else self._safetensors.get_tensor(name).dtype
            self.tensors[name] = StoredTensor(name, dtype, 0, shape, ())

    def _read_pickle_index(self) -> None:
        self._archive = _open_torch_archive(self.source)
        index = next((name for name in self._archive.namelist() if name.endswith("/data.pkl")), None)
        if index is None:
            raise ConversionError(f"{self.source}: holds no weights as torch.save writes them (no data.pkl).")
        self._folder = index.removesuffix("data.pkl")
        try:
            state = _TensorsOnly(io.BytesIO(self._archive.read(index)), str(self.source)).load()
        except ConversionError:
            raise
        except Exception as error:  # a damaged pickle can raise anything
            raise ConversionError(f"{self.source}: its index is damaged ({error}).") from error
        members = {info.filename: info for info in self._archive.infolist()}
        tensors = {str(name): tensor for name, tensor in _unwrap(state) if isinstance(tensor, StoredTensor)}
        for name, tensor in tensors.items():
            member = members.get(f"{self._folder}data/{tensor.storage}")
            if member is None:
                raise ConversionError(f"{self.source}: is cut off: data/{tensor.storage} is not in it.")
            tensor.check(name, member.file_size)
        offsets = {name: members[f"{self._folder}data/{tensor.storage}"].header_offset for name, tensor in tensors.items()}
        self.tensors = dict(sorted(tensors.items(), key=lambda item: offsets[item[0]]))


def _unwrap(state: Any) -> Iterator[tuple[Any, Any]]:
    """The items of a state dict, or of one under "state_dict" or "model" as training programs save it."""
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if isinstance(state, dict):
        yield from state.items()


class _TensorsOnly(pickle.Unpickler):
    """Reads the index of a checkpoint. It refuses everything but tensors, so that no code of a pickle ever runs."""

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
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ConversionError(f"{self.name}: its pickle refers to {kind!r}, which no weights need.")
        return key, dtype


def _stored_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    """Takes the place of torch._utils._rebuild_tensor_v2."""
    key, dtype = storage
    return StoredTensor(str(key), dtype, offset, tuple(shape), tuple(stride))


def _download(source: str | Path) -> Path:
    """A path as it is; for a Hub id the folder of its weights in the cache, where an interrupted download is continued."""
    if Path(source).exists() or not HUB_ID.fullmatch(str(source)):
        return Path(source)
    try:
        return Path(snapshot_download(str(source), allow_patterns=list(WEIGHT_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConversionError(f"{source}: is no file here, and cannot be downloaded from the Hub ({reason}).") from error


def _find_weights(source: Path) -> Path:
    if not source.exists():
        raise ConversionError(f"{source}: there is no such file or folder.")
    if not source.is_dir():
        return source
    for pattern in WEIGHT_FILES:
        files = sorted(source.glob(pattern))
        if files:
            return files[0]
    raise ConversionError(f"{source}: holds no weights ({', '.join(WEIGHT_FILES[:2])} or a zip).")


def _open_torch_archive(source: Path) -> zipfile.ZipFile:
    """The archive that `torch.save` wrote: the file, or the one `.bin` in a zip."""
    if list(source.parent.glob(f"{source.stem}.z[0-9][0-9]")):
        raise ConversionError(f"{source}: is a split zip; join its parts first: zip -s 0 {source.name} --out joined.zip")
    try:
        outer = zipfile.ZipFile(source)
        names = outer.namelist()
        if any(name.endswith("/data.pkl") for name in names):
            return outer
        weights = [name for name in names if name.endswith((".bin", ".pt", ".pth")) and not name.startswith("__MACOSX")]
        if len(weights) != 1:
            raise ConversionError(f"{source}: holds {len(weights)} files of weights; name one, or a zip with one.")
        info = outer.getinfo(weights[0])
        if info.compress_type == zipfile.ZIP_STORED:
            return zipfile.ZipFile(_StoredMember(open(source, "rb"), info))
        return zipfile.ZipFile(outer.open(info))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError, struct.error) as error:
        raise ConversionError(
            f"{source}: is no whole file of weights ({error}). Download it again; the parts of a split zip are joined by "
            f"zip -s 0 {source.name} --out joined.zip"
        ) from error


class _StoredMember(io.RawIOBase):
    """A member that lies uncompressed in a zip, as a file. zipfile's own reads on from the start for every seek back."""

    def __init__(self, file: IO[bytes], member: zipfile.ZipInfo):
        self.file, self.position, self.size = file, 0, member.file_size
        file.seek(member.header_offset)
        name_length, extra_length = struct.unpack("<2H", file.read(ZIP_HEADER_BYTES)[26:30])
        self.start = member.header_offset + ZIP_HEADER_BYTES + name_length + extra_length

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + (0, self.position, self.size)[whence]
        return self.position

    def read(self, size: int = -1) -> bytes:
        size = self.size - self.position if size < 0 else min(size, self.size - self.position)
        self.file.seek(self.start + self.position)
        data = self.file.read(max(size, 0))
        self.position += len(data)
        return data
