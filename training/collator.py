"""Examples → a batch for the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from radfm.configuration_radfm import RadFMConfig
from radfm.processing_radfm import RadFMProcessor

from .examples import IGNORE, Example


@dataclass
class Collator:
    """Pads texts on the right; scans stay a list of tensors.

    A batch without scans, or without rows (a filler of the plan), gets one row with a black scan of one patch, labels -100
    and weight 0: otherwise DDP hangs, and FSDP2 fails, where one rank's vision tower is not called.
    """

    processor: RadFMProcessor
    config: RadFMConfig
    black_scan: torch.Tensor | None = None  # its patches (L, V), where the scans are encoded patches too

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Examples → input_ids, attention_mask, labels, loss_weights (B, T), pixel_values (a list), record_ids."""
        examples = list(examples)
        if not any(example.pixel_values for example in examples):
            examples.append(self._black_example())
        pad_token_id = self.processor.tokenizer.pad_token_id
        length = max(len(example.input_ids) for example in examples)

        def pad(name: str, value: float, dtype: torch.dtype) -> torch.Tensor:
            rows = [getattr(example, name) for example in examples]
            return torch.tensor([row + [value] * (length - len(row)) for row in rows], dtype=dtype)

        lengths = torch.tensor([len(example.input_ids) for example in examples])
        return {
            "input_ids": pad("input_ids", pad_token_id, torch.long),
            "attention_mask": (torch.arange(length) < lengths[:, None]).long(),
            "labels": pad("labels", IGNORE, torch.long),
            "loss_weights": pad("loss_weights", 0.0, torch.float32),
            "pixel_values": [pixels for example in examples for pixels in example.pixel_values],
            "record_ids": [example.record_id for example in examples if example.record_id],
        }

    def _black_example(self) -> Example:
        config = self.config
        ids = [
            config.image_start_token_id,
            *[config.image_token_id] * config.num_image_tokens,
            config.image_end_token_id,
        ]
        black = self.black_scan if self.black_scan is not None else black_pixels(config)
        return Example("", ids, [IGNORE] * len(ids), [0.0] * len(ids), [black])


def black_pixels(config: RadFMConfig) -> torch.Tensor:
    """Pixel values of a black image of one patch."""
    patch_size = config.vision_config.patch_size
    return torch.zeros(1, patch_size, patch_size, 1)
