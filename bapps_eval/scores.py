"""From distances to scores: agreement with people, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bapps_eval.data import JudgedSet, SameSet, TripletSet

__all__ = [
    "RESAMPLES",
    "SEED",
    "Summary",
    "agreement",
    "average_precision",
    "bootstrap",
    "rank_correlation",
    "score",
    "summarise",
]

RESAMPLES = 1000
SEED = 0
_BLOCK = 2_000_000

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """What came out for one metric.

    Attributes:
        scores: Score on each set.
        mean: Mean of the scores.
        interval: 95 % bootstrap interval of the mean.
        difference: Mean less that of the first metric.
        difference_interval: Its 95 % interval, over the same resamples for both.
    """

    scores: tuple[float, ...]
    mean: float
    interval: tuple[float, float]
    difference: float
    difference_interval: tuple[float, float]


def agreement(first: FloatArray, second: FloatArray, preferred: FloatArray) -> FloatArray:
    """Fraction of people who side with a metric, for each triplet; its mean is the 2AFC score.

    Args:
        first: Distances of the first distortion to the reference, ``(...)``.
        second: Those of the second.
        preferred: Fraction of people who found the second nearer, in [0, 1].

    Returns:
        ``(...)`` in [0, 1]; a tie counts half.

    Example:
        >>> agreement(np.array([2.0, 1.0, 1.0]), np.array([1.0, 2.0, 1.0]), np.array([0.8, 0.8, 0.8]))
        array([0.8, 0.2, 0.5])
    """
    return np.where(first > second, preferred, np.where(first < second, 1 - preferred, 0.5))


def average_precision(distances: FloatArray, same: FloatArray) -> FloatArray:
    """Area under the precision-recall curve of telling, by small distances, which pairs look the same.

    This is the JND score of LPIPS (interpolated as in VOC 2010): a pair is a hit to the extent that people
    said "same". Pairs at one distance are found together, so that their order does not matter.

    Args:
        distances: ``(..., N)``.
        same: Fraction of people who said "same", ``(..., N)`` in [0, 1].

    Returns:
        ``(...)`` in [0, 1]; 0 if nobody ever said "same".

    Example:
        >>> average_precision(np.array([0.1, 0.2, 0.3, 0.4]), np.array([1.0, 0.0, 1.0, 0.0])).item()
        0.8333333333333333
    """
    order = np.argsort(distances, axis=-1, kind="stable")
    distances = np.take_along_axis(distances, order, -1)
    hits = np.cumsum(np.take_along_axis(same, order, -1), -1)
    precision = hits / np.arange(1, hits.shape[-1] + 1)
    precision[..., :-1][distances[..., :-1] == distances[..., 1:]] = 0
    envelope = np.maximum.accumulate(precision[..., ::-1], -1)[..., ::-1]
    total = hits[..., -1:]
    recall = np.divide(hits, total, out=np.zeros_like(hits), where=total > 0)
    return np.asarray((np.diff(recall, axis=-1, prepend=0) * envelope).sum(-1))


def rank_correlation(distances: FloatArray, judged: FloatArray) -> FloatArray:
    """Spearman's rank correlation, as ``scipy.stats.spearmanr`` has it, of many lists at a time.

    Args:
        distances: ``(..., N)``.
        judged: ``(..., N)``.

    Returns:
        ``(...)`` in [-1, 1]; 0 where one of the two is constant and so says nothing.

    Example:
        >>> rank_correlation(np.array([[1.0, 2.0, 9.0], [5.0, 5.0, 5.0]]), np.array([[4.0, 6.0, 5.0]] * 2))
        array([0.5, 0. ])
    """
    first, second = (stats.rankdata(values, axis=-1) for values in (distances, judged))
    first -= first.mean(-1, keepdims=True)
    second -= second.mean(-1, keepdims=True)
    scale = np.sqrt((first**2).sum(-1) * (second**2).sum(-1))
    product: FloatArray = (first * second).sum(-1)
    return np.asarray(np.divide(product, scale, out=np.zeros_like(product), where=scale > 0))


def score(judged: JudgedSet, distances: FloatArray, rows: NDArray[np.intp] | None = None) -> FloatArray:
    """Score a metric on a set, or on many resamples of it.

    Args:
        judged: The set.
        distances: Of the first image of each item to the others, ``(N, 1)`` or, for triplets, ``(N, 2)``.
        rows: Items to take, ``(..., N)``, each from the stratum of its place; every item once if None.

    Returns:
        ``(...)``: in [0, 1] for 2AFC and JND, in [-1, 1] for rank correlations.
    """
    rows = np.arange(len(judged)) if rows is None else rows
    if isinstance(judged, TripletSet):
        parts = [agreement(distances[:, 0], distances[:, 1], judged.judged)[rows].mean(-1)]
    else:
        compare = average_precision if isinstance(judged, SameSet) else rank_correlation
        drawn = [rows[..., stratum] for stratum in judged.strata]
        parts = [compare(distances[:, 0][part], judged.judged[part]) for part in drawn]
    return np.asarray(np.mean(parts, axis=0))


def bootstrap(
    sets: Sequence[JudgedSet],
    distances: Sequence[Sequence[FloatArray]],
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> FloatArray:
    """Mean scores over the sets when the items of each set (or group in it) are drawn anew with replacement.

    Args:
        sets: The sets.
        distances: For every metric, for every set, distances as for :func:`score`.
        resamples: How often to draw.
        seed: Of the draws.

    Returns:
        ``(metrics, resamples)``; a column is one draw, the same for all metrics.
    """
    means = np.zeros((len(distances), resamples))
    for index, judged in enumerate(sets):
        generator = np.random.default_rng([seed, index])
        step = max(1, _BLOCK // len(judged))
        for start in range(0, resamples, step):
            count = min(step, resamples - start)
            rows = np.empty((count, len(judged)), np.intp)
            for stratum in judged.strata:
                rows[:, stratum] = stratum[generator.integers(len(stratum), size=(count, len(stratum)))]
            for metric, of_sets in enumerate(distances):
                means[metric, start : start + count] += score(judged, of_sets[index], rows) / len(sets)
    return means


def summarise(sets: Sequence[JudgedSet], distances: Sequence[Sequence[FloatArray]]) -> list[Summary]:
    """Score every metric on every set, with bootstrap intervals.

    Args:
        sets: The sets, at least one.
        distances: As for :func:`bootstrap`.

    Returns:
        One summary for each metric.
    """
    scores = np.array([list(map(score, sets, of_sets)) for of_sets in distances])
    means, drawn = scores.mean(1), bootstrap(sets, distances)
    return [
        Summary(
            scores=tuple(scores[metric].tolist()),
            mean=float(means[metric]),
            interval=_middle(drawn[metric]),
            difference=float(means[metric] - means[0]),
            difference_interval=_middle(drawn[metric] - drawn[0]),
        )
        for metric in range(len(distances))
    ]


def _middle(values: FloatArray) -> tuple[float, float]:
    """The middle 95 % of the values."""
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
