"""The Fisher engine: what every layer of a discriminator saw (a) and was told (delta), for each image.

With plain weights the discriminator is piecewise linear: convolutions, (leaky) ReLUs and a mean. For the convolution
of layer l, with input a_l and energy gradient delta_l = dE/d(output of l), the Fisher score of one image is

    dE/dW_l = sum over positions p of delta_l(p) a_l(p)^T,      dE/db_l = sum over positions p of delta_l(p).

:class:`FisherEngine` computes a and delta by an explicit forward and backward pass, without hooks and without
autograd; everything the library measures is a function of that one stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from afv_metric.networks import Discriminator, PooledConv2d, sum_of_shifts

__all__ = ["Activations", "Energy", "FisherEngine", "Signals", "mean_of_neighbours"]

Energy = Literal["logit", "sigmoid"]


class BlockActivations(NamedTuple):
    """What a forward pass leaves behind in one residual block.

    Attributes:
        maps: Input of the block.
        hidden: Input of its second convolution.
        means: :func:`mean_of_neighbours` of both, where the layers that see them pool.
    """

    maps: Tensor
    hidden: Tensor
    means: tuple[Tensor | None, Tensor | None]


class EndActivations(NamedTuple):
    """What a forward pass leaves behind at the end of the network, where the energy is.

    Attributes:
        maps: The last map before its activation, ``(N, C, h, w)``.
        weights: Weight of each position of the last map in the energy, with mean 1 an image, ``(N, 1, h, w)``.
        slope: dE/ds of each image, ``(N,)``, s being the mean logit; 1 where the energy is the logit itself.
        curvature: The derivative of log(dE/ds) with respect to s, ``(N,)``; 0 where the energy is the logit.
    """

    maps: Tensor
    weights: Tensor
    slope: Tensor
    curvature: Tensor


class Activations(NamedTuple):
    """What a forward pass leaves behind for one chunk of N images.

    Attributes:
        blocks: What it leaves in each residual block that it entered.
        end: What it leaves at the end of the network; None if it stopped before.
    """

    blocks: list[BlockActivations]
    end: EndActivations | None


class Signals(NamedTuple):
    """What one layer saw and was told, for one chunk of N images.

    Attributes:
        layer: Index of the layer in the order of the forward pass.
        inputs: a, ``(N, C_in, H, W)``.
        delta: Energy gradient at the output, ``(N, C_out, h, w)``; half the size of the input where the layer pools.
            It is scaled to the number of positions of a training image, and so does not depend on the image's area.
        means: :func:`mean_of_neighbours` of the inputs where the layer pools, if it is at hand.
    """

    layer: int
    inputs: Tensor
    delta: Tensor
    means: Tensor | None = None


def mean_of_neighbours(maps: Tensor) -> Tensor:
    """Mean of every 2x2 neighbourhood of zero-padded maps: ``(N, C, H, W)`` to ``(N, C, H + 1, W + 1)``.

    Mean pooling and convolution commute: a 3x3 convolution followed by 2x2 mean pooling is a 3x3 convolution of
    stride 2 over these means. The layer's score then costs 9 products a pooled position and needs no folding.
    """
    return _mean_of_inner_neighbours(F.pad(maps, (1, 1, 1, 1)))


class FisherEngine(nn.Module):
    """Explicit forward and backward passes over a baked discriminator.

    The weights are held as buffers that no ``state_dict`` lists: an optimizer of the surrounding model never sees
    them, and its checkpoints do not carry them.

    Args:
        discriminator: A :meth:`~afv_metric.networks.Discriminator.baked` discriminator; it is taken over.
        energy: ``"logit"``, or ``"sigmoid"`` for a network trained with a sigmoid on its scalar.

    Raises:
        ValueError: If the discriminator is not baked, or the energy unknown.

    Example:
        >>> from afv_metric.networks import DiscriminatorConfig
        >>> engine = FisherEngine(Discriminator(DiscriminatorConfig(width=4)).baked())
        >>> seen = engine(torch.zeros(2, 3, 32, 32))
        >>> [tuple(score.shape) for score in engine.score(next(engine.signals(seen)))]
        [(2, 1, 4, 1, 1), (2, 1)]
    """

    def __init__(self, discriminator: Discriminator, energy: Energy = "logit") -> None:
        super().__init__()
        if discriminator.config != discriminator.config.plain():
            raise ValueError("the engine needs plain weights: give it discriminator.baked()")
        if energy not in ("logit", "sigmoid"):
            raise ValueError(f'energy must be "logit" or "sigmoid", got {energy!r}')
        self.discriminator = discriminator.eval()
        self.energy: Energy = energy
        self.slope = discriminator.config.slope
        self.stride = discriminator.stride
        self.training_positions = (discriminator.config.image_size // self.stride) ** 2
        self.layers = list(discriminator.convolutions())
        self.blocks = discriminator.residual_blocks()
        for layer in self.layers:
            for name, parameter in list(layer.named_parameters()):
                delattr(layer, name)
                layer.register_buffer(name, parameter.detach().clone(), persistent=False)
            layer.register_buffer("backward_kernel", _backward_kernel(layer), persistent=False)

    def block_of(self, layer: int) -> int:
        """Index of the residual block of a layer; for the head, the number of blocks."""
        return layer // 3

    def reduction(self, layer: int) -> int:
        """Side, in pixels of the image, of one position of a layer's input."""
        block, part = divmod(layer, 3)
        halvings = sum(block.pools > 0 for block in self.blocks[:block])
        return int(2 ** (halvings + (part == 1 and self.blocks[block].pools == 1)))

    def forward(self, images: Tensor, weights: Tensor | None = None, depth: int | None = None) -> Activations:
        """Forward pass.

        Args:
            images: ``(N, 3, H, W)`` in [-1, 1]; H and W multiples of the network's stride.
            weights: Non-negative weights of the positions of the last map, ``(N, 1, h, w)``; all 1 if None.
            depth: Number of residual blocks whose layers' inputs are wanted; None goes to the end of the network. What
                comes back is then for :meth:`inputs` and :meth:`pull_back`: there is no energy for :meth:`signals`.
        """
        blocks: list[BlockActivations] = []
        maps = images
        for block in self.blocks:
            hidden = maps if block.first else F.leaky_relu(maps, self.slope)
            hidden = F.leaky_relu(_convolve(block.conv1, hidden), self.slope, inplace=True)
            if len(blocks) + 1 == depth:
                return Activations([*blocks, BlockActivations(maps, hidden, (None, None))], None)
            means = (
                mean_of_neighbours(maps) if block.pools else None,
                mean_of_neighbours(hidden) if block.pools == 2 else None,
            )
            blocks.append(BlockActivations(maps, hidden, means))
            maps = _convolve(block.conv2, hidden, means[1]) + _convolve(block.shortcut, maps, means[0])
        if weights is None:
            weights = maps.new_ones(1, 1, *maps.shape[2:]).expand(len(maps), -1, -1, -1)
        else:
            tiny = torch.finfo(weights.dtype).tiny
            weights = weights / weights.mean((1, 2, 3), keepdim=True).clamp_min(tiny)
        if self.energy == "logit":
            slope, curvature = maps.new_ones(len(maps)), maps.new_zeros(len(maps))
        else:
            logits = self.discriminator.head(F.leaky_relu(maps, self.slope))
            probability = (logits * weights).mean((1, 2, 3)).sigmoid()
            slope, curvature = probability * (1 - probability), 1 - 2 * probability
        return Activations(blocks, EndActivations(maps, weights, slope, curvature))

    def signals(self, seen: Activations, *, weighted: bool = False) -> Iterator[Signals]:
        """Backward pass of the energy, one layer at a time from the head to the first convolution.

        Args:
            seen: What :meth:`forward` returned.
            weighted: Whether the positions count in the energy by their weights, or all the same.

        Raises:
            ValueError: If the forward pass stopped before the end of the network.
        """
        if seen.end is None:
            raise ValueError("there is no energy: the forward pass was given a depth; leave that out")
        layer = len(self.layers) - 1
        head, end = self.discriminator.head, seen.end
        weights = end.weights if weighted else torch.ones_like(end.weights)
        delta = (weights / self.training_positions * end.slope[:, None, None, None]).to(end.maps.dtype)
        yield Signals(layer, F.leaky_relu(end.maps, self.slope), delta)
        delta = self._through_activation(delta * head.weight, end.maps)
        for block, (maps, hidden, means) in zip(reversed(self.blocks), reversed(seen.blocks), strict=True):
            layer -= 3
            yield Signals(layer + 2, maps, delta, means[0])
            yield Signals(layer + 1, hidden, delta, means[1])
            inner = self._through_activation(_input_gradient(block.conv2, delta), hidden)
            yield Signals(layer, maps if block.first else F.leaky_relu(maps, self.slope), inner)
            if not block.first:
                delta = _input_gradient(block.shortcut, delta) + self._through_activation(
                    _input_gradient(block.conv1, inner), maps
                )

    def inputs(self, seen: Activations) -> Iterator[Signals]:
        """The layers' inputs alone, in the same order, for what needs no delta (given as an empty tensor)."""
        layer = 3 * len(seen.blocks)
        nothing = seen.blocks[0].maps.new_empty(0)
        if seen.end is not None:
            yield Signals(layer, F.leaky_relu(seen.end.maps, self.slope), nothing)
        for maps, hidden, _ in reversed(seen.blocks):
            layer -= 3
            block = self.blocks[self.block_of(layer)]
            yield Signals(layer + 2, maps, nothing)
            yield Signals(layer + 1, hidden, nothing)
            yield Signals(layer, maps if block.first else F.leaky_relu(maps, self.slope), nothing)

    def score(self, signals: Signals, copies: int = 1) -> tuple[Tensor, Tensor]:
        """Fisher score of one layer for each image: gradients of the mean energy, before centring.

        Args:
            signals: One element of :meth:`signals`.
            copies: Number of equal blocks of the batch whose scores are added, within the same sum over positions. With
                the second of two blocks' deltas negated this gives differences, cheaper than two scores do.

        Returns:
            dE/dW ``(N / copies, C_out, C_in, k, k)`` and dE/db ``(N / copies, C_out)``.
        """
        layer = self.layers[signals.layer]
        pooled = isinstance(layer, PooledConv2d)
        inputs, delta = self._for_score(signals)
        count = len(delta) // copies
        # One group an image: images become channels, and the weight gradients of all of them one call, which sums over
        # what is left of the batch.
        weight: Tensor = conv2d_weight(
            inputs.reshape(copies, -1, *inputs.shape[2:]),
            (count * layer.out_channels, layer.in_channels, *layer.kernel_size),
            delta.reshape(copies, -1, *delta.shape[2:]),
            stride=2 if pooled else 1,
            padding=0 if pooled else layer.padding,
            groups=count,
        )
        bias = delta.sum((2, 3)).unflatten(0, (copies, count)).sum(0)
        return weight.unflatten(0, (count, layer.out_channels)), bias

    def through_score(self, signals: Signals, of_weight: Tensor, of_bias: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gradients of an objective with respect to what :meth:`score` was computed from.

        Args:
            signals: One element of :meth:`signals`.
            of_weight: Gradient with respect to dE/dW, ``(N, C_out, C_in, k, k)``.
            of_bias: Gradient with respect to dE/db, ``(N, C_out)``.

        Returns:
            The gradient with respect to the layer's inputs ``(N, C_in, H, W)``, and with respect to the logarithm of
            dE/ds ``(N,)``, which scales delta; None for the logit energy, where dE/ds is constant.
        """
        layer = self.layers[signals.layer]
        inputs, delta = self._for_score(signals)
        count = len(delta)
        pooled = isinstance(layer, PooledConv2d)
        # The adjoint of the weight gradient: delta spread by one kernel an image.
        spread = F.conv_transpose2d(
            delta.reshape(1, -1, *delta.shape[2:]),
            of_weight.flatten(0, 1).to(delta.dtype),
            stride=2 if pooled else 1,
            padding=0 if pooled else layer.kernel_size[0] // 2,
            groups=count,
        ).view_as(inputs)
        of_slope = None
        if self.energy == "sigmoid":
            # The score is linear in delta and, but for the bias, in the inputs: <gradient, score> is either way.
            of_slope = (spread * inputs).sum((1, 2, 3)) + (of_bias * delta.sum((2, 3))).sum(1)
        return (_mean_of_inner_neighbours(spread) if pooled else spread), of_slope

    def _for_score(self, signals: Signals) -> tuple[Tensor, Tensor]:
        """Inputs and delta, such that a convolution's weight gradient is the score of the mean energy."""
        inputs, delta = signals.inputs, signals.delta
        # delta was scaled to the positions of a training image; the score is that of the mean over this image's.
        positions = inputs.shape[2] * inputs.shape[3] * self.reduction(signals.layer) ** 2 / self.stride**2
        if positions != self.training_positions:
            delta = delta * (self.training_positions / positions)
        if isinstance(self.layers[signals.layer], PooledConv2d):
            inputs = mean_of_neighbours(inputs) if signals.means is None else signals.means
        return inputs.to(delta.dtype), delta

    def pull_back(self, seen: Activations, of_inputs: Mapping[int, Tensor], of_slope: Tensor | None = None) -> Tensor:
        """One ordinary backward pass that carries gradients of the layers' inputs back to the images.

        Args:
            seen: What :meth:`forward` returned.
            of_inputs: Gradient of an objective with respect to the inputs of some layers, by their indices.
            of_slope: Its gradient with respect to the logarithm of dE/ds, ``(N,)``; matters for the sigmoid energy.

        Returns:
            Its gradient with respect to the images, ``(N, 3, H, W)``.
        """
        layer = 3 * len(seen.blocks)
        gradient: Tensor | None = None
        if seen.end is not None:
            maps, weights, _, curvature = seen.end
            if of_slope is not None:
                of_logits = (of_slope * curvature)[:, None, None, None] * weights / (maps.shape[2] * maps.shape[3])
                gradient = of_logits * self.discriminator.head.weight
            gradient = _sum(gradient, of_inputs.get(layer))
            gradient = None if gradient is None else self._through_activation(gradient, maps)
        for maps, hidden, _ in reversed(seen.blocks):
            layer -= 3
            block = self.blocks[self.block_of(layer)]
            inner = _sum(None if gradient is None else _input_gradient(block.conv2, gradient), of_inputs.get(layer + 1))
            if inner is not None:
                inner = _input_gradient(block.conv1, self._through_activation(inner, hidden))
            inner = _sum(inner, of_inputs.get(layer))
            if inner is not None and not block.first:
                inner = self._through_activation(inner, maps)
            of_shortcut = None if gradient is None else _input_gradient(block.shortcut, gradient)
            gradient = _sum(_sum(of_shortcut, inner), of_inputs.get(layer + 2))
        return torch.zeros_like(seen.blocks[0].maps) if gradient is None else gradient

    def _through_activation(self, gradient: Tensor, sign: Tensor) -> Tensor:
        """Gradient before a leaky ReLU, from the one behind it and anything with the sign of the input."""
        through: Tensor = torch.ops.aten.leaky_relu_backward(gradient, sign, self.slope, False)
        return through


def _backward_kernel(layer: nn.Conv2d) -> Tensor:
    """Kernel of a layer's input gradient, computed once as the weights are frozen."""
    if isinstance(layer, PooledConv2d):
        return sum_of_shifts(layer.weight) / 4
    # The gradient of a convolution of stride 1 is one with the flipped kernel, which is faster than a transposed one.
    return layer.weight.flip(2, 3).transpose(0, 1).contiguous()


def _convolve(layer: nn.Conv2d, maps: Tensor, means: Tensor | None = None) -> Tensor:
    if isinstance(layer, PooledConv2d):
        means = mean_of_neighbours(maps) if means is None else means
        return F.conv2d(means, layer.weight, layer.bias, stride=2)
    return F.conv2d(maps, layer.weight, layer.bias, padding=layer.kernel_size[0] // 2)


def _input_gradient(layer: nn.Conv2d, gradient: Tensor) -> Tensor:
    """Gradient at a layer's input from the one at its output."""
    if isinstance(layer, PooledConv2d):
        return F.conv_transpose2d(gradient, layer.get_buffer("backward_kernel"), stride=2, padding=1)
    return F.conv2d(gradient, layer.get_buffer("backward_kernel"), padding=layer.kernel_size[0] // 2)


def _mean_of_inner_neighbours(maps: Tensor) -> Tensor:
    """Mean of every 2x2 neighbourhood inside the maps, by slices: pooling of stride 1 has no fast kernel on the CPU."""
    rows = torch.lerp(maps[..., :-1, :], maps[..., 1:, :], 0.5)
    return torch.lerp(rows[..., :-1], rows[..., 1:], 0.5)


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Sum of two gradients, of which None is zero."""
    if first is None or second is None:
        return second if first is None else first
    return first + second
