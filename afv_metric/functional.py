"""The distance as a function, for a line in a script; :class:`~afv_metric.metric.AFVDistance` is the module."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from afv_metric.bundles.bundle import Bundle
from afv_metric.bundles.resolve import DEFAULT_BUNDLE
from afv_metric.images.reading import Reader, Source
from afv_metric.images.tensors import to_network_range
from afv_metric.metric import AFVDistance

__all__ = ["afv_distance"]


def afv_distance(
    img0: Tensor | Source,
    img1: Tensor | Source,
    *,
    weights: str | os.PathLike[str] | Bundle = DEFAULT_BUNDLE,
    mask: Tensor | None = None,
    ret_per_layer: bool = False,
    **settings: Any,
) -> Any:
    """Perceptual distance between images: tensors, or whatever :func:`afv_metric.read_image` reads.

    Args:
        img0: A tensor, as for :meth:`~afv_metric.metric.AFVDistance.forward`; or one image: a path, an open file, an
            array ``(H, W, C)``, or Pillow's image. Arrays other than uint8 need ``read_image(array, data_range=...)``.
        img1: Image or images to compare with, in any of these forms and of the same size.
        weights: Bundle, as for :class:`~afv_metric.metric.AFVDistance`. One module is made per bundle and settings.
        mask: Mask, as for :meth:`~afv_metric.metric.AFVDistance.forward`.
        ret_per_layer: Whether to return what each layer adds, too.
        **settings: Arguments of :class:`~afv_metric.metric.AFVDistance`, such as ``form``, ``reduction`` or
            ``normalize``.

    Returns:
        What :meth:`~afv_metric.metric.AFVDistance.forward` returns.

    Raises:
        ImageError: If a file, array or picture cannot be read.
        TypeError: For an unknown argument.
        ValueError: If the images do not go together, or a setting is wrong.

    Example:
        >>> import numpy as np
        >>> black, white = (np.full((48, 64, 3), level, np.uint8) for level in (0, 255))
        >>> afv_distance(black, black)
        tensor([0.])
        >>> bool(afv_distance(black, white) > 0.1)
        True
    """
    metric, first, second = read_for_metric(img0, img1, weights=weights, **settings)
    return metric(first, second, mask=mask, ret_per_layer=ret_per_layer)


def read_for_metric(
    img0: Tensor | Source,
    img1: Tensor | Source,
    weights: str | os.PathLike[str] | Bundle = DEFAULT_BUNDLE,
    **settings: Any,
) -> tuple[AFVDistance, Tensor, Tensor]:
    """The module for the settings of :func:`afv_distance`, and two images read with its channels and range."""
    metric = _metric(weights if isinstance(weights, Bundle) else os.fspath(weights), **settings)
    reader = Reader(data_range=metric.data_range, channels=metric.channels)
    first, second = (image if isinstance(image, Tensor) else reader.read(image) for image in (img0, img1))
    return metric, first, second


def levels_to_show(images: Tensor, metric: AFVDistance, settings: Mapping[str, Any]) -> Tensor:
    """Levels of 0 to 255, ``(N, 3, H, W)``, of what a metric compares; of other than three channels the first."""
    normalize = settings.get("normalize", False)
    prepared = to_network_range(images, normalize=normalize, dtype=torch.float32, channels=metric.channels)
    return 127.5 * (prepared if metric.channels == 3 else prepared[:, :1].expand(-1, 3, -1, -1)) + 127.5


@functools.lru_cache(maxsize=8)
def _metric(weights: str | Bundle, **settings: Any) -> AFVDistance:
    return AFVDistance(weights, **settings)
