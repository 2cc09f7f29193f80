"""Comparing two batches of images with one form at one resolution, with analytic gradients.

The gradient of a distance takes the engine's explicit passes once more: at every layer the form is differentiated with
respect to the layer's input (delta is constant almost everywhere in a piecewise-linear network), and these gradients
flow back to the image through one ordinary backward pass. There is no double-backward graph, and memory is that of one
chunk of images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from afv_metric.fisher import Activations, FisherEngine, Signals
from afv_metric.forms import Form

__all__ = ["Comparison"]


class _Compared(NamedTuple):
    """Distances or maps, and the gradients of their (weighted) sum with respect to the images that want one."""

    values: Tensor
    gradients: tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Comparison:
    """Distances, or maps of the local distance, between N pairs of images of one size.

    Attributes:
        engine: The engine.
        form: The form of the distance.
        spatial: Whether to give maps ``(N, 1, H, W)`` rather than distances ``(N,)``.
        chunk_size: Pairs worked on at a time, all if None. It bounds memory and changes no result.
    """

    engine: FisherEngine
    form: Form
    spatial: bool = False
    chunk_size: int | None = None

    def __call__(self, first: Tensor, second: Tensor, weights: Tensor | None = None) -> Tensor:
        """Compare.

        Args:
            first: ``(N, 3, H, W)`` or ``(1, 3, H, W)`` in [-1, 1]; H and W multiples of the engine's stride.
            second: Likewise.
            weights: Non-negative weights of the positions, ``(N, 1, H, W)``; equal if None.

        Returns:
            ``(N,)``, or ``(N, 1, H, W)`` if spatial; differentiable once with respect to the images.
        """
        count = max(len(first), len(second))
        differentiable = torch.is_grad_enabled() and (first.requires_grad or second.requires_grad)
        if differentiable or weights is not None:
            first, second = (images.expand(count, -1, -1, -1) for images in (first, second))
            weights = None if weights is None else weights.expand(count, -1, -1, -1)
        if differentiable:
            values: Tensor = _Differentiable.apply(first, second, weights, self)
            return values
        return self._compare((first, second), weights).values

    def stream(self, seen: Activations) -> Iterator[Signals]:
        """The part of the engine's stream that the form needs."""
        if self.form.needs_delta:
            return self.engine.signals(seen, weighted=self.form.weighs_energy)
        return self.engine.inputs(seen)

    def _compare(
        self,
        images: tuple[Tensor, Tensor],
        weights: Tensor | None,
        wanted: tuple[bool, bool] = (False, False),
        cotangent: Tensor | None = None,
    ) -> _Compared:
        count = max(map(len, images))
        size = self.chunk_size or max(count, 1)

        def cut(value: Tensor, start: int) -> Tensor:
            return value if len(value) == 1 else value[start : start + size]

        chunks = [
            self._compare_chunk(
                (cut(images[0], start), cut(images[1], start)),
                None if weights is None else cut(weights, start),
                wanted,
                None if cotangent is None else cut(cotangent, start),
            )
            for start in range(0, max(count, 1), size)
        ]
        if len(chunks) == 1:
            return chunks[0]
        first, second = (
            torch.cat([chunk.gradients[side] for chunk in chunks]) if wanted[side] else None  # type: ignore[misc]
            for side in (0, 1)
        )
        return _Compared(torch.cat([chunk.values for chunk in chunks]), (first, second))

    def _compare_chunk(
        self,
        images: tuple[Tensor, Tensor],
        weights: Tensor | None,
        wanted: tuple[bool, bool],
        cotangent: Tensor | None,
    ) -> _Compared:
        seen = [self.see(one, weights) for one in images]
        # With the sigmoid energy delta depends on the image through one factor, here a variable of value 1.
        factors = [torch.ones_like(one.slope, requires_grad=want) for one, want in zip(seen, wanted, strict=True)]
        of_inputs: tuple[list[Tensor], list[Tensor]] = ([], [])
        of_factors = [torch.zeros_like(factor) for factor in factors]
        with_factors = self.form.needs_delta and self.engine.energy == "sigmoid"
        total: Tensor | None = None
        for pair in zip(*map(self.stream, seen), strict=True):
            with torch.set_grad_enabled(any(wanted)):
                if any(wanted):
                    pair = tuple(
                        Signals(
                            signals.layer,
                            signals.inputs.detach().requires_grad_(want),
                            signals.delta * factor[:, None, None, None] if with_factors and want else signals.delta,
                        )
                        for signals, factor, want in zip(pair, factors, wanted, strict=True)
                    )
                value = self._value(pair, weights, images[0].shape[2:])
                objective = value.sum() if cotangent is None else (value * cotangent).sum()
            for side in (0, 1):
                if wanted[side]:
                    leaves = [pair[side].inputs, *([factors[side]] if with_factors else [])]
                    of_input, *of_factor = torch.autograd.grad(objective, leaves, retain_graph=True)
                    of_inputs[side].append(of_input)
                    if of_factor:
                        of_factors[side] += of_factor[0]
            total = value.detach() if total is None else total + value.detach()
        assert total is not None
        first, second = (
            self.engine.pull_back(seen[side], of_inputs[side][::-1], of_factors[side]).to(images[side].dtype)
            if wanted[side]
            else None
            for side in (0, 1)
        )
        return _Compared(total, (first, second))

    def see(self, images: Tensor, weights: Tensor | None) -> Activations:
        """The engine's forward pass; the weights ``(N, 1, H, W)`` are those of the pixels."""
        if weights is not None:
            height, width = (side // self.engine.stride for side in images.shape[2:])
            weights = F.adaptive_avg_pool2d(weights, (height, width))
        seen: Activations = self.engine(images, weights)
        return seen

    def _value(self, pair: tuple[Signals, ...], weights: Tensor | None, size: torch.Size) -> Tensor:
        """One layer's part of the distances, or of the maps on the pixels of the image."""
        layer = pair[0].layer
        if not self.spatial:
            return self.form.compare(self.engine, *pair, weights)
        first, second = (self.form.describe_for_map(self.engine, signals) for signals in pair)
        places = self.form.map(layer, first, second)
        scale = self.form.map_scale(self.engine, layer)
        pixels = F.interpolate(places, scale_factor=scale, mode="bilinear") if scale > 1 else places
        return pixels[..., : size[0], : size[1]]


class _Differentiable(torch.autograd.Function):
    """The comparison as an operation of autograd, with an analytic first derivative and a clear error for a second."""

    @staticmethod
    def forward(context: Any, first: Tensor, second: Tensor, weights: Tensor | None, comparison: Comparison) -> Tensor:
        """Compare; the gradients of distances, but not of maps, are computed on the way."""
        context.comparison = comparison
        context.autocast = torch.is_autocast_enabled(first.device.type), torch.get_autocast_dtype(first.device.type)
        context.wanted = tuple(context.needs_input_grad[:2])
        context.save_for_backward(first, second, weights)
        context.gradients = None
        if comparison.spatial:
            return comparison._compare((first, second), weights).values
        values, context.gradients = comparison._compare((first, second), weights, context.wanted)
        return values

    @staticmethod
    def backward(context: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients with respect to the two images."""
        first, second, weights = context.saved_tensors
        gradients = context.gradients
        if gradients is None:
            enabled, dtype = context.autocast
            with torch.autocast(first.device.type, dtype, enabled=enabled), torch.no_grad():
                compared = context.comparison._compare((first, second), weights, context.wanted, cotangent)
            gradients = compared.gradients
        else:
            gradients = tuple(
                None if gradient is None else gradient * cotangent[:, None, None, None].to(gradient.dtype)
                for gradient in gradients
            )
        if torch.is_grad_enabled():
            gradients = tuple(
                None if gradient is None else _FirstDerivative.apply(gradient, first, second, cotangent)
                for gradient in gradients
            )
        return (*gradients, None, None)


class _FirstDerivative(torch.autograd.Function):
    """Marks a gradient that must not be differentiated again, rather than let it pass for a constant."""

    @staticmethod
    def forward(context: Any, gradient: Tensor, *depends_on: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(context: Any, *cotangents: Tensor) -> Any:
        raise NotImplementedError(
            "AFVDistance has first derivatives only; a second one (a gradient penalty on the distance, say) was asked "
            "for. Detach the gradient, or approximate the second derivative by differences of gradients."
        )
