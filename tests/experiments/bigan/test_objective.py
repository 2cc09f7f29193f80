"""The objective of a bidirectional GAN, against what the paper proves about it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.bigan.objective import BiGAN


class PairMLP(nn.Module):
    """A discriminator of concatenated image and latent."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(size, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, 1)
        )

    def forward(self, images: Tensor, latents: Tensor) -> Tensor:
        return self.layers(torch.cat((images.flatten(1), latents.flatten(1)), 1)).squeeze(1)


class PairTable(nn.Module):
    """A discriminator of one-hot images and latents: a logit for every pair."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor, latents: Tensor) -> Tensor:
        return torch.einsum("ni,ij,nj->n", images, self.logits, latents)


def make_game(discriminator: nn.Module | None = None) -> BiGAN:
    torch.manual_seed(0)
    return BiGAN(nn.Linear(3, 2), nn.Linear(2, 3), discriminator or PairMLP(5, 8))


def test_losses_where_d_knows_nothing() -> None:
    game = make_game()
    nn.init.zeros_(game.discriminator.layers[-1].weight)
    nn.init.zeros_(game.discriminator.layers[-1].bias)
    losses = game.losses(*game.pairs(torch.randn(7, 3), torch.randn(4, 2)))
    assert losses.discriminator.item() == pytest.approx(2 * math.log(2), rel=1e-6)
    assert losses.encoder_generator.item() == pytest.approx(2 * math.log(2), rel=1e-6)


def test_discriminator_loss_is_minus_the_value_of_the_game() -> None:
    game = make_game()
    real, generated = game.pairs(torch.randn(7, 3), torch.randn(4, 2))
    p_real, p_generated = (torch.sigmoid(game.discriminator(*pairs)) for pairs in (real, generated))
    value = p_real.log().mean() + (1 - p_generated).log().mean()
    torch.testing.assert_close(game.losses(real, generated).discriminator, -value)


def test_inverse_objective_is_the_discriminators_with_labels_exchanged() -> None:
    game = make_game()
    real, generated = game.pairs(torch.randn(7, 3), torch.randn(4, 2))
    losses, exchanged = game.losses(real, generated), game.losses(generated, real)
    torch.testing.assert_close(losses.encoder_generator, exchanged.discriminator)
    assert losses.encoder_generator.item() != pytest.approx(losses.discriminator.item(), rel=1e-3)


def test_inverse_objective_keeps_its_gradient_where_d_is_sure() -> None:
    logits = torch.tensor([-30.0, 30.0])
    shift = torch.zeros((), requires_grad=True)

    class Sure(nn.Module):
        def forward(self, images: Tensor, latents: Tensor) -> Tensor:
            return images[:, 0] + shift

    losses = make_game(Sure()).losses((logits[1:, None], torch.zeros(1, 2)), (logits[:1, None], torch.zeros(1, 2)))
    assert losses.encoder_generator.item() == pytest.approx(60)
    (slope,) = torch.autograd.grad(F.softplus(-(logits[0] + shift)), shift)
    assert slope.item() == pytest.approx(-1)
    assert losses.discriminator.item() < 1e-9


def test_best_discriminator_is_the_log_ratio_of_the_two_kinds_of_pairs() -> None:
    """Proposition 1 of the paper, for three images and two latents with all pairs in exact shares."""
    counts_real = torch.tensor([[4, 1], [2, 2], [1, 6]])
    counts_generated = torch.tensor([[1, 3], [5, 1], [4, 2]])

    def pairs(counts: Tensor) -> tuple[Tensor, Tensor]:
        images, latents = counts.nonzero().repeat_interleave(counts.flatten(), 0).T
        return F.one_hot(images, 3).double(), F.one_hot(latents, 2).double()

    real, generated = pairs(counts_real), pairs(counts_generated)
    p_real, p_generated = counts_real / counts_real.sum(), counts_generated / counts_generated.sum()
    best = PairTable((p_real / p_generated).log().double())
    game = make_game(best)
    loss = game.losses(real, generated).discriminator
    (gradient,) = torch.autograd.grad(loss, best.logits)
    assert gradient.abs().max() < 1e-7
    middle = (p_real + p_generated) / 2
    divergence = ((p_real * (p_real / middle).log()).sum() + (p_generated * (p_generated / middle).log()).sum()) / 2
    assert loss.item() == pytest.approx(2 * math.log(2) - 2 * divergence.item(), rel=1e-6)
    for row in range(3):
        for change in (-0.3, 0.3):
            other = best.logits.detach().clone()
            other[row, 0] += change
            assert make_game(PairTable(other)).losses(real, generated).discriminator > loss


def test_encoder_and_generator_become_inverse() -> None:
    """Theorem 2 of the paper, in two dimensions: data is an affine image of the uniform latents."""
    torch.manual_seed(1)
    steps, batch = 400, 128
    game = BiGAN(nn.Linear(2, 2), nn.Linear(2, 2), PairMLP(4, 48))
    inverse = [*game.encoder.parameters(), *game.generator.parameters()]
    sides = [
        torch.optim.Adam(game.discriminator.parameters(), 1e-2, (0.5, 0.99), fused=True),
        torch.optim.Adam(inverse, 5e-3, (0.5, 0.99), fused=True),
    ]

    def draw(count: int) -> tuple[Tensor, Tensor]:
        mixing = torch.tensor([[1.0, -0.2], [0.6, 0.8]])
        return (torch.rand(count, 2) * 2 - 1) @ mixing + 0.5, torch.rand(count, 2) * 2 - 1

    @torch.no_grad()
    def errors() -> tuple[float, float]:
        images, latents = draw(2000)
        of_images = game.generator(game.encoder(images)) - images
        of_latents = game.encoder(game.generator(latents)) - latents
        return of_images.norm(dim=1).mean().item(), of_latents.norm(dim=1).mean().item()

    def noisy(pair: tuple[Tensor, Tensor], noise: float) -> tuple[Tensor, Tensor]:
        # Lets the two kinds of pairs overlap while E and G are far from each other's inverse.
        return pair[0] + noise * torch.randn_like(pair[0]), pair[1] + noise * torch.randn_like(pair[1])

    start = errors()
    for step in range(steps):
        left = 1 - step / steps
        sides[0].param_groups[0]["lr"], sides[1].param_groups[0]["lr"] = 1e-2 * left, 5e-3 * left
        for side in (0, 0, 0, 1):
            real, generated = (noisy(pair, left / 2) for pair in game.pairs(*draw(batch)))
            game.zero_grad()
            game.losses(real, generated)[side].backward()
            sides[side].step()
    for before, after in zip(start, errors(), strict=True):
        assert before > 0.5
        assert after < before / 5
