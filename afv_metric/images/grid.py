"""Grids of generated images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import save_image

from afv_metric.files import atomic_write
from afv_metric.networks import Generator

__all__ = ["save_grid"]


@torch.no_grad()
def save_grid(generator: Generator, latents: Tensor, path: Path) -> None:
    """Write the images of some latents as one PNG, eight in a row, atomically.

    Args:
        generator: The generator, in evaluation mode.
        latents: Latents ``(N, Z)``.
        path: The PNG.
    """
    with atomic_write(path) as temporary:
        save_image(generator(latents), temporary, nrow=8, normalize=True, value_range=(-1, 1))
