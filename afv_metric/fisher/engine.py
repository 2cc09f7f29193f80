"""The Fisher engine: per-sample inputs `a` and logit gradients `delta` of every convolution.

With plain weights the discriminator is piecewise linear: convolutions, (leaky) ReLUs and a mean. For the convolution
of layer l, with input a_l and gradient delta_l = dD/d(output of l), the Fisher score of one image is

    dD/dW_l = sum over positions p of delta_l(p) a_l(p)^T,      dD/db_l = sum over positions p of delta_l(p).

:class:`FisherEngine` computes a and delta by explicit passes over frozen weights; everything the library measures is a
function of that one stream. a is differentiable by autograd; delta is constant almost everywhere, but for the slope of
a sigmoid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from afv_metric.fisher.frozen import FrozenTensors
from afv_metric.networks import Discriminator, PooledConv2d, sum_of_shifts

__all__ = ["FisherEngine", "Output", "Signals", "layer_inputs", "mean_of_neighbours"]

Output = Literal["logit", "sigmoid"]


class Signals(NamedTuple):
    """What the score of one layer is made of, for N images.

    Attributes:
        layer: Index of the layer in the order of the forward pass.
        inputs: a, ``(N, C_in, H, W)``.
        delta: Gradient of the output at the layer's output, ``(N, C_out, h, w)``; half the size where the layer pools.
            It is scaled to the number of positions of a training image, and so does not depend on the image's area.
    """

    layer: int
    inputs: Tensor
    delta: Tensor


class FisherEngine:
    """Explicit forward and backward passes over the frozen weights of a discriminator.

    Computes on the device and in the floating-point type of the images it is given.

    Args:
        discriminator: A :meth:`~afv_metric.networks.Discriminator.baked` discriminator; its weights are copied.
        output: What the score is the gradient of: ``"logit"``, or ``"sigmoid"`` for a network trained with a sigmoid
            on its logit.

    Attributes:
        output: As given.
        slope: Negative slope of the leaky ReLU.
        stride: Pixels of the image per position of the last map, along each axis.
        training_positions: Positions of the last map of a training image.
        weight_shapes: Shape of the weight of each layer: three layers per residual block (first and second
            convolution, shortcut), then the head.

    Raises:
        ValueError: If the discriminator is not baked, or the output unknown.

    Example:
        >>> from afv_metric.networks import DiscriminatorConfig
        >>> engine = FisherEngine(Discriminator(DiscriminatorConfig(width=4)).baked())
        >>> [tuple(score.shape) for score in engine.score(next(engine.signals(torch.zeros(2, 3, 32, 32))))]
        [(2, 1, 4, 1, 1), (2, 1)]
    """

    def __init__(self, discriminator: Discriminator, output: Output = "logit") -> None:
        config = discriminator.config
        if config != config.plain():
            raise ValueError("the engine needs plain weights: give it discriminator.baked()")
        if output not in ("logit", "sigmoid"):
            raise ValueError(f'output must be "logit" or "sigmoid", got {output!r}')
        self.output: Output = output
        self.slope = config.slope
        self.stride = discriminator.stride
        self.training_positions = (config.image_size // self.stride) ** 2
        layers = list(discriminator.convolutions())
        self.weight_shapes = [layer.weight.shape for layer in layers]
        self._pools = [block.pools for block in discriminator.residual_blocks()]
        self._pooled = [isinstance(layer, PooledConv2d) for layer in layers]
        tensors = {}
        for index, layer in enumerate(layers):
            weight, bias = layer.weight.detach(), layer.bias
            assert bias is not None
            tensors[f"bias{index}"] = bias
            # Pooling is folded into a kernel of stride 2. The gradient of a convolution of stride 1 is one with the
            # flipped kernel, which is faster than a transposed one.
            tensors[f"kernel{index}"] = sum_of_shifts(weight) / 4 if self._pooled[index] else weight
            if not self._pooled[index]:
                tensors[f"flipped{index}"] = weight.flip(2, 3).transpose(0, 1)
        self._tensors = FrozenTensors(tensors)

    @property
    def head(self) -> int:
        """Index of the last layer."""
        return len(self.weight_shapes) - 1

    def block_of(self, layer: int) -> int:
        """Index of the residual block of a layer; for the head, the number of blocks."""
        return layer // 3

    def reduction(self, layer: int) -> int:
        """Side, in pixels of the image, of one position of a layer's input."""
        block, part = divmod(layer, 3)
        halvings = sum(pools > 0 for pools in self._pools[:block])
        return int(2 ** (halvings + (part == 1 and self._pools[block] == 1)))

    def inputs(self, images: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Forward pass, one layer at a time and no further than the caller goes on.

        Args:
            images: ``(N, 3, H, W)`` in [-1, 1]; H and W multiples of :attr:`stride`.

        Yields:
            The index of each layer, in the order of the forward pass, and its input ``(N, C_in, h, w)``.
        """
        yield from enumerate(layer_inputs(self._convolve, len(self._pools), self.slope, _channels_last(images)))

    def logit(self, images: Tensor) -> Tensor:
        """Logit D(x) of each image, the mean over positions: ``(N, 3, H, W)`` to ``(N,)``."""
        *_, (_, maps) = self.inputs(images)
        return self._convolve(self.head, maps).mean((1, 2, 3))

    def signals(
        self, images: Tensor, weights: Tensor | None = None, *, weighted: bool = True, factor: Tensor | None = None
    ) -> Iterator[Signals]:
        """Forward pass, and backward pass of the output, one layer at a time from the head to the first convolution.

        Args:
            images: ``(N, 3, H, W)`` in [-1, 1]; H and W multiples of :attr:`stride`.
            weights: Non-negative weights of the positions of the last map in the logit, ``(N, 1, h, w)`` or
                ``(1, 1, h, w)``; equal if None.
            weighted: Whether delta has these weights too, or all positions alike (they then act on the slope alone).
            factor: Factor on the output of each image, ``(N,)``; 1 if None.

        Yields:
            Signals of each layer.
        """
        seen = dict(self.inputs(images))
        tensors = self._tensors.like(images)
        maps = seen.pop(self.head)
        ones = maps.new_ones(maps.shape[0], 1, *maps.shape[2:])
        if weights is None:
            weights = ones
        else:
            tiny = torch.finfo(weights.dtype).tiny
            weights = ones * (weights / weights.mean((1, 2, 3), keepdim=True).clamp_min(tiny))
        delta = (weights if weighted else ones) / self.training_positions
        if self.output == "sigmoid":
            probability = (self._convolve(self.head, maps) * weights).mean((1, 2, 3), keepdim=True).sigmoid()
            delta = delta * (probability * (1 - probability))
        if factor is not None:
            delta = delta * factor[:, None, None, None]
        yield Signals(self.head, maps, delta)
        delta = self._through_activation(_channels_last(delta * tensors[f"kernel{self.head}"]), maps)
        for block in reversed(range(len(self._pools))):
            layer = 3 * block
            shortcut, hidden, activated = (seen.pop(layer + part) for part in (2, 1, 0))
            yield Signals(layer + 2, shortcut, delta)
            yield Signals(layer + 1, hidden, delta)
            inner = self._through_activation(self._input_gradient(layer + 1, delta), hidden)
            yield Signals(layer, activated, inner)
            if block:
                delta = self._input_gradient(layer + 2, delta) + self._through_activation(
                    self._input_gradient(layer, inner), activated
                )

    def score(self, signals: Signals, copies: int = 1) -> tuple[Tensor, Tensor]:
        """Fisher score of one layer for each image: gradients of the output, before centring.

        Args:
            signals: One element of :meth:`signals`.
            copies: Number of equal blocks of the batch whose scores are added, within the same sum over positions. With
                a factor of -1 on the second of two blocks this gives differences, cheaper than two scores do.

        Returns:
            dD/dW ``(N / copies, C_out, C_in, k, k)`` and dD/db ``(N / copies, C_out)``.
        """
        layer, inputs, delta = signals
        outputs, channels, *sides = self.weight_shapes[layer]
        # delta was scaled to the positions of a training image; the score is that of the mean over this image's.
        positions = inputs.shape[2] * inputs.shape[3] * self.reduction(layer) ** 2 / self.stride**2
        if positions != self.training_positions:
            delta = delta * (self.training_positions / positions)
        pooled = self._pooled[layer]
        if pooled:
            inputs = mean_of_neighbours(inputs)
        count = delta.shape[0] // copies
        # One group per image: images become channels, and the weight gradients of all of them one call, which sums
        # over what is left of the batch.
        weight: Tensor = conv2d_weight(
            inputs.reshape(copies, -1, *inputs.shape[2:]),
            (count * outputs, channels, *sides),
            delta.reshape(copies, -1, *delta.shape[2:]),
            stride=2 if pooled else 1,
            padding=0 if pooled else sides[0] // 2,
            groups=count,
        )
        bias = delta.sum((2, 3)).unflatten(0, (copies, count)).sum(0)
        return weight.unflatten(0, (count, outputs)), bias

    def _convolve(self, layer: int, maps: Tensor) -> Tensor:
        tensors = self._tensors.like(maps)
        kernel, pooled = tensors[f"kernel{layer}"], self._pooled[layer]
        padding = 1 if pooled else kernel.shape[-1] // 2
        return F.conv2d(maps, kernel, tensors[f"bias{layer}"], stride=2 if pooled else 1, padding=padding)

    def _input_gradient(self, layer: int, gradient: Tensor) -> Tensor:
        """Gradient at a layer's input from the one at its output."""
        tensors = self._tensors.like(gradient)
        if self._pooled[layer]:
            return F.conv_transpose2d(gradient, tensors[f"kernel{layer}"], stride=2, padding=1)
        flipped = tensors[f"flipped{layer}"]
        return F.conv2d(gradient, flipped, padding=flipped.shape[-1] // 2)

    def _through_activation(self, gradient: Tensor, activated: Tensor) -> Tensor:
        """Gradient before a leaky ReLU, from the one behind it and the activated map, whose signs are constants."""
        through: Tensor = torch.ops.aten.leaky_relu_backward(gradient, activated.detach(), self.slope, False)
        return through


def layer_inputs(
    convolve: Callable[[int, Tensor], Tensor], blocks: int, slope: float, images: Tensor
) -> Iterator[Tensor]:
    """Forward pass of a discriminator's convolutions, one layer at a time and no further than the caller goes on.

    Args:
        convolve: Applies a layer, given by its index in the order of the forward pass.
        blocks: Number of residual blocks.
        slope: Negative slope of the leaky ReLU.
        images: ``(N, C, H, W)`` in [-1, 1].

    Yields:
        The input of each layer, the head's last.
    """
    maps = images
    for block in range(blocks):
        layer = 3 * block
        activated = F.leaky_relu(maps, slope) if block else maps
        yield activated
        hidden = F.leaky_relu(convolve(layer, activated), slope, inplace=True)
        yield hidden
        yield maps
        maps = convolve(layer + 1, hidden).add_(convolve(layer + 2, maps))
    yield F.leaky_relu(maps, slope)


def _channels_last(maps: Tensor) -> Tensor:
    """The same maps with their channels last in memory: convolutions and whitening are faster by up to a third."""
    return maps.movedim(1, -1).contiguous().movedim(-1, 1)


def mean_of_neighbours(maps: Tensor) -> Tensor:
    """Mean of every 2x2 neighbourhood of zero-padded maps: ``(N, C, H, W)`` to ``(N, C, H + 1, W + 1)``.

    Mean pooling and convolution commute: a 3x3 convolution followed by 2x2 mean pooling is a 3x3 convolution of
    stride 2 over these means. The layer's score then costs 9 products per pooled position and needs no folding.
    """
    return F.avg_pool2d(maps, 2, stride=1, padding=1)
