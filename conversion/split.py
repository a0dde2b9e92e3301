"""A RadFM as two: the decoder for an engine such as vLLM, and the front that turns scans and text into its inputs."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from radfm.configuration_radfm import RadFMConfig
from radfm.modeling_radfm import RadFMModel
from radfm.processing_radfm import RadFMProcessor

from .convert import write_config
from .names import EMBEDDINGS, LM_HEAD, ConversionError
from .tensors import SHARD_BYTES

DECODER_PREFIX = "model.language_model."
# What both need: the front makes the embeddings of a text, and its decoder of no layers ends with a norm.
IN_BOTH = (EMBEDDINGS, f"{DECODER_PREFIX}norm.weight")
# What a tokenizer remembers of the processor that it came from.
OF_PROCESSOR = ("auto_map", "processor_class")


def split(source: str | Path, out: Path) -> list[str]:
    """Write `OUT/decoder`, a plain `LlamaForCausalLM`, and `OUT/front`, a `RadFMModel` whose decoder has no layers.

    Tensor by tensor: at most 2 GiB of weights are in memory.

    Args:
        source: a folder or Hub id of a RadFM in safetensors, not quantised, with a LLaMA decoder.

    Returns:
        Lines for a person: what was written, and how to serve it.

    Raises:
        ConversionError: the source is no such model.

    Examples:
        >>> split("radfm-14b", Path("radfm-14b-split"))  # doctest: +SKIP
        ['radfm-14b-split/decoder: 363 tensors, a plain LlamaForCausalLM', …]
    """
    folder = _find_folder(str(source))
    config = _read_config(folder, source)
    decoder = config.text_config
    if getattr(config, "quantization_config", None) is not None:
        raise ConversionError(f"{source}: is quantised; split the model that it was made of, and quantise the decoder.")
    if decoder.model_type != "llama":
        raise ConversionError(f"{source}: its decoder is of type {decoder.model_type!r}, and only llama can be split off.")
    parts = {name: out / name for name in ("decoder", "front")}
    writers = {name: _ShardWriter(part) for name, part in parts.items()}
    for name, tensor in _read_tensors(folder):
        if name == LM_HEAD or name.startswith(DECODER_PREFIX):
            writers["decoder"].add(name.replace(DECODER_PREFIX, "model.", 1), tensor)
        if not (name == LM_HEAD or name.startswith(DECODER_PREFIX)) or name in IN_BOTH:
            writers["front"].add(name.removeprefix("model."), tensor)
    counts = {name: writer.close() for name, writer in writers.items()}

    dtype = str(config.dtype).removeprefix("torch.")
    processor = RadFMProcessor.from_pretrained(folder)
    processor.save_pretrained(parts["front"])
    decoder.architectures, decoder.dtype = ["LlamaForCausalLM"], config.dtype
    decoder.save_pretrained(parts["decoder"])
    processor.tokenizer.save_pretrained(parts["decoder"])
    _forget_processor(parts["decoder"] / "tokenizer_config.json")
    if (folder / "generation_config.json").is_file():
        for part in parts.values():
            shutil.copyfile(folder / "generation_config.json", part / "generation_config.json")
    decoder.num_hidden_layers = 0
    write_config(config, RadFMModel, dtype, parts["front"])
    return [
        f"{parts['decoder']}: {counts['decoder']} tensors, a plain LlamaForCausalLM",
        f"{parts['front']}: {counts['front']} tensors, the vision tower, the projector and the word embeddings",
        f"vllm serve {parts['decoder']} --enable-prompt-embeds",
        f"radfm serve --model {parts['front']} --decoder-url http://127.0.0.1:8000/v1 --port 8001",
    ]


def _forget_processor(tokenizer_config: Path) -> None:
    settings = json.loads(tokenizer_config.read_text())
    tokenizer_config.write_text(json.dumps({k: v for k, v in settings.items() if k not in OF_PROCESSOR}, indent=1) + "\n")


def _find_folder(source: str) -> Path:
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConversionError(f"{source}: is no folder here, and cannot be downloaded from the Hub ({reason}).") from error


def _read_config(folder: Path, source: str | Path) -> RadFMConfig:
    try:
        if json.loads((folder / "config.json").read_text())["model_type"] == RadFMConfig.model_type:
            config: RadFMConfig = RadFMConfig.from_pretrained(folder)
            return config
        reason = "its config.json is of another model"
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
    raise ConversionError(f"{source}: is no RadFM ({reason}).")


def _read_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ConversionError(f"{folder}: holds no safetensors.")
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dictionary)
                    yield name, tensors.get_tensor(name)
        except SafetensorError as error:
            raise ConversionError(f"{file}: is no whole safetensors file ({error}).") from error


class _ShardWriter:
    """Writes tensors to safetensors files of at most 2 GiB and an index."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._tensors: dict[str, torch.Tensor] = {}
        self._weight_map: dict[str, str] = {}
        self._held = self._total = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take a tensor; where the file would become too large, the ones before are written."""
        size = tensor.numel() * tensor.element_size()
        if self._tensors and self._held + size > SHARD_BYTES:
            self._flush()
        self._tensors[name] = tensor
        self._held += size
        self._total += size

    def _flush(self) -> None:
        file = f"model-{len(set(self._weight_map.values())) + 1:05}.safetensors"
        save_file(self._tensors, self._folder / file, metadata={"format": "pt"})
        self._weight_map |= dict.fromkeys(self._tensors, file)
        self._tensors, self._held = {}, 0

    def close(self) -> int:
        """Write the rest and the index; the number of tensors."""
        self._flush()
        index = {"metadata": {"total_size": self._total}, "weight_map": self._weight_map}
        (self._folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
        return len(self._weight_map)
