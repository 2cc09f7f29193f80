"""A variational autoencoder whose reconstruction is trained by L1 alone, and by L1 plus the weighted distance.

    python examples/vae.py --images FOLDER --out vae.png

The figure has a column per test patch; its rows are the reconstruction after each loss, and the target.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from common import Loss, make_loss, make_parser, name_of, read_patches, report, save_figure
from torch import Tensor, nn

PRESET = 0.05
_KL = 2e-4  # per dimension of the code, beside an L1 per number of the image


class VAE(nn.Module):
    """From 32x32 pixels to 16 channels of 4x4, and back."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        w, act = width, nn.LeakyReLU(0.2)
        self.encoder = nn.Sequential(
            nn.Conv2d(3, w, 4, 2, 1), act, nn.Conv2d(w, 2 * w, 4, 2, 1), act, nn.Conv2d(2 * w, 32, 4, 2, 1)
        )
        self.decoder = nn.Sequential(
            *(
                nn.Conv2d(16, 2 * w, 3, padding=1),
                act,
                nn.Upsample(scale_factor=2),
                nn.Conv2d(2 * w, 2 * w, 3, padding=1),
            ),
            *(act, nn.Upsample(scale_factor=2), nn.Conv2d(2 * w, w, 3, padding=1)),
            *(act, nn.Upsample(scale_factor=2), nn.Conv2d(w, w, 3, padding=1), act, nn.Conv2d(w, 3, 3, padding=1)),
            nn.Tanh(),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruct images; returns the reconstructions and the mean divergence of the codes from the normal law."""
        mean, log_variance = self.encoder(images).chunk(2, 1)
        code = mean + (0.5 * log_variance).exp() * torch.randn_like(mean) if self.training else mean
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return self.decoder(code), divergence


def train(patches: Tensor, loss: Loss, steps: int, seed: int) -> VAE:
    """Train on random batches of 32."""
    torch.manual_seed(seed)
    network = VAE()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        target = patches[torch.randint(len(patches), (32,))]
        output, divergence = network(target)
        value = loss(output, target) + _KL * divergence
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train once per weight, and compare."""
    options = make_parser(__doc__, PRESET, steps=400).parse_args(arguments)
    patches, tests = read_patches(options.images, 2000, 32, options.seed)
    results = {}
    for weight in options.weights:
        network = train(patches, make_loss(weight, options.bundle), options.steps, options.seed)
        with torch.no_grad():
            results[name_of(weight)] = network(tests)[0]
    print(report(results, tests, options.bundle))
    if options.out:
        save_figure([*results.values(), tests], options.out, times=2)


if __name__ == "__main__":
    main()
