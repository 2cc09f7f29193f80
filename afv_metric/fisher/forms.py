"""The three forms of the distance, each a sum of terms over the levels of an image pyramid.

A form *describes* images at one level, one part at a time, and *compares* two descriptions of a part: to one number per
pair. :class:`PositionForm` compares by a *map* over positions, which it pools. One image can be compared with many: the
first dimensions of two descriptions broadcast. Everything is differentiable by autograd.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from afv_metric.fisher.engine import FisherEngine, mean_of_neighbours
from afv_metric.fisher.frozen import FrozenTensors
from afv_metric.fisher.statistics import FisherStatistics, inverse_root, inverse_root_matrix
from afv_metric.images.tensors import is_exporting

__all__ = [
    "FORMS", "ActivationForm", "Description", "FisherForm", "Form", "FormName", "Kind", "LocalForm", "Part",
    "PositionForm", "Term", "compare_maps", "describe_maps", "pool_maps", "whiten_maps",
    "whitening_matrix",
]  # fmt: skip

FormName = Literal["fisher", "local", "activation"]
FORMS: tuple[FormName, ...] = ("fisher", "local", "activation")

Kind = Literal["direction", "texture"]
"""What a term compares."""

Description = tuple[Tensor, ...]

_FLOOR = 1e-3  # of a vector's squared length, in units of its mean over the statistics
_SPREAD_FLOOR = 0.05  # of a channel's variance, in units of its mean square over the statistics
_CELL = 2  # side of the cells of the texture, in positions; its windows are cells and their neighbours
_FEW = 16  # channels, below which the fast kernels of torch are slow


@dataclass(frozen=True)
class Term:
    """One term of the form ``activation``.

    Attributes:
        kind: ``"direction"`` compares the directions of whitened activations at each position, ``"texture"`` the
            variance of each whitened channel in windows of 6x6 positions.
        level: Level of the image pyramid; level k is the image at 1 / 2^k of its size.
        layers: Layers whose inputs are compared, in the order of the forward pass.
        weight: Weight of the term, a mean over its layers, in the distance.
    """

    kind: Kind
    level: int
    layers: tuple[int, ...]
    weight: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))  # JSON has lists for tuples
        if self.kind not in ("direction", "texture"):
            raise ValueError(f'the kind of a term must be "direction" or "texture", got {self.kind!r}')
        if self.level < 0 or not self.layers or min(self.layers) < 0 or not self.weight > 0:
            raise ValueError(f"a term needs a level and layers from 0 on and a positive weight, got {self!r}")

    @classmethod
    def parse(cls, text: str) -> Term:
        """Read a term as :meth:`__str__` writes it: ``KIND:LEVEL:LAYERS:WEIGHT``, layers joined by commas.

        Raises:
            ValueError: If it is anything else.

        Example:
            >>> str(Term.parse("texture:0:3,4:2"))
            'texture:0:3,4:2'
        """
        kind, *numbers = text.split(":")
        try:
            level, layers, weight = numbers
            return cls(kind, int(level), tuple(map(int, layers.split(","))), float(weight))  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"expected KIND:LEVEL:LAYERS:WEIGHT, as direction:1:6:1, got {text!r}") from error

    def __str__(self) -> str:
        return f"{self.kind}:{self.level}:{','.join(map(str, self.layers))}:{self.weight:g}"


class Part(NamedTuple):
    """What descriptions of one layer at one level belong to.

    Attributes:
        term: Index of the term, or of the level in the forms that have a weight per level.
        layer: Index of the layer.
    """

    term: int
    layer: int


class Form:
    """What the forms share.

    Attributes:
        levels: Levels of the image pyramid that are compared, in rising order.
        bound: No distance is larger.
    """

    levels: tuple[int, ...]
    bound: float = math.inf

    def describe(self, level: int, images: Tensor, weights: Tensor | None = None) -> Iterator[tuple[Part, Description]]:
        """Describe images at one level.

        Args:
            level: Level of the pyramid that the images are.
            images: ``(N, 3, H, W)`` in [-1, 1]; H and W multiples of the network's stride.
            weights: Non-negative weights of the pixels, ``(N, 1, H, W)`` or ``(1, 1, H, W)``; equal if None.

        Yields:
            The description of each part.
        """
        raise NotImplementedError

    def compare(self, part: Part, first: Description, second: Description, weights: Tensor | None) -> Tensor:
        """Compare one part of N pairs.

        Args:
            part: The part.
            first: Description of N images, or of one for all.
            second: Description of N images, or of one for all.
            weights: As for :meth:`describe`.

        Returns:
            What the part adds to the distance, ``(N,)``.
        """
        raise NotImplementedError

    def level_of(self, part: Part) -> int:
        """Level of the pyramid that a part belongs to."""
        return part.term

    def describe_for_map(self, level: int, images: Tensor) -> Iterator[tuple[Part, Description]]:
        """Describe images for :meth:`map_on_pixels`."""
        return self.describe(level, images)

    def map_on_pixels(self, part: Part, first: Description, second: Description, size: torch.Size) -> Tensor:
        """Compare one part of N pairs place by place: a map ``(N, 1, H, W)`` of the given size."""
        raise NotImplementedError


class FisherForm(Form):
    """Eq. 5 of the paper: squared difference of the scores, whitened by the diagonal Fisher information.

    At each level the distance is (U_x - U_y)^T I^-1 (U_x - U_y) divided by the number of parameters, with a floor of
    the information: 2 is then about what two independent samples of the generator differ by, for any width.

    Args:
        engine: The engine of the network.
        statistics: Means and variances of its scores.
        epsilon: Relative floor of the whitening, see :func:`~afv_metric.fisher.statistics.inverse_root`.
        levels: Weight of each level, finest first.
    """

    window = 16
    """Side of the windows of the spatial map, in pixels."""

    def __init__(
        self, engine: FisherEngine, statistics: FisherStatistics, epsilon: float, levels: Sequence[float] = (1.0,)
    ) -> None:
        self.engine = engine
        self.levels, self._shares = _counted(levels), tuple(levels)
        self.parameter_count = 0
        tensors: dict[str, Tensor] = {}
        for index, layer in enumerate(statistics.layers):
            self.parameter_count += layer.weight_variance.numel() + layer.bias_variance.numel()
            tensors[f"weight{index}"] = inverse_root(layer.weight_variance, epsilon)
            tensors[f"bias{index}"] = inverse_root(layer.bias_variance, epsilon)
            tensors[f"weight_mean{index}"] = layer.weight_mean
            tensors[f"bias_mean{index}"] = layer.bias_mean
        self._tensors = FrozenTensors(tensors)

    def describe(self, level: int, images: Tensor, weights: Tensor | None = None) -> Iterator[tuple[Part, Description]]:
        """Plain scores of the weights ``(N, C_out, C_in, k, k)`` and of the biases ``(N, C_out)``."""
        for signals in self.engine.signals(images, _of_last_map(self.engine, weights)):
            yield Part(level, signals.layer), self.engine.score(signals)

    def describe_difference(
        self, level: int, first: Tensor, second: Tensor, weights: Tensor | None
    ) -> Iterator[tuple[Part, Description]]:
        """Differences of the scores of N pairs, cheaper than two scores: both batches in one, the second negated."""
        images = torch.cat([first, second])
        factor = torch.cat([images.new_ones(first.shape[0]), -images.new_ones(second.shape[0])])
        if weights is not None and len(weights) > 1:
            weights = torch.cat([weights, weights])
        for signals in self.engine.signals(images, _of_last_map(self.engine, weights), factor=factor):
            yield Part(level, signals.layer), self.engine.score(signals, copies=2)

    def compare(self, part: Part, first: Description, second: Description, weights: Tensor | None) -> Tensor:
        """Whitened sum of squared differences over the layer's parameters; weights have acted on the logit already."""
        return self.length(part, tuple(a - b for a, b in zip(first, second, strict=True)))

    def length(self, part: Part, difference: Description, start: int = 1) -> Tensor:
        """Whitened squared length over all dimensions from ``start`` on, per parameter of the network."""
        tensors = self._tensors.like(difference[0])
        total = torch.zeros((), device=difference[0].device, dtype=difference[0].dtype)
        for name, values in zip(("weight", "bias"), difference, strict=True):
            information = tensors[f"{name}{part.layer}"].flatten().square()
            total = total + values.flatten(start).square() @ information
        return total * (self._shares[part.term] / self.parameter_count)

    def whiten(self, layer: int, score: Description) -> Tensor:
        """Part of the vector of eq. 6: the score of one layer, centred and whitened, ``(N, P_l)``, biases last."""
        tensors = self._tensors.like(score[0])
        parts = [
            ((values - tensors[f"{name}_mean{layer}"]) * tensors[f"{name}{layer}"]).flatten(1)
            for name, values in zip(("weight", "bias"), score, strict=True)
        ]
        return torch.cat(parts, 1)

    def vectors(self, images: Tensor, weights: Tensor | None = None) -> Tensor:
        """Adversarial Fisher Vectors, eq. 6: ``(N, P)``, layers in the order of the forward pass."""
        parts = [self.whiten(part.layer, score) for part, score in self.describe(0, images, weights)]
        return torch.cat(parts[::-1], 1)

    def describe_for_map(self, level: int, images: Tensor) -> Iterator[tuple[Part, Description]]:
        """Scores of the mean logit of each window: ``(N, h, w, C_out, C_in k k)``, ``(N, h, w, C_out)``."""
        engine = self.engine
        for layer, inputs, delta in engine.signals(images):
            kernel = engine.weight_shapes[layer][-1]
            if inputs.shape[2:] == delta.shape[2:]:
                columns = F.unfold(inputs, kernel, padding=kernel // 2)
                side = self.window // engine.reduction(layer)
            else:
                columns = F.unfold(mean_of_neighbours(inputs), kernel, stride=2)
                side = self.window // (2 * engine.reduction(layer))
            columns = _cut(columns.unflatten(2, delta.shape[2:]), side)
            delta = _cut(delta * (engine.training_positions * engine.stride**2 / self.window**2), side)
            yield Part(level, layer), (delta @ columns.transpose(-1, -2), delta.sum(-1))

    def map_on_pixels(self, part: Part, first: Description, second: Description, size: torch.Size) -> Tensor:
        """The distance of the scores of each window."""
        places = self.length(part, tuple(a - b for a, b in zip(first, second, strict=True)), 3)[:, None]
        pixels = F.interpolate(places, scale_factor=self.window, mode="bilinear")
        return pixels[..., : size[0], : size[1]]


class PositionForm(Form):
    """A form that compares images at every position, and pools the map of each part over positions.

    Attributes:
        engine: The engine of the network.
        pooling: The exponent p of the pooling over positions: values q of a map are pooled as (mean q^p)^(1/p). 1 is
            the mean; the larger p is, the more the places count where the images differ most.
    """

    engine: FisherEngine
    pooling: float

    def reach(self, level: int) -> int | None:
        """How far, in pixels of a level, the places of its maps see, rounded up; None if too far to be worth a cut."""
        return None

    def compare(self, part: Part, first: Description, second: Description, weights: Tensor | None) -> Tensor:
        """The part's map, pooled over positions."""
        return self.pool(part, self.map(part, first, second), weights)

    def pool(self, part: Part, maps: Tensor, weights: Tensor | None) -> Tensor:
        """Pool a map of :meth:`map` over positions: ``(N, 1, h, w)`` to ``(N,)``."""
        if weights is not None:
            weights = self._of_places(part, weights)
        return pool_maps(maps, self.pooling, weights)

    def map(self, part: Part, first: Description, second: Description) -> Tensor:
        """Compare one part of N pairs place by place: ``(N, 1, h, w)``."""
        raise NotImplementedError

    def step(self, part: Part) -> int:
        """Pixels of the level's image from one place of :meth:`map` to the next."""
        return self.engine.reduction(part.layer)

    def map_on_pixels(self, part: Part, first: Description, second: Description, size: torch.Size) -> Tensor:
        """The map, enlarged to pixels."""
        return F.interpolate(self.map(part, first, second), size=size, mode="bilinear")

    def _of_places(self, part: Part, weights: Tensor) -> Tensor:
        return F.avg_pool2d(weights, self.step(part))


class LocalForm(PositionForm):
    """Distance of the scores of the untied weights, whitened by Kronecker factors.

    With weights of its own at every position, the score of a layer at position p is the outer product of delta(p) and
    the inputs under the kernel, a(p + o) for each offset o. Whitened by the Kronecker factors it is
    S^-1/2 delta(p) x A^-1/2 a(p + o), whose norms and inner products factor; no weight gradient is ever formed. The
    map holds |X - Y|^2 / (|X|^2 + |Y|^2): 0 for equal scores, 1 for orthogonal ones, 2 for opposite ones.

    Args:
        engine: The engine of the network.
        statistics: Kronecker factors of its layers.
        epsilon: Relative floor of the whitening.
        levels: Weight of each level, finest first.
        pooling: Exponent of the pooling over positions.
        blocks: Indices of the residual blocks whose layers count; all layers, the head too, if None.
    """

    def __init__(
        self,
        engine: FisherEngine,
        statistics: FisherStatistics,
        epsilon: float,
        levels: Sequence[float] = (1.0,),
        pooling: float = 2.0,
        blocks: Collection[int] | None = None,
    ) -> None:
        self.engine, self.pooling = engine, pooling
        self.levels, self._shares = _counted(levels), tuple(levels)
        self.bound = 2 * sum(levels)
        self.layers = [layer for layer in range(engine.head + 1) if blocks is None or engine.block_of(layer) in blocks]
        tensors = {}
        for layer in self.layers:
            tensors[f"input{layer}"] = whitening_matrix(statistics.layers[layer].input_factor, epsilon)
            tensors[f"delta{layer}"] = whitening_matrix(statistics.layers[layer].delta_factor, epsilon)
        self._tensors = FrozenTensors(tensors)

    def describe(self, level: int, images: Tensor, weights: Tensor | None = None) -> Iterator[tuple[Part, Description]]:
        """Whitened inputs ``(N, C_in, H, W)`` and whitened deltas ``(N, C_out, h, w)``."""
        weights = _of_last_map(self.engine, weights)
        tensors = self._tensors.like(images)
        seen, delta = None, images
        for signals in self.engine.signals(images, weights, weighted=False):
            if signals.layer in self.layers:
                if signals.delta is not seen:  # the second convolution and the shortcut of a block share one
                    seen, delta = signals.delta, whiten_maps(signals.delta, tensors[f"delta{signals.layer}"])
                inputs = whiten_maps(signals.inputs, tensors[f"input{signals.layer}"])
                yield Part(level, signals.layer), (inputs, delta)
            if signals.layer == self.layers[0]:
                return  # before the stream goes on to what nobody needs

    def map(self, part: Part, first: Description, second: Description) -> Tensor:
        """Relative squared distance of the untied scores at each position of the layer's input."""
        kernel = 1 if part.layer == self.engine.head else 3
        of_inputs, inputs0, inputs1 = (
            F.avg_pool2d(squares, kernel, stride=1, padding=kernel // 2)
            for squares in _squared_lengths(first[0], second[0])
        )
        of_deltas, deltas0, deltas1 = (
            F.interpolate(squares, size=of_inputs.shape[2:]) for squares in _squared_lengths(first[1], second[1])
        )
        # |d0 x a0 - d1 x a1|^2 in sums and differences: nothing cancels between images that are nearly equal.
        distance = (
            of_deltas * (2 * (inputs0 + inputs1) - of_inputs)
            + of_inputs * (2 * (deltas0 + deltas1) - of_deltas)
            + 2 * (deltas0 - deltas1) * (inputs0 - inputs1)
        ) / 4
        relative = distance.clamp_min(0) / (deltas0 * inputs0 + deltas1 * inputs1 + _FLOOR)
        return relative * (self._shares[part.term] / len(self.layers))


class ActivationForm(PositionForm):
    """Distance of whitened activations: of their directions at each position, and of their texture.

    Where both images share delta, whitened local scores differ only in A^-1/2 a. A term of direction divides that
    vector by its norm at every position; its map holds the squared difference: 0 for equal directions, 4 for opposite
    ones. A term of texture takes the variance v of each channel of A^-1/2 a in windows of 6x6 positions, 2 apart, whose
    weight falls from the middle to the edges as 2, 1; its map holds the mean over channels of
    ((v_x - v_y) / (v_x + v_y))^2: 0 for equal textures, 1 where only one image has any. It does not ask where in a
    window something is, and so hardly minds a shift.

    Args:
        engine: The engine of the network.
        statistics: Kronecker factors of its layers.
        epsilon: Relative floor of the whitening.
        terms: The terms of the distance.
        pooling: Exponent of the pooling over positions.
    """

    def __init__(
        self,
        engine: FisherEngine,
        statistics: FisherStatistics,
        epsilon: float,
        terms: Sequence[Term],
        pooling: float = 2.0,
    ) -> None:
        self.engine, self.terms, self.pooling = engine, tuple(terms), pooling
        layers = sorted({layer for term in terms for layer in term.layers})
        if layers[-1] > engine.head:
            raise ValueError(f"the network has layers 0 to {engine.head}, and a term names layer {layers[-1]}")
        self.levels = tuple(sorted({term.level for term in terms}))
        self.bound = sum(term.weight * (4 if term.kind == "direction" else 1) for term in terms)
        self._tensors = FrozenTensors(
            {f"input{layer}": whitening_matrix(statistics.layers[layer].input_factor, epsilon) for layer in layers}
        )

    def describe(self, level: int, images: Tensor, weights: Tensor | None = None) -> Iterator[tuple[Part, Description]]:
        """Whitened inputs ``(N, C_in, h, w)``, whose directions count, or their variances in windows."""
        terms = [(index, term) for index, term in enumerate(self.terms) if term.level == level]
        last = max(layer for _, term in terms for layer in term.layers)
        tensors = self._tensors.like(images)
        for layer, inputs in self.engine.inputs(images):
            wanted = [(index, term.kind) for index, term in terms if layer in term.layers]
            if wanted:
                whitened = whiten_maps(inputs, tensors[f"input{layer}"])
                for index, kind in wanted:
                    yield Part(index, layer), (describe_maps(kind, whitened),)
            if layer == last:
                return  # before the forward pass goes on to what nobody needs

    def map(self, part: Part, first: Description, second: Description) -> Tensor:
        """Squared difference of directions, or relative squared difference of variances, at each place."""
        term = self.terms[part.term]
        return compare_maps(term.kind, first[0], second[0]) * (term.weight / len(term.layers))

    def reach(self, level: int) -> int:
        """How far, in pixels of a level, the places of its maps see, rounded up to a multiple of 16."""
        farthest = 0
        for term in (term for term in self.terms if term.level == level):
            for layer in term.layers:
                # Two positions of its input bound the reach of a convolution, also of one that pools.
                before = [3 * block + part for block in range(self.engine.block_of(layer)) for part in (0, 1)]
                before += [layer - 1] if layer % 3 == 1 else []
                window = 2 * _CELL * self.engine.reduction(layer) if term.kind == "texture" else 0
                farthest = max(farthest, window + sum(2 * self.engine.reduction(one) for one in before))
        return 16 * math.ceil(farthest / 16)

    def level_of(self, part: Part) -> int:
        """Level of the part's term."""
        return self.terms[part.term].level

    def step(self, part: Part) -> int:
        """Pixels of the level's image from one place of :meth:`map` to the next."""
        cell = 1 if self.terms[part.term].kind == "direction" else _CELL
        return cell * self.engine.reduction(part.layer)


def describe_maps(kind: Kind, whitened: Tensor) -> Tensor:
    """What a term compares of whitened maps ``(N, C, H, W)``.

    Returns:
        The vectors themselves, whose directions count, or the variance of each channel in the window round each cell of
        2x2 positions, ``(N, C, H / 2, W / 2)``.
    """
    if kind == "direction":
        return whitened
    means, squares = (_window_mean(values) for values in (whitened, whitened.square()))
    return (squares - means.square()).clamp_min(0)


def compare_maps(kind: Kind, first: Tensor, second: Tensor) -> Tensor:
    """Squared difference of directions, or relative squared difference of variances, at each place ``(N, 1, h, w)``."""
    if kind == "direction":
        # |x / a - y / b|^2, by the norms a and b with their floor, without maps of the quotients.
        a, b = ((_squared_length(vectors) + _FLOOR).sqrt() for vectors in (first, second))
        product = a * b
        across = _squared_length(first - second) - (a - b).square() * (1 + _FLOOR / product)
        return across.clamp_min(0) / product
    floor = _SPREAD_FLOOR / first.shape[1]
    return ((first - second).square() / ((first + second).square() + floor**2)).mean(1, keepdim=True)


def pool_maps(maps: Tensor, exponent: float, weights: Tensor | None = None) -> Tensor:
    """Mean of order p, the exponent, of a non-negative map over positions: ``(N,)``.

    Each map is first divided by its largest value, so that no power of it underflows. A mean of order p is proportional
    to the map, so that value need not be differentiated.
    """
    positions = (1, 2, 3)
    if weights is not None:
        maps = maps * (weights > 0)
    peak = maps.detach().amax(positions, keepdim=True)
    powers = (maps / torch.where(peak > 0, peak, 1)) ** exponent
    if weights is None:
        mean = powers.mean(positions)
    else:
        mean = (powers * weights).sum(positions) / weights.sum(positions).clamp_min(_tiny(maps))
    return peak.flatten() * mean.clamp_min(_tiny(maps)) ** (1 / exponent)


def _of_last_map(engine: FisherEngine, weights: Tensor | None) -> Tensor | None:
    """Weights of the positions of the last map, from those of the pixels."""
    return None if weights is None else F.avg_pool2d(weights, engine.stride)


def _counted(levels: Sequence[float]) -> tuple[int, ...]:
    return tuple(level for level, share in enumerate(levels) if share)


def whitening_matrix(factor: Tensor, epsilon: float) -> Tensor:
    """Inverse root of a factor, scaled so that whitened vectors have a mean squared length of about 1."""
    return inverse_root_matrix(factor, epsilon) / math.sqrt(len(factor))


def whiten_maps(maps: Tensor, matrix: Tensor) -> Tensor:
    """Multiply the vector at each position of maps ``(N, C, H, W)`` by a matrix."""
    if is_exporting() or len(matrix) < _FEW:
        return F.conv2d(maps, matrix[:, :, None, None])
    # As a product of matrices: convolutions of 1x1 can take a slow path.
    return F.linear(maps.movedim(1, -1), matrix).movedim(-1, 1)


def _window_mean(values: Tensor) -> Tensor:
    if is_exporting() or values.shape[1] >= _FEW:
        cells = F.avg_pool2d(values, _CELL)
    else:
        rows = torch.lerp(values[..., ::_CELL, :], values[..., 1::_CELL, :], 0.5)
        cells = torch.lerp(rows[..., ::_CELL], rows[..., 1::_CELL], 0.5)
    # Made on the device: a copy from the host would wait for it.
    profile = (2 - torch.arange(-1, 2, dtype=cells.dtype, device=cells.device).abs()) / 4
    kernel = (profile[:, None] * profile).expand(cells.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(cells, (1, 1, 1, 1), mode="replicate"), kernel, groups=cells.shape[1])


def _squared_lengths(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared lengths, over channels, of the difference and of both: ``(N, 1, H, W)`` each."""
    difference, one, other = (_squared_length(vectors) for vectors in (first - second, first, second))
    return difference, one, other


def _squared_length(vectors: Tensor) -> Tensor:
    # A norm is a little faster, but its gradient takes three passes over the vectors where this takes one.
    squares: Tensor = torch.linalg.vecdot(vectors, vectors, dim=1)
    return squares[:, None]


def _cut(maps: Tensor, side: int) -> Tensor:
    """Cut maps into square windows, the last ones filled with zeros: ``(N, C, H, W)`` to ``(N, h, w, C, side^2)``."""
    height, width = maps.shape[2:]
    maps = F.pad(maps, (0, -width % side, 0, -height % side))
    windows: Tensor = maps.unflatten(2, (-1, side)).unflatten(4, (-1, side))
    return windows.permute(0, 2, 4, 1, 3, 5).flatten(4)


def _tiny(values: Tensor) -> float:
    return torch.finfo(values.dtype).tiny
