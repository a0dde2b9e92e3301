"""Random changes of scans that keep their meaning: small rotations, scales and shifts, contrast; never a mirror image."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from .recipe import Augmentation


def jitter_window(
    windows: list[tuple[float, float]], augmentation: Augmentation, rng: np.random.Generator
) -> list[tuple[float, float]] | tuple[float, float]:
    """CT windows with both ends moved by up to `window_hu`, as `ct_window` takes them."""
    moved = []
    for low, high in windows:
        shift_low, shift_high = rng.uniform(-augmentation.window_hu, augmentation.window_hu, 2)
        moved.append((low + shift_low, max(high + shift_high, low + shift_low + 1.0)))
    return moved if len(moved) == 3 else moved[0]


def augment_pixels(
    pixels: torch.Tensor, augmentation: Augmentation, rng: np.random.Generator, modality: str | None
) -> torch.Tensor:
    """Rotate, scale and shift in plane, all slices alike; change the contrast of scans that are no CT.

    Args:
        pixels: (C, H, W, D) in 0…1.

    Returns:
        The same shape and range.
    """
    angle = math.radians(rng.uniform(-augmentation.rotation_degrees, augmentation.rotation_degrees))
    scale = math.exp(rng.uniform(-1, 1) * math.log1p(augmentation.scale))
    shift_x, shift_y = rng.uniform(-2, 2, 2) * augmentation.shift  # affine_grid's coordinates run from -1 to 1
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    matrix = torch.tensor([[[cos, -sin, shift_x], [sin, cos, shift_y]]], dtype=torch.float32)
    planes = pixels.permute(3, 0, 1, 2)  # (D, C, H, W)
    grid = F.affine_grid(matrix, [1, *planes.shape[1:]], align_corners=False).expand(len(planes), -1, -1, -1)
    planes = F.grid_sample(planes, grid, align_corners=False, padding_mode="border")
    if modality != "CT":  # of a CT the window moves, in HU
        planes = planes.clamp(0, 1) ** math.exp(rng.uniform(-augmentation.gamma, augmentation.gamma))
    return planes.permute(1, 2, 3, 0).contiguous()
