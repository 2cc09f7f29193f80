"""95 % intervals of shares and of means, and how they are written."""

from __future__ import annotations

import math

from scipy.stats import binomtest
from torch import Tensor

from bapps_eval.formats import format_interval, format_number

__all__ = ["Interval", "format_share", "mean_interval", "share_interval"]

Interval = tuple[float, float]


def share_interval(right: int, count: int) -> Interval:
    """Interval of a share of so many out of a count, by Wilson.

    Example:
        >>> low, high = share_interval(50, 100)
        >>> round(low, 3), round(high, 3)
        (0.404, 0.596)
    """
    found = binomtest(right, count).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def mean_interval(shares: Tensor) -> tuple[float, Interval]:
    """Mean of shares ``(N,)`` in [0, 1], and its normal interval, cut to [0, 1].

    Example:
        >>> import torch
        >>> mean_interval(torch.tensor([0.0, 1.0]))
        (0.5, (0.0, 1.0))
    """
    mean = float(shares.double().mean())
    margin = 1.96 * float(shares.double().std()) / math.sqrt(len(shares)) if len(shares) > 1 else 1.0
    return mean, (max(0.0, mean - margin), min(1.0, mean + margin))


def format_share(share: float, interval: Interval) -> str:
    """Share and interval, for example ``.512 [.480, .544]``."""
    return f"{format_number(share)} {format_interval(interval)}"
