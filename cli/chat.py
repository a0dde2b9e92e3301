"""Asking a model about scans: a conversation that encodes its scans once."""

import logging as logs
import sys
from collections.abc import Sequence
from typing import Any

import torch
from transformers import BitsAndBytesConfig, TextStreamer
from transformers.utils import logging

from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.processing_radfm import RadFMProcessor
from radfm.scan_radfm import Scan


def default_device() -> str:
    """A GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(model: str, device: str, bits: int | None) -> Any:
    """The model in 32 bits on a CPU and as it is stored elsewhere; spread over GPUs and memory ("auto"), or quantised."""
    device = device or default_device()
    if bits is None and device != "auto":
        dtype = torch.float32 if device == "cpu" else "auto"
        return RadFMForConditionalGeneration.from_pretrained(model, dtype=dtype).eval().to(device)
    quantisation = None
    if bits is not None:
        logs.getLogger("bitsandbytes").setLevel(logs.ERROR)
        quantisation = BitsAndBytesConfig(
            load_in_8bit=bits == 8,
            load_in_4bit=bits == 4,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    dtype = "auto" if bits is None else torch.bfloat16
    return RadFMForConditionalGeneration.from_pretrained(
        model, dtype=dtype, device_map=device, quantization_config=quantisation
    ).eval()


class AnswerStreamer(TextStreamer):
    """Prints an answer as it is said, without the space that parts it from the question."""

    def __init__(self, tokenizer: Any):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.begun = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        text = text if self.begun else text.lstrip()
        self.begun = self.begun or bool(text)
        super().on_finalized_text(text, stream_end)


class ChatSession:
    """A model, the scans it was shown, and what was said about them so far."""

    def __init__(self, model: str, device: str = "", bits: int | None = None):
        """`device` "auto" spreads the weights over GPUs, memory and disk; `bits` (4 or 8) quantises the decoder."""
        if not sys.stderr.isatty():
            logging.disable_progress_bar()
        self.model = load_model(model, device, bits)
        self.device = self.model.device
        self.processor = RadFMProcessor.from_pretrained(model)
        self.messages: list[dict[str, Any]] = []
        self.image_features: Sequence[torch.Tensor] | None = None
        self.scans = 0

    @torch.inference_mode()
    def set_scans(self, scans: Sequence[Scan]) -> None:
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
        text = text.replace("<image>", self.processor.full_image_sequence)
        inputs = self.processor(text=text, return_tensors="pt").to(self.device)
        streamer = AnswerStreamer(self.processor.tokenizer) if stream else None
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
