"""Grids of images."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torchvision.utils import save_image

from afv_metric.files import atomic_write

__all__ = ["save_grid", "shown_channels"]


def shown_channels(images: Tensor) -> Tensor:
    """What a picture shows of images ``(..., C, H, W)``: the first three channels, of two the first."""
    return images[..., : 3 if images.shape[-3] > 2 else 1, :, :]


def save_grid(images: Tensor, path: Path) -> None:
    """Write images ``(N, C, H, W)`` in [-1, 1] as one PNG, eight in a row, atomically."""
    with atomic_write(path) as temporary:
        save_image(shown_channels(images), temporary, nrow=8, normalize=True, value_range=(-1, 1))
