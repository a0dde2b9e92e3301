"""LLaMA's tokenizer, as the published code used it, for a converted model.

The published code tokenised with the slow tokenizer of transformers 4.28, which strips the text on both sides of a special
token and puts a space piece in front of it again: the word behind `</image>` is the spaced one.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from tokenizers import AddedToken, Tokenizer, pre_tokenizers, processors
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedConfig, PreTrainedTokenizerFast

from radfm.processing_radfm import IMAGE_END, IMAGE_START, IMAGE_TOKEN

from .names import ConversionError

FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
SPECIAL: dict[str, Any] = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
SPACE = "▁"


def published_tokenizer(source: str, words: int) -> Any:
    """The tokenizer of a folder or Hub id with the three image marks behind its words.

    The published `tokenizer_config.json` names empty special tokens, so nothing is taken from it.

    Raises:
        ConversionError: no tokenizer there, or one with another number of words than the checkpoint.
    """
    folder = Path(source)
    if not folder.exists():
        folder = Path(snapshot_download(source, allow_patterns=list(FILES)))
    tokenizer = _spaced(_backend(folder)) or AutoTokenizer.from_pretrained(folder, config=PreTrainedConfig())
    if len(tokenizer) != words:
        raise ConversionError(f"{source}: knows {len(tokenizer)} words, the checkpoint {words}.")
    add_marks(tokenizer)
    return tokenizer


def add_marks(tokenizer: Any) -> None:
    """The image marks as special tokens that swallow the spaces around them; texts are padded on the left."""
    marks = [AddedToken(mark, lstrip=True, rstrip=True, normalized=False) for mark in (IMAGE_START, IMAGE_END, IMAGE_TOKEN)]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token


def _backend(folder: Path) -> Tokenizer:
    if (folder / FILES[0]).exists():
        return Tokenizer.from_file(str(folder / FILES[0]))
    if not (folder / FILES[1]).exists():
        raise ConversionError(f"{folder}: holds no tokenizer ({FILES[0]} or {FILES[1]}).")
    try:
        return LlamaTokenizer.from_pretrained(folder, **SPECIAL).backend_tokenizer
    except ImportError as error:
        raise ConversionError(
            f"{folder / FILES[1]}: reading it needs two packages: pip install sentencepiece protobuf."
        ) from error


def _spaced(backend: Tokenizer) -> Any | None:
    """A tokenizer whose words begin with a space piece, at each start of a text; None for one of another kind."""
    if backend.token_to_id(SPECIAL["bos_token"]) is None or SPACE not in f"{backend.normalizer}{backend.pre_tokenizer}":
        return None
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=False)
    begin = SPECIAL["bos_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, backend.token_to_id(begin))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=SPECIAL["unk_token"], **SPECIAL)
