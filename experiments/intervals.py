"""How sure a share is."""

from __future__ import annotations

from scipy.stats import binomtest

__all__ = ["share_interval"]


def share_interval(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a share, by Wilson.

    Args:
        right: How many were right.
        count: Of how many.

    Example:
        >>> low, high = share_interval(50, 100)
        >>> round(low, 3), round(high, 3)
        (0.404, 0.596)
    """
    found = binomtest(right, count).proportion_ci(method="wilson")
    return float(found.low), float(found.high)
