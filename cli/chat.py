"""A conversation with a model about scans, which are encoded once."""

import logging as python_logging
import sys
from collections.abc import Sequence
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedTokenizerBase, TextStreamer
from transformers.utils import logging

from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.processing_radfm import RadFMProcessor
from radfm.scan_radfm import Scan

from .common import default_device


def load_model(model: str, device: str, bits: int | None) -> RadFMForConditionalGeneration:
    """Load a model for inference.

    Args:
        model: a folder or a Hub id.
        device: "cpu", "cuda", "cuda:1", …; "auto" spreads the weights over GPUs, memory and disk; "" takes a GPU where
            there is one.
        bits: 4 or 8 quantises the decoder's matrices; None loads float32 on a CPU and the stored dtype elsewhere.
    """
    device = device or default_device()
    if bits is None and device != "auto":
        dtype = torch.float32 if device == "cpu" else "auto"
        return RadFMForConditionalGeneration.from_pretrained(model, dtype=dtype).eval().to(device)
    quantization = None
    if bits is not None:
        python_logging.getLogger("bitsandbytes").setLevel(python_logging.ERROR)
        quantization = BitsAndBytesConfig(
            load_in_8bit=bits == 8,
            load_in_4bit=bits == 4,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    return RadFMForConditionalGeneration.from_pretrained(
        model,
        dtype="auto" if bits is None else torch.bfloat16,
        device_map=device,
        quantization_config=quantization,
    ).eval()


class AnswerStreamer(TextStreamer):
    """Prints an answer while it is generated, without the space that separates it from the question."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.has_printed = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        text = text if self.has_printed else text.lstrip()
        self.has_printed = self.has_printed or bool(text)
        super().on_finalized_text(text, stream_end)


class ChatSession:
    """A model, the scans of a conversation, and its messages so far.

    Args:
        model, device, bits: as for `load_model`.
    """

    def __init__(self, model: str, device: str = "", bits: int | None = None):
        if not sys.stderr.isatty():
            logging.disable_progress_bar()
        self.model = load_model(model, device, bits)
        self.processor = RadFMProcessor.from_pretrained(model)
        self.messages: list[dict[str, Any]] = []
        self.image_features: Sequence[torch.Tensor] | None = None
        self.num_scans = 0

    @torch.inference_mode()
    def set_scans(self, scans: Sequence[Scan]) -> None:
        """Start a conversation about these scans: encode them, and forget the messages so far."""
        self.messages, self.num_scans = [], len(scans)
        pixel_values = self.processor.image_processor(list(scans))["pixel_values"]
        pixel_values = [scan.to(self.model.device) for scan in pixel_values]
        self.image_features = self.model.get_image_features(pixel_values).pooler_output if scans else None

    @torch.inference_mode()
    def ask(self, question: str, max_new_tokens: int, stream: bool = False) -> str:
        """The answer to a question; with `stream` it is also printed while it is generated."""
        images = [] if self.messages else [{"type": "image"}] * self.num_scans
        self.messages.append({"role": "user", "content": [*images, {"type": "text", "text": question}]})
        inputs = self.processor.apply_chat_template(
            self.messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"images_encoded": True},
        ).to(self.model.device)
        output_ids = self.model.generate(
            **inputs,
            image_features=self.image_features,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            streamer=AnswerStreamer(self.processor.tokenizer) if stream else None,
        )
        (answer,) = self.processor.post_process_image_text_to_text(output_ids[:, inputs["input_ids"].shape[1] :])
        self.messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return answer
