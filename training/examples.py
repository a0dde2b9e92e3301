"""Records → what the model is trained on: pixel values, token ids, labels and loss weights of one row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from radfm.load_scan_radfm import load_scan
from radfm.medmd.schema import Part, Record
from radfm.processing_radfm import RadFMProcessor
from radfm.scan_radfm import ScanError

from .augmentation import augment_pixels, jitter_window
from .batches import Cost
from .patch_cache import PatchCache
from .recipe import Augmentation, Loss
from .token_weights import token_weights

IGNORE = -100  # a label that the loss leaves out, as everywhere in PyTorch


@dataclass(frozen=True)
class Example:
    """One row: T token ids with labels (-100 where there is no loss) and loss weights, and pixel values of its scans."""

    record_id: str
    input_ids: list[int]
    labels: list[int]
    loss_weights: list[float]
    pixel_values: list[torch.Tensor]


def encode_text(record: Record, processor: RadFMProcessor, loss: Loss) -> tuple[list[int], list[int], list[float]]:
    """Token ids, labels and loss weights of the conversation of a record.

    Loss is taken on the answers and their end tokens; of interleaved papers on all text (paper, Methods). Image tokens and
    questions have the label -100 and the weight 0.
    """
    messages = [{"role": m.role, "content": [_chat_part(part) for part in m.content]} for m in record.messages]
    masks = processor.apply_chat_template(
        messages,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        processor_kwargs={"images_encoded": True},
    )["assistant_masks"][0]
    text = processor.apply_chat_template(messages, tokenize=False)
    tokens = processor(text=text, return_offsets_mapping=True, images_encoded=True)
    ids = [int(token) for token in tokens["input_ids"][0]]
    expanded = text.replace(processor.image_token, processor.full_image_sequence)
    weights = token_weights(expanded, tokens["offset_mapping"][0], loss)
    image_ids = set(processor.image_token_ids)
    scored = [
        token not in image_ids and bool(mask or record.task == "interleaved") for token, mask in zip(ids, masks, strict=True)
    ]
    labels = [token if score else IGNORE for token, score in zip(ids, scored, strict=True)]
    return ids, labels, [float(weight) if score else 0.0 for weight, score in zip(weights, scored, strict=True)]


def _chat_part(part: Part) -> dict[str, str | None]:
    return {"type": "image"} if part.type == "image" else {"type": "text", "text": part.text}


def row_cost(row: Mapping[str, Any], processor: RadFMProcessor, patch_size: int) -> Cost:
    """Patches and tokens of a row from its columns `messages` and `shapes`; tokens are an upper bound, by a few."""
    image_processor = processor.image_processor
    in_plane = (image_processor.image_size // patch_size) ** 2
    depths = [image_processor.target_depth(max(shape[2:], default=1)) for shape in row["shapes"]]
    patches = sum(in_plane * max(depth // image_processor.patch_depth, 1) for depth in depths)
    text = "".join(part["text"] or "" for message in row["messages"] for part in message["content"])
    text_tokens = len(processor.tokenizer(text, add_special_tokens=False)["input_ids"])
    # Start token, and for each message a space and an end token at most.
    image_tokens = len(depths) * (processor.num_image_tokens + 2)
    return Cost(patches, text_tokens + image_tokens + 1 + 2 * len(row["messages"]))


class ExampleDataset(Dataset[Example]):
    """The rows of a data set as examples; an index is a pair (epoch, row), because augmentation depends on the epoch.

    Args:
        rows: rows with the columns of `medmd.schema`, scans not decoded (`data.load_rows`).
        processor: of the model.
        loss: weights of the tokens.
        augmentation: None for evaluation.
        seed: augmentation is a function of (seed, epoch, record id) alone, whatever the number of workers.

    Raises (in `__getitem__`):
        ScanError: a scan that cannot be read; the message starts with the record id.
    """

    def __init__(
        self, rows: Sequence[Any], processor: RadFMProcessor, loss: Loss, augmentation: Augmentation | None, seed: int
    ):
        self.rows, self.processor, self.loss = rows, processor, loss
        self.augmentation = augmentation if augmentation is not None and augmentation.enabled else None
        self.seed = seed
        self.patch_cache: PatchCache | None = None  # where set, `pixel_values` are encoded patches (L, V) from there

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: tuple[int, int] | int) -> Example:
        epoch, row = index if isinstance(index, tuple) else (0, index)
        return self.make_example(Record.from_row(self.rows[row]), epoch)

    def make_example(self, record: Record, epoch: int) -> Example:
        """The example of a record, augmented for an epoch."""
        ids, labels, weights = encode_text(record, self.processor, self.loss)
        return Example(record.id, ids, labels, weights, self._pixel_values(record, epoch))

    def _pixel_values(self, record: Record, epoch: int) -> list[torch.Tensor]:
        numbers = range(len(record.images))
        if self.patch_cache is not None:
            return [self.patch_cache.read(record, number) for number in numbers]
        return [self.read_scan(record, number, epoch) for number in numbers]

    def read_scan(self, record: Record, number: int, epoch: int) -> torch.Tensor:
        """Pixel values (C, H, W, D) of a scan of a record, augmented for an epoch."""
        try:
            scan = load_scan(record.images[number].bytes)
        except ScanError as error:
            raise ScanError(f"{record.id}: scan {number + 1}: {error}") from error
        if scan.is_volume and record.modality == "CT":
            scan = replace(scan, modality="CT")  # NIfTI has no modality; the window of the model is for HU
        image_processor = self.processor.image_processor
        if self.augmentation is None:
            return image_processor.preprocess(scan)
        rng = np.random.default_rng([self.seed, epoch, number, *record.id.encode()])
        if scan.modality == "CT":
            window = jitter_window(image_processor.intensity_windows(scan), self.augmentation, rng)
            image_processor = image_processor.with_settings(ct_window=window)
        return augment_pixels(image_processor.preprocess(scan), self.augmentation, rng, scan.modality)
