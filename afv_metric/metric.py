"""AFVDistance: the perceptual distance as a module."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afv_metric.bundles.bundle import Bundle, load_bundle
from afv_metric.bundles.resolve import DEFAULT_BUNDLE
from afv_metric.fisher.comparison import Comparison
from afv_metric.fisher.engine import FisherEngine
from afv_metric.fisher.forms import FORMS, POSITION_FORMS, Description, FisherForm, Form, FormName
from afv_metric.images.tensors import check_range, pad_to_multiple, to_network_range, weights_of_padded

__all__ = ["AFVDistance", "Embedding", "Reduction"]

Reduction = Literal["none", "mean", "sum"]


class EmbeddedLevel(NamedTuple):
    """What :meth:`AFVDistance.embed` keeps of one level of N images.

    Attributes:
        share: Weight of the level in the distance.
        weights: Weights of the positions, or None.
        layers: Descriptions of the layers that count, by their indices: tensors whose first dimension is N.
    """

    share: float
    weights: Tensor | None
    layers: dict[int, Description]


@dataclass(frozen=True)
class Embedding:
    """What :meth:`AFVDistance.embed` keeps of N images, to be compared with many others.

    Attributes:
        form: Form of the distance that it is for.
        size: Height and width of the images.
        levels: What is kept of each level that counts.
    """

    form: FormName
    size: tuple[int, int]
    levels: list[EmbeddedLevel]

    def __len__(self) -> int:
        """Number of images."""
        return len(next(iter(self.levels[0].layers.values()))[0])


class AFVDistance(nn.Module):
    """Perceptual distance between images from the Fisher scores of a discriminator (arXiv:1910.13101).

    Three forms share one network. ``"fisher"`` is eq. 5 of the paper; ``"local"`` compares the scores of untied weights
    at every position, whitened by Kronecker factors; ``"activation"`` compares whitened activations. A bundle's default
    is the form that people agree with most.

    The module is frozen: it has no parameters, stays in evaluation mode, and its weights are in no ``state_dict``. It
    is differentiable, once, with respect to both images. The distance of identical images is 0, with gradient 0.

    Precision follows ``.to(dtype)`` and autocast, and images are converted to it: float32 is within 1e-4 of float64,
    relative (on CUDA with ``torch.backends.cudnn.allow_tf32 = False``); bfloat16, also by autocast, within 0.1. Float16
    is not supported. Results are at least float32.

    Args:
        weights: Name of a bundle that ships with the package, a folder, a hub id ``owner/name[@revision]``, or a
            :class:`~afv_metric.bundles.bundle.Bundle`.
        form: Form of the distance; the bundle's default if None.
        pooling: Exponent, from 1 on, of the mean over positions in the forms ``local`` and ``activation``; the bundle's
            if None. People agree most with a high one, which looks at the places that differ most; as a loss, a low one
            such as 2 has a denser gradient.
        spatial: Return maps of the local distance instead of distances.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over the batch (and the map).
        normalize: Whether floating-point images are in [0, 1] rather than [-1, 1].
        chunk_size: Pairs worked on at a time, all if None; bounds memory and changes no result.
        check: What values far outside the range, or NaN, are: ``"error"`` (for images that require a gradient a
            warning), ``"warn"``, or False: nothing is checked.

    Attributes:
        form: The form in use.
        pooling: The exponent in use; of no effect on the form ``fisher``.
        levels: Weight of each level of the image pyramid, finest first.
        bundle_name: Name of the bundle.
        bundle_hash: sha256 that identifies the bundle.

    Raises:
        ValueError: For an unknown form or reduction, or a pooling or chunk size below 1.

    Example:
        >>> distance = AFVDistance()
        >>> image = torch.rand(2, 3, 64, 64) * 2 - 1
        >>> distance(image, image)
        tensor([0., 0.])
        >>> noisy = (image + 0.3 * torch.randn_like(image)).clamp(-1, 1).requires_grad_()
        >>> distance(noisy, image).mean().backward()
        >>> noisy.grad.shape
        torch.Size([2, 3, 64, 64])
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | Bundle = DEFAULT_BUNDLE,
        *,
        form: FormName | None = None,
        pooling: float | None = None,
        spatial: bool = False,
        reduction: Reduction = "none",
        normalize: bool = False,
        chunk_size: int | None = None,
        check: Literal["error", "warn", False] = "error",
    ) -> None:
        super().__init__()
        bundle = weights if isinstance(weights, Bundle) else load_bundle(weights)
        if form is not None and form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}; got {form!r}")
        if reduction not in ("none", "mean", "sum"):
            raise ValueError(f'reduction must be "none", "mean" or "sum", got {reduction!r}')
        if check not in ("error", "warn", False):
            raise ValueError(f'check must be "error", "warn" or False, got {check!r}')
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1 or None, got {chunk_size}")
        if pooling is not None and not 1 <= pooling < math.inf:
            raise ValueError(f"pooling must be a finite exponent of at least 1 or None, got {pooling}")
        self.form: FormName = form or bundle.form
        self.pooling = bundle.pooling if pooling is None else pooling
        self.levels = bundle.levels
        self.bundle_name, self.bundle_hash = bundle.name, bundle.hash
        self.spatial, self.reduction, self.normalize = spatial, reduction, normalize
        self.chunk_size, self.check = chunk_size, check
        self.engine = FisherEngine(deepcopy(bundle.discriminator), bundle.energy)
        # The vectors of eq. 6 belong to every bundle, whatever the form of the distance.
        self.fisher = FisherForm(self.engine, bundle.statistics, bundle.epsilon)
        self.compared: Form = self.fisher
        if self.form != "fisher":
            self.compared = POSITION_FORMS[self.form](
                self.engine, bundle.statistics, bundle.epsilon, self.pooling, bundle.blocks
            )
        self._range_warned = False
        self.train(False)

    def train(self, mode: bool = True) -> AFVDistance:
        """Do nothing: a metric stays in evaluation mode, also inside a model that trains."""
        return super().train(False)

    def extra_repr(self) -> str:
        """Bundle, form, levels and pooling."""
        return f"bundle={self.bundle_name!r}, form={self.form!r}, levels={self.levels}, pooling={self.pooling:g}"

    def forward(
        self, img0: Tensor, img1: Tensor, *, normalize: bool | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Distance between images.

        Args:
            img0: ``(N, 3, H, W)`` or ``(3, H, W)``: floating point in [-1, 1] (in [0, 1] with ``normalize``), or
                uint8 in [0, 255]; one channel stands for grey. H and W are at least 32.
            img1: Likewise, of the same size. One image is compared with every image of a batch.
            normalize: Overrides the setting of the module.
            mask: Non-negative weights of the pixels, ``(N, 1, H, W)`` or ``(H, W)``, constants for autograd. Pixels
                farther from any positive weight than the network sees have no influence. Where all are 0 the distance
                is 0. Not for ``spatial``: multiply the maps instead.

        The last row and column are repeated until all levels are whole strides of the network; these have no weight.

        Returns:
            Distances ``(N,)``; a scalar for a reduction; maps ``(N, 1, H, W)`` for ``spatial``. At least float32.

        Raises:
            TypeError: If the images or the mask are not tensors of a type above.
            ValueError: If shapes, sizes, devices or ranges are wrong. Ranges are checked at every call on the CPU, and
                on other devices at the first, so that later calls do not wait for the device.
        """
        first, second = self._prepare(img0, normalize, "img0"), self._prepare(img1, normalize, "img1")
        if first.shape[2:] != second.shape[2:]:
            raise ValueError(
                f"img0 and img1 must have the same size, got {tuple(first.shape[2:])} and {tuple(second.shape[2:])}"
            )
        if len(first) != len(second) and 1 not in (len(first), len(second)):
            raise ValueError(
                "img0 and img1 must hold as many images, or one of them a single one; "
                f"got {len(first)} and {len(second)}"
            )
        if self.spatial and mask is not None:
            raise ValueError("a mask weights the mean over an image, and maps have none: multiply the maps by the mask")
        # Places of a map that lie beyond the image are cut off; they need no weights.
        weights = None if self.spatial else self._weights(first, max(len(first), len(second)), mask)
        comparison = Comparison(self.engine, self.compared, self.spatial, self.chunk_size)
        total: Tensor | None = None
        for (level, share, x), (_, _, y) in zip(self._pyramid(first), self._pyramid(second), strict=True):
            values = comparison(x, y, None if weights is None else F.avg_pool2d(weights, 2**level))
            if self.spatial:
                values = F.interpolate(values, scale_factor=2**level, mode="bilinear") if level else values
                values = values[..., : first.shape[2], : first.shape[3]]
            total = share * values if total is None else total + share * values
        assert total is not None
        # Kernels may round a batch of one and a batch of many differently; equal images are at 0 all the same.
        identical = (first == second).flatten(1).all(1)
        total = total.masked_fill(identical.view(-1, *[1] * (total.ndim - 1)), 0)
        if self.reduction == "none":
            return total
        return total.mean() if self.reduction == "mean" else total.sum()

    def embed(self, images: Tensor, *, normalize: bool | None = None) -> Embedding:
        """Describe images once, to compare them with many others by :meth:`distance_between`.

        Args:
            images: As for :meth:`forward`.
            normalize: Overrides the setting of the module.

        Returns:
            Descriptions of all layers; for the ``fisher`` form as large as the network's weights for every image.
        """
        prepared = self._prepare(images, normalize, "images")
        comparison = Comparison(self.engine, self.compared)
        weights = self._weights(prepared, 1)
        levels = []
        for level, share, pyramid_images in self._pyramid(prepared):
            level_weights = None if weights is None else F.avg_pool2d(weights, 2**level)
            chunks = [
                {
                    signals.layer: self.compared.describe(self.engine, signals)
                    for signals in comparison.stream(comparison.see(chunk, level_weights))
                }
                for chunk in pyramid_images.split(self.chunk_size or len(prepared))
            ]
            layers: dict[int, Description] = {
                layer: tuple(map(torch.cat, zip(*(chunk[layer] for chunk in chunks), strict=True)))
                for layer in chunks[0]
            }
            levels.append(EmbeddedLevel(share, level_weights, layers))
        height, width = prepared.shape[2:]
        return Embedding(self.form, (height, width), levels)

    def distance_between(self, first: Embedding, second: Embedding | None = None) -> Tensor:
        """Distances of all images of one embedding to all of another, or to one another.

        Args:
            first: Embedding of N images.
            second: Embedding of M images of the same size; ``first`` if None.

        Returns:
            ``(N, M)``, the numbers that :meth:`forward` gives.

        Raises:
            ValueError: If the embeddings are of other forms or image sizes.

        Example:
            >>> metric = AFVDistance()
            >>> images = torch.rand(3, 3, 32, 32) * 2 - 1
            >>> table = metric.distance_between(metric.embed(images))
            >>> torch.allclose(table[0], metric(images[:1], images), atol=1e-5)
            True
        """
        second = first if second is None else second
        if (first.form, first.size) != (second.form, second.size) or first.form != self.form:
            raise ValueError(
                f"embeddings must be of the form {self.form!r} and of one image size; got {first.form!r} {first.size} "
                f"and {second.form!r} {second.size}"
            )
        rows = []
        for row in range(len(first)):
            total = torch.zeros((), device=self._like.device)
            for one, many in zip(first.levels, second.levels, strict=True):
                for layer, description in one.layers.items():
                    single = [part[row : row + 1] for part in description]
                    total = total + one.share * self.compared.term(layer, single, many.layers[layer], one.weights)
            rows.append(total)
        return torch.stack(rows)

    def score_vectors(self, images: Tensor, *, normalize: bool | None = None) -> Tensor:
        """Adversarial Fisher Vectors, eq. 6 of the paper: the centred score, whitened by the diagonal information.

        The mean of the squared difference of two vectors is the ``fisher`` distance of a bundle of one level, that of
        the images' own resolution.

        Args:
            images: As for :meth:`forward`.
            normalize: Overrides the setting of the module.

        Returns:
            ``(N, P)`` for P parameters: weights, then biases, of each layer in the order of the forward pass.
        """
        prepared, stride = self._prepare(images, normalize, "images"), self.engine.stride
        comparison, weights = Comparison(self.engine, self.fisher), weights_of_padded(prepared, stride)
        chunks = []
        for chunk in pad_to_multiple(prepared, stride).split(self.chunk_size or len(prepared)):
            stream = comparison.stream(comparison.see(chunk, weights))
            parts = [self.fisher.vector(self.engine, signals) for signals in stream]
            chunks.append(torch.cat(parts[::-1], 1))
        return torch.cat(chunks)

    def _prepare(self, images: Tensor, normalize: bool | None, name: str) -> Tensor:
        normalize = self.normalize if normalize is None else normalize
        prepared = to_network_range(images, normalize=normalize, dtype=self._like.dtype, name=name)
        if prepared.device != self._like.device:
            raise ValueError(
                f"{name} is on {prepared.device} and the metric on {self._like.device}; "
                f"move one of them, as in metric.to({str(prepared.device)!r})"
            )
        if not torch.compiler.is_compiling():
            self._range_warned = check_range(
                images, normalize=normalize, name=name, check=self.check, warned=self._range_warned
            )
        return prepared

    def _weights(self, images: Tensor, count: int, mask: Tensor | None = None) -> Tensor | None:
        """Weights of all pixels of the padded images, or None where all are 1: what is padded has weight 0."""
        if mask is None:
            return weights_of_padded(images, self._multiple)
        height, width = images.shape[2:]
        if not isinstance(mask, Tensor):
            raise TypeError(f"mask must be a torch.Tensor, got {type(mask).__name__}")
        weights = mask[None, None] if mask.ndim == 2 else mask
        if weights.ndim != 4 or weights.shape[1:] != (1, height, width) or len(weights) not in (1, count):
            raise ValueError(
                f"mask must have shape ({count}, 1, {height}, {width}) or ({height}, {width}), got {tuple(mask.shape)}"
            )
        return pad_to_multiple(weights.detach().to(self._like), self._multiple, "constant")

    def _pyramid(self, images: Tensor) -> Iterator[tuple[int, float, Tensor]]:
        """Levels that count, with their weights; each is the 2x2 mean of the one before."""
        images = pad_to_multiple(images, self._multiple)
        for level, share in enumerate(self.levels):
            if level:
                images = F.avg_pool2d(images, 2)
            if share:
                yield level, share, images

    @property
    def _multiple(self) -> int:
        """Sides that are multiples of this are whole strides of the network at every level."""
        return self.engine.stride * int(2 ** (len(self.levels) - 1))

    @property
    def _like(self) -> Tensor:
        return self.engine.discriminator.head.weight
