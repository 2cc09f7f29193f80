"""Noticing that a run has failed: losses or weights that are not finite, and the collapse of a network."""

from __future__ import annotations

import math
from collections.abc import Mapping

__all__ = ["DivergenceError", "Watch"]

_PATIENCE = 5  # records in a row; an early G may look collapsed for a moment
_SMALLEST_SPREAD = 1e-5  # of logits; a working D spreads over hundredths at its random start already
_SMALLEST_VARIANCE = 1e-5  # of pixels in [-1, 1] over the images of a batch


class DivergenceError(RuntimeError):
    """Training has failed; the checkpoints that are kept are from before that."""


class Watch:
    """Checks the record of every log interval."""

    def __init__(self) -> None:
        self._in_a_row = {"discriminator": 0, "generator": 0}

    def check(self, iteration: int, statistics: Mapping[str, float]) -> None:
        """Check one record: losses, the spread of the logits, and the variance of generated images.

        Batches of one image have neither spread nor variance.

        Raises:
            DivergenceError: If a number is not finite, or a network has been collapsed for five records in a row.
        """
        wrong = [f"{name} is {value}" for name, value in statistics.items() if not math.isfinite(value)]
        if wrong:
            raise DivergenceError(f"at iteration {iteration} {' and '.join(wrong)}")
        if "sample_variance" not in statistics:
            return
        spread, variance = max(statistics["real_spread"], statistics["fake_spread"]), statistics["sample_variance"]
        collapsed = {
            "discriminator": spread < _SMALLEST_SPREAD and f"all images have one logit (spread {spread:.1e})",
            "generator": variance < _SMALLEST_VARIANCE and f"all its images are one image (variance {variance:.1e})",
        }
        for network, what in collapsed.items():
            self._in_a_row[network] = self._in_a_row[network] + 1 if what else 0
            if self._in_a_row[network] >= _PATIENCE:
                raise DivergenceError(
                    f"at iteration {iteration} the {network} has collapsed: {what}, for {_PATIENCE} records in a row"
                )
