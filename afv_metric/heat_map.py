"""A map of the distance in colours, over the image that it is of."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from afv_metric.files import atomic_write

__all__ = ["RAMP", "colour_map", "save_picture"]

RAMP = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
"""From black over violet and orange to pale yellow, ever lighter: a larger value never looks smaller."""


def colour_map(values: Tensor, image: Tensor, largest: float | None = None) -> NDArray[np.uint8]:
    """Colours ``(H, W, 3)`` of a map ``(H, W)``, blended over the greys of the image ``(C, H, W)`` in [0, 255].

    The value ``largest``, that of the map if None, is pale yellow, and 0 is black.
    """
    array: NDArray[Any] = values.cpu().numpy()
    largest = float(array.max()) if largest is None else largest
    relative = array / largest if largest > 0 else array
    stops = np.linspace(0, 1, len(RAMP))
    colours = np.stack([np.interp(relative, stops, channel) for channel in zip(*RAMP, strict=True)], 2)
    grey = image.float().mean(0).cpu().numpy()
    pixels: NDArray[np.uint8] = (0.65 * colours + 0.35 * grey[..., None]).round().astype(np.uint8)
    return pixels


def save_picture(pixels: NDArray[np.uint8], file: str | os.PathLike[str]) -> None:
    """Write ``(H, W, 3)`` pixels as a PNG, atomically."""
    with atomic_write(file) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
