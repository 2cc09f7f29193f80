"""Known distortions: Gaussian blur, JPEG and white noise of a given strength."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

__all__ = ["Pixels", "add_noise", "blur", "compress", "to_pixels"]

Pixels = NDArray[np.uint8]
"""An image, ``(H, W, 3)``."""


def blur(pixels: Pixels, sigma: float, generator: np.random.Generator) -> Pixels:
    """Gaussian blur with mirrored borders."""
    blurred: NDArray[np.float64] = gaussian_filter(pixels.astype(np.float64), (sigma, sigma, 0), mode="mirror")
    return to_pixels(blurred)


def add_noise(pixels: Pixels, sigma: float, generator: np.random.Generator) -> Pixels:
    """Gaussian noise, independent for every pixel and channel, cut off at black and white."""
    return to_pixels(pixels + sigma * generator.standard_normal(pixels.shape))


def compress(pixels: Pixels, quality: float, generator: np.random.Generator) -> Pixels:
    """JPEG by Pillow, with its own settings but for the quality."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=int(quality))
    with Image.open(file) as image:
        return np.asarray(image)


def to_pixels(values: NDArray[np.float64]) -> Pixels:
    """Round to 8 bits."""
    pixels: Pixels = values.round().clip(0, 255).astype(np.uint8)
    return pixels
