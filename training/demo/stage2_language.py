"""Stage 2: train Perceiver, projector and decoder to answer questions; the tower is frozen.

A row is one scan and several questions about it. The attention mask lets each question attend to the scan's tokens and
to itself only: the scan is encoded once a row, and no answer can be copied from the question before.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from torch import nn
from transformers import PreTrainedTokenizerFast

from radfm.attention_radfm import PackedLengths
from radfm.modeling_radfm import RadFMForConditionalGeneration

from .datasets import FINDINGS, Sample
from .qa_templates import questions
from .stage1_vision import LabelHeads, augment, label_loss, targets
from .trainer import train

# Rows of each pack in one training step; volumes count as a pack here.
MIX = {
    "brain_tumor_t1ce": 12,
    "busi_breast_us": 12,
    "pneumoniamnist_28": 9,
    "mednist": 8,
    "ct_planes_nysbu": 3,
    "slices": 6,
    "volumes": 4,
}
QUESTIONS = 5
VERSIONS = 4
TERM_WEIGHT = 3.0
IGNORE = -100


@dataclass
class Row:
    """Token ids, labels, loss weights, position ids, and the number of the question each token belongs to (0: the scan)."""

    ids: list[int]
    labels: list[int]
    weights: list[float]
    positions: list[int]
    question: list[int]


def build_example(sample: Sample, tokenizer: PreTrainedTokenizerFast, image: list[int], rng: random.Random) -> Row:
    """Questions about one sample: independent of each other, as one conversation, or a single one before the scan."""
    qa_pairs = questions(sample, QUESTIONS, rng)
    form = rng.choices(("independent", "conversation", "scan last"), (0.75, 0.15, 0.1))[0]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    row = Row([bos], [IGNORE], [0.0], [0], [0])

    def add(ids: list[int], learn: bool, question: int, weight: float = 1.0) -> None:
        last = [p for p, q in zip(row.positions, row.question, strict=True) if q in (0, question)][-1]
        row.positions += range(last + 1, last + 1 + len(ids))
        row.ids += ids
        row.labels += ids if learn else [IGNORE] * len(ids)
        row.weights += [weight if learn else 0.0] * len(ids)
        row.question += [question] * len(ids)

    if form != "scan last":
        add(image, learn=False, question=0)
    for number, qa in enumerate(qa_pairs[: 1 if form == "scan last" else None], start=1):
        branch = number if form == "independent" else 0
        add(tokenizer.encode(qa.question, add_special_tokens=False), learn=False, question=branch)
        if form == "scan last":
            add(image, learn=False, question=branch)
        answer = tokenizer.encode(" " + qa.answer, add_special_tokens=False)
        add(answer, learn=True, question=branch, weight=TERM_WEIGHT if qa.label == "finding" else 1.0)
        add([eos], learn=True, question=branch)
    return row


def collate(rows: list[Row], pad: int) -> dict[str, torch.Tensor]:
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


@torch.no_grad()
def encode(model: RadFMForConditionalGeneration, samples: list[Sample]) -> list[list[torch.Tensor]]:
    """The frozen tower's patches of each sample, in half precision: unchanged, and in augmented versions.

    Packs with findings and volumes get `VERSIONS` versions, the others two.
    """
    tower = model.model.vision_tower.eval()
    encoded: list[list[torch.Tensor]] = [[] for _ in samples]
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, sample in enumerate(samples):
        by_shape.setdefault(tuple(sample.pixels.shape), []).append(i)
    batches = [ids[i : i + 64] for ids in by_shape.values() for i in range(0, len(ids), 64)]
    for batch in track(batches, "encoding scans", transient=True):
        pixels = torch.stack([samples[i].pixels for i in batch])
        has_findings = any(samples[i].pack in FINDINGS or samples[i].is_volume for i in batch)
        for version in range(VERSIONS if has_findings else 2):
            generator = torch.Generator().manual_seed(version)
            values = augment(pixels, 0.35, generator) if version else pixels.float() / 255
            patches, pack = tower.encode_patches(list(values))
            for i, of_scan in zip(batch, patches.split(pack.lengths), strict=True):
                encoded[i].append(of_scan.half())
    return encoded


class Stage2Model(nn.Module):
    """All of the model but the tower, and label heads on the mean image token as an auxiliary loss."""

    def __init__(self, model: RadFMForConditionalGeneration):
        super().__init__()
        self.model = model
        self.heads = LabelHeads(model.config.vision_config.hidden_size)
        model.requires_grad_(True)
        model.model.vision_tower.requires_grad_(False)
        model.model.vision_tower.perceiver.requires_grad_(True)

    def forward(
        self, patches: list[torch.Tensor], text: dict[str, torch.Tensor], class_targets: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        pack = PackedLengths([len(p) for p in patches], patches[0].device)
        tokens = self.model.model.vision_tower.perceiver(torch.cat(patches).float(), pack)
        features = list(self.model.model.projector(tokens))
        language_loss = self.model(**text, image_features=features, use_cache=False).loss
        return language_loss + 0.5 * label_loss(self.heads(tokens.mean(1)), class_targets)


def train_language_model(
    model: RadFMForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    samples: list[Sample],
    steps: int,
    folder: Path,
) -> Stage2Model:
    """Stage 2. The tower's weights do not change."""
    config = model.config
    image = [config.image_start_token_id, *[config.image_token_id] * config.num_image_tokens, config.image_end_token_id]
    encoded = encode(model, samples)
    packs = {name: [i for i, s in enumerate(samples) if ("volumes" if s.is_volume else s.pack) == name] for name in MIX}
    torch.manual_seed(1)
    stage2 = Stage2Model(model)

    def loss_of_step(step: int) -> torch.Tensor:
        rng = random.Random(step)
        chosen = [rng.choice(packs[name]) for name, count in MIX.items() for _ in range(count)]
        chosen.sort(key=lambda i: len(encoded[i][0]))
        rows = [build_example(samples[i], tokenizer, image, rng) for i in chosen]
        patches = [rng.choice(encoded[i]) for i in chosen]
        return stage2(patches, collate(rows, tokenizer.pad_token_id), targets([samples[i] for i in chosen]))

    return train("language", stage2, loss_of_step, steps=steps, learning_rate=1e-3, folder=folder)
