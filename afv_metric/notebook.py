"""Two images and where they differ, to look at in a notebook."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from afv_metric.functional import afv_distance, levels_to_show, read_for_metric
from afv_metric.heat_map import colour_map
from afv_metric.images.reading import Source

__all__ = ["show"]

_HEIGHT, _GAP = 256, 8


def show(img0: Tensor | Source, img1: Tensor | Source, **settings: Any) -> Image.Image:
    """Put two images and the map of their distance side by side; a notebook shows what is returned.

    Args:
        img0: A file, array, picture or tensor of one image, as for :func:`~afv_metric.functional.afv_distance`.
        img1: Image to compare with, in any of these forms and of the same size.
        **settings: Settings, as for :func:`~afv_metric.functional.afv_distance`.

    Returns:
        A picture at least 256 pixels high. Its ``info`` has the ``distance``, and the ``largest`` value of the map,
        which is pale yellow; 0 is black.

    Raises:
        ValueError: If the images do not go together, or one is a batch.

    Example:
        >>> black, white = (np.full((64, 64, 3), level, np.uint8) for level in (0, 255))
        >>> show(black, white).size
        (784, 256)
    """
    metric, *images = read_for_metric(img0, img1, **settings)
    shown = [levels_to_show(image, metric, settings) for image in images]
    if any(len(image) != 1 for image in shown):
        raise ValueError(f"one image each was expected, got {' and '.join(str(len(image)) for image in shown)}")
    with torch.no_grad():
        distance = float(metric(*images))
        values = afv_distance(*images, **{**settings, "spatial": True})[0, 0]
    pixels = [image[0].round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy() for image in shown]
    pixels.append(colour_map(values, shown[1][0]))
    times = -(-_HEIGHT // len(pixels[0]))
    gap = np.full((len(pixels[0]) * times, _GAP, 3), 255, np.uint8)
    parts = [part for array in pixels for part in (gap, array.repeat(times, 0).repeat(times, 1))][1:]
    picture = Image.fromarray(np.concatenate(parts, 1))
    picture.info.update(distance=distance, largest=float(values.max()))
    return picture
