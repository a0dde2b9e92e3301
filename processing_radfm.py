"""Text and scans → model inputs: each `<image>` in a text is the place of one scan."""

import logging
import re
from collections.abc import Sequence
from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig
from transformers.image_processing_base import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .image_processing_radfm import RadFMImageProcessor

logger = logging.getLogger(__name__)

IMAGE_START, IMAGE_END, IMAGE_TOKEN = "<image>", "</image>", "<image_token>"
# The place of a scan; one that already has its image tokens is left as it is.
PLACE = re.compile(f"{IMAGE_START}(?!{IMAGE_TOKEN})")

# The published training text: what is asked, one space, the answer; no roles and no system text (paper, Methods).
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ ' ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' and not loop.last %}{{ eos_token }}"
    "{% elif message['role'] == 'assistant' and not continue_final_message %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
SIDE_BY_SIDE = ("padding", "pad_to_multiple_of", "padding_side")


class RadFMProcessor(ProcessorMixin):
    """A tokenizer that knows the three image marks, and the image processor of the model.

    Args:
        image_processor: makes `pixel_values` of scans.
        tokenizer: the decoder's, with `<image>`, `</image>` and `<image_token>` in its vocabulary.
        num_image_tokens: placeholders a scan, as in the model's config.
        chat_template: how a conversation becomes a text; the published way where it is left out.

    Raises:
        ValueError: a tokenizer without the image marks.
    """

    def __init__(
        self,
        image_processor: RadFMImageProcessor,
        tokenizer: Any,
        num_image_tokens: int = 32,
        chat_template: str | None = None,
    ):
        missing = [mark for mark in (IMAGE_START, IMAGE_END, IMAGE_TOKEN) if mark not in tokenizer.get_vocab()]
        if missing:
            raise ValueError(
                f"The tokenizer lacks {', '.join(missing)}: tokenizer.add_special_tokens("
                f"{{'additional_special_tokens': {missing}}}), and give the model's config their ids."
            )
        self.num_image_tokens = num_image_tokens
        self.image_token = IMAGE_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        # Not through AutoImageProcessor, which refuses to work without Pillow.
        settings = (processor_dict or {}).get("image_processor")
        if settings is not None:
            image_processor = RadFMImageProcessor.from_dict(settings)
        else:
            image_processor = RadFMImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        # The tokenizer says itself what it is; without a config AutoTokenizer would ask for trust in the model's code.
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, config=PreTrainedConfig(), **kwargs)
        return [image_processor, tokenizer]

    def check_argument_for_proper_class(self, argument_name: str, argument: Any):
        """Any image processor and tokenizer that does the work: a copy of the class from elsewhere is as good."""
        return type(argument)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: None = None,
        audio: None = None,
        *,
        truncation: bool = False,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Texts and their scans as the model takes them.

        Args:
            images: whatever `load_scan` reads: one scan, a list in the order of the `<image>` marks over all texts, or a
                list of such lists, one a text.
            text: one text or a list; `<image>` stands where a scan does.
            truncation, max_length: cut texts to so many tokens on the tokenizer's `truncation_side`; a scan that does not
                fit whole is left out with its marks, and a warning says so.
            return_tensors: "pt" for tensors; `pixel_values` is a list of tensors in any case.
            kwargs: `padding`, `pad_to_multiple_of`, `padding_side` as for a tokenizer; what other processors of
                transformers take and this one has no use for is accepted.

        Returns:
            `input_ids` and `attention_mask` (B, T), and `pixel_values` where there are scans.

        Raises:
            ValueError: more or fewer scans than `<image>` marks.
            ScanError: a source that is no scan.
        """
        if text is None:
            raise ValueError("A text is missing: RadFM answers questions, and a scan alone asks none.")
        texts = [text] if isinstance(text, str) else list(text)
        per_text = self._share_out(images, texts)
        options = {**kwargs, **kwargs.get("text_kwargs", {})}
        rows, scans = [], []
        for one, its_scans in zip(texts, per_text, strict=True):
            filled = PLACE.sub(self.full_image_sequence, one)
            own_bos = bool(self.tokenizer.bos_token) and one.startswith(self.tokenizer.bos_token)
            ids = self.tokenizer(filled, add_special_tokens=add_special_tokens and not own_bos)["input_ids"]
            if truncation and max_length is not None and len(ids) > max_length:
                ids, its_scans = self._truncate(ids, its_scans, max_length)
            rows.append(ids)
            scans += its_scans
        padding = {name: options[name] for name in SIDE_BY_SIDE if name in options}
        padding.setdefault("padding", False)
        batch = self.tokenizer.pad({"input_ids": rows}, max_length=max_length, return_tensors=return_tensors, **padding)
        if isinstance(text, str) and return_tensors is None:
            batch = {name: values[0] for name, values in batch.items()}
        inputs = BatchFeature(dict(batch))
        if scans:
            inputs["pixel_values"] = self.image_processor(scans)["pixel_values"]
        return inputs

    @property
    def full_image_sequence(self) -> str:
        """What one scan is in a text: put in place of `<image>` where the model gets `image_features` and no scan."""
        return IMAGE_START + IMAGE_TOKEN * self.num_image_tokens + IMAGE_END

    @property
    def model_input_names(self) -> list[str]:
        """What the model takes of all this."""
        return ["input_ids", "attention_mask", "pixel_values"]

    def _share_out(self, images: Any, texts: list[str]) -> list[list[Any]]:
        """The scans of each text."""
        marks = [len(PLACE.findall(one)) for one in texts]
        if images is None:
            images = []
        elif not isinstance(images, list | tuple):
            images = [images]
        if len(images) == len(texts) and all(isinstance(of_text, list | tuple) for of_text in images):
            per_text = [list(of_text) for of_text in images]
        elif len(images) == sum(marks):
            remaining = iter(images)
            per_text = [[next(remaining) for _ in range(count)] for count in marks]
        else:
            per_text = [list(images)]
        if [len(of_text) for of_text in per_text] != marks:
            where = f" in {len(texts)} texts" if len(texts) > 1 else ""
            scans = sum(len(of_text) for of_text in per_text)
            raise ValueError(
                f"{sum(marks)} {IMAGE_START} marks{where} and {scans} scans: each scan needs one mark, in the same order."
            )
        return per_text

    def _truncate(self, ids: list[int], scans: list[Any], length: int) -> tuple[list[int], list[Any]]:
        """At most `length` ids from one side, cut before or behind a scan's marks and never among them."""
        from_left = self.tokenizer.truncation_side == "left"
        start_id, end_id = (self.tokenizer.convert_tokens_to_ids(mark) for mark in (IMAGE_START, IMAGE_END))
        spans = [(i, ids.index(end_id, i)) for i, token in enumerate(ids) if token == start_id]
        first, last = (len(ids) - length, len(ids)) if from_left else (0, length)
        for start, end in spans:
            if start < first <= end:
                first = end + 1
            if start < last <= end:
                last = start
        kept = [scan for scan, (start, end) in zip(scans, spans, strict=True) if first <= start and end < last]
        if len(kept) < len(scans):
            logger.warning("max_length=%d leaves no room for %d of %d scans.", length, len(scans) - len(kept), len(scans))
        return ids[first:last], kept


__all__ = ["RadFMProcessor"]
