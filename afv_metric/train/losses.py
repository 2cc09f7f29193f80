"""The adversarial losses, on the logits of real, generated and corrupted images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["discriminator_loss", "generator_loss", "gradient_penalty", "proximal_term"]

# What each logit of a real image adds to the loss.
_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "hinge": lambda logits: F.relu(1 - logits),
    "logistic": lambda logits: F.softplus(-logits),
    "least-squares": lambda logits: (-logits).sigmoid().square(),
}


def discriminator_loss(kind: str, real: Tensor, negatives: Sequence[Tensor]) -> Tensor:
    """Loss of the discriminator: high logits for real images, low ones for all kinds of negatives, of equal weights.

    Args:
        kind: ``"hinge"``, ``"logistic"`` or ``"least-squares"`` (with a sigmoid on the logits).
        real: Logits of real images ``(N, P)``, one or many positions per image.
        negatives: Logits of each kind of negative image.
    """
    wrong_by = _wrong_by(kind)  # with the sign of the logits turned, that of negatives
    return wrong_by(real).mean() + torch.stack([wrong_by(-logits).mean() for logits in negatives]).mean()


def generator_loss(kind: str, generated: Tensor) -> Tensor:
    """Adversarial loss of the generator: high logits for what it makes; ``(N, P)`` to a scalar."""
    wrong_by = _wrong_by(kind)
    return -generated.mean() if kind == "hinge" else wrong_by(generated).mean()


def _wrong_by(kind: str) -> Callable[[Tensor], Tensor]:
    if kind not in _LOSSES:
        raise ValueError(f'the loss must be "hinge", "logistic" or "least-squares", got {kind!r}')
    return _LOSSES[kind]


def proximal_term(images: Tensor, averaged: Tensor, noise_std: float) -> Tensor:
    """The proximal, MCMC-inspired term of eq. 7: mean over images of ||G(z) - averaged G(z) + noise||^2.

    The sum is over pixels, as in the equation; the released code takes the mean, so a gamma from there is to be divided
    by their number, 3,072 for 32x32.
    """
    noise = torch.randn_like(images) * noise_std
    return (images - averaged + noise).square().sum((1, 2, 3)).mean()


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Zero-centred gradient penalty (R1): half the mean over images of ||gradient of D(x)||^2.

    D(x) is the mean over positions of the logits ``(N, P)``; the images that these were computed from require a
    gradient.
    """
    (gradient,) = torch.autograd.grad(logits.mean(1).sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean() / 2
