"""A plain ViT classifier to compare with: the same data, augmentation and label heads, nothing of RadFM, fewer steps."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from radfm.configuration_radfm import RadFMVisionConfig

from .datasets import Sample
from .stage1_vision import BatchSampler, LabelHeads, label_loss, targets
from .trainer import train


class PlainViT(nn.Module):
    """Patches by a linear layer, a class token, learned positions, PyTorch's own encoder; a volume is its middle slice."""

    def __init__(self, config: RadFMVisionConfig):
        super().__init__()
        self.patch = config.patch_size
        patches = (config.image_size // self.patch) ** 2
        self.embed = nn.Linear(self.patch**2, config.hidden_size)
        self.token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.positions = nn.Parameter(torch.randn(1, patches + 1, config.hidden_size) * 0.02)
        layer = nn.TransformerEncoderLayer(
            config.hidden_size,
            config.num_attention_heads,
            config.intermediate_size,
            dropout=config.hidden_dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(layer, config.num_hidden_layers, enable_nested_tensor=False)
        self.heads = LabelHeads(config.hidden_size)

    def forward(self, scans: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        images = torch.stack([scan[..., scan.shape[-1] // 2] for scan in scans]) - 0.5
        patches = F.unfold(images, self.patch, stride=self.patch).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), self.embed(patches)], 1) + self.positions
        return self.heads(self.encoder(tokens)[:, 0])


def train_vit(config: RadFMVisionConfig, samples: list[Sample], steps: int, folder: Path) -> PlainViT:
    """Train on the scans and with the augmentation of stage 1. The published scores gave it 1,500 steps, the tower 7,500."""
    torch.manual_seed(0)
    vit, sample_batch = PlainViT(config), BatchSampler(samples)

    def loss_of_step(step: int) -> torch.Tensor:
        pixels, batch = sample_batch(step, strength=1.0 if step < 0.7 * steps else 0.35)
        return label_loss(vit(pixels), targets(batch))

    return train("vit", vit, loss_of_step, steps=steps, learning_rate=8e-4, folder=folder)
