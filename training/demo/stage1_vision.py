"""Stage 1: the vision tower learns to see, with a linear head for each kind of label on the mean of its patches."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from radfm.configuration_radfm import RadFMVisionConfig
from radfm.modeling_radfm import RadFMVisionModel

from .datasets import FINDINGS, LABELS, Sample
from .trainer import train

# Images of each pack in a step, and volumes beside them.
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
    """A linear classifier a label on one vector a scan."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in LABELS.items()})

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.norm(features)
        return {name: head(features) for name, head in self.heads.items()}


def targets(samples: list[Sample]) -> dict[str, torch.Tensor]:
    """Class of each sample for each label, -100 where it is not known."""
    return {
        name: torch.tensor([values.index(s.labels[name]) if name in s.labels else -100 for s in samples])
        for name, values in LABELS.items()
    }


def label_loss(logits: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of the labels that are known; a finding counts three times as much as the rest."""
    total = torch.zeros(())
    for name, classes in wanted.items():
        if (classes >= 0).any():
            weight = 2.0 if name in FINDINGS else 0.7
            share = (classes >= 0).float().mean()
            total = total + weight * share * F.cross_entropy(logits[name], classes, label_smoothing=0.1)
    return total


def augment(pixels: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Scans moved, scaled, turned, mirrored and their greys changed, all slices of a volume alike.

    Args:
        pixels: (N, 1, H, W, D), uint8.
        strength: how far; 1 at the start of training, less near its end.

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
    # No noise: LayerNorm stretches each patch to one contrast, and would make it the loudest thing in a dark corner.
    gamma, gain, shift = (
        u.view(n, 1, 1, 1) for u in (torch.exp(uniform(-0.5, 0.5)), torch.exp(uniform(-0.2, 0.2)), uniform(-0.1, 0.1))
    )
    planes = planes**gamma * gain + shift
    return planes.clamp(0, 1).permute(0, 2, 3, 1)[:, None]


class Steps:
    """The samples of a step, drawn anew from its number alone, so that an interrupted training goes on as if it had not."""

    def __init__(self, samples: list[Sample]):
        self.images = {name: [s for s in samples if s.pack == name and not s.is_volume] for name in MIX}
        # There are few CT volumes: each is shown as often as five others.
        volumes = [s for s in samples if s.is_volume]
        self.volumes = volumes + 4 * [s for s in volumes if s.labels["modality"] == "CT"]

    def __call__(self, step: int, strength: float) -> tuple[list[torch.Tensor], list[Sample]]:
        """Augmented pixel values (images first, then volumes cut to one depth) and the samples that they show."""
        generator = torch.Generator().manual_seed(step)

        def draw(pack: list[Sample], count: int) -> list[Sample]:
            return [pack[i] for i in torch.randint(len(pack), (count,), generator=generator).tolist()]

        images = [sample for name, count in MIX.items() for sample in draw(self.images[name], count)]
        volumes = draw(self.volumes, VOLUMES)
        depth = DEPTHS[int(torch.randint(len(DEPTHS), (), generator=generator))]
        cut = torch.stack([_run_of_slices(sample.pixels, depth, generator) for sample in volumes])
        stack = torch.stack([s.pixels for s in images])
        pixels = [*augment(stack, strength, generator), *augment(cut, strength, generator)]
        return pixels, images + volumes


def _run_of_slices(pixels: torch.Tensor, depth: int, generator: torch.Generator) -> torch.Tensor:
    """`depth` neighbouring slices from a random place of a volume (1, H, W, D), repeated where it has fewer."""
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
        # The Perceiver learns in stage 2; here nothing asks for its tokens.
        self.tower.perceiver.requires_grad_(False)

    def forward(self, scans: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return self.heads(mean_of_patches(self.tower, scans))


def train_tower(config: RadFMVisionConfig, samples: list[Sample], steps: int, folder: Path) -> Classifier:
    """Stage 1: strong augmentation, mild near the end; then half as many steps again, mild and at half the rate."""
    torch.manual_seed(0)
    classifier = Classifier(config)
    draw = Steps(samples)

    def loss_of_step(step: int) -> torch.Tensor:
        pixels, shown = draw(step, strength=1.0 if step < 0.7 * steps else 0.35)
        return label_loss(classifier(pixels), targets(shown))

    classifier = train("tower", classifier, loss_of_step, steps=steps, learning_rate=8e-4, folder=folder)

    def loss_of_mild_step(step: int) -> torch.Tensor:
        pixels, shown = draw(steps + step, strength=0.5)
        return label_loss(classifier(pixels), targets(shown))

    return train("tower-mild", classifier, loss_of_mild_step, steps=steps // 2, learning_rate=4e-4, folder=folder)
