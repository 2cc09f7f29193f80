"""From distances to scores: agreement with people, and its intervals.

All scores accept integer weights of the items (bootstrap counts), so that a resample costs no sorting, and a thousand
of them are one operation on a table. A score that is undefined, as a correlation with constants is, is NaN.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bapps_eval.data import FloatArray, JudgedSet

__all__ = [
    "RESAMPLES", "Sample", "agreement", "average_precision", "ceiling", "interval", "p_value", "rank_correlation",
    "score", "score_set",
]  # fmt: skip

RESAMPLES = 1000
_BLOCK = 1_000_000  # items of all resamples that are worked on at a time


class Sample(NamedTuple):
    """A score of every metric ``(metrics,)``, on a set or as a mean over sets, and the same in every resample.

    The resamples ``(metrics, n)`` are the same for all metrics.
    """

    values: FloatArray
    drawn: FloatArray

    @property
    def intervals(self) -> list[tuple[float, float]]:
        """95 % bootstrap interval of each metric."""
        return list(map(interval, self.drawn))

    @property
    def differences(self) -> Sample:
        """The differences to the first metric."""
        return Sample(self.values - self.values[0], self.drawn - self.drawn[0])

    @staticmethod
    def mean(samples: Sequence[Sample]) -> Sample:
        """The mean over sets."""
        values, drawn = zip(*samples, strict=True)
        return Sample(np.mean(values, axis=0), np.mean(drawn, axis=0))


def agreement(first: FloatArray, second: FloatArray, preferred: FloatArray) -> FloatArray:
    """Fraction of people who side with a metric, for each triplet, a tie counting half; its mean is the 2AFC score.

    The first two are distances of the distortions to the reference ``(...)``, the last the fraction of people who found
    the second nearer.

    Example:
        >>> agreement(np.array([2.0, 1.0, 1.0]), np.array([1.0, 2.0, 1.0]), np.array([0.8, 0.8, 0.8]))
        array([0.8, 0.2, 0.5])
    """
    return np.where(first > second, preferred, np.where(first < second, 1 - preferred, 0.5))


def average_precision(distances: FloatArray, same: FloatArray, counts: FloatArray | None = None) -> FloatArray:
    """Area under the precision-recall curve of telling, by small distances, which pairs look the same.

    This is the JND score of LPIPS (interpolated as in VOC 2010): a pair is a hit to the extent that people said "same".
    Pairs at one distance are found together, so that their order does not matter. The code of LPIPS takes tied pairs
    one by one, in the order that an unstable sort happens to leave them in; without ties both are equal. ``counts``
    ``(..., N)`` says how often each of the N pairs is there. The result ``(...)`` is NaN if nobody ever said "same".

    Example:
        >>> average_precision(np.array([0.1, 0.2, 0.3, 0.4]), np.array([1.0, 0.0, 1.0, 0.0])).item()
        0.8333333333333333
    """
    order = np.argsort(distances, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(distances[order])), len(order) - 1)
    counts = (np.ones(len(order)) if counts is None else counts)[..., order]
    found, hits = np.cumsum(counts, -1)[..., ends], np.cumsum(counts * same[order], -1)[..., ends]
    precision = np.divide(hits, found, out=np.zeros_like(hits), where=found > 0)
    best_from_here = np.maximum.accumulate(precision[..., ::-1], -1)[..., ::-1]
    area: FloatArray = (np.diff(hits, axis=-1, prepend=0) * best_from_here).sum(-1)
    return _divide(area, hits[..., -1])


def rank_correlation(distances: FloatArray, judged: FloatArray, counts: FloatArray | None = None) -> FloatArray:
    """Spearman's rank correlation (SROCC), as ``scipy.stats.spearmanr`` has it; NaN where one of the two is constant.

    ``counts`` ``(..., N)`` says how often each of the N pairs is there; the result is ``(...)``.

    Example:
        >>> rank_correlation(np.array([1.0, 2.0, 9.0]), np.array([4.0, 6.0, 5.0])).round(6).item()
        0.5
    """
    counts = np.ones(len(distances)) if counts is None else counts
    first, first_length = _centre(_ranks(distances, counts), counts)
    second, second_length = _centre(_ranks(judged, counts), counts)
    product: FloatArray = np.einsum("...n,...n,...n->...", counts, first, second)
    return _divide(product, first_length * second_length).clip(-1, 1)


def _divide(values: FloatArray, scale: FloatArray) -> FloatArray:
    """The quotient, NaN where the scale is 0."""
    return np.asarray(np.divide(values, scale, out=np.full_like(values, np.nan), where=scale > 0))


def _centre(values: FloatArray, counts: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Values less their mean ``(..., N)``, and their Euclidean length ``(...)``, 0 if that is but rounding."""
    total = counts.sum(-1)
    mean = np.einsum("...n,...n->...", counts, values) / total
    centred = values - mean[..., None]
    square = np.einsum("...n,...n,...n->...", counts, centred, centred)
    return centred, np.sqrt(np.where(square > 1e-26 * total * mean**2, square, 0))


def _ranks(values: FloatArray, counts: FloatArray) -> FloatArray:
    """Rank of each item in each resample, from 0 in steps of a half, ``(..., N)``; the mean rank for ties."""
    order = np.argsort(values, kind="stable")
    new = np.diff(values[order], prepend=-np.inf) > 0
    which = np.empty(len(values), np.intp)
    which[order] = np.cumsum(new) - 1
    tally = np.add.reduceat(counts[..., order], np.flatnonzero(new), axis=-1)  # of each different value
    ranks: FloatArray = (np.cumsum(tally, -1) - tally / 2)[..., which]
    return ranks


def score(judged: JudgedSet, distances: FloatArray, counts: FloatArray | None = None) -> FloatArray:
    """Score a metric on a set by its distances ``(N, 1 or 2)``: 2AFC, JND mAP or SROCC, a mean over groups if any.

    With ``counts`` ``(..., N)``, how often each item is there, the result is ``(...)``.
    """
    people, counts = judged.judged, np.ones(len(distances)) if counts is None else counts
    if judged.kind == "triplets":
        return np.asarray(counts @ agreement(distances[:, 0], distances[:, 1], people) / len(people))
    compare = average_precision if judged.kind == "same" else rank_correlation
    parts = [compare(distances[rows, 0], people[rows], counts[..., rows]) for rows in judged.strata]
    return np.asarray(np.mean(parts, axis=0))


def ceiling(judged: JudgedSet) -> float | None:
    """Score of one human against the panel; None for judged pairs, which have no votes, or if nobody said "same".

    For triplets this is the "human" row of the LPIPS paper, the mean of p^2 + (1 - p)^2 with the fraction p of the
    panel: someone who sides with each distortion as often as the panel does. For pairs that look the same or not it is
    the JND mAP of someone who says "same" to each pair as often as the panel, in expectation.

    Both are too high, because the one who is tested is part of the panel that it is tested against: by 2 q (1 - q) / n
    per triplet, if q is the fraction of all people and n the number of votes, .1 for five votes on an even choice.
    It is no bound: a metric that always sides with the majority scores more, as can distances in JND mAP.
    """
    fraction = judged.judged
    if judged.kind == "triplets":
        return float((1 - 2 * fraction + 2 * fraction**2).mean())
    if judged.kind == "pairs" or not fraction.any():
        return None
    # Pairs that the one calls the same are found first, together, with this precision and this recall; then the rest.
    first, rest = (fraction**2).sum() / fraction.sum(), fraction.mean()
    return float(first * max(first, rest) + (1 - first) * rest)


def score_set(judged: JudgedSet, distances: FloatArray, resamples: int = RESAMPLES) -> Sample:
    """Score the distances ``(metrics, N, 1 or 2)`` on a set, with bootstrap resamples of its items (within groups).

    The draws depend on the name and the size of the set alone, and not on its place among others.
    """
    seed = int.from_bytes(hashlib.sha256(judged.name.encode()).digest()[:16], "big")
    draws = _draw(judged, resamples, np.random.default_rng(seed))
    drawn = [np.array([score(judged, of_metric, counts) for of_metric in distances]) for counts in draws]
    return Sample(np.array([float(score(judged, of_metric)) for of_metric in distances]), np.concatenate(drawn, 1))


def _draw(judged: JudgedSet, resamples: int, generator: np.random.Generator) -> Iterator[FloatArray]:
    """How often each item is drawn in each resample, in blocks ``(count, N)``."""
    step = max(1, _BLOCK // len(judged))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        counts = np.empty((count, len(judged)))
        for stratum in judged.strata:
            drawn = generator.integers(len(stratum), size=(count, len(stratum)))
            drawn += len(stratum) * np.arange(count)[:, None]
            counts[:, stratum] = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        yield counts


def p_value(difference: float, drawn: FloatArray) -> float:
    """Two-sided paired bootstrap p-value: how often chance alone moves a difference as far as it is from 0.

    (1 + k) / (1 + n) for n resamples, of which k have a difference at least as far from the measured one as that is
    from 0. Undefined resamples do not count, and an undefined difference gives NaN.

    Example:
        >>> p_value(0.3, np.array([0.2, 0.3, 0.4, 0.7]))
        0.4
    """
    drawn = drawn[np.isfinite(drawn)]
    as_far = np.abs(drawn - difference) >= abs(difference) - 1e-12  # equal metrics are at 0 but for rounding
    return float((1 + as_far.sum()) / (1 + len(drawn))) if np.isfinite(difference) else np.nan


def interval(drawn: FloatArray) -> tuple[float, float]:
    """The middle 95 % of resampled scores ``(n,)``; undefined ones do not count.

    Example:
        >>> interval(np.arange(1001.0))
        (25.0, 975.0)
    """
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.percentile(drawn, (2.5, 97.5)) if len(drawn) else (np.nan, np.nan)
    return float(low), float(high)
