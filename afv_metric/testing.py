"""Assertions on images, for the tests of whatever draws them."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from afv_metric.functional import afv_distance, levels_to_show, read_for_metric
from afv_metric.heat_map import colour_map, save_picture
from afv_metric.images.reading import Source

__all__ = ["assert_images_close"]


def assert_images_close(
    actual: Tensor | Source,
    expected: Tensor | Source,
    *,
    at_most: float,
    heat_map: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> None:
    """Assert that images look as they should; of a batch, each one.

    Args:
        actual: A file, array, picture or tensor, as for :func:`~afv_metric.functional.afv_distance`.
        expected: Image or images to compare with, in any of these forms and of the same size.
        at_most: Largest distance that passes.
        heat_map: PNG to write if the assertion fails: where the farthest pair differs, from black to pale yellow.
        **settings: Settings, as for :func:`~afv_metric.functional.afv_distance`.

    Raises:
        AssertionError: If a distance is larger, or not a number.
        ValueError: If the images do not go together.

    Example:
        >>> import numpy as np
        >>> black, white = (np.full((48, 64, 3), level, np.uint8) for level in (0, 255))
        >>> assert_images_close(black, black, at_most=0)
        >>> assert_images_close(white, black, at_most=0.1)
        Traceback (most recent call last):
        AssertionError: the distance is ..., at most 0.1 was expected
    """
    __tracebackhide__ = True
    metric, *images = read_for_metric(actual, expected, **settings)
    with torch.no_grad():
        distances = metric(*images).reshape(-1)
        worst = int(distances.argmax())
        value = float(distances[worst])
        if value <= at_most:
            return
        message = f"the distance is {value:.6g}, at most {at_most:g} was expected"
        if len(distances) > 1:
            message += f" (pair {worst} of {len(distances)})"
        if heat_map is not None:
            values = afv_distance(*images, **{**settings, "spatial": True})[worst, 0]
            shown = levels_to_show(images[0], metric, settings)
            save_picture(colour_map(values, shown[worst % len(shown)]), heat_map)
            message += f"; {heat_map} shows where, up to {float(values.max()):.6g} (pale yellow)"
    raise AssertionError(message)
