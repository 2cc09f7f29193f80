"""Comparing two batches of images with one form at one resolution, with analytic gradients.

The gradient of a distance takes the engine's explicit passes once more: at every layer the form is differentiated with
respect to the layer's input (delta is constant almost everywhere in a piecewise-linear network), and these gradients
flow back to the image through one ordinary backward pass. There is no double-backward graph, and memory is that of one
chunk of images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from afv_metric.fisher.engine import Activations, FisherEngine, Signals
from afv_metric.fisher.forms import FisherForm, Form, LayerGradient, differentiate

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
            weights: Non-negative weights of the positions, ``(N, 1, H, W)`` or ``(1, 1, H, W)``; equal if None.

        Returns:
            ``(N,)``, or ``(N, 1, H, W)`` if spatial; differentiable once with respect to the images.
        """
        count = max(len(first), len(second))
        differentiable = torch.is_grad_enabled() and (first.requires_grad or second.requires_grad)
        if differentiable or (weights is not None and len(weights) > 1):
            first, second = (images.expand(count, -1, -1, -1) for images in (first, second))
            weights = None if weights is None else weights.expand(count, -1, -1, -1)
        if differentiable:
            # Autograd saves no tensor that was made in inference mode.
            first, second = (images.clone() if images.is_inference() else images for images in (first, second))
            weights = weights.clone() if weights is not None and weights.is_inference() else weights
            values: Tensor = _Differentiable.apply(first, second, weights, self)
            return values
        return self._compare((first, second), weights).values

    def stream(self, seen: Activations) -> Iterator[Signals]:
        """The part of the engine's stream that the form needs."""
        if self.form.needs_delta:
            stream = self.engine.signals(seen, weighted=self.form.weighs_energy)
        else:
            stream = self.engine.inputs(seen)
        for signals in stream:
            if signals.layer in self.form.layers:
                yield signals
            if signals.layer == self.form.layers[0]:
                return  # before the stream goes on to what nobody needs

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
        if isinstance(self.form, FisherForm) and not (self.spatial or any(wanted) or len(images[0]) != len(images[1])):
            return _Compared(self._compare_joined(self.form, images, weights), (None, None))
        seen = [self.see(one, weights) for one in images]
        gradients: tuple[dict[int, LayerGradient], dict[int, LayerGradient]] = ({}, {})
        total: Tensor | None = None
        for first, second in zip(*map(self.stream, seen), strict=True):
            value, of_layer = self._layer((first, second), weights, images[0].shape[2:], wanted, cotangent)
            total = value if total is None else total + value
            for side, of_side in enumerate(of_layer):
                gradients[side][first.layer] = of_side
        assert total is not None
        of_images = [
            self._pull_back(seen[side], gradients[side]).to(images[side].dtype) if wanted[side] else None
            for side in (0, 1)
        ]
        return _Compared(total, (of_images[0], of_images[1]))

    def _compare_joined(self, form: FisherForm, images: tuple[Tensor, Tensor], weights: Tensor | None) -> Tensor:
        """Both batches in one: with the energies of the second negated, scores add up to the difference at no copy."""
        if weights is not None and len(weights) > 1:
            weights = torch.cat([weights, weights])
        seen = self.see(torch.cat(images), weights)
        assert seen.end is not None
        ones = torch.ones_like(seen.end.slope[: len(images[0])])
        seen = seen._replace(end=seen.end._replace(slope=seen.end.slope * torch.cat([ones, -ones])))
        return torch.stack([form.compare_joined(self.engine, signals) for signals in self.stream(seen)]).sum(0)

    def _layer(
        self,
        pair: tuple[Signals, Signals],
        weights: Tensor | None,
        size: torch.Size,
        wanted: tuple[bool, bool],
        cotangent: Tensor | None,
    ) -> tuple[Tensor, list[LayerGradient]]:
        """One layer's part of the distances, or of the maps on the pixels of the image; and gradients if wanted."""
        if not self.spatial:
            if any(wanted):
                return self.form.differentiate(self.engine, pair, weights, wanted)
            return self.form.compare(self.engine, *pair, weights), []

        def on_pixels(first: Signals, second: Signals) -> Tensor:
            descriptions = [self.form.describe_for_map(self.engine, signals) for signals in (first, second)]
            places = self.form.map(first.layer, descriptions[0], descriptions[1])
            scale = self.form.map_scale(self.engine, first.layer)
            pixels = F.interpolate(places, scale_factor=scale, mode="bilinear") if scale > 1 else places
            pixels = pixels[..., : size[0], : size[1]]
            return pixels if cotangent is None else pixels * cotangent

        if any(wanted):
            return differentiate(self.engine, on_pixels, pair, wanted)
        return on_pixels(*pair), []

    def _pull_back(self, seen: Activations, gradients: Mapping[int, LayerGradient]) -> Tensor:
        of_inputs = {
            layer: gradient.of_inputs for layer, gradient in gradients.items() if gradient.of_inputs is not None
        }
        of_slopes = [gradient.of_slope for gradient in gradients.values() if gradient.of_slope is not None]
        return self.engine.pull_back(seen, of_inputs, torch.stack(of_slopes).sum(0) if of_slopes else None)

    def see(self, images: Tensor, weights: Tensor | None) -> Activations:
        """The engine's forward pass; the weights ``(N, 1, H, W)`` are those of the pixels."""
        if weights is not None:
            height, width = (side // self.engine.stride for side in images.shape[2:])
            weights = F.adaptive_avg_pool2d(weights, (height, width))
        seen: Activations = self.engine(images, weights, self.form.depth)
        return seen


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
