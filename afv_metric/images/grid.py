"""Grids of images."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torchvision.utils import save_image

from afv_metric.files import atomic_write

__all__ = ["save_grid"]


def save_grid(images: Tensor, path: Path) -> None:
    """Write images ``(N, C, H, W)`` in [-1, 1] as one PNG, eight in a row, atomically.

    Of other than one or three channels the first three are shown, of two the first.
    """
    images = images[:, :3] if images.shape[1] > 2 else images[:, :1]
    with atomic_write(path) as temporary:
        save_image(images, temporary, nrow=8, normalize=True, value_range=(-1, 1))
