"""Fisher statistics: mean and variance of the score, and Kronecker factors, over many generated samples.

The diagonal Fisher information is I = E_z[U_G(z)^2] with the centred score U = dD/dtheta - E_z dD/dtheta, that is, the
variance of the score over samples of the generator. The Kronecker factors of a layer, A = E[a a^T] and
S = E[delta delta^T] over samples and positions, approximate the full Fisher information of its untied weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from afv_metric.fisher.engine import FisherEngine

__all__ = ["FisherStatistics", "LayerStatistics", "collect_statistics", "inverse_root", "inverse_root_matrix"]


class LayerStatistics(NamedTuple):
    """Statistics of one layer; a variance is the diagonal Fisher information."""

    weight_mean: Tensor  # of dD/dW, (C_out, C_in, k, k)
    weight_variance: Tensor
    bias_mean: Tensor  # of dD/db, (C_out,)
    bias_variance: Tensor
    input_factor: Tensor  # A = E[a a^T], (C_in, C_in)
    delta_factor: Tensor  # S = E[delta delta^T], (C_out, C_out)


@dataclass(frozen=True)
class FisherStatistics:
    """Statistics of all layers, in the order of the forward pass, over ``count`` images."""

    count: int
    layers: tuple[LayerStatistics, ...]

    def merge(self, other: FisherStatistics) -> FisherStatistics:
        """Statistics of both sets of images together (Chan, Golub and LeVeque 1979), exact but for rounding."""
        count = self.count + other.count
        share = other.count / count
        merged = []
        for mine, others in zip(self.layers, other.layers, strict=True):
            gaps = [theirs - ours for ours, theirs in zip(mine, others, strict=True)]
            layer = LayerStatistics(*(ours + gap * share for ours, gap in zip(mine, gaps, strict=True)))
            weight, bias = (gap.square() * (share * (1 - share)) for gap in (gaps[0], gaps[2]))  # of the means
            merged.append(
                layer._replace(weight_variance=layer.weight_variance + weight, bias_variance=layer.bias_variance + bias)
            )
        return FisherStatistics(count, tuple(merged))


@torch.no_grad()
def collect_statistics(engine: FisherEngine, batches: Iterable[Tensor]) -> FisherStatistics:
    """Accumulate the statistics of a network over batches ``(N, 3, H, W)`` in [-1, 1], in float64, on the CPU.

    Raises:
        ValueError: If there is no image.

    Example:
        >>> from afv_metric.networks import Discriminator, DiscriminatorConfig
        >>> engine = FisherEngine(Discriminator(DiscriminatorConfig(width=4)).baked())
        >>> collect_statistics(engine, [torch.rand(2, 3, 32, 32), torch.rand(1, 3, 32, 32)]).count
        3
    """
    total: FisherStatistics | None = None
    for images in batches:
        layers: list[LayerStatistics] = []
        for signals in engine.signals(images):
            scores = map(_double, engine.score(signals))
            moments = [moment for score in scores for moment in (score.mean(0), score.var(0, correction=0))]
            factors = _second_moment(signals.inputs), _second_moment(signals.delta)
            layers.append(LayerStatistics(*(value.cpu() for value in (*moments, *factors))))
        batch = FisherStatistics(len(images), tuple(reversed(layers)))
        total = batch if total is None else total.merge(batch)
    if total is None:
        raise ValueError("Fisher statistics need at least one image, got none")
    return total


def _second_moment(maps: Tensor) -> Tensor:
    """E[v v^T] over images and positions: ``(N, C, H, W)`` to ``(C, C)``."""
    vectors = _double(maps).transpose(0, 1).flatten(1)
    moment: Tensor = vectors @ vectors.T / vectors.shape[1]
    return moment


def _double(values: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def inverse_root(variance: Tensor, epsilon: float) -> Tensor:
    """1 / sqrt(variance + epsilon * mean of the variances): the library's one epsilon policy, for diagonals.

    The floor is relative to the mean over the tensor (the weights of one layer, say), so the result does not depend on
    the scale of the logit. A tensor of zeros, as of a dead layer or a constant score, gets zeros.

    Example:
        >>> inverse_root(torch.tensor([4.0, 0.0]), 0.5), inverse_root(torch.zeros(2), 0.5)
        (tensor([0.4472, 1.0000]), tensor([0., 0.]))
    """
    mean = variance.double().mean()
    root = (variance.double() + epsilon * mean).rsqrt()
    return torch.where(mean > 0, root, 0).to(variance.dtype)


def inverse_root_matrix(factor: Tensor, epsilon: float) -> Tensor:
    """Symmetric inverse square root of a Kronecker factor ``(C, C)``, with :func:`inverse_root` on its eigenvalues.

    Example:
        >>> inverse_root_matrix(torch.diag(torch.tensor([4.0, 0.0])), 0.5)
        tensor([[0.4472, 0.0000],
                [0.0000, 1.0000]])
    """
    values, vectors = torch.linalg.eigh(factor.double())
    root: Tensor = (vectors * inverse_root(values.clamp_min(0), epsilon)) @ vectors.T
    return root.to(factor.dtype)
