"""The encoded patches of a frozen vision tower, kept on disk: each scan is read and encoded once.

Only a frozen tower without augmentation gives a scan the same patches in every epoch. Perceiver and projector come after the
patches and may be trained. A file holds (L, V) float32; named by a hash of the scan, in a folder named by one of the tower.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from radfm.attention_radfm import PackedLengths
from radfm.medmd.schema import Record
from radfm.modeling_radfm import RadFMVisionModel, RadFMVisionOutput
from radfm.processing_radfm import RadFMProcessor

PENDING = list[tuple[Path, torch.Tensor]]  # files to write, and the pixel values of their scans


class PatchCache:
    """Where the patches of scans lie.

    Args:
        folder: of all caches; each tower has a folder in it.
        tower: frozen.
        processor: whose image processor makes the pixel values.
    """

    def __init__(self, folder: Path, tower: RadFMVisionModel, processor: RadFMProcessor):
        self.folder = folder / tower_fingerprint(tower, processor)

    def file(self, record: Record, number: int) -> Path:
        """The file of a scan of a record; volumes of CT are windowed, so the modality counts."""
        name = hashlib.sha256(record.images[number].bytes)
        name.update(b"CT" if record.modality == "CT" else b"")
        return self.folder / name.hexdigest()[:2] / f"{name.hexdigest()}.npy"

    def read(self, record: Record, number: int) -> torch.Tensor:
        """Patches (L, V) of a scan that `encode_scans` has encoded."""
        return torch.from_numpy(np.load(self.file(record, number)))


def tower_fingerprint(tower: RadFMVisionModel, processor: RadFMProcessor) -> str:
    """A hash of all that decides a scan's patches: weights and config of the tower, settings of the image processor."""
    digest = hashlib.sha256(tower.config.to_json_string().encode())
    digest.update(json.dumps(processor.image_processor.to_dict(), sort_keys=True, default=str).encode())
    for name, tensor in sorted(tower.state_dict().items()):
        if not name.startswith("perceiver."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class _Pending(Dataset[PENDING]):
    """For each row the scans that are not encoded yet."""

    def __init__(self, examples: Any, cache: PatchCache, rows: Sequence[int]):
        self.examples, self.cache, self.rows = examples, cache, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> PENDING:
        record = Record.from_row(self.examples.rows[self.rows[index]])
        files = [self.cache.file(record, number) for number in range(len(record.images))]
        return [(file, self.examples.read_scan(record, n, epoch=0)) for n, file in enumerate(files) if not file.exists()]


@torch.no_grad()
def encode_scans(
    tower: RadFMVisionModel, examples: Any, cache: PatchCache, *, rank: int, ranks: int, workers: int, device: torch.device
) -> int:
    """Encode the scans of this rank's rows that are not in the cache; how many they were.

    Args:
        examples: an `ExampleDataset` without augmentation.
    """
    loader = DataLoader(
        _Pending(examples, cache, range(rank, len(examples), ranks)), batch_size=1, collate_fn=_first, num_workers=workers
    )
    tower, count = tower.to(device).eval(), 0  # type: ignore[arg-type]
    for pending in loader:
        for file, pixels in pending:
            patches, _ = tower.encode_patches([pixels.to(device)])
            _write(file, patches.float().cpu().numpy())
            count += 1
    return count


def _first(rows: list[PENDING]) -> PENDING:
    return rows[0]


def _write(file: Path, patches: np.ndarray) -> None:
    """A file that is there is whole: it is renamed at the end. Ranks that share a scan write the same bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as out:
        np.save(out, patches)
    os.replace(temporary, file)


def take_cached_patches(tower: RadFMVisionModel) -> None:
    """Make a tower take patches (L, V) in place of pixel values; Perceiver and projector run as before."""
    tower._encode = partial(_join_patches, tower)  # type: ignore[method-assign]


def _join_patches(tower: RadFMVisionModel, patches: Sequence[torch.Tensor], *_: bool) -> tuple[Any, PackedLengths]:
    pack = PackedLengths([len(of_scan) for of_scan in patches], tower.device)
    joined = torch.cat(list(patches)).to(tower.device)
    return RadFMVisionOutput(last_hidden_state=joined, cu_seqlens=pack.cu_seqlens), pack
