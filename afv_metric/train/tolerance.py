"""Tolerance of shifts, learnt without a label: one pixel of shift has to move D's maps less than a blur does.

The distance compares whitened maps place by place. Left to the adversarial loss alone, a shift by one pixel moves them
about as far as a blur that everybody sees.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from afv_metric.fisher.statistics import inverse_root_matrix
from afv_metric.networks import Discriminator
from afv_metric.train.negatives import gaussian_blur

__all__ = ["shift_ratios", "tolerance_loss"]

_IMAGES = 24  # of a batch are enough
_MARGIN = 4  # of the shift and the blur, in pixels; what is left of the images stays whole strides wide
_BLOCKS = 2
_EPSILON = 0.03  # relative floor of the whitening
_LIMITS = (0.21, 0.3)  # of the ratios at full and at half size, beyond which nothing is gained
_SHARES = (0.5, 1.0)


def shift_ratios(discriminator: Discriminator, images: Tensor) -> Tensor:
    """How far a shift by one pixel is, relative to a Gaussian blur of sigma 1, as D's maps after two blocks see it.

    The maps are whitened by their own second moments, and compared in direction, as by the form ``activation``.

    Args:
        discriminator: D.
        images: ``(N, 3, 2 S, 2 S)`` in [-1, 1]. The shift is along a random axis.

    Returns:
        The ratios for the images at full and at half size, ``(2,)``.
    """
    rows, columns = ((0, 1), (1, 0), (0, -1), (-1, 0))[int(torch.randint(4, ()))]
    images, size = images[:_IMAGES], images.shape[-1] - 2 * _MARGIN

    def cut(values: Tensor, row: int = 0, column: int = 0) -> Tensor:
        return values[:, :, _MARGIN + row :, _MARGIN + column :][:, :, :size, :size]

    full = torch.cat([cut(images), cut(images, rows, columns), cut(gaussian_blur(images, 1.0))])
    ratios = []
    for views in (full, F.avg_pool2d(full, 2)):
        maps = views
        for block in discriminator.residual_blocks()[:_BLOCKS]:
            maps = block(maps)
        maps = F.leaky_relu(maps, discriminator.config.slope)
        with torch.autocast(images.device.type, enabled=False):
            original, shifted, blurred = _directions(maps.float(), len(images)).chunk(3)
            shift, blur = ((other - original).square().sum(-1) for other in (shifted, blurred))
            ratios.append(_root_mean_square(shift) / _root_mean_square(blur))
    return torch.stack(ratios)


def tolerance_loss(ratios: Tensor) -> Tensor:
    """Loss of the ratios of :func:`shift_ratios`: their logarithms as far as they are above what is aimed at."""
    excess = F.relu((ratios / ratios.new_tensor(_LIMITS)).log())
    return (excess * ratios.new_tensor(_SHARES)).sum()


def _directions(maps: Tensor, originals: int) -> Tensor:
    """Directions of maps ``(N, C, H, W)`` whitened by the first of them: ``(N, H, W, C)``."""
    maps = maps.movedim(1, -1)
    vectors = maps[:originals].detach().flatten(0, 2)
    # On the CPU, as MPS has no float64; what is not finite in a network that has diverged stays in the maps.
    moment = (vectors.T @ vectors / len(vectors)).cpu().nan_to_num()
    return F.normalize(F.linear(maps, inverse_root_matrix(moment, _EPSILON).to(maps)), dim=-1)


def _root_mean_square(maps: Tensor) -> Tensor:
    return (maps.square().mean((1, 2)) + 1e-8).sqrt().mean()
