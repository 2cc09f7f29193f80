"""The objective of a bidirectional GAN: encoder and generator against a discriminator of pairs of image and latent.

The discriminator D separates pairs (x, E(x)) of an image and its code from pairs (G(z), z) of a latent and its image.
At the optimum the two kinds of pairs have one distribution, and E and G are inverse to each other (theorem 2 of the
paper).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BiGAN", "BiGANLosses"]


class BiGANLosses(NamedTuple):
    """The losses of the two sides; scalars.

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
    """

    def __init__(self, encoder: nn.Module, generator: nn.Module, discriminator: nn.Module) -> None:
        super().__init__()
        self.encoder, self.generator, self.discriminator = encoder, generator, discriminator

    def pairs(self, images: Tensor, latents: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The two kinds of pairs that D has to separate: (x, E(x)) and (G(z), z)."""
        return (images, self.encoder(images)), (self.generator(latents), latents)

    def losses(self, real: tuple[Tensor, Tensor], generated: tuple[Tensor, Tensor]) -> BiGANLosses:
        """Losses of both sides from :meth:`pairs`; detach the pairs for a step of D alone."""
        real_logits, fake_logits = self.discriminator(*real), self.discriminator(*generated)
        return BiGANLosses(
            F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean(),
            F.softplus(real_logits).mean() + F.softplus(-fake_logits).mean(),
        )
