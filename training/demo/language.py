"""Stage 2: train Perceiver, projector and decoder to answer the records; the tower is frozen.

A row is one scan and several of its records. The attention mask lets each question attend to the scan's tokens and to
itself only: the scan is encoded once a row, and no answer can be copied from the question before.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from radfm.medmd.schema import Record
from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.processing_radfm import RadFMProcessor

from ..examples import IGNORE, encode_text
from ..recipe import Loss, Stage
from .scans import DemoScan
from .stage import draw_scans, train_stage
from .tower import LabelHeads, augment, label_loss

HEADS_WEIGHT = 0.5


@dataclass
class Row:
    """Token ids, labels, loss weights, position ids, and the number of the question each token belongs to (0: the scan)."""

    ids: list[int]
    labels: list[int]
    weights: list[float]
    positions: list[int]
    question: list[int]


class TextEncoder:
    """Records → token ids after the scan, labels and loss weights, each text encoded once."""

    def __init__(self, processor: RadFMProcessor, loss: Loss):
        self.processor, self.loss = processor, loss
        tokenizer = processor.tokenizer
        self.prefix = [tokenizer.bos_token_id, *tokenizer.encode(processor.full_image_sequence, add_special_tokens=False)]
        self._known: dict[tuple[Any, ...], tuple[list[int], list[int], list[float]]] = {}

    def __call__(self, record: Record) -> tuple[list[int], list[int], list[float]]:
        key = record.messages
        if key not in self._known:
            ids, labels, weights = encode_text(record, self.processor, self.loss)
            count = len(self.prefix)
            assert ids[:count] == self.prefix, record.id
            self._known[key] = ids[count:], labels[count:], weights[count:]
        return self._known[key]


def build_row(records: list[Record], encode: TextEncoder, text_tokens: int) -> Row:
    """A scan and questions about it, the first ones that fit into `text_tokens`, each at the positions that it has alone."""
    count = len(encode.prefix)
    row = Row(list(encode.prefix), [IGNORE] * count, [0.0] * count, list(range(count)), [0] * count)
    for number, record in enumerate(records, start=1):
        ids, labels, weights = encode(record)
        if number > 1 and len(row.ids) + len(ids) > count + text_tokens:
            continue
        row.ids += ids
        row.labels += [IGNORE, *labels[1:]]  # the first token of a question is no answer to the one before
        row.weights += [0.0, *weights[1:]]
        row.positions += range(count, count + len(ids))
        row.question += [number] * len(ids)
    return row


def collate_rows(rows: list[Row], pad: int) -> dict[str, torch.Tensor]:
    """Rows padded on the right, with an additive mask (B, 1, T, T) that separates the questions."""
    length = max(len(row.ids) for row in rows)

    def pad_field(name: str, value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([getattr(r, name) + [value] * (length - len(r.ids)) for r in rows], dtype=dtype)

    question = pad_field("question", -1, torch.long)
    of_query, of_key = question[:, :, None], question[:, None, :]
    allowed = ((of_key == 0) | (of_key == of_query)) & torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    return {
        "input_ids": pad_field("ids", pad, torch.long),
        "labels": pad_field("labels", IGNORE, torch.long),
        "loss_weights": pad_field("weights", 0, torch.float32),
        "position_ids": pad_field("positions", 0, torch.long),
        "attention_mask": mask[:, None],
    }


class AfterTower(nn.Module):
    """All of the model but the tower, and label heads on the mean image token as an auxiliary loss."""

    def __init__(self, model: RadFMForConditionalGeneration, values: dict[str, tuple[str, ...]]):
        super().__init__()
        self.model = model
        self.heads = LabelHeads(model.config.vision_config.hidden_size, values)
        model.requires_grad_(True)
        model.model.vision_tower.requires_grad_(False)
        model.model.vision_tower.perceiver.requires_grad_(True)

    def forward(
        self, pixel_values: list[torch.Tensor], text: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        tower = self.model.model.vision_tower
        with torch.no_grad():
            tower.layers.eval()  # Trainer puts all in training mode; a frozen tower has no dropout
            patches, pack = tower.encode_patches(pixel_values)
        tokens = tower.perceiver(patches, pack)
        features = list(self.model.model.projector(tokens))
        language_loss = self.model(**text, image_features=features, use_cache=False).loss
        return {"loss": language_loss + HEADS_WEIGHT * label_loss(self.heads(tokens.mean(1)), targets)}


def train_language(
    model: RadFMForConditionalGeneration,
    processor: RadFMProcessor,
    values: dict[str, tuple[str, ...]],
    scans: list[DemoScan],
    stage: Stage,
    loss: Loss,
    out: Path,
) -> None:
    """Stage 2. The tower's weights do not change."""
    encode, draw = TextEncoder(processor, loss), draw_scans(scans, stage.scans)
    torch.manual_seed(1)
    module = AfterTower(model, values)

    def make_batch(step: int, rng: np.random.Generator) -> dict[str, Any]:
        chosen = [scans[i] for i in draw(rng)]
        rows = []
        for scan in chosen:
            records = [scan.records[k] for k in rng.permutation(len(scan.records))]
            rows.append(build_row(records, encode, stage.text_tokens))
        return {
            "pixel_values": [augment(scan, stage.augmentation, rng) for scan in chosen],
            "text": collate_rows(rows, processor.tokenizer.pad_token_id),
            "targets": module.heads.targets(chosen),
        }

    train_stage(module, stage, out, make_batch)
