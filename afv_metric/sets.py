"""Distances between sets of images: eq. 5 of the paper with mean scores in place of scores, and Fisher Similarity.

The mean score of a set is one vector, whatever the number of images, and adds up over batches. With the diagonal Fisher
information I of a bundle and P parameters, the distance of two sets is

    D = (mean U_x - mean U_y)^T I^-1 (mean U_x - mean U_y) / P,

the ``fisher`` form of :class:`~afv_metric.distance.AFVDistance` for sets of one image each; their Fisher Similarity is
exp(-lambda D) with lambda = 10.

D is biased upwards, as any squared distance of means: two independent samples of n images from one distribution differ
by about 2/n in expectation (and of n and m by 1/n + 1/m), times the share of the variance that the floor of the
whitening leaves. Two samples of 1,000 thus have a Fisher Similarity of at least about .98, two of 100 of .82. Compare
similarities only between sets of equal sizes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from afv_metric.fisher import FisherEngine
from afv_metric.statistics import FisherStatistics, inverse_root

__all__ = ["MeanScores", "fisher_similarity", "mean_scores", "set_distance"]

MeanScores = Sequence[tuple[Tensor, Tensor]]
"""Mean dE/dW ``(C_out, C_in, k, k)`` and dE/db ``(C_out,)`` of each layer, in the order of the forward pass."""


@torch.no_grad()
def mean_scores(engine: FisherEngine, batches: Iterable[Tensor]) -> MeanScores:
    """Mean Fisher score of a set of images, before centring, which cancels in a distance.

    The engine adds the scores of a batch up as it forms them: no image's own score is ever held.

    Args:
        engine: The engine of a baked discriminator.
        batches: Images ``(N, 3, H, W)`` in [-1, 1] on the engine's device, any N; H and W multiples of its stride.

    Returns:
        Means of all layers in float64, on the CPU.

    Raises:
        ValueError: If there is no image.

    Example:
        >>> from afv_metric import load_bundle
        >>> bundle = load_bundle("tiny-imagenet-v1", generator=True)
        >>> engine = FisherEngine(bundle.discriminator)
        >>> dark, bright = (mean_scores(engine, [torch.rand(8, 3, 32, 32) - shift]) for shift in (1, 0))
        >>> 0 < fisher_similarity(dark, bright, bundle.statistics, bundle.epsilon) < 1
        True
    """
    count = 0
    totals: list[tuple[Tensor, Tensor]] = []
    for images in batches:
        if len(images) == 0:
            continue
        sums = [engine.score(signals, copies=len(images)) for signals in engine.signals(engine(images))]
        layers = [(weight[0].cpu().double(), bias[0].cpu().double()) for weight, bias in reversed(sums)]
        if totals:
            layers = [(a + c, b + d) for (a, b), (c, d) in zip(totals, layers, strict=True)]
        totals = layers
        count += len(images)
    if not count:
        raise ValueError("the mean score of a set needs at least one image, got none")
    return [(weight / count, bias / count) for weight, bias in totals]


def set_distance(first: MeanScores, second: MeanScores, statistics: FisherStatistics, epsilon: float) -> float:
    """Fisher distance between two sets of images.

    Args:
        first: Mean scores of one set.
        second: Mean scores of the other, by the same network.
        statistics: Of that network: the information.
        epsilon: Relative floor of the whitening, see :func:`~afv_metric.statistics.inverse_root`.

    Returns:
        D, at least 0; see the module for its bias.
    """
    total, parameters = 0.0, 0
    for one, other, layer in zip(first, second, statistics.layers, strict=True):
        for x, y, variance in zip(one, other, (layer.weight_variance, layer.bias_variance), strict=True):
            whitened = (x - y) * inverse_root(variance.cpu().double(), epsilon)
            total += float(whitened.square().sum())
            parameters += variance.numel()
    return total / parameters


def fisher_similarity(
    first: MeanScores, second: MeanScores, statistics: FisherStatistics, epsilon: float, *, scale: float = 10.0
) -> float:
    """Fisher Similarity exp(-scale D) of two sets of images: 1 for equal mean scores, towards 0 the farther apart.

    Args:
        first: As for :func:`set_distance`.
        second: Likewise.
        statistics: Likewise.
        epsilon: Likewise.
        scale: lambda of the paper.
    """
    return math.exp(-scale * set_distance(first, second, statistics, epsilon))
