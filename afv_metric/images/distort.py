"""Known distortions of a given strength, ladders of rising strengths, and what distances make of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter

from afv_metric.images.tiles import by_pillow

__all__ = [
    "LADDERS", "YARDSTICK", "Distances", "Ladder", "Pixels", "add_noise", "blur", "compress", "count_ordered",
    "make_steps", "relative_sizes", "to_pixels",
]  # fmt: skip

Pixels = NDArray[np.uint8]
"""An image, ``(H, W, C)``."""

Distances = Mapping[str, NDArray[np.float64]]
"""Distances to the original for each kind, ``(images, steps)``; the kind ``yardstick`` is a blur of sigma 1."""


def blur(pixels: Pixels, sigma: float, generator: np.random.Generator) -> Pixels:
    """Gaussian blur with mirrored borders."""
    blurred: NDArray[np.float64] = gaussian_filter(pixels.astype(np.float64), (sigma, sigma, 0), mode="mirror")
    return to_pixels(blurred)


def add_noise(pixels: Pixels, sigma: float, generator: np.random.Generator) -> Pixels:
    """Gaussian noise, independent for every pixel and channel, cut off at black and white."""
    return to_pixels(pixels + sigma * generator.standard_normal(pixels.shape))


def compress(pixels: Pixels, quality: float, generator: np.random.Generator) -> Pixels:
    """JPEG by Pillow, with its own settings but for the quality; other channels than RGB one by one."""

    def compressed(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(quality))
        return Image.open(file)

    return by_pillow(compressed, pixels)


def compress_off_grid(pixels: Pixels, quality: float, generator: np.random.Generator) -> Pixels:
    """Compress with the grid of blocks half a block off, below 4 mirrored rows and right of 4 mirrored columns."""
    padded = np.pad(pixels, ((4, 0), (4, 0), (0, 0)), mode="reflect")
    return compress(padded, quality, generator)[4:, 4:]


def resample(pixels: Pixels, factor: float, generator: np.random.Generator) -> Pixels:
    """Make smaller by a factor and large again, both bicubic."""
    size = (pixels.shape[1], pixels.shape[0])
    small = (round(size[0] / factor), round(size[1] / factor))
    bicubic = Image.Resampling.BICUBIC
    return by_pillow(lambda image: image.resize(small, bicubic).resize(size, bicubic), pixels)


def lower_contrast(pixels: Pixels, loss: float, generator: np.random.Generator) -> Pixels:
    """Mix with the grey of the image's mean brightness, of which the share is the loss."""
    return by_pillow(lambda image: ImageEnhance.Contrast(image).enhance(1 - loss), pixels)


def shift(pixels: Pixels, distance: float, generator: np.random.Generator) -> Pixels:
    """Shift by whole pixels to one of the four sides, drawn at random; the border left behind is mirrored."""
    turns = int(generator.integers(4))
    turned = np.rot90(pixels, turns)
    moved = np.pad(turned, ((0, 0), (int(distance), 0), (0, 0)), mode="reflect")[:, : turned.shape[1]]
    return np.rot90(moved, -turns)


class Ladder(NamedTuple):
    """A kind of distortion."""

    distort: Callable[[Pixels, float, np.random.Generator], Pixels]  # takes an image and a strength
    strengths: tuple[float, ...]  # of the steps, mildest first
    unit: str  # of the strengths


_QUALITIES = (90, 70, 50, 30, 18, 8)
LADDERS = {
    "blur": Ladder(blur, (0.5, 0.8, 1.2, 1.8, 2.7, 4), "sigma, pixels"),
    "noise": Ladder(add_noise, (4, 8, 14, 22, 34, 50), "sigma, of 255"),
    "jpeg": Ladder(compress, _QUALITIES, "quality"),
    "jpeg-off-grid": Ladder(compress_off_grid, _QUALITIES, "quality"),
    "resampling": Ladder(resample, (1.25, 1.6, 2, 3, 4, 6), "factor"),
    "contrast": Ladder(lower_contrast, (0.1, 0.2, 0.35, 0.5, 0.7, 0.9), "loss"),
    "shift": Ladder(shift, (1, 2, 3, 4), "pixels"),
}
YARDSTICK = Ladder(blur, (1,), "sigma, pixels")


def make_steps(pixels: Pixels, ladder: Ladder, seed: int | Sequence[int]) -> list[Pixels]:
    """Distort an image at every strength, with the same random numbers: steps differ in strength only."""
    return [ladder.distort(pixels, strength, np.random.default_rng(seed)) for strength in ladder.strengths]


def count_ordered(distances: NDArray[np.float64]) -> list[int]:
    """Count the images in which each step but the first is farther than the one before.

    Example:
        >>> count_ordered(np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 2.0]]))
        [2, 1]
    """
    counts: list[int] = (np.diff(distances, axis=1) > 0).sum(0).tolist()
    return counts


def relative_sizes(kinds: Distances) -> dict[str, list[float]]:
    """Median distance of each step over the images, relative to that of a blur of sigma 1."""
    unit = np.median(kinds["yardstick"]) or np.nan  # plain images, which no blur changes, have no unit
    return {kind: (np.median(kinds[kind], axis=0) / unit).tolist() for kind in LADDERS}


def to_pixels(values: NDArray[np.float64]) -> Pixels:
    """Round to 8 bits."""
    pixels: Pixels = values.round().clip(0, 255).astype(np.uint8)
    return pixels
