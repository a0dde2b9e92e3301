"""Stage 1: train the vision tower with one linear classifier per label on the mean of a scan's patches."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from radfm.configuration_radfm import RadFMVisionConfig
from radfm.modeling_radfm import RadFMVisionModel

from .datasets import FINDINGS, LABELS, Sample
from .trainer import train

# Images of each pack in one training step, and the number of volumes.
MIX = {
    "brain_tumor_t1ce": 16,
    "busi_breast_us": 14,
    "pneumoniamnist_28": 10,
    "mednist": 16,
    "ct_planes_nysbu": 5,
    "slices": 9,
}
VOLUMES = 2
DEPTHS = (8, 16, 24, 32)


class LabelHeads(nn.Module):
    """One linear classifier per label, on one feature vector per scan: (N, width) → {label: (N, classes)}."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in LABELS.items()})

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.norm(features)
        return {name: head(features) for name, head in self.heads.items()}


def targets(samples: list[Sample]) -> dict[str, torch.Tensor]:
    """Class index of each sample for each label: {label: (N,)}, -100 where the label is unknown."""
    return {
        name: torch.tensor([values.index(s.labels[name]) if name in s.labels else -100 for s in samples])
        for name, values in LABELS.items()
    }


def label_loss(logits: dict[str, torch.Tensor], class_targets: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum over labels of the cross-entropy of the samples whose label is known, weighted by their share.

    A finding has weight 2, every other label 0.7.
    """
    total = torch.zeros(())
    for name, classes in class_targets.items():
        if (classes >= 0).any():
            weight = 2.0 if name in FINDINGS else 0.7
            share = (classes >= 0).float().mean()
            total = total + weight * share * F.cross_entropy(logits[name], classes, label_smoothing=0.1)
    return total


def augment(pixels: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Shift, scale, rotate and mirror scans and change their grey values; all slices of a volume in the same way.

    Args:
        pixels: (N, 1, H, W, D), uint8.
        strength: factor on the range of every change; 1 at the start of training, less near the end.

    Returns:
        (N, 1, H, W, D), float32 in 0…1.
    """
    n, _, height, width, depth = pixels.shape

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.empty(n).uniform_(low, high, generator=generator) * strength

    angle, stretch = uniform(-0.26, 0.26), torch.exp(uniform(-0.1, 0.1))
    scale = torch.exp(uniform(-0.25, 0.25))
    mirror = (torch.rand(n, generator=generator) < 0.5).float() * 2 - 1
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = [cos * stretch * mirror, -sin, uniform(-0.15, 0.15)], [sin * mirror, cos / stretch, uniform(-0.15, 0.15)]
    matrix = torch.stack([torch.stack(row, 1) for row in rows], 1)
    planes = pixels[:, 0].permute(0, 3, 1, 2).float() / 255
    grid = F.affine_grid(matrix, [n, depth, height, width], align_corners=False)
    planes = F.grid_sample(planes, grid, align_corners=False, padding_mode="border").clamp_min(1e-6)
    # No noise: LayerNorm scales each patch to unit variance, which would turn noise in a dark corner into high contrast.
    gamma, gain, shift = (
        u.view(n, 1, 1, 1) for u in (torch.exp(uniform(-0.5, 0.5)), torch.exp(uniform(-0.2, 0.2)), uniform(-0.1, 0.1))
    )
    planes = planes**gamma * gain + shift
    return planes.clamp(0, 1).permute(0, 2, 3, 1)[:, None]


class BatchSampler:
    """The samples of a training step: a function of the step number alone, so that a resumed training repeats them."""

    def __init__(self, samples: list[Sample]):
        self.images = {name: [s for s in samples if s.pack == name and not s.is_volume] for name in MIX}
        # There are few CT volumes: each is drawn five times as often as another volume.
        volumes = [s for s in samples if s.is_volume]
        self.volumes = volumes + 4 * [s for s in volumes if s.labels["modality"] == "CT"]

    def __call__(self, step: int, strength: float) -> tuple[list[torch.Tensor], list[Sample]]:
        """Augmented pixel values (images first, then volumes cut to one depth) and their samples."""
        generator = torch.Generator().manual_seed(step)

        def draw(pack: list[Sample], count: int) -> list[Sample]:
            return [pack[i] for i in torch.randint(len(pack), (count,), generator=generator).tolist()]

        images = [sample for name, count in MIX.items() for sample in draw(self.images[name], count)]
        volumes = draw(self.volumes, VOLUMES)
        depth = DEPTHS[int(torch.randint(len(DEPTHS), (), generator=generator))]
        stacks = torch.stack([_crop_slices(sample.pixels, depth, generator) for sample in volumes])
        pixels = [
            *augment(torch.stack([s.pixels for s in images]), strength, generator),
            *augment(stacks, strength, generator),
        ]
        return pixels, images + volumes


def _crop_slices(pixels: torch.Tensor, depth: int, generator: torch.Generator) -> torch.Tensor:
    """`depth` consecutive slices from a random position of a volume (1, H, W, D), repeated where it has fewer."""
    have = pixels.shape[-1]
    first = int(torch.randint(max(have - depth, 0) + 1, (), generator=generator))
    return pixels[..., first + torch.arange(depth) * min(depth, have) // depth]


def mean_of_patches(tower: RadFMVisionModel, scans: list[torch.Tensor]) -> torch.Tensor:
    """(N, width): the mean of each scan's patches."""
    patches, pack = tower.encode_patches(scans)
    return torch.stack([of_scan.mean(0) for of_scan in patches.split(pack.lengths)])


class Classifier(nn.Module):
    """The vision tower and its label heads."""

    def __init__(self, config: RadFMVisionConfig):
        super().__init__()
        self.tower = RadFMVisionModel._from_config(config)
        self.heads = LabelHeads(config.hidden_size)
        # The Perceiver is trained in stage 2.
        self.tower.perceiver.requires_grad_(False)

    def forward(self, scans: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return self.heads(mean_of_patches(self.tower, scans))


def train_vision_tower(config: RadFMVisionConfig, samples: list[Sample], steps: int, folder: Path) -> Classifier:
    """Stage 1: strong augmentation, mild near the end; then half as many steps with mild augmentation at half the rate."""
    torch.manual_seed(0)
    classifier = Classifier(config)
    sample_batch = BatchSampler(samples)

    def loss_of_step(step: int) -> torch.Tensor:
        pixels, batch = sample_batch(step, strength=1.0 if step < 0.7 * steps else 0.35)
        return label_loss(classifier(pixels), targets(batch))

    classifier = train("tower", classifier, loss_of_step, steps=steps, learning_rate=8e-4, folder=folder)

    def loss_of_mild_step(step: int) -> torch.Tensor:
        pixels, batch = sample_batch(steps + step, strength=0.5)
        return label_loss(classifier(pixels), targets(batch))

    return train("tower-mild", classifier, loss_of_mild_step, steps=steps // 2, learning_rate=4e-4, folder=folder)
