"""Training images: decoded once into memory, then cropped at random for every batch."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

__all__ = ["FEWEST_IMAGES", "augment", "load_images"]

FEWEST_IMAGES = 64
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
_log = logging.getLogger(__name__)


def load_images(root: str | Path, size: int, *, quiet: bool = False) -> Tensor:
    """Decode all images below a folder, the shorter side scaled to ``size`` and the middle square kept.

    Classes do not matter: an ``ImageFolder`` tree, nested folders and a flat folder are read alike, in sorted order.

    Args:
        root: Folder to search.
        size: Side of the squares in pixels.
        quiet: Show no progress bar.

    Returns:
        uint8 images ``(N, 3, size, size)`` in channels-last memory.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If fewer than :data:`FEWEST_IMAGES` images can be read.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder of training images at {root}")
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES)
    images = np.empty((len(paths), size, size, 3), np.uint8)

    def decode(index: int) -> bool:
        try:
            with Image.open(paths[index]) as image:
                images[index] = np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BOX))
        except (OSError, ValueError, Image.DecompressionBombError):
            return False
        return True

    with ThreadPoolExecutor() as pool:
        readable = pool.map(decode, range(len(paths)))
        kept = np.fromiter(tqdm(readable, "decoding", len(paths), disable=quiet, unit="image"), bool, len(paths))
    broken = [path for path, good in zip(paths, kept, strict=True) if not good]
    if broken:
        _log.warning("skipped %d unreadable images, the first of them %s", len(broken), broken[0])
    count = int(kept.sum())
    if count < FEWEST_IMAGES:
        raise ValueError(
            f"{root} holds {count} readable images; training needs at least {FEWEST_IMAGES}, and thousands to be good"
        )
    return torch.from_numpy(images if not broken else images[kept]).permute(0, 3, 1, 2)


def augment(images: Tensor, size: int, augmentation: str) -> Tensor:
    """Crops of a batch at the size that the networks see.

    Args:
        images: ``(N, 3, 2 size, 2 size)`` in [-1, 1].
        size: Side of the crops.
        augmentation: One of ``"none"``, ``"flip"``, ``"paper"``, ``"multiscale"``; see
            :class:`afv_metric.train.recipes.Recipe`.

    Returns:
        ``(N, 3, size, size)``, in a random order for ``"multiscale"``.
    """
    if augmentation == "multiscale":
        images = _multiscale(images, size)
    else:
        images = F.avg_pool2d(images, images.shape[-1] // size)
    if augmentation == "paper":
        images = _random_crop(F.pad(images, (4, 4, 4, 4)), size)
        turns = torch.randint(4, (len(images), 1, 1, 1))
        for turn in (1, 2, 3):
            images = torch.where(turns == turn, images.rot90(turn, (2, 3)), images)
    if augmentation != "none":
        images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)
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
