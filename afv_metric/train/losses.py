"""The adversarial losses, on the logits of real, generated and corrupted images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["discriminator_loss", "generator_loss", "gradient_penalty", "proximal_term"]


def discriminator_loss(kind: str, real: Tensor, negatives: Sequence[Tensor]) -> Tensor:
    """Loss of the discriminator: high logits for real images, low ones for all kinds of negatives.

    Args:
        kind: ``"hinge"``, ``"logistic"`` or ``"least-squares"`` (with a sigmoid on the logits).
        real: Logits of real images ``(N, P)``, one or many positions per image.
        negatives: Logits of each kind of negative image; the kinds weigh the same.
    """
    if kind == "hinge":
        of_real = F.relu(1 - real).mean()
        of_negatives = [F.relu(1 + logits).mean() for logits in negatives]
    elif kind == "logistic":
        of_real = F.softplus(-real).mean()
        of_negatives = [F.softplus(logits).mean() for logits in negatives]
    elif kind == "least-squares":
        of_real = (1 - real.sigmoid()).square().mean()
        of_negatives = [logits.sigmoid().square().mean() for logits in negatives]
    else:
        raise ValueError(f'the loss must be "hinge", "logistic" or "least-squares", got {kind!r}')
    return of_real + torch.stack(of_negatives).mean()


def generator_loss(kind: str, generated: Tensor) -> Tensor:
    """Adversarial loss of the generator: high logits for what it makes; ``(N, P)`` to a scalar."""
    if kind == "hinge":
        return -generated.mean()
    if kind == "logistic":
        return F.softplus(-generated).mean()
    return (1 - generated.sigmoid()).square().mean()


def proximal_term(images: Tensor, averaged: Tensor, noise_std: float) -> Tensor:
    """The proximal, MCMC-inspired term of eq. 7: mean over images of ||G(z) - averaged G(z) + noise||^2.

    Args:
        images: G(z), ``(N, 3, S, S)``.
        averaged: The Polyak-averaged generator on the same latents.
        noise_std: Standard deviation of the noise.

    The sum is over pixels, as in the equation; the released code takes the mean, so a gamma from there is to be divided
    by their number, 3,072 for 32x32.
    """
    noise = torch.randn_like(images) * noise_std
    return (images - averaged + noise).square().sum((1, 2, 3)).mean()


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Zero-centred gradient penalty (R1): half the mean over images of ||gradient of D(x)||^2.

    Args:
        logits: Logits of the images, ``(N, P)``; D(x) is their mean over positions.
        images: The images they were computed from, ``(N, 3, S, S)``, which require a gradient.
    """
    (gradient,) = torch.autograd.grad(logits.mean(1).sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean() / 2
