"""Features of images as vectors, for classifiers, indices and nearest neighbours.

:class:`ScoreFeatures` are the Adversarial Fisher Vectors of the paper; :class:`PooledFeatures` and
:class:`PixelFeatures` are what they are held against. A network of width 48 has 210,000 parameters, and an image as
many numbers: :func:`extract` yields features batch by batch, :func:`store` keeps them in half precision, in a file that
is mapped into memory, and a sketch of a few thousand numbers keeps inner products and distances in expectation.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from afv_metric.bundles.bundle import Bundle
from afv_metric.files import atomic_write
from afv_metric.fisher.engine import FisherEngine, Signals
from afv_metric.fisher.statistics import inverse_root
from afv_metric.images.tensors import pad_to_multiple, to_network_range, weights_of_padded
from afv_metric.runtime import parallel_map

__all__ = ["Features", "PixelFeatures", "PooledFeatures", "ScoreFeatures", "Sketch", "UInt8Images", "extract", "store"]


class Features(Protocol):
    """Any of the features below.

    Attributes:
        size: Numbers an image.
    """

    size: int

    def __call__(self, images: Tensor) -> Tensor:
        """Features ``(N, size)``, at least float32, of images ``(N, 3, H, W)`` in [-1, 1]."""


class UInt8Images(Protocol):
    """Decoded images, such as a uint8 tensor ``(N, 3, H, W)`` or :class:`afv_metric.images.cache.Rows`."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, chosen: slice) -> Tensor:
        """Some of them, uint8 ``(n, 3, H, W)``."""


class Sketch(nn.Module):
    """Count sketch: long vectors at a fixed length, with inner products and distances kept in expectation.

    Every number is added to one place of the result, or subtracted from it, both drawn at random. The error of an inner
    product of two vectors of length 1 has a standard deviation of at most sqrt(2 / size), and no matrix is needed.

    Args:
        length: Of the vectors.
        size: Of the sketch.
        seed: Of the places and signs.

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
        >>> features = ScoreFeatures(load_bundle("tiny-imagenet-v4"), sketch=1024)
        >>> features(torch.rand(2, 3, 32, 32) * 2 - 1).shape
        torch.Size([2, 1024])
    """

    def __init__(self, bundle: Bundle, sketch: int | None = None, seed: int = 0) -> None:
        super().__init__()
        if sketch is not None and sketch < 1:
            raise ValueError(f"a sketch has at least one number, or is None; got {sketch}")
        self.engine = FisherEngine(bundle.discriminator, bundle.output)
        lengths = [shape.numel() + shape[0] for shape in self.engine.weight_shapes]
        self._ends = list(accumulate(lengths))
        self.size = sketch or self._ends[-1]
        for layer, statistics in enumerate(bundle.statistics.layers):
            variances = (statistics.weight_variance, statistics.bias_variance)
            roots = torch.cat([inverse_root(variance, bundle.epsilon).flatten() for variance in variances])
            roots = roots / self._ends[-1] ** 0.5
            means = torch.cat([statistics.weight_mean.flatten(), statistics.bias_mean])
            self.register_buffer(f"roots_{layer}", roots, persistent=False)
            self.register_buffer(f"shifts_{layer}", -means * roots, persistent=False)
        # Layers have places and signs of their own, and no seed is used twice.
        self.sketches = nn.ModuleList(
            Sketch(length, sketch, seed * len(lengths) + layer) for layer, length in enumerate(lengths) if sketch
        )

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features of images ``(N, 3, H, W)`` in [-1, 1], on the device of the module: ``(N, size)``."""
        with torch.autocast(images.device.type, enabled=False):
            return self._features(images)

    def _features(self, images: Tensor) -> Tensor:
        weights = weights_of_padded(images, self.engine.stride)
        images = pad_to_multiple(images, self.engine.stride)
        weights = None if weights is None else F.avg_pool2d(weights, self.engine.stride)
        result = (images.new_zeros if self.sketches else images.new_empty)(len(images), self.size)
        for signals in self.engine.signals(images, weights):
            if self.sketches:
                vectors = images.new_empty(len(images), len(self.get_buffer(f"roots_{signals.layer}")))
                result += self.sketches[signals.layer](self._whiten(signals, vectors))
            else:
                end = self._ends[signals.layer]
                self._whiten(signals, result[:, end - len(self.get_buffer(f"roots_{signals.layer}")) : end])
        return result

    def _whiten(self, signals: Signals, into: Tensor) -> Tensor:
        """Put a layer's centred and whitened scores into ``(N, P_l)``, weights before biases, in a single pass."""
        weight, bias = (score.flatten(1) for score in self.engine.score(signals))
        roots, shifts = self.get_buffer(f"roots_{signals.layer}"), self.get_buffer(f"shifts_{signals.layer}")
        border = weight.shape[1]
        torch.addcmul(shifts[:border], weight, roots[:border], out=into[:, :border])
        torch.addcmul(shifts[border:], bias, roots[border:], out=into[:, border:])
        return into


class PooledFeatures(nn.Module):
    """D-pool of the paper: the discriminator's maps, behind their activation, averaged over positions.

    Args:
        bundle: The discriminator; statistics are not used.
        every_block: Whether to join the maps of all residual blocks; otherwise it is the last one's, which the energy
            is a linear function of.
    """

    def __init__(self, bundle: Bundle, *, every_block: bool = False) -> None:
        super().__init__()
        self.discriminator = deepcopy(bundle.discriminator).requires_grad_(False).eval()
        self.every_block = every_block
        width = self.discriminator.head.in_channels
        self.size = width * len(self.discriminator.residual_blocks()) if every_block else width

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features of images ``(N, 3, H, W)`` in [-1, 1], on the device of the module: ``(N, size)``."""
        maps = pad_to_multiple(images, self.discriminator.stride)
        pooled = []
        for block in self.discriminator.residual_blocks():
            maps = block(maps)
            activated = F.leaky_relu(maps, self.discriminator.config.slope)
            pooled.append(activated.mean((2, 3), dtype=torch.promote_types(maps.dtype, torch.float32)))
        return torch.cat(pooled, 1) if self.every_block else pooled[-1]


class PixelFeatures(nn.Module):
    """The pixels themselves, in [-1, 1].

    Args:
        image_size: Side of the images.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.size = 3 * image_size**2

    def forward(self, images: Tensor) -> Tensor:
        """``(N, 3, H, W)`` to ``(N, 3 H W)``."""
        return images.flatten(1)


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
        device: Where to compute.
        quiet: Show no progress bar.

    Yields:
        ``(n, size)`` on the CPU, n being ``batch_size`` but for the last.

    Example:
        >>> images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
        >>> [len(batch) for batch in extract(PixelFeatures(32), images, batch_size=2)]
        [2, 2, 1]
    """

    def compute(start: int) -> Tensor:
        batch = images[slice(start, start + batch_size)].to(device)
        return features(to_network_range(batch, normalize=False, dtype=torch.float32)).cpu()

    starts = tqdm(range(0, len(images), batch_size), desc="features", unit="batch", disable=quiet)
    for _, batch in parallel_map(compute, starts, device):
        yield batch


def store(
    features: Features,
    images: UInt8Images,
    path: str | Path | None = None,
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    quiet: bool = True,
) -> Tensor:
    """Features of many images, kept in half precision.

    Args:
        features: As for :func:`extract`.
        images: Likewise.
        path: File to map into memory, which may then be smaller than the features; None keeps them in memory.
        batch_size: As for :func:`extract`.
        device: Likewise.
        quiet: Likewise.

    Returns:
        ``(N, size)`` float16. Values beyond its range are cut to it.

    Raises:
        OSError: If the file cannot be written; none is left then.
    """
    shape = (len(images), features.size)
    batches = extract(features, images, batch_size=batch_size, device=device, quiet=quiet)
    if path is None:
        table, start = torch.empty(shape, dtype=torch.float16), 0
        for batch in batches:
            table[start : start + len(batch)] = _to_half(batch)
            start += len(batch)
        return table
    # Written, not filled through a mapping, where a full disk would end the process.
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        for batch in batches:
            file.write(_to_half(batch).numpy().tobytes())
    return torch.from_numpy(np.memmap(path, np.float16, "c", shape=shape))


def _to_half(batch: Tensor) -> Tensor:
    largest = torch.finfo(torch.float16).max
    return batch.clamp(-largest, largest).half()
