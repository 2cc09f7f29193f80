"""What score vectors are compared with: the discriminator's maps, and the pixels; features kept in half precision."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afv_metric.bundles.bundle import Bundle
from afv_metric.files import atomic_write
from afv_metric.fisher.vectors import Features, UInt8Images, extract
from afv_metric.images.tensors import pad_to_multiple

__all__ = ["PixelFeatures", "PooledFeatures", "store"]


class PooledFeatures(nn.Module):
    """D-pool of the paper: the discriminator's maps, behind their activation, averaged over positions.

    Args:
        bundle: The discriminator; statistics are not used.
        every_block: Whether to join the maps of all residual blocks; otherwise it is the last one's, which the logit
            is a linear function of.
    """

    def __init__(self, bundle: Bundle, *, every_block: bool = False) -> None:
        super().__init__()
        self.discriminator = deepcopy(bundle.discriminator).requires_grad_(False).eval()
        self.every_block = every_block
        width = self.discriminator.head.in_channels
        self.size = width * len(self.discriminator.residual_blocks()) if every_block else width

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features of images ``(N, 3, H, W)`` in [-1, 1], on the device of the module: ``(N, size)``."""
        maps = pad_to_multiple(images, self.discriminator.stride)
        pooled = []
        for block in self.discriminator.residual_blocks():
            maps = block(maps)
            activated = F.leaky_relu(maps, self.discriminator.config.slope)
            pooled.append(activated.mean((2, 3), dtype=torch.promote_types(maps.dtype, torch.float32)))
        return torch.cat(pooled, 1) if self.every_block else pooled[-1]


class PixelFeatures(nn.Module):
    """The pixels themselves, in [-1, 1].

    Args:
        image_size: Side of the images.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.size = 3 * image_size**2

    def forward(self, images: Tensor) -> Tensor:
        """``(N, 3, H, W)`` to ``(N, 3 H W)``."""
        return images.flatten(1)


def store(
    features: Features,
    images: UInt8Images,
    path: str | Path | None = None,
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    quiet: bool = True,
) -> Tensor:
    """Features of many images, kept in half precision.

    Args:
        features: Features, as for :func:`~afv_metric.fisher.vectors.extract`.
        images: Decoded images, as there.
        path: File to map into memory, which may then be smaller than the features; None keeps them in memory.
        batch_size: Images per batch.
        device: Device to compute on.
        quiet: Whether to show no progress bar.

    Returns:
        ``(N, size)`` float16. Values beyond its range are cut to it.

    Raises:
        OSError: If the file cannot be written; none is left then.
    """
    shape = (len(images), features.size)
    batches = extract(features, images, batch_size=batch_size, device=device, quiet=quiet)
    if path is None:
        table, start = torch.empty(shape, dtype=torch.float16), 0
        for batch in batches:
            table[start : start + len(batch)] = _to_half(batch)
            start += len(batch)
        return table
    # Written, not filled through a mapping, where a full disk would end the process.
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        for batch in batches:
            file.write(_to_half(batch).numpy().tobytes())
    return torch.from_numpy(np.memmap(path, np.float16, "c", shape=shape))


def _to_half(batch: Tensor) -> Tensor:
    largest = torch.finfo(torch.float16).max
    return batch.clamp(-largest, largest).half()
