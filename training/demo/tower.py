"""Stage 1: train the vision tower with one linear classifier per label on the mean of a scan's patches."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from radfm.modeling_radfm import RadFMVisionModel

from ..augmentation import augment_pixels
from ..recipe import Augmentation, Stage
from .scans import ACQUISITION, DemoScan
from .stage import draw_scans, fall, train_stage

DEPTHS = (8, 16, 24, 32)
FINDING_WEIGHT, ACQUISITION_WEIGHT = 2.0, 0.7


class LabelHeads(nn.Module):
    """One linear classifier per label, on one feature vector per scan: (N, width) → {label: (N, classes)}."""

    def __init__(self, width: int, values: dict[str, tuple[str, ...]]):
        super().__init__()
        self.values = values
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(of_label)) for name, of_label in values.items()})

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.norm(features)
        return {name: head(features) for name, head in self.heads.items()}

    def targets(self, scans: list[DemoScan]) -> dict[str, torch.Tensor]:
        """Class index of each scan for each label: {label: (N,)}, -100 where the label is unknown."""
        return {
            name: torch.tensor([of_label.index(s.labels[name]) if name in s.labels else -100 for s in scans])
            for name, of_label in self.values.items()
        }


def label_loss(logits: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum over labels of the cross-entropy of the scans whose label is known, weighted by their share."""
    total = torch.zeros(())
    for name, classes in targets.items():
        if (classes >= 0).any():
            weight = ACQUISITION_WEIGHT if name in ACQUISITION else FINDING_WEIGHT
            share = (classes >= 0).float().mean()
            total = total + weight * share * F.cross_entropy(logits[name], classes, label_smoothing=0.1)
    return total


def weaken(augmentation: Augmentation, strength: float) -> Augmentation:
    """The augmentation with all its ranges times `strength`."""
    ranges = ("rotation_degrees", "scale", "shift", "window_hu", "gamma")
    return augmentation.model_copy(update={name: getattr(augmentation, name) * strength for name in ranges})


def augment(scan: DemoScan, augmentation: Augmentation, rng: np.random.Generator) -> torch.Tensor:
    """Augmented pixel values of a scan; a volume is cut to one of `DEPTHS` first."""
    pixels = scan.pixels
    if scan.is_volume:
        depth, have = int(rng.choice(DEPTHS)), pixels.shape[-1]
        first = int(rng.integers(max(have - depth, 0) + 1))
        pixels = pixels[..., first + torch.arange(depth) * min(depth, have) // depth]
    # The window is in the pixels by now, so contrast changes for CT as for all others.
    return augment_pixels(pixels.float() / 255, augmentation, rng, modality=None)


class Classifier(nn.Module):
    """The vision tower and its label heads."""

    def __init__(self, tower: RadFMVisionModel, values: dict[str, tuple[str, ...]]):
        super().__init__()
        self.tower = tower
        self.heads = LabelHeads(tower.config.hidden_size, values)
        self.tower.perceiver.requires_grad_(False)  # trained in stage 2

    def logits(self, scans: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """(N, classes) for each label, from the mean of each scan's patches."""
        patches, pack = self.tower.encode_patches(scans)
        return self.heads(torch.stack([of_scan.mean(0) for of_scan in patches.split(pack.lengths)]))

    def forward(self, pixel_values: list[torch.Tensor], targets: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": label_loss(self.logits(pixel_values), targets)}


def train_tower(classifier: Classifier, scans: list[DemoScan], stage: Stage, out: Path) -> None:
    """Stage 1: strong augmentation, mild near the end."""
    draw, steps = draw_scans(scans, stage.scans), int(stage.training["max_steps"])

    def make_batch(step: int, rng: np.random.Generator) -> dict[str, Any]:
        chosen = [scans[i] for i in draw(rng)]
        augmentation = weaken(stage.augmentation, fall(step, steps, start=0.5, low=0.35))
        return {
            "pixel_values": [augment(scan, augmentation, rng) for scan in chosen],
            "targets": classifier.heads.targets(chosen),
        }

    train_stage(classifier, stage, out, make_batch)
