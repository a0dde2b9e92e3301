"""Any `AutoModelForImageTextToText` with its own processor: it gets slices of a scan as images (`slices`)."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from radfm.medmd.schema import Message
from radfm.scan_radfm import Scan

from ..conditions import ScanKey
from ..items import BenchError
from .local import LocalModel, Row
from .slices import CHOICE_OF_SLICES, slice_images

# Patches of an image, for the size of batches: between LLaVA's 576 and Gemma 3's 4,096.
PATCHES_OF_IMAGE = 1_024
PROBE_SIZE = 224


class ImageText(LocalModel):
    """A model of images and text.

    Args:
        name, processor, model, max_new_tokens: as for `LocalModel`.
        slices: how many slices of a volume it gets.

    Raises:
        BenchError: its processor does not take an image and a question.
    """

    def __init__(self, name: str, processor: Any, model: Any, max_new_tokens: int, slices: int) -> None:
        super().__init__(name, processor, model, max_new_tokens)
        self.slices = slices
        self._image_tokens = self._probe()

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "slices": self.slices, "choice_of_slices": CHOICE_OF_SLICES}

    def scan_cost(self, shape: Sequence[int]) -> int:
        return PATCHES_OF_IMAGE * (min(self.slices, min(shape)) if len(shape) == 3 else 1)

    def _probe(self) -> int:
        """The tokens of an image. A processor that does not work shows it here, before anything is asked."""
        content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
        try:
            texts = [
                self.processor.apply_chat_template(
                    [{"role": "user", "content": content[start:]}], tokenize=False, add_generation_prompt=True
                )
                for start in (0, 1)
            ]
            image = Image.new("RGB", (PROBE_SIZE, PROBE_SIZE))
            with_image = self._process([texts[0]], [[image]], "left")["input_ids"].shape[1]
            return int(with_image - self._process([texts[1]], [[]], "left")["input_ids"].shape[1])
        except Exception as error:  # whatever its own code meets: TypeError, KeyError, a template's error
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BenchError(f"{self.name}: its processor does not take an image and a question ({reason})") from error

    def _prepare_scan(self, scan: Scan) -> list[Image.Image]:
        return slice_images(scan, self.slices)

    def _conversation(self, messages: Sequence[Message], scans: Sequence[ScanKey], pixels: Mapping[ScanKey, Any]) -> Any:
        keys = iter(scans)
        conversation = []
        for message in messages:
            content: list[dict[str, Any]] = []
            for part in message.content:
                if part.type == "image":
                    content += [{"type": "image"}] * len(pixels[next(keys)])
                else:
                    content.append({"type": "text", "text": part.text})
            conversation.append({"role": message.role, "content": content})
        return conversation

    def _encode(self, pixels: Mapping[ScanKey, Any]) -> dict[ScanKey, Any]:
        return dict(pixels)

    def _batches(self, rows: Sequence[Row], encoded: Mapping[ScanKey, Any]) -> list[list[int]]:
        # Rows with as many images: few processors take a row without an image beside one with images.
        by_count: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            by_count.setdefault(sum(len(encoded[key]) for key in row.scans), []).append(index)
        return list(by_count.values())

    def _inputs(self, rows: Sequence[Row], encoded: Mapping[ScanKey, Any], padding_side: str) -> dict[str, Any]:
        images = [[image for key in row.scans for image in encoded[key]] for row in rows]
        inputs = self._process([row.text for row in rows], images, padding_side)
        return dict(inputs.to(self.model.device, dtype=self.model.dtype))

    def _process(self, texts: list[str], images: list[list[Image.Image]], padding_side: str) -> Any:
        start = self.processor.tokenizer.bos_token
        return self.processor(
            text=texts,
            images=images if images[0] else None,
            padding=True,
            padding_side=padding_side,
            # The chat template has written it already.
            add_special_tokens=not (start and texts[0].startswith(start)),
            return_tensors="pt",
        )

    def _tokens_of_scan(self) -> int:
        return self.slices * self._image_tokens
