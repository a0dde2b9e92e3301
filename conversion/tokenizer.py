"""LLaMA's tokenizer, as the published code used it, for a converted model.

The published code tokenised with the slow tokenizer of transformers 4.28, which strips the text on both sides of a special
token and puts a space piece in front of the rest: `</image>?` ends with the id of "▁?", not of "?".
"""

from pathlib import Path
from typing import Any, cast

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from tokenizers import AddedToken, Tokenizer, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    LlamaTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from radfm.processing_radfm import IMAGE_END, IMAGE_START, IMAGE_TOKEN, SPECIAL_TOKENS

from .names import ConversionError

TOKENIZER_JSON, SENTENCEPIECE, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer.model", "tokenizer_config.json"
# LLaMA's; the published `tokenizer_config.json` names empty ones, under which transformers recurses without end.
UNK, BOS, EOS = "<unk>", "<s>", "</s>"
SPACE = "▁"  # the piece that SentencePiece puts in the place of a space


def published_tokenizer(source: str, vocab_size: int) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub id, with the three image tokens behind its vocabulary.

    Nothing is read of `tokenizer_config.json`.

    Raises:
        ConversionError: there is no tokenizer, or its vocabulary has another size than the checkpoint's.
    """
    folder = Path(source)
    if not folder.exists():
        try:
            folder = Path(snapshot_download(source, allow_patterns=[TOKENIZER_JSON, SENTENCEPIECE, TOKENIZER_CONFIG]))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConversionError(f"{source}: is neither a folder nor a repository on the Hub ({reason}).") from error
    tokenizer: Any = _with_published_spaces(_read_backend(folder))
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(folder, config=PreTrainedConfig())
    if len(tokenizer) != vocab_size:
        raise ConversionError(f"{source}: has a vocabulary of {len(tokenizer)}, the checkpoint one of {vocab_size}.")
    add_image_tokens(tokenizer)
    return tokenizer


def add_image_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the image tokens as special tokens that swallow the spaces around them; pad texts on the left."""
    tokens = [AddedToken(token, lstrip=True, rstrip=True, normalized=False) for token in SPECIAL_TOKENS]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token


def image_token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The ids of the image tokens under the names that `RadFMConfig` has for them."""
    fields = {"image_start_token_id": IMAGE_START, "image_end_token_id": IMAGE_END, "image_token_id": IMAGE_TOKEN}
    return {field: cast(int, tokenizer.convert_tokens_to_ids(token)) for field, token in fields.items()}


def _read_backend(folder: Path) -> Tokenizer:
    if (folder / TOKENIZER_JSON).exists():
        try:
            return Tokenizer.from_file(str(folder / TOKENIZER_JSON))
        except Exception as error:  # the library raises a bare Exception
            raise ConversionError(f"{folder / TOKENIZER_JSON}: is no tokenizer ({error}).") from error
    if not (folder / SENTENCEPIECE).exists():
        raise ConversionError(f"{folder}: holds no tokenizer ({TOKENIZER_JSON} or {SENTENCEPIECE}).")
    try:
        return LlamaTokenizer.from_pretrained(folder, unk_token=UNK, bos_token=BOS, eos_token=EOS).backend_tokenizer
    except ImportError as error:
        raise ConversionError(
            f"{folder / SENTENCEPIECE}: reading it needs two packages: pip install sentencepiece protobuf."
        ) from error


def _with_published_spaces(backend: Tokenizer) -> PreTrainedTokenizerFast | None:
    """LLaMA's tokenizer with a space piece at each start of a text; None for a tokenizer of another kind."""
    if backend.token_to_id(BOS) is None or SPACE not in f"{backend.normalizer}{backend.pre_tokenizer}":
        return None
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=False)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=UNK, bos_token=BOS, eos_token=EOS, pad_token=UNK)
