"""Super-resolution by 4: a small network trained by L1 alone, and by L1 plus the weighted distance.

    python examples/super_resolution.py --images FOLDER --out super_resolution.png

The figure has a column per test patch; its rows are the small image enlarged by a bicubic filter, the output after each
loss, and the target.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from common import Loss, make_loss, make_parser, name_of, read_patches, report, save_figure
from torch import Tensor, nn
from torch.nn import functional as F

PRESET = 0.02


class Upscaler(nn.Module):
    """Four times as large: what a bicubic filter makes of an image, plus what the network adds."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
        for _ in range(4):
            layers += [nn.LeakyReLU(0.2), nn.Conv2d(width, width, 3, padding=1)]
        self.layers = nn.Sequential(*layers, nn.LeakyReLU(0.2), nn.Conv2d(width, 48, 3, padding=1), nn.PixelShuffle(4))

    def forward(self, images: Tensor) -> Tensor:
        """Enlarge ``(N, 3, H, W)`` to ``(N, 3, 4 H, 4 W)``."""
        added: Tensor = self.layers(images)
        return F.interpolate(images, scale_factor=4, mode="bicubic") + 0.2 * added


def shrink(images: Tensor) -> Tensor:
    """A quarter of the size."""
    return F.interpolate(images, scale_factor=0.25, mode="area")


def train(patches: Tensor, loss: Loss, steps: int, seed: int) -> Upscaler:
    """Train on random batches of 16."""
    torch.manual_seed(seed)
    network = Upscaler()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        target = patches[torch.randint(len(patches), (16,))]
        value = loss(network(shrink(target)), target)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return network


def main(arguments: Sequence[str] | None = None) -> None:
    """Train once per weight, and compare."""
    options = make_parser(__doc__, PRESET, steps=300).parse_args(arguments)
    patches, tests = read_patches(options.images, 1000, 64, options.seed)
    small = shrink(tests)
    results = {"bicubic": F.interpolate(small, scale_factor=4, mode="bicubic")}
    for weight in options.weights:
        network = train(patches, make_loss(weight, options.bundle), options.steps, options.seed)
        with torch.no_grad():
            results[name_of(weight)] = network(small)
    print(report(results, tests, options.bundle))
    if options.out:
        save_figure([*results.values(), tests], options.out)


if __name__ == "__main__":
    main()
