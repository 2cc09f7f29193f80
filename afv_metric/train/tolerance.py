"""What distances owe to eyes, learnt without a label: the order of known changes.

The distance compares maps of D, of whose distances the adversarial loss asks nothing. Left to it, one pixel of shift is
as far as a blur that everybody sees, and a JPEG file may be farther than one of lower quality. D therefore also learns,
from distortions of the training images, that a shift by one pixel counts less than a blur, and a better file less than
a worse one, in the distance that :mod:`afv_metric.train.export` will give the bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from afv_metric.fisher.comparison import pyramid
from afv_metric.fisher.engine import layer_inputs
from afv_metric.fisher.forms import Term, compare_maps, describe_maps, pool_maps, whiten_maps, whitening_matrix
from afv_metric.images.distort import Pixels, compress, to_pixels
from afv_metric.networks import Discriminator
from afv_metric.train.export import POOLING, TERMS
from afv_metric.train.negatives import gaussian_blur

__all__ = ["Tolerance", "distances_to_first", "measure_tolerance"]

_IMAGES = 24  # of a batch are enough
_MARGIN = 4  # round the views, in pixels: what the shift brings in, and half a block of JPEG
_EPSILON = 0.03  # relative floor of the whitening
_LIMIT = 0.32  # of the shift ratio, below which nothing is gained
_STEP = 0.15  # by which the logarithm of the distance should rise, at least, from the better file to the worse
_SHARES = (1.5, 10.0)  # of the shift ratio and the order, in the loss


class Tolerance(NamedTuple):
    """How a network orders known changes, as scalar tensors.

    Attributes:
        loss: What training lowers.
        shift_ratio: Mean distance of a shift by one pixel, relative to that of a Gaussian blur of sigma 1.
        disorder: Share of the images whose better JPEG file is the farther one.
    """

    loss: Tensor
    shift_ratio: Tensor
    disorder: Tensor


def measure_tolerance(discriminator: Discriminator, images: Tensor) -> Tolerance:
    """Measure how D orders changes of images: a shift and a blur, and two JPEG files of each.

    Args:
        discriminator: D, to whose weights the loss is differentiable.
        images: ``(N, C, 2 S, 2 S)`` in [-1, 1]; some of a large batch are taken.
    """
    shifted, blurred, better, worse = distances_to_first(discriminator, _make_views(images[:_IMAGES]), TERMS)
    ratio = shifted.mean() / blurred.mean()
    order = better.log() - worse.log()
    loss = _SHARES[0] * F.relu((ratio / _LIMIT).log()) + _SHARES[1] * F.relu(order + _STEP).mean()
    return Tolerance(loss, ratio, (order > 0).float().mean())


def distances_to_first(discriminator: Discriminator, views: Tensor, terms: Sequence[Term]) -> Tensor:
    """Distances of the first view of each image to its others, whitened by the first views of all.

    Args:
        discriminator: D.
        views: ``(V, N, C, H, W)`` in [-1, 1].
        terms: Terms of the distance.

    Returns:
        Distances ``(V - 1, N)``, positive.
    """
    count, layers = views.shape[1], list(discriminator.convolutions())
    blocks, slope = len(discriminator.residual_blocks()), discriminator.config.slope
    parts: list[Tensor] = []
    for level, images in pyramid(views.flatten(0, 1), tuple(sorted({term.level for term in terms}))):
        wanted = [term for term in terms if term.level == level]
        last = max(layer for term in wanted for layer in term.layers)
        inputs = layer_inputs(lambda layer, maps: layers[layer](maps), blocks, slope, images)
        for layer, maps in zip(range(last + 1), inputs, strict=False):
            compared = [term for term in wanted if layer in term.layers]
            if compared:
                with torch.autocast(images.device.type, enabled=False):
                    whitened = _whiten(maps.float(), count)
                    parts += [_distances(term, whitened, count) for term in compared]
    return torch.stack(parts).sum(0)


def _distances(term: Term, whitened: Tensor, count: int) -> Tensor:
    """Distances of the first ``count`` maps of a layer to each further ``count``, by one term: ``(V - 1, N)``."""
    first, *others = describe_maps(term.kind, whitened).split(count)
    pooled = torch.stack([pool_maps(compare_maps(term.kind, first, other), POOLING) for other in others])
    return (pooled + torch.finfo(pooled.dtype).eps) * (term.weight / len(term.layers))


def _make_views(images: Tensor) -> Tensor:
    """Views of images ``(N, C, S, S)``: originals, shifted, blurred, compressed better and worse; ``(5, N, C, s, s)``.

    The originals are JPEG files themselves, as nearly all images are. Most of them are compressed on their own grid of
    blocks, a quarter on one half a block off.
    """
    generator = np.random.default_rng(int(torch.randint(2**31, ())))
    rows, columns = ((0, 1), (1, 0), (0, -1), (-1, 0))[int(generator.integers(4))]
    side = images.shape[-1] - 2 * _MARGIN
    files: list[Pixels] = []
    better: list[Pixels] = []
    worse: list[Pixels] = []
    for number, values in enumerate(images.movedim(1, -1).cpu().numpy()):
        # Qualities that programs use: rounding twice, at related steps, is what puts files out of order.
        quality = 75 if number % 3 < 2 else generator.uniform(60, 98)
        file = compress(to_pixels((values + 1) * 127.5), quality, generator)
        files.append(file)
        on_grid = number % 4 < 3
        original = file if on_grid else file[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
        quality = 10 * generator.integers(1, 10)
        for found, one in ((better, quality), (worse, quality * generator.uniform(0.5, 0.8))):
            made = compress(original, one, generator)
            found.append(made[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] if on_grid else made)

    def stack(pixels: list[Pixels]) -> Tensor:
        return torch.from_numpy(np.stack(pixels)).movedim(-1, 1).to(images) / 127.5 - 1

    def cut(maps: Tensor, row: int = 0, column: int = 0) -> Tensor:
        return maps[:, :, _MARGIN + row :, _MARGIN + column :][:, :, :side, :side]

    originals = stack(files)
    shifted, blurred = cut(originals, rows, columns), cut(gaussian_blur(originals, 1.0))
    return torch.stack([cut(originals), shifted, blurred, stack(better), stack(worse)])


def _whiten(maps: Tensor, originals: int) -> Tensor:
    """Maps ``(N, C, H, W)`` whitened by the first of them, to a mean squared length of about 1."""
    vectors = maps[:originals].detach().movedim(1, -1).flatten(0, 2)
    # On the CPU, as MPS has no float64; what is not finite in a network that has diverged stays in the maps.
    moment = (vectors.T @ vectors / len(vectors)).cpu().nan_to_num()
    return whiten_maps(maps, whitening_matrix(moment, _EPSILON).to(maps))
