"""The objective of a bidirectional GAN: encoder and generator against a discriminator of pairs of image and latent.

The discriminator D tells pairs (x, E(x)) of an image and its code from pairs (G(z), z) of a latent and its image. At
the optimum the two kinds of pairs have one distribution, and E and G are inverse to each other (theorem 2 of the
paper).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BiGAN", "BiGANLosses"]


class BiGANLosses(NamedTuple):
    """What the two sides minimise; scalars.

    Attributes:
        discriminator: Minus the value of the game, eq. 2 of the paper.
        encoder_generator: The "inverse" objective of section 3.4: the discriminator's loss with the labels of both
            kinds of pairs exchanged, whose gradient does not vanish where D is sure.
    """

    discriminator: Tensor
    encoder_generator: Tensor


class BiGAN(nn.Module):
    """Encoder, generator and the joint discriminator.

    Args:
        encoder: E, from images ``(N, ...)`` to latents.
        generator: G, from latents to images.
        discriminator: D, called with images and latents, gives logits ``(N,)``: high for an image and its code.
        image_map: g_X, brings images to the size of generated ones, where the encoder sees larger images than the
            generator draws (section 3.5 of the paper).
        latent_map: g_Z, brings latents to the form of codes, where the encoder does not predict latents as they are,
            such as classes for the one-hot latents of a conditional generator.
    """

    def __init__(
        self,
        encoder: nn.Module,
        generator: nn.Module,
        discriminator: nn.Module,
        *,
        image_map: Callable[[Tensor], Tensor] | None = None,
        latent_map: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.generator, self.discriminator = encoder, generator, discriminator
        self.image_map, self.latent_map = image_map, latent_map

    def pairs(self, images: Tensor, latents: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The two kinds of pairs that D has to tell apart: (g_X(x), E(x)) and (G(z), g_Z(z))."""
        seen = self.image_map(images) if self.image_map else images
        known = self.latent_map(latents) if self.latent_map else latents
        return (seen, self.encoder(images)), (self.generator(latents), known)

    def losses(self, real: tuple[Tensor, Tensor], generated: tuple[Tensor, Tensor]) -> BiGANLosses:
        """Losses of both sides from :meth:`pairs`; detach the pairs for a step of D alone."""
        of_real, of_generated = self.discriminator(*real), self.discriminator(*generated)
        return BiGANLosses(
            F.softplus(-of_real).mean() + F.softplus(of_generated).mean(),
            F.softplus(of_real).mean() + F.softplus(-of_generated).mean(),
        )
