"""The distances as metrics of torchmetrics, synchronised over processes; the extra ``torchmetrics`` installs it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from afv_metric.bundles.bundle import Bundle
from afv_metric.bundles.resolve import DEFAULT_BUNDLE
from afv_metric.fisher.forms import FormName
from afv_metric.metric import AFVDistance, Reduction

__all__ = ["AdversarialFisherDistance", "FisherSetDistance"]

_AT_A_TIME = 8  # images whose score vectors are held at once
_STATE = ("sum", "squares", "count")  # of the score vectors of a set


class _Distance(Metric):
    higher_is_better = False
    full_state_update = False

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Plot one or several values, as torchmetrics does; needs Matplotlib.

        Args:
            val: What :meth:`compute` or a call has returned, or several of them; the present value if None.
            ax: Axes of Matplotlib to draw in.

        Returns:
            Figure and axes.
        """
        return self._plot(val, ax)


class AdversarialFisherDistance(_Distance):
    """:class:`~afv_metric.metric.AFVDistance` over all pairs of all updates.

    Args:
        weights: As for :class:`~afv_metric.metric.AFVDistance`.
        form: Likewise.
        pooling: Likewise.
        reduction: ``"mean"`` or ``"sum"`` over all pairs, which keep two numbers; ``"none"`` keeps every distance.
        normalize: Whether floating-point images are in [0, 1] rather than [-1, 1].
        **settings: Arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: For an unknown form or reduction, or a pooling below 1.

    Example:
        >>> metric = AdversarialFisherDistance()
        >>> images = torch.rand(4, 3, 64, 64) * 2 - 1
        >>> metric.update(images, images.flip(3))
        >>> bool(metric.compute() > 0)
        True
    """

    is_differentiable = True
    plot_lower_bound = 0.0

    total: Tensor
    count: Tensor
    distances: list[Tensor]

    def __init__(
        self,
        weights: str | os.PathLike[str] | Bundle = DEFAULT_BUNDLE,
        *,
        form: FormName | None = None,
        pooling: float | None = None,
        reduction: Reduction = "mean",
        normalize: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if reduction not in get_args(Reduction):
            raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')
        self.reduction = reduction
        self.distance = AFVDistance(weights, form=form, pooling=pooling, normalize=normalize)
        if reduction == "none":
            self.add_state("distances", default=[], dist_reduce_fx="cat")
        else:
            self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state("count", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def plot_upper_bound(self) -> float | None:  # type: ignore[override]
        """The largest distance that there can be, if it is finite."""
        largest = self.distance.score_range[1]
        return largest if self.reduction != "sum" and math.isfinite(largest) else None

    def update(self, img0: Tensor, img1: Tensor) -> None:
        """Add pairs of images, as :meth:`~afv_metric.metric.AFVDistance.forward` takes them."""
        values = self.distance(img0, img1)
        if self.reduction == "none":
            self.distances.append(values)
        else:
            self.total = self.total + values.sum().to(self.total)
            self.count = self.count + len(values)

    def compute(self) -> Tensor:
        """The mean or the sum, a scalar; or all distances ``(N,)``."""
        if self.reduction == "none":
            return dim_zero_cat(self.distances)
        total = self.total.float()
        return total / self.count if self.reduction == "mean" else total


class FisherSetDistance(_Distance):
    """Fisher distance of two sets of images, real and generated ones, fed as to ``FrechetInceptionDistance``.

    Its state is one vector per set, as long as the network has weights, whatever the number of images. It is the
    distance of ``afv-metric sets``, which takes squares of the training size; all images should be of one size.

    Args:
        weights: As for :class:`~afv_metric.metric.AFVDistance`.
        corrected: Whether the bias of small sets is taken off, see :mod:`afv_metric.fisher.sets`; two samples of one
            distribution are then at 0 on average, and may be slightly below.
        normalize: Whether floating-point images are in [0, 1] rather than [-1, 1].
        **settings: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = FisherSetDistance()
        >>> metric.update(torch.rand(4, 3, 32, 32) * 2 - 1, real=True)
        >>> metric.update(torch.rand(4, 3, 32, 32) - 1, real=False)
        >>> bool(metric.compute() > 0)
        True
    """

    is_differentiable = False

    def __init__(
        self,
        weights: str | os.PathLike[str] | Bundle = DEFAULT_BUNDLE,
        *,
        corrected: bool = True,
        normalize: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.corrected = corrected
        self.distance = AFVDistance(weights, form="fisher", normalize=normalize)
        parameters = self.distance._fisher.parameter_count
        for kind in ("real", "fake"):
            for name, shape in zip(_STATE, ((parameters,), (), ()), strict=True):
                self.add_state(f"{kind}_{name}", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, images: Tensor, real: bool) -> None:
        """Add images ``(N, 3, H, W)`` to one of the sets."""
        kind = "real" if real else "fake"
        for some in images.split(_AT_A_TIME):
            vectors = self.distance.score_vectors(some).double()
            for name, value in zip(_STATE, (vectors.sum(0), vectors.square().sum(), len(vectors)), strict=True):
                setattr(self, f"{kind}_{name}", getattr(self, f"{kind}_{name}") + value)

    def compute(self) -> Tensor:
        """The distance, a scalar.

        Raises:
            RuntimeError: If a set has fewer images than are needed: two for the corrected distance, else one.
        """
        least = 2 if self.corrected else 1
        states = [[getattr(self, f"{kind}_{name}") for name in _STATE] for kind in ("real", "fake")]
        counts = [int(count) for _, _, count in states]
        if min(counts) < least:
            raise RuntimeError(f"each set needs {least} or more images; got {counts[0]} real and {counts[1]} fake ones")
        means = [total / count for total, _, count in states]
        distance: Tensor = (means[0] - means[1]).square().sum()
        if self.corrected:
            for (_, squares, count), mean in zip(states, means, strict=True):
                distance = distance - (squares / count - mean.square().sum()) / (count - 1)
        return (distance / len(means[0])).float()
