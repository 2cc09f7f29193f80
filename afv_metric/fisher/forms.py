"""The three forms of the distance, each a function of the engine's stream, one layer at a time.

A form *describes* a layer of each image and *compares* two descriptions: to one number a pair (``term``), or to a map
over positions (``map``). The distance is the sum of the terms of all layers. One image can be compared with many: the
first dimensions of two descriptions broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afv_metric.fisher.engine import FisherEngine, Signals, mean_of_neighbours
from afv_metric.fisher.statistics import FisherStatistics, inverse_root, inverse_root_matrix
from afv_metric.networks import PooledConv2d

__all__ = [
    "FORMS",
    "POSITION_FORMS",
    "ActivationForm",
    "Description",
    "FisherForm",
    "Form",
    "FormName",
    "LayerGradient",
    "LocalForm",
    "PositionForm",
    "differentiate",
]

FormName = Literal["fisher", "local", "activation"]
Description = Sequence[Tensor]
Pair = tuple[Signals, Signals]
Wanted = tuple[bool, bool]

_FLOOR = 1e-3  # of a vector's squared length, in units of its mean over the statistics


class LayerGradient(NamedTuple):
    """Gradient of a sum of distances, through one layer of one of the two images.

    Attributes:
        of_inputs: With respect to the layer's input, ``(N, C, H, W)``; None if it was not wanted.
        of_slope: With respect to the logarithm of a common factor of the layer's delta, ``(N,)``; None if delta is
            constant almost everywhere, or not used.
    """

    of_inputs: Tensor | None
    of_slope: Tensor | None


def differentiate(
    engine: FisherEngine, function: Callable[[Signals, Signals], Tensor], pair: Pair, wanted: Wanted
) -> tuple[Tensor, list[LayerGradient]]:
    """Differentiate a function of one layer of two images by autograd, which sees nothing but that layer.

    Args:
        engine: The engine of the stream.
        function: Any function of two signals whose result's sum is to be differentiated.
        pair: The signals.
        wanted: For which of the two images the gradient is wanted.

    Returns:
        The result of the function, and the gradients for both images.
    """
    # With the sigmoid energy delta depends on the image through one factor, here a variable of value 1.
    with_factor = engine.energy == "sigmoid" and pair[0].delta.numel() > 0
    with torch.enable_grad():
        leaves: list[list[Tensor]] = []
        tracked = []
        for signals, want in zip(pair, wanted, strict=True):
            inputs, delta = signals.inputs.detach().requires_grad_(want), signals.delta
            factor = delta.new_ones(len(delta), requires_grad=want and with_factor)
            leaves.append([inputs, *([factor] if with_factor else [])] if want else [])
            tracked.append(
                Signals(signals.layer, inputs, delta * factor[:, None, None, None] if with_factor else delta)
            )
        result = function(tracked[0], tracked[1])
        gradients = iter(torch.autograd.grad(result.sum(), [leaf for group in leaves for leaf in group]))
    found = [[next(gradients) for _ in group] for group in leaves]
    return result.detach(), [
        LayerGradient(group[0] if group else None, group[1] if len(group) > 1 else None) for group in found
    ]


class Form(nn.Module):
    """What the forms share: they hold whitening factors as buffers that no ``state_dict`` lists.

    Attributes:
        layers: Indices of the layers that count, in the order of the forward pass.
        depth: Number of residual blocks whose layers' inputs are needed; None for the whole network.
        needs_delta: Whether the energy gradients are needed, or the layers' inputs alone.
        weighs_energy: Whether position weights act on the energy (and so on delta) rather than on the comparison.
    """

    needs_delta = True
    weighs_energy = False

    def __init__(self, engine: FisherEngine, statistics: FisherStatistics, epsilon: float) -> None:
        """Compute the whitening factors.

        Args:
            engine: The engine whose stream will be described.
            statistics: Variances and Kronecker factors of its layers.
            epsilon: Relative floor of the whitening, see :func:`~afv_metric.fisher.statistics.inverse_root`.
        """
        super().__init__()
        self.layers = tuple(range(len(engine.layers)))
        self.depth: int | None = None

    def describe(self, engine: FisherEngine, signals: Signals) -> Description:
        """Describe one layer of N images for :meth:`term`: tensors whose first dimension is N."""
        raise NotImplementedError

    def compare(self, engine: FisherEngine, first: Signals, second: Signals, weights: Tensor | None) -> Tensor:
        """The :meth:`term` of N pairs, directly from the stream."""
        return self.term(first.layer, self.describe(engine, first), self.describe(engine, second), weights)

    def differentiate(
        self, engine: FisherEngine, pair: Pair, weights: Tensor | None, wanted: Wanted
    ) -> tuple[Tensor, list[LayerGradient]]:
        """The result of :meth:`compare` and the gradients of its sum for the images that want one."""
        return differentiate(engine, lambda x, y: self.compare(engine, x, y, weights), pair, wanted)

    def term(self, layer: int, first: Description, second: Description, weights: Tensor | None) -> Tensor:
        """Compare one layer of N pairs.

        Args:
            layer: Index of the layer.
            first: Description of N images, or of one for all.
            second: Description of N images, or of one for all.
            weights: Non-negative weights of the image's positions, ``(N, 1, H, W)`` at any resolution.

        Returns:
            The layer's part of the distance, ``(N,)``, at least float32.
        """
        raise NotImplementedError

    def describe_for_map(self, engine: FisherEngine, signals: Signals) -> Description:
        """Describe one layer of N images for :meth:`map`."""
        return self.describe(engine, signals)

    def map(self, layer: int, first: Description, second: Description) -> Tensor:
        """Compare one layer of N pairs place by place: ``(N, 1, h, w)``, at least float32."""
        raise NotImplementedError

    def map_scale(self, engine: FisherEngine, layer: int) -> int:
        """Side, in pixels of the image, of one place of :meth:`map`."""
        return engine.reduction(layer)

    def _hold(self, name: str, factors: Tensor) -> None:
        self.register_buffer(name, factors.float(), persistent=False)


class FisherForm(Form):
    """Eq. 5 of the paper: squared difference of the scores, whitened by the diagonal Fisher information.

    The distance is (U_x - U_y)^T I^-1 (U_x - U_y) divided by the number of parameters: 2 is then about what two
    independent samples of the generator differ by, for a network of any width.
    """

    weighs_energy = True
    window = 16
    """Side of the windows of the spatial map, in pixels."""

    def __init__(self, engine: FisherEngine, statistics: FisherStatistics, epsilon: float) -> None:
        """Compute the whitening factors."""
        super().__init__(engine, statistics, epsilon)
        self.parameter_count = 0
        for index, layer in enumerate(statistics.layers):
            self.parameter_count += layer.weight_variance.numel() + layer.bias_variance.numel()
            self._hold(f"weight_{index}", inverse_root(layer.weight_variance, epsilon))
            self._hold(f"bias_{index}", inverse_root(layer.bias_variance, epsilon))
            self._hold(f"weight_mean_{index}", layer.weight_mean)
            self._hold(f"bias_mean_{index}", layer.bias_mean)

    def describe(self, engine: FisherEngine, signals: Signals) -> Description:
        """Plain scores of the weights ``(N, C_out, C_in, k, k)`` and of the biases ``(N, C_out)``."""
        return engine.score(signals)

    def vector(self, engine: FisherEngine, signals: Signals) -> Tensor:
        """Part of the vector of eq. 6, ``(N, P)``: centred and whitened scores, weights before biases."""
        parts = []
        for name, score in zip(("weight", "bias"), engine.score(signals), strict=True):
            mean = self.get_buffer(f"{name}_mean_{signals.layer}")
            parts.append(((score - mean) * self.get_buffer(f"{name}_{signals.layer}")).flatten(1))
        return torch.cat(parts, 1)

    def term(self, layer: int, first: Description, second: Description, weights: Tensor | None) -> Tensor:
        """Whitened sum of squared differences over the layer's parameters; weights have acted on the energy already."""
        return self._length(layer, [_difference(a, b) for a, b in zip(first, second, strict=True)])

    def compare_joined(self, engine: FisherEngine, joined: Signals) -> Tensor:
        """The :meth:`term` of N pairs, from signals of all first images and, with delta negated, all second ones."""
        return self._length(joined.layer, [_at_least_float32(part) for part in engine.score(joined, copies=2)])

    def differentiate(
        self, engine: FisherEngine, pair: Pair, weights: Tensor | None, wanted: Wanted
    ) -> tuple[Tensor, list[LayerGradient]]:
        """Analytic: the score is linear in the layer's input, so its gradient is a convolution of delta."""
        layer = pair[0].layer
        difference = [_at_least_float32(part) for part in engine.score(_subtract(*pair), copies=2)]
        gradients = []
        for signals, want, sign in zip(pair, wanted, (2, -2), strict=True):
            if not want:
                gradients.append(LayerGradient(None, None))
                continue
            of_score = [
                part * self.get_buffer(f"{name}_{layer}").square() * (sign / self.parameter_count)
                for name, part in zip(("weight", "bias"), difference, strict=True)
            ]
            gradients.append(LayerGradient(*engine.through_score(signals, *of_score)))
        return self._length(layer, difference), gradients

    def _length(self, layer: int, difference: Sequence[Tensor], start: int = 1) -> Tensor:
        """Whitened squared length over all dimensions from ``start`` on, a mean over the network's parameters."""
        parts = []
        for name, part in zip(("weight", "bias"), difference, strict=True):
            information = self.get_buffer(f"{name}_{layer}").flatten().square()
            # Not a product of matrices, which autocast would take to a shorter type.
            parts.append(part.flatten(start).square().mul_(information.to(part.dtype)).sum(-1))
        return (parts[0] + parts[1]) / self.parameter_count

    def describe_for_map(self, engine: FisherEngine, signals: Signals) -> Description:
        """Scores of the mean energy of each window: ``(N, h, w, C_out, C_in k k)``, ``(N, h, w, C_out)``."""
        index, inputs, delta, _ = signals
        layer = engine.layers[index]
        if isinstance(layer, PooledConv2d):
            columns = F.unfold(mean_of_neighbours(inputs), 3, stride=2)
            side = self.window // (2 * engine.reduction(index))
        else:
            columns = F.unfold(inputs, layer.kernel_size, padding=layer.kernel_size[0] // 2)
            side = self.window // engine.reduction(index)
        columns = _cut(columns.unflatten(2, delta.shape[2:]).to(delta.dtype), side)
        delta = _cut(delta * (engine.training_positions * engine.stride**2 / self.window**2), side)
        return delta @ columns.transpose(-1, -2), delta.sum(-1)

    def map(self, layer: int, first: Description, second: Description) -> Tensor:
        """Sum of squared differences over the layer's parameters, for each window."""
        return self._length(layer, [_difference(a, b) for a, b in zip(first, second, strict=True)], 3)[:, None]

    def map_scale(self, engine: FisherEngine, layer: int) -> int:
        """A place of the map is a window."""
        return self.window


class PositionForm(Form):
    """A form that compares the images at every position, and pools the map of each layer.

    Attributes:
        pooling: The exponent p of the pooling over positions.
    """

    def __init__(
        self,
        engine: FisherEngine,
        statistics: FisherStatistics,
        epsilon: float,
        pooling: float = 2.0,
        blocks: Collection[int] | None = None,
    ) -> None:
        """Compute the whitening factors of the layers that count.

        Args:
            engine: The engine whose stream will be described.
            statistics: Kronecker factors of its layers.
            epsilon: Relative floor of the whitening.
            pooling: The exponent p: values q of a map are pooled over positions as (mean q^p)^(1/p). 1 is the mean; the
                larger p is, the more the places count where the images differ most.
            blocks: Indices of the residual blocks whose layers count; every layer, the head too, if None.
        """
        super().__init__(engine, statistics, epsilon)
        self.pooling = pooling
        self._head = len(engine.layers) - 1
        if blocks is not None:
            self.layers = tuple(layer for layer in self.layers if engine.block_of(layer) in blocks)
            if not self.needs_delta:  # the energy and its gradients come from the end of the network
                self.depth = max(blocks) + 1
        for index in self.layers:
            layer = statistics.layers[index]
            self._hold(f"input_{index}", _whitening(layer.input_factor, epsilon))
            if self.needs_delta:
                self._hold(f"delta_{index}", _whitening(layer.delta_factor, epsilon))

    def term(self, layer: int, first: Description, second: Description, weights: Tensor | None) -> Tensor:
        """The layer's map, pooled over positions."""
        return _pool(self.map(layer, first, second), self.pooling, weights)


class LocalForm(PositionForm):
    """Distance of the scores of the untied weights, whitened by Kronecker factors.

    With weights of its own at every position, the score of a layer at position p is the outer product of delta(p) and
    the inputs under the kernel, a(p + o) for each offset o. Whitened by the Kronecker factors it is
    S^-1/2 delta(p) x A^-1/2 a(p + o), whose norms and inner products factor; no weight gradient is ever formed. The
    map holds |X - Y|^2 / (|X|^2 + |Y|^2): 0 for equal scores, 1 for orthogonal ones, 2 for opposite ones.
    """

    def describe(self, engine: FisherEngine, signals: Signals) -> Description:
        """Whitened inputs ``(N, C_in, H, W)`` and whitened deltas ``(N, C_out, h, w)``."""
        return (
            _whiten(signals.inputs, self.get_buffer(f"input_{signals.layer}")),
            _whiten(signals.delta, self.get_buffer(f"delta_{signals.layer}")),
        )

    def map(self, layer: int, first: Description, second: Description) -> Tensor:
        """Relative squared distance of the untied scores at each position of the layer's input."""
        kernel = 1 if layer == self._head else 3
        of_inputs, inputs0, inputs1 = (
            F.avg_pool2d(energy, kernel, stride=1, padding=kernel // 2)
            for energy in _squared_lengths(first[0], second[0])
        )
        of_deltas, deltas0, deltas1 = (
            F.interpolate(energy, size=of_inputs.shape[2:]) for energy in _squared_lengths(first[1], second[1])
        )
        # |d0 x a0 - d1 x a1|^2 in sums and differences: nothing cancels between images that are nearly equal.
        distance = (
            of_deltas * (2 * (inputs0 + inputs1) - of_inputs)
            + of_inputs * (2 * (deltas0 + deltas1) - of_deltas)
            + 2 * (deltas0 - deltas1) * (inputs0 - inputs1)
        ) / 4
        relative = distance.clamp_min(0) / (deltas0 * inputs0 + deltas1 * inputs1 + _FLOOR)
        return relative / len(self.layers)


class ActivationForm(PositionForm):
    """Distance of whitened and normalised activations: the Kronecker factor of the inputs alone.

    Where both images share delta, whitened local scores differ only in A^-1/2 a. That vector is divided by its norm
    at every position; the map holds the squared difference: 0 for equal directions, 4 for opposite ones.
    """

    needs_delta = False

    def describe(self, engine: FisherEngine, signals: Signals) -> Description:
        """Directions of the whitened inputs, ``(N, C_in, H, W)``."""
        whitened = _whiten(signals.inputs, self.get_buffer(f"input_{signals.layer}"))
        return (whitened * (whitened.square().sum(1, keepdim=True) + _FLOOR).rsqrt(),)

    def map(self, layer: int, first: Description, second: Description) -> Tensor:
        """Squared difference of the directions at each position."""
        return (first[0] - second[0]).square().sum(1, keepdim=True) / len(self.layers)


POSITION_FORMS: dict[FormName, type[PositionForm]] = {"local": LocalForm, "activation": ActivationForm}
FORMS: dict[FormName, type[Form]] = {"fisher": FisherForm, **POSITION_FORMS}


def _subtract(first: Signals, second: Signals) -> Signals:
    """Signals of both batches, one after the other, whose scores add up to the difference."""
    means = None
    if first.means is not None and second.means is not None:
        means = torch.cat([first.means, second.means])
    inputs, delta = torch.cat([first.inputs, second.inputs]), torch.cat([first.delta, -second.delta])
    return Signals(first.layer, inputs, delta, means)


def _whitening(factor: Tensor, epsilon: float) -> Tensor:
    """Inverse root of a factor, scaled so that whitened vectors have a mean squared length of about 1."""
    return inverse_root_matrix(factor, epsilon) / math.sqrt(len(factor))


def _whiten(maps: Tensor, matrix: Tensor) -> Tensor:
    return _at_least_float32(F.conv2d(maps, matrix.to(maps.dtype)[:, :, None, None]))


def _difference(first: Tensor, second: Tensor) -> Tensor:
    return _at_least_float32(first) - _at_least_float32(second)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype.itemsize < 4 else values


def _squared_lengths(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared lengths, over channels, of the difference and of both: ``(N, 1, H, W)`` each."""
    difference, one, other = (vectors.square().sum(1, keepdim=True) for vectors in (first - second, first, second))
    return difference, one, other


def _cut(maps: Tensor, side: int) -> Tensor:
    """Cut maps into square windows, the last ones filled with zeros: ``(N, C, H, W)`` to ``(N, h, w, C, side^2)``."""
    height, width = maps.shape[2:]
    maps = F.pad(maps, (0, -width % side, 0, -height % side))
    windows: Tensor = maps.unflatten(2, (-1, side)).unflatten(4, (-1, side))
    return windows.permute(0, 2, 4, 1, 3, 5).flatten(4)


def _pool(maps: Tensor, exponent: float, weights: Tensor | None) -> Tensor:
    """Mean of order p, the exponent, of a non-negative map over positions: ``(N,)``.

    Each map is first divided by its largest value, so that no power of it underflows. A mean of order p is proportional
    to the map, so that value need not be differentiated.
    """
    positions = (1, 2, 3)
    if weights is not None:
        weights = F.adaptive_avg_pool2d(weights.to(maps.dtype), (maps.shape[2], maps.shape[3]))
        maps = maps * (weights > 0)
    peak = maps.detach().amax(positions, keepdim=True)
    powers = (maps / torch.where(peak > 0, peak, 1)) ** exponent
    if weights is None:
        mean = powers.mean(positions)
    else:
        mean = (powers * weights).sum(positions) / weights.sum(positions).clamp_min(_tiny(maps))
    return peak.flatten() * mean.clamp_min(_tiny(maps)) ** (1 / exponent)


def _tiny(values: Tensor) -> float:
    return torch.finfo(values.dtype).tiny
