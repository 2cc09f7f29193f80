"""Adversarial Fisher Vectors of images, for classifiers, indices and nearest neighbours.

A network of width 48 has 210,000 parameters, and an image as many numbers: :func:`extract` yields features batch by
batch, and a sketch of a few thousand numbers keeps inner products and distances in expectation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from afv_metric.bundles.bundle import Bundle
from afv_metric.fisher.engine import FisherEngine
from afv_metric.fisher.forms import FisherForm
from afv_metric.images.tensors import pad_to_multiple, to_network_range, weights_of_padded
from afv_metric.runtime import parallel_map

__all__ = ["Features", "ScoreFeatures", "Sketch", "UInt8Images", "extract"]


class Features(Protocol):
    """What makes vectors of ``size`` numbers of images."""

    size: int

    def __call__(self, images: Tensor) -> Tensor:
        """Features ``(N, size)``, at least float32, of images ``(N, 3, H, W)`` in [-1, 1]."""


class UInt8Images(Protocol):
    """Decoded images, such as a uint8 tensor ``(N, 3, H, W)`` or :class:`afv_metric.images.cache.ImageView`."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, chosen: slice) -> Tensor:
        """Some of them, uint8 ``(n, 3, H, W)``."""


class Sketch(nn.Module):
    """Count sketch: long vectors at a fixed length, with inner products and distances kept in expectation.

    Every number is added to one place of the result, or subtracted from it, both drawn at random. The error of an inner
    product of two vectors of length 1 has a standard deviation of at most sqrt(2 / size), and no matrix is needed.

    Args:
        length: Length of the vectors.
        size: Length of the sketch.
        seed: Seed of the places and signs.

    Example:
        >>> vectors = torch.randn(2, 10_000)
        >>> Sketch(10_000, 4_096, seed=0)(vectors).shape
        torch.Size([2, 4096])
    """

    places: Tensor
    signs: Tensor

    def __init__(self, length: int, size: int, seed: int) -> None:
        super().__init__()
        self.size = size
        drawn = torch.Generator().manual_seed(seed)
        self.register_buffer("places", torch.randint(size, (length,), generator=drawn), persistent=False)
        signs = 2 * torch.randint(2, (length, 1), dtype=torch.int8, generator=drawn) - 1
        self.register_buffer("signs", signs, persistent=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """``(N, length)`` to ``(N, size)``."""
        total = vectors.new_zeros(self.size, len(vectors))
        return total.index_add_(0, self.places, vectors.T * self.signs).T


class ScoreFeatures(nn.Module):
    """Adversarial Fisher Vectors, eq. 6 of the paper: the centred score, whitened by the diagonal information.

    They are divided by the root of the number of parameters P: the squared Euclidean distance of two images is then
    their ``fisher`` distance at the images' own resolution.

    Args:
        bundle: Discriminator and statistics.
        sketch: Length of a :class:`Sketch` of them, taken layer by layer as the engine goes; None for all P numbers.
        seed: Seed of the sketch.

    Raises:
        ValueError: If the sketch is shorter than one number.

    Example:
        >>> from afv_metric import load_bundle
        >>> features = ScoreFeatures(load_bundle("tiny-imagenet-v8"), sketch=1024)
        >>> features(torch.rand(2, 3, 32, 32) * 2 - 1).shape
        torch.Size([2, 1024])
    """

    def __init__(self, bundle: Bundle, sketch: int | None = None, seed: int = 0) -> None:
        super().__init__()
        if sketch is not None and sketch < 1:
            raise ValueError(f"a sketch has at least one number, or is None; got {sketch}")
        engine = FisherEngine(bundle.discriminator, bundle.output)
        self._form = FisherForm(engine, bundle.statistics, bundle.epsilon)
        self.size = sketch or self._form.parameter_count
        lengths = [shape.numel() + shape[0] for shape in engine.weight_shapes]
        # Layers have places and signs of their own, and no seed is used twice.
        self.sketches = nn.ModuleList(
            Sketch(length, sketch, seed * len(lengths) + layer) for layer, length in enumerate(lengths) if sketch
        )

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features of images ``(N, 3, H, W)`` in [-1, 1], on the device of the module: ``(N, size)``."""
        with torch.autocast(images.device.type, enabled=False):
            stride = self._form.engine.stride
            weights, images = weights_of_padded(images, stride), pad_to_multiple(images, stride)
            if self.sketches:
                vectors = images.new_zeros(len(images), self.size)
                for part, score in self._form.describe(0, images, weights):
                    vectors += self.sketches[part.layer](self._form.whiten(part.layer, score))
            else:
                vectors = self._form.vectors(images, weights)
            return vectors.div_(self._form.parameter_count**0.5)


def extract(
    features: Features,
    images: UInt8Images,
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    quiet: bool = True,
) -> Iterator[Tensor]:
    """Features of many images, batch by batch; on the CPU every core works on a batch of its own.

    Args:
        features: What to extract; a module is on ``device`` already.
        images: Decoded images of one size.
        batch_size: Images at a time; changes no feature beyond rounding.
        device: Device to compute on.
        quiet: Whether to show no progress bar.

    Yields:
        ``(n, size)`` on the CPU, n being ``batch_size`` but for the last.

    Example:
        >>> from afv_metric import load_bundle
        >>> images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
        >>> features = ScoreFeatures(load_bundle("tiny-imagenet-v8"), sketch=64)
        >>> [tuple(batch.shape) for batch in extract(features, images, batch_size=2)]
        [(2, 64), (2, 64), (1, 64)]
    """

    def compute(start: int) -> Tensor:
        batch = images[slice(start, start + batch_size)].to(device)
        return features(to_network_range(batch, normalize=False, dtype=torch.float32)).cpu()

    starts = tqdm(range(0, len(images), batch_size), desc="features", unit="batch", disable=quiet)
    for _, batch in parallel_map(compute, starts, device):
        yield batch
