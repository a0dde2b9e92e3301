"""Asking a model about scans: a conversation that encodes its scans once."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TextStreamer
from transformers.utils import logging

from .modeling_radfm import RadFMForConditionalGeneration
from .processing_radfm import RadFMProcessor
from .scan_types_radfm import Scan


def default_device() -> str:
    """A GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class Words(TextStreamer):
    """Prints an answer as it is said, without the space that parts it from the question."""

    def __init__(self, tokenizer: Any):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.begun = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        text = text if self.begun else text.lstrip()
        self.begun = self.begun or bool(text)
        super().on_finalized_text(text, stream_end)


class Asker:
    """A model, the scans it was shown, and what was said about them so far."""

    def __init__(self, model: str, device: str = ""):
        if not sys.stderr.isatty():
            logging.disable_progress_bar()
        self.device = torch.device(device or default_device())
        dtype = torch.float32 if self.device.type == "cpu" else "auto"
        self.model: Any = RadFMForConditionalGeneration.from_pretrained(model, dtype=dtype)
        self.model = self.model.eval().to(self.device)
        self.processor = RadFMProcessor.from_pretrained(model)
        self.messages: list[dict[str, Any]] = []
        self.image_features: Sequence[torch.Tensor] | None = None
        self.scans = 0

    @torch.inference_mode()
    def show(self, scans: Sequence[Scan]) -> None:
        """Start a conversation about these scans; they are encoded here and never again."""
        self.messages, self.scans = [], len(scans)
        pixel_values = [scan.to(self.device) for scan in self.processor.image_processor(list(scans))["pixel_values"]]
        self.image_features = self.model.get_image_features(pixel_values).pooler_output if scans else None

    @torch.inference_mode()
    def ask(self, question: str, max_new_tokens: int, stream: bool = False) -> str:
        """The answer; with `stream` it is printed word by word as well."""
        images = [] if self.messages else [{"type": "image"}] * self.scans
        self.messages.append({"role": "user", "content": [*images, {"type": "text", "text": question}]})
        text = self.processor.apply_chat_template(self.messages, add_generation_prompt=True)
        text = text.replace("<image>", self.processor.image_text)
        inputs = self.processor(text=text, return_tensors="pt").to(self.device)
        streamer = Words(self.processor.tokenizer) if stream else None
        said = self.model.generate(
            **inputs,
            image_features=self.image_features,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            streamer=streamer,
        )
        answer = self.processor.decode(said[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        self.messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return answer
