"""The adversarial losses, on the energies of real, generated and corrupted images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["discriminator_loss", "generator_loss", "gradient_penalty", "pull_to_average"]


def discriminator_loss(kind: str, real: Tensor, negatives: Sequence[Tensor]) -> Tensor:
    """Loss of the discriminator: high energies for real images, low ones for all kinds of negatives.

    Args:
        kind: ``"hinge"``, ``"logistic"`` or ``"least-squares"`` (with a sigmoid on the energies).
        real: Energies of real images ``(N, P)``, one or many positions an image.
        negatives: Energies of each kind of negative image; the kinds weigh the same.
    """
    if kind == "hinge":
        of_real = F.relu(1 - real).mean()
        of_negatives = [F.relu(1 + energies).mean() for energies in negatives]
    elif kind == "logistic":
        of_real = F.softplus(-real).mean()
        of_negatives = [F.softplus(energies).mean() for energies in negatives]
    else:
        of_real = (1 - real.sigmoid()).square().mean()
        of_negatives = [energies.sigmoid().square().mean() for energies in negatives]
    return of_real + torch.stack(of_negatives).mean()


def generator_loss(kind: str, generated: Tensor) -> Tensor:
    """Adversarial loss of the generator: high energies for what it makes; ``(N, P)`` to a scalar."""
    if kind == "hinge":
        return -generated.mean()
    if kind == "logistic":
        return F.softplus(-generated).mean()
    return (1 - generated.sigmoid()).square().mean()


def pull_to_average(images: Tensor, averaged: Tensor, noise_std: float) -> Tensor:
    """The MCMC-inspired term of eq. 7: mean over images of ||G(z) - averaged G(z) + noise||^2.

    Args:
        images: G(z), ``(N, 3, S, S)``.
        averaged: The Polyak-averaged generator on the same latents.
        noise_std: Standard deviation of the noise.
    """
    noise = torch.randn_like(images) * noise_std
    return (images - averaged + noise).square().sum((1, 2, 3)).mean()


def gradient_penalty(energies: Tensor, images: Tensor) -> Tensor:
    """Zero-centred gradient penalty (R1): half the mean over images of ||gradient of D(x)||^2.

    Args:
        energies: Energies of the images, ``(N, P)``; D(x) is their mean over positions.
        images: The images they were computed from, ``(N, 3, S, S)``, which require a gradient.
    """
    (gradient,) = torch.autograd.grad(energies.mean(1).sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean() / 2
