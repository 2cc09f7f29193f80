"""Golden distances: those of fixed images, by which a copy of a bundle is known to compute what the original did."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from afv_metric.bundles.bundle import Bundle
from afv_metric.fisher.forms import FORMS, FormName
from afv_metric.fisher.statistics import FisherStatistics, LayerStatistics
from afv_metric.metric import AFVDistance

__all__ = ["GOLDEN_NAME", "golden_distances", "golden_pairs", "with_golden_distances"]

GOLDEN_NAME = "shake256-1"
"""Name of the images of :func:`golden_pairs`; other images get another name."""


def golden_pairs(channels: int = 3) -> tuple[Tensor, Tensor]:
    """Three fixed pairs of images: chequered colours against a noisy, a shifted and a mirrored copy.

    ``(3, C, 40, 44)`` uint8 each, for C channels. They are made of a hash and whole numbers, so they are the same on
    every machine and in every release.
    """
    squares, fine = 3 * channels * 5 * 6, channels * 40 * 44
    content = hashlib.shake_256(GOLDEN_NAME.encode()).digest(squares + fine)
    random = torch.tensor(list(content), dtype=torch.uint8)
    first = random[:squares].view(3, channels, 5, 6).repeat_interleave(8, 2).repeat_interleave(8, 3)[..., :44]
    noise = random[squares:].view(channels, 40, 44)
    noisy = first[0] // 8 * 7 + noise // 8
    return first.contiguous(), torch.stack([noisy, first[1].roll((1, 3), (1, 2)), first[2].flip(2)])


def golden_distances(bundle: Bundle, forms: Iterable[FormName] = FORMS) -> dict[str, list[float]]:
    """Distances of :func:`golden_pairs`, in float64, with the bundle's statistics as they are stored.

    A copy of the bundle, on any machine and in any release that keeps its numbers, gives the same to about 1e-6.
    """
    layers = (LayerStatistics(*(value.float() for value in layer)) for layer in bundle.statistics.layers)
    stored = replace(bundle, statistics=FisherStatistics(bundle.statistics.count, tuple(layers)))
    pairs = [images.double() / 127.5 - 1 for images in golden_pairs(bundle.channels)]
    with torch.no_grad():
        return {form: AFVDistance(stored, form=form)(*pairs).tolist() for form in forms}


def with_golden_distances(bundle: Bundle) -> Bundle:
    """The bundle with a record of its :func:`golden_distances`, by which a copy is known to compute the same."""
    return replace(bundle, golden={"pairs": GOLDEN_NAME, "distances": golden_distances(bundle)})
