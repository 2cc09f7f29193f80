"""Negative data: corrupted real images, which the discriminator learns to separate from real ones without any label.

After Sinha et al., "Negative data augmentation" (ICLR 2021). Each image gets one corruption of random strength.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["corrupt", "gaussian_blur"]


def corrupt(images: Tensor) -> Tensor:
    """Corrupt each image ``(N, C, S, S)`` in [-1, 1] in one of six ways, in parts as equal as can be; 8 divides S."""
    ways = (_blur, _add_noise, _resample, _quantise, _mix_colours, _bend)
    parts = images.tensor_split(len(ways))
    corrupted = [way(part, float(torch.rand(()))) for way, part in zip(ways, parts, strict=True) if len(part)]
    return torch.cat(corrupted).clamp(-1, 1).contiguous(memory_format=torch.channels_last)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Blur images ``(N, C, S, S)``, reflected at their edges, by a Gaussian of up to about 2 pixels."""
    offsets = torch.arange(-4.0, 5.0, device=images.device)
    profile = torch.exp(-(offsets**2) / (2 * sigma**2))
    profile = (profile / profile.sum()).expand(images.shape[1], 1, 1, 9)
    rows = F.conv2d(F.pad(images, (4, 4, 4, 4), mode="reflect"), profile, groups=images.shape[1])
    return F.conv2d(rows, profile.transpose(2, 3), groups=images.shape[1])


def _blur(images: Tensor, strength: float) -> Tensor:
    """Gaussian blur of 0.4 to 2.2 pixels."""
    return gaussian_blur(images, 0.4 + 1.8 * strength)


def _add_noise(images: Tensor, strength: float) -> Tensor:
    """Gaussian noise with a deviation of 0.02 to 0.32, coloured or grey."""
    channels = images.shape[1] if torch.rand(()) < 0.5 else 1
    noise = torch.randn(len(images), channels, *images.shape[2:]).to(images)
    return images + noise * (0.02 + 0.3 * strength)


def _resample(images: Tensor, strength: float) -> Tensor:
    """Shrink 1.3 to 4 times, and enlarge by one of three interpolations."""
    size = images.shape[-1]
    small = int(size / (1.3 + 2.7 * strength))
    mode = ("nearest", "bilinear", "bicubic")[int(torch.randint(3, ()))]
    shrunk = F.interpolate(images, size=(small, small), mode="bilinear", antialias=True)
    return F.interpolate(shrunk, size=(size, size), mode=mode)


def _quantise(images: Tensor, strength: float) -> Tensor:
    """Round the 8x8 cosine transform, coarser at higher frequencies, as JPEG does."""
    steps = torch.arange(8.0, device=images.device)
    basis = torch.cos(math.pi * (2 * steps + 1) * steps[:, None] / 16) / 2
    basis[0] /= math.sqrt(2)
    blocks = images.unfold(2, 8, 8).unfold(3, 8, 8)
    grain = 0.15 * (0.1 + 0.9 * strength) * (1 + steps[:, None] + steps)
    coefficients = torch.round(basis @ blocks @ basis.T / grain) * grain
    restored = basis.T @ coefficients @ basis
    return restored.permute(0, 1, 2, 4, 3, 5).reshape(images.shape)


def _mix_colours(images: Tensor, strength: float) -> Tensor:
    """A random matrix close to the identity, and an offset, on the colours of each image."""
    count, channels = images.shape[:2]
    matrix = torch.eye(channels) + torch.randn(count, channels, channels) * (0.05 + 0.35 * strength)
    offset = torch.randn(count, channels, 1, 1) * 0.2 * strength
    return torch.einsum("nij,njhw->nihw", matrix.to(images), images) + offset.to(images)


def _bend(images: Tensor, strength: float) -> Tensor:
    """A gamma curve of up to e and, for half of the batches, a smooth warp of up to a few pixels."""
    gamma = torch.exp((2 * torch.rand(len(images), 1, 1, 1) - 1) * (0.2 + 0.8 * strength)).to(images)
    images = ((images + 1) / 2).clamp(1e-4, 1) ** gamma * 2 - 1
    if torch.rand(()) < 0.5:
        nodes = torch.randn(len(images), 2, 4, 4).to(images) * 0.06 * strength
        flow = F.interpolate(nodes, size=images.shape[2:], mode="bicubic").permute(0, 2, 3, 1)
        line = torch.linspace(-1, 1, images.shape[-1], device=images.device)
        grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
        images = F.grid_sample(images, grid + flow, padding_mode="reflection", align_corners=True)
    return images
