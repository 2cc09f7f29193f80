"""A decoder that rebuilds real images from the last maps of the discriminator, which must then keep what it has seen.

After Liu et al., "Towards faster and stabilized GAN training for high-fidelity few-shot image synthesis" (FastGAN, ICLR
2021). The decoder is an aid of training: no bundle holds it.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afv_metric.networks import Discriminator, UpsampledConv2d

__all__ = ["Decoder", "reconstruction_error"]

_SLOPE = 0.2


class Decoder(nn.Module):
    """From maps to images: doubling 3x3 convolutions, each with half the channels of the one before.

    Args:
        discriminator: Whose last maps are decoded.

    Example:
        >>> discriminator = Discriminator()
        >>> Decoder(discriminator)(discriminator.last_maps(torch.zeros(2, 3, 32, 32))).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(self, discriminator: Discriminator) -> None:
        super().__init__()
        doublings = int(math.log2(discriminator.stride))
        widths = [max(discriminator.config.width >> step, 4) for step in range(doublings + 1)]
        self.doublings = nn.ModuleList(
            UpsampledConv2d(wide, narrow, 3, padding=1) for wide, narrow in itertools.pairwise(widths)
        )
        self.to_image = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        """Map ``(N, width, H / stride, W / stride)`` to images ``(N, 3, H, W)`` in [-1, 1]."""
        for layer in self.doublings:
            maps = F.leaky_relu(layer(maps), _SLOPE)
        return torch.tanh(self.to_image(maps))


def reconstruction_error(decoded: Tensor, images: Tensor) -> Tensor:
    """Mean absolute difference of images in [-1, 1], over everything."""
    return (decoded - images).abs().mean()
