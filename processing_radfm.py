"""Texts and scans → model inputs. Each `<image>` in a text is the place of one scan.

Text that a user typed into a chat is text, whatever it spells: see `RadFMProcessor.apply_chat_template`.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypedDict

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.image_processing_base import BatchFeature
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin

from .image_processing_radfm import (
    SETTINGS,
    RadFMImageProcessor,
    RadFMImageProcessorKwargs,
    refuse_misspelt_settings,
    refuse_unknown_names,
)

logger = logging.getLogger(__name__)

IMAGE_START, IMAGE_END, IMAGE_TOKEN = "<image>", "</image>", "<image_token>"
SPECIAL_TOKENS = (IMAGE_START, IMAGE_END, IMAGE_TOKEN)
# `<image>` that is not followed by its image tokens yet.
UNEXPANDED_IMAGE = re.compile(f"{IMAGE_START}(?!{IMAGE_TOKEN})")
# The one definition of the template; `save_pretrained` writes it into every repository.
CHAT_TEMPLATE_FILE = Path(__file__).with_name("chat_template.jinja")
# Put into control tokens that a user typed, so that the tokenizer does not find them; removed again before the text
# becomes ids. A code point that Unicode reserves for internal use (The Unicode Standard, 23.7 Noncharacters).
TYPED = "\ufdd0"
PADDING_KWARGS = ("padding", "padding_side", "pad_to_multiple_of", "max_length", "return_attention_mask")


class RadFMTextKwargs(TypedDict, total=False):
    """What `RadFMProcessor.__call__` takes for the text; it documents each name."""

    add_special_tokens: bool
    padding: Any
    padding_side: str | None
    pad_to_multiple_of: int | None
    truncation: Any
    max_length: int | None
    return_tensors: Any
    return_attention_mask: bool | None
    return_offsets_mapping: bool
    return_special_tokens_mask: bool
    return_mm_token_type_ids: bool
    return_text_replacement_offsets: bool
    images_encoded: bool


class RadFMProcessorKwargs(ProcessingKwargs, total=False):
    """The keyword arguments of `RadFMProcessor.__call__`, by the part that takes them."""

    _defaults = {}  # type: ignore[misc] # transformers 5.18 reads it

    text_kwargs: RadFMTextKwargs  # type: ignore[misc]
    images_kwargs: RadFMImageProcessorKwargs  # type: ignore[misc]


CALL_KWARGS = (*RadFMTextKwargs.__annotations__, *SETTINGS, "text_kwargs", "images_kwargs", "common_kwargs")


class RadFMProcessor(ProcessorMixin):
    """A tokenizer that has the three image tokens, and the image processor of the model.

    Args:
        image_processor: makes `pixel_values` of scans.
        tokenizer: the decoder's, with `<image>`, `</image>` and `<image_token>` in its vocabulary.
        num_image_tokens: the number of placeholders for one scan, as in the model's config.
        chat_template: the Jinja template of a conversation; `chat_template.jinja` where it is left out.

    Raises:
        ValueError: the tokenizer lacks an image token.

    Examples:
        >>> import numpy as np
        >>> processor = RadFMProcessor.from_pretrained(CHAT_TEMPLATE_FILE.parent)
        >>> inputs = processor(images=np.zeros((64, 64)), text="<image>What is this?", return_tensors="pt")
        >>> inputs["input_ids"].shape[0], [tuple(pixels.shape) for pixels in inputs["pixel_values"]]
        (1, [(1, 96, 96, 1)])
        >>> question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is this CT?"}]}
        >>> processor.apply_chat_template([question])
        '<s><image>Is this CT?'
    """

    valid_processor_kwargs = RadFMProcessorKwargs  # type: ignore[assignment]
    # Scans have different sizes, so `pixel_values` stays a list of tensors whatever `return_tensors` says.
    skip_tensor_conversion = ["pixel_values", "text_replacement_offsets"]

    def __init__(
        self,
        image_processor: RadFMImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        num_image_tokens: int = 32,
        chat_template: str | None = None,
    ):
        missing = [token for token in SPECIAL_TOKENS if token not in tokenizer.get_vocab()]
        if missing:
            raise ValueError(
                f"The tokenizer lacks {', '.join(missing)}: tokenizer.add_special_tokens("
                f"{{'additional_special_tokens': {missing}}}), and give the model's config their ids."
            )
        self.num_image_tokens = num_image_tokens
        # transformers and vLLM call `image_token` what marks an image in a text before it is expanded.
        self.image_token = IMAGE_START
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        # In the cache of remote code the template is not beside this file; there it always comes from the repository.
        if chat_template is None and CHAT_TEMPLATE_FILE.exists():
            chat_template = CHAT_TEMPLATE_FILE.read_text(encoding="utf-8")
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        refuse_misspelt_settings(kwargs)
        settings = {name: kwargs.pop(name) for name in SETTINGS if name in kwargs}
        saved = (processor_dict or {}).get("image_processor")
        # Not through AutoImageProcessor, which refuses to work without Pillow.
        if saved is not None:
            image_processor = RadFMImageProcessor.from_dict(saved, **settings)
        else:
            image_processor = RadFMImageProcessor.from_pretrained(pretrained_model_name_or_path, **settings, **kwargs)
        # The tokenizer's files name its class; without a config AutoTokenizer would ask for trust in the model's code.
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, config=PreTrainedConfig(), **kwargs)
        return [image_processor, tokenizer]

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> type:
        """Accepts every class: the same class, loaded as remote code and from the package, exists twice."""
        return type(argument)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: None = None,
        audio: None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Texts and their scans → model inputs.

        Args:
            images: one scan or anything else that `load_scan` reads; a list in the order of the `<image>` marks over all
                texts; or a list of such lists, one for each text.
            text: one text or a list of B texts; each `<image>` is the place of one scan.
            add_special_tokens: add the tokenizer's start token; never doubled where a text begins with it.
            padding, padding_side, pad_to_multiple_of, return_attention_mask: as for a tokenizer.
            truncation, max_length: as for a tokenizer (`truncation=True` alone cuts to its `model_max_length`, on its
                `truncation_side`). A scan is never cut in two: one that does not fit is left out, with a warning.
            return_tensors: "pt" or "np" for all outputs but `pixel_values`, which is a list of tensors in any case.
            return_offsets_mapping, return_special_tokens_mask: as for a tokenizer; offsets count in the expanded text.
            return_mm_token_type_ids: also `mm_token_type_ids` (B, T): 1 at a scan's tokens, 0 at text.
            return_text_replacement_offsets: also `text_replacement_offsets`: for each text, what replaced each `<image>`.
            images_encoded: expand the `<image>` marks although no scans are passed, because the model gets
                `image_features` for them.
            kwargs: besides these, the settings of `RadFMImageProcessor` for this call alone; all of them also in
                `text_kwargs`, `images_kwargs` and `common_kwargs`, as in all processors of transformers.

        Returns:
            `input_ids` and `attention_mask` (B, T), B = 1 for one text; `pixel_values` where there are scans.

        Raises:
            ScanError: a source that cannot be read as a scan.
            TypeError: an unknown name; the message names the most similar known one.
            ValueError: more or fewer scans than `<image>` marks.
        """
        if videos is not None or audio is not None:
            raise ValueError("RadFM reads scans and text, and takes no videos and no audio.")
        if text is None:
            raise ValueError("A text is missing: RadFM answers questions about scans, so give a text with each scan.")
        texts = [text] if isinstance(text, str) else list(text)
        if not all(isinstance(each, str) for each in texts):
            raise ValueError("text must be a string or a list of strings.")
        text_kwargs, images_kwargs = self._split_kwargs(kwargs)
        encoded = text_kwargs.pop("images_encoded", False)
        if encoded and images is not None:
            raise ValueError("images_encoded=True says that the model gets image_features: leave out images.")
        scans_of_texts = self._assign_images(images, texts) if not encoded else [[] for _ in texts]

        limit = self._token_limit(text_kwargs)
        rows: list[dict[str, list[Any]]] = []
        scans: list[Any] = []
        replacements = []
        for each, scans_of_text in zip(texts, scans_of_texts, strict=True):
            expanded, offsets = self._expand(each)
            row = self._tokenize(expanded, text_kwargs.get("add_special_tokens", True))
            if limit is not None and len(row["input_ids"]) > limit:
                row, scans_of_text = self._truncate(row, scans_of_text, limit, encoded)
            rows.append(row)
            scans += scans_of_text
            replacements.append(offsets)
        data = self._pad(rows, text_kwargs)
        if text_kwargs.get("return_text_replacement_offsets"):
            data["text_replacement_offsets"] = replacements
        if scans:
            data["pixel_values"] = self.image_processor(scans, **images_kwargs)["pixel_values"]
        tensor_type = text_kwargs.get("return_tensors")
        return BatchFeature(data, tensor_type=tensor_type, skip_tensor_conversion=self.skip_tensor_conversion)

    def apply_chat_template(  # type: ignore[override] # transformers spells every name out
        self, conversation: Any, chat_template: str | None = None, **kwargs: Any
    ) -> Any:
        """A conversation, or a list of them, as a text or (`tokenize=True`) as model inputs.

        Text parts are text. Control tokens that are typed in them (`<image>`, `<image_token>`, `</s>`, …) become the ids of
        their letters, so that nobody can end a turn, or claim a scan, by typing. With `tokenize=False` such a token has an
        invisible U+FDD0 behind its first letter; `processor(text=…)` knows it and gives the same ids. A tokenizer that is
        called directly does not know it. Remove U+FDD0 only where a person reads the text.

        Args:
            conversation: messages with "role" and "content"; the content is a text, or parts {"type": "text", "text": …} and
                {"type": "image", "image": …} with anything that `load_scan` reads. Roles other than "assistant" are input.
            chat_template: another Jinja template.
            kwargs: as in transformers: `tokenize`, `return_dict`, `return_tensors`, `add_generation_prompt`,
                `continue_final_message`, `return_assistant_tokens_mask`; and `processor_kwargs` for `__call__`, such as
                {"images_encoded": True} where the model gets `image_features`.

        Raises:
            ScanError, TypeError, ValueError: as `__call__`.
        """
        # transformers' option does for some tokens what is always done here for all, and cannot go with assistant masks.
        kwargs.pop("sanitize_control_tokens", None)
        return super().apply_chat_template(self._mark_typed(conversation), chat_template, **kwargs)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """The texts of generated ids (B, T), without the space that separates an answer from its question."""
        texts = self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)
        return [text.strip() for text in texts]

    @property
    def full_image_sequence(self) -> str:
        """The text that takes the place of `<image>`: the start mark, the placeholders, the end mark."""
        return IMAGE_START + IMAGE_TOKEN * self.num_image_tokens + IMAGE_END

    @property  # type: ignore[misc] # an attribute in the base class
    def image_token_ids(self) -> list[int]:  # type: ignore[override]
        """The ids that `full_image_sequence` is made of, which have type 1 in `mm_token_type_ids`."""
        return [self.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS]

    @property
    def model_input_names(self) -> list[str]:
        """The names of the outputs that the model takes."""
        return ["input_ids", "attention_mask", "pixel_values"]

    def _get_num_multimodal_tokens(
        self, image_sizes: Sequence[Sequence[int]] | None = None, **kwargs: Any
    ) -> MultiModalData:
        """The number of tokens of each image, for vLLM: the same for every size."""
        if image_sizes is None:
            return MultiModalData()
        count = len(image_sizes)
        return MultiModalData(num_image_tokens=[self.num_image_tokens + 2] * count, num_image_patches=[1] * count)

    def _split_kwargs(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The keyword arguments of a call → (text_kwargs, images_kwargs), by transformers' order of priority."""
        refuse_unknown_names("RadFMProcessor", kwargs, CALL_KWARGS)
        refuse_unknown_names("text_kwargs", kwargs.get("text_kwargs", {}), RadFMTextKwargs.__annotations__)
        refuse_unknown_names("images_kwargs", kwargs.get("images_kwargs", {}), RadFMImageProcessorKwargs.__annotations__)
        common = kwargs.pop("common_kwargs", {})
        refuse_unknown_names("common_kwargs", common, CALL_KWARGS)
        named = {*kwargs, *kwargs.get("text_kwargs", {}), *kwargs.get("images_kwargs", {})}
        kwargs.update({name: value for name, value in common.items() if name not in named})
        typed_kwargs: Any = RadFMProcessorKwargs
        merged = self._merge_kwargs(typed_kwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        text_kwargs, images_kwargs = (
            {name: value for name, value in merged[part].items() if name in typed.__annotations__}
            for part, typed in (("text_kwargs", RadFMTextKwargs), ("images_kwargs", RadFMImageProcessorKwargs))
        )
        return text_kwargs, images_kwargs

    def _token_limit(self, text_kwargs: dict[str, Any]) -> int | None:
        """The number of tokens that a text is cut to; None where it is not cut. The rules are those of all tokenizers."""
        truncation = text_kwargs.pop("truncation", None)
        max_length: int | None = text_kwargs.get("max_length")
        if truncation is None:
            # transformers reads `max_length` without `padding` as a wish to truncate.
            return max_length if text_kwargs.get("padding") in (None, False, "do_not_pad") else None
        if truncation in (False, "do_not_truncate"):
            return None
        return max_length if max_length is not None else self.tokenizer.model_max_length

    def _expand(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """The text with `full_image_sequence` for each `<image>`, and `text_replacement_offsets` as in transformers."""
        offsets: list[dict[str, Any]] = []
        gained, sequence = 0, self.full_image_sequence
        for match in UNEXPANDED_IMAGE.finditer(text):
            start = match.start() + gained
            gained += len(sequence) - len(IMAGE_START)
            offsets.append(
                {
                    "type": "image",
                    "span": match.span(),
                    "new_span": (start, start + len(sequence)),
                    "text": IMAGE_START,
                    "replacement": sequence,
                }
            )
        return UNEXPANDED_IMAGE.sub(sequence, text), offsets

    def _tokenize(self, text: str, add_special_tokens: bool) -> dict[str, list[Any]]:
        """One text → `input_ids`, `offset_mapping`, `special_tokens_mask`."""
        has_bos = bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)
        tokenizer = self.tokenizer if TYPED not in text else self._tokenizer_of_typed_text()
        offsets = {"return_offsets_mapping": True} if tokenizer.is_fast else {}
        encoding = tokenizer(
            text,
            add_special_tokens=add_special_tokens and not has_bos,
            return_special_tokens_mask=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            **offsets,
        )
        return dict(encoding)

    def _tokenizer_of_typed_text(self) -> PreTrainedTokenizerFast:
        """The tokenizer for a text with `TYPED` in it: it looks for control tokens first, and then removes `TYPED`."""
        if not self.tokenizer.is_fast:
            raise ValueError("A control token is typed in the text, and only a fast tokenizer can read it as text.")
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        # A token with "normalized" is looked for behind the normalizer, where `TYPED` is gone.
        for token in backend["added_tokens"]:
            token["normalized"] = False
        remove = {"type": "Replace", "pattern": {"String": TYPED}, "content": ""}
        steps = [remove, backend["normalizer"]] if backend["normalizer"] else [remove]
        backend["normalizer"] = {"type": "Sequence", "normalizers": steps}
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(backend)))

    def _mark_typed(self, value: Any) -> Any:
        """A conversation with `TYPED` in every control token that its texts spell; sources of scans are wrapped.

        Message objects (dataclasses, pydantic) become dictionaries, as in transformers.
        """
        value = getattr(value, "messages", value)
        if isinstance(value, str):
            return self._break_control_tokens(value)
        if isinstance(value, list | tuple):
            return [self._mark_typed(item) for item in value]
        if is_dataclass(value) and not isinstance(value, type):
            value = {field.name: getattr(value, field.name) for field in fields(value)}
        elif callable(getattr(value, "model_dump", None)):
            value = value.model_dump()
        if not isinstance(value, Mapping):
            return value
        if value.get("type") == "image":
            # Data sets with several kinds of parts have a None for each key that a part lacks.
            sources = {key: _ScanSource(item) for key, item in value.items() if key != "type" and item is not None}
            return {"type": "image", **sources}
        if value.get("type") == "image_url":
            return dict(value)
        return {key: item if key == "type" else self._mark_typed(item) for key, item in value.items()}

    def _break_control_tokens(self, text: str) -> str:
        """`TYPED` behind the first letter of each control token in a text, also of overlapping ones.

        And at the end of a text that ends like the beginning of a control token: the next text may spell the rest.
        """
        tokens = [re.escape(token) for token in self._control_tokens()]
        text = re.sub(f"(?=(?:{'|'.join(tokens)}))(.)", rf"\1{TYPED}", text.replace(TYPED, ""), flags=re.DOTALL)
        beginnings = tuple(token[:length] for token in self._control_tokens() for length in range(1, len(token)))
        return text + TYPED if text.endswith(beginnings) else text

    def _control_tokens(self) -> list[str]:
        special = {str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        return sorted({*special, *self.tokenizer.all_special_tokens, *SPECIAL_TOKENS}, key=len, reverse=True)

    def _assign_images(self, images: Any, texts: list[str]) -> list[list[Any]]:
        """The sources of the scans of each text. Raises `ValueError` where their number is not that of the marks."""
        marks = [len(UNEXPANDED_IMAGE.findall(text)) for text in texts]
        if images is None:
            images = []
        elif not isinstance(images, list | tuple):
            images = [images]
        if len(images) == len(texts) and all(isinstance(of_text, list | tuple) for of_text in images):
            of_texts = [list(of_text) for of_text in images]
        elif len(images) == sum(marks):
            remaining = iter(images)
            of_texts = [[next(remaining) for _ in range(count)] for count in marks]
        else:
            of_texts = [list(images)]
        if [len(of_text) for of_text in of_texts] != marks:
            where = f" in {len(texts)} texts" if len(texts) > 1 else ""
            scans = sum(len(of_text) for of_text in of_texts)
            raise ValueError(
                f"{sum(marks)} {IMAGE_START} marks{where} and {scans} scans: each scan needs one mark, in the same order."
            )
        return [[getattr(scan, "scan_source", scan) for scan in of_text] for of_text in of_texts]

    def _truncate(
        self, row: dict[str, list[Any]], scans: list[Any], limit: int, encoded: bool
    ) -> tuple[dict[str, list[Any]], list[Any]]:
        """At most `limit` tokens of a row, cut before or behind the tokens of a scan, and the scans that are left.

        As in transformers, the tokens that the tokenizer adds around the text stay.
        """
        ids, added = row["input_ids"], row["special_tokens_mask"]
        begin = next((i for i, special in enumerate(added) if not special), len(ids))
        end = len(ids) - next((i for i, special in enumerate(reversed(added)) if not special), 0)
        kept = max(limit - begin - (len(ids) - end), 0)
        from_left = self.tokenizer.truncation_side == "left"
        first, last = (end - kept, end) if from_left else (begin, begin + kept)
        start_id, end_id, placeholder_id = self.image_token_ids
        block = [start_id, *[placeholder_id] * self.num_image_tokens, end_id]
        spans = [
            (i, i + len(block)) for i, token in enumerate(ids) if token == start_id and ids[i : i + len(block)] == block
        ]
        for start, stop in spans:
            if start < first < stop:
                first = stop
            if start < last < stop:
                last = start
        whole = [first <= start and stop <= last for start, stop in spans]
        if encoded and not all(whole):
            raise ValueError(f"max_length={limit} leaves no room for all scans; encoded scans cannot be left out.")
        left = [scan for scan, fits in zip(scans, whole, strict=False) if fits]
        if len(left) < len(scans):
            logger.warning("max_length=%d leaves no room for %d of %d scans.", limit, len(scans) - len(left), len(scans))
        return {name: values[:begin] + values[first:last] + values[end:] for name, values in row.items()}, left

    def _pad(self, rows: list[dict[str, list[Any]]], text_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Rows → columns (B, T), padded as the tokenizer pads; offsets and masks are padded on the same side."""
        padding = {name: text_kwargs[name] for name in PADDING_KWARGS if text_kwargs.get(name) is not None}
        padding.setdefault("padding", False)
        data = dict(self.tokenizer.pad({"input_ids": [row["input_ids"] for row in rows]}, **padding))
        columns: dict[str, tuple[list[list[Any]], Any]] = {}
        if text_kwargs.get("return_offsets_mapping"):
            columns["offset_mapping"] = [row["offset_mapping"] for row in rows], (0, 0)
        if text_kwargs.get("return_special_tokens_mask"):
            columns["special_tokens_mask"] = [row["special_tokens_mask"] for row in rows], 1
        if text_kwargs.get("return_mm_token_type_ids"):
            image_ids = set(self.image_token_ids)
            types = [[int(token in image_ids) for token in row["input_ids"]] for row in rows]
            columns["mm_token_type_ids"] = types, 0
        on_the_left = (text_kwargs.get("padding_side") or self.tokenizer.padding_side) == "left"
        for name, (values, filler) in columns.items():
            fillers = [[filler] * (len(ids) - len(row)) for ids, row in zip(data["input_ids"], values, strict=True)]
            data[name] = [
                fill + list(row) if on_the_left else list(row) + fill for fill, row in zip(fillers, values, strict=True)
            ]
        return data


class _ScanSource:
    """Holds the source of a scan: transformers turns a dataclass in a conversation, such as `Scan`, into a dictionary."""

    def __init__(self, scan_source: Any):
        self.scan_source = scan_source


# Saving copies this file and what it imports, so that the folder loads with `trust_remote_code=True` alone.
RadFMProcessor.register_for_auto_class()

__all__ = ["RadFMProcessor"]
