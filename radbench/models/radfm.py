"""RadFM, through transformers' Auto classes alone: each scan of a batch is encoded once for all its questions."""

from collections.abc import Mapping, Sequence
from typing import Any

from radfm.medmd.schema import Message
from radfm.scan_radfm import Scan

from ..conditions import ScanKey
from .local import LocalModel, Row

TYPED = "\ufdd0"  # RadFM's processor puts it into control tokens that are typed as text


class RadFM(LocalModel):
    """`radfm` models."""

    def describe(self) -> dict[str, Any]:
        settings = self.processor.image_processor.to_dict()
        settings.pop("auto_map", None)
        return {**super().describe(), "image_processor": settings}

    def scan_cost(self, shape: Sequence[int]) -> int:
        image_processor = self.processor.image_processor
        in_plane = (image_processor.image_size // self.model.config.vision_config.patch_size) ** 2
        depth = image_processor.target_depth(max(shape[2:], default=1))
        return int(in_plane * max(depth // image_processor.patch_depth, 1))

    def _prepare_scan(self, scan: Scan) -> Any:
        return self.processor.image_processor.preprocess(scan)

    def _conversation(self, messages: Sequence[Message], scans: Sequence[ScanKey], pixels: Mapping[ScanKey, Any]) -> Any:
        return [
            {
                "role": message.role,
                "content": [
                    {"type": "image"} if part.type == "image" else {"type": "text", "text": part.text}
                    for part in message.content
                ],
            }
            for message in messages
        ]

    def _encode(self, pixels: Mapping[ScanKey, Any]) -> dict[ScanKey, Any]:
        if not pixels:
            return {}
        dtype, device = self.model.dtype, self.model.device
        features = self.model.get_image_features([tensor.to(device, dtype) for tensor in pixels.values()])
        return dict(zip(pixels, features.pooler_output, strict=True))

    def _inputs(self, rows: Sequence[Row], encoded: Mapping[ScanKey, Any], padding_side: str) -> dict[str, Any]:
        inputs = self.processor(
            text=[row.text for row in rows],
            images_encoded=True,
            padding=True,
            padding_side=padding_side,
            return_tensors="pt",
        ).to(self.model.device)
        features = [encoded[key] for row in rows for key in row.scans]
        return {**inputs, "image_features": features} if features else dict(inputs)

    def _ids(self, text: str) -> list[int]:
        # Not by the tokenizer, which does not know `TYPED`.
        ids: list[int] = self.processor(text=text, images_encoded=True)["input_ids"][0]
        return ids

    def _shown_prompt(self, prompt: str) -> str:
        return prompt.replace(TYPED, "")

    def _tokens_of_scan(self) -> int:
        return int(self.processor.num_image_tokens) + 2
