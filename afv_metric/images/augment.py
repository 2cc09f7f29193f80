"""Crops, flips and turns of a batch of training images, drawn from torch's global random stream.

The stream is part of a run: a resumed one goes on bit for bit only as long as the draws here keep their order and kind.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["augment"]


def augment(images: Tensor, size: int, augmentation: str) -> Tensor:
    """Crops of a batch at the size that the networks see.

    Images ``(N, C, 2 size, 2 size)`` in [-1, 1] become ``(N, C, size, size)``, in a random order for ``"multiscale"``;
    :class:`afv_metric.train.recipes.Recipe` says what the augmentations are.

    Example:
        >>> augment(torch.zeros(4, 3, 64, 64), 32, "paper").shape
        torch.Size([4, 3, 32, 32])
    """
    known = ("none", "flip", "paper", "multiscale")
    if augmentation not in known:
        raise ValueError(f"the augmentation must be one of {', '.join(known)}; got {augmentation!r}")
    if augmentation == "multiscale":
        images = _multiscale(images, size)
    else:
        images = F.avg_pool2d(images, images.shape[-1] // size)
    if augmentation == "paper":
        images = _random_crop(F.pad(images, (4, 4, 4, 4)), size)
        turns = torch.randint(4, (len(images), 1, 1, 1)).to(images.device)
        for turn in (1, 2, 3):
            images = torch.where(turns == turn, images.rot90(turn, (2, 3)), images)
    if augmentation != "none":
        flipped = (torch.rand(len(images), 1, 1, 1) < 0.5).to(images.device)
        images = torch.where(flipped, images.flip(3), images)
    return images.contiguous(memory_format=torch.channels_last)


def _multiscale(images: Tensor, size: int) -> Tensor:
    """Each image in one of four ways: whole at half size, native crop, crop in between, enlarged crop."""
    kinds = torch.multinomial(torch.tensor([0.25, 0.35, 0.25, 0.15]), len(images), replacement=True)
    half, native, between, enlarged = (images[kinds == kind] for kind in range(4))
    middle = int(torch.randint(size + 1, 2 * size - 4, ()))
    small = int(torch.randint(size * 9 // 16, size * 15 // 16, ()))
    crops = [F.avg_pool2d(half, 2), _random_crop(native, size)]
    if len(between):
        shrunk = F.interpolate(between, size=(middle, middle), mode="bilinear", antialias=True)
        crops.append(_random_crop(shrunk, size))
    if len(enlarged):
        crop = _random_crop(enlarged, small)
        crops.append(F.interpolate(crop, size=(size, size), mode="bicubic").clamp(-1, 1))
    return torch.cat(crops)


def _random_crop(images: Tensor, size: int) -> Tensor:
    """A square of ``size`` pixels from a random place of each image."""
    count, _, height, width = images.shape
    top = torch.randint(height - size + 1, (count, 1, 1))
    left = torch.randint(width - size + 1, (count, 1, 1))
    steps = torch.arange(size)
    rows, columns = top + steps[:, None], left + steps
    picked = images.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], rows, columns]
    return picked.permute(0, 3, 1, 2)
