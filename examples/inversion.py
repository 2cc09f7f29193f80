"""Inversion of a generator: codes are searched whose images match given ones, by L1 alone, and with the distance.

    python examples/inversion.py --images FOLDER --out inversion.png

The generator is the bundle's own, of 32x32 pixels. The figure has a column per test patch; its rows are the image of
the code where the search starts, that where it ends with each loss, and the target.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from common import Loss, make_loss, make_parser, name_of, read_patches, report, save_figure
from torch import Tensor, nn

from afv_metric import DEFAULT_BUNDLE, load_bundle

PRESET = 0.1


def invert(generator: nn.Module, start: Tensor, target: Tensor, loss: Loss, steps: int) -> Tensor:
    """Search the codes ``(N, L)`` of images, held to the sphere on which most codes of the normal law lie."""
    radius = start.shape[1] ** 0.5
    codes = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([codes], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        value = loss(generator(radius * nn.functional.normalize(codes)), target) * len(target)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return radius * nn.functional.normalize(codes.detach())


def main(arguments: Sequence[str] | None = None) -> None:
    """Search once per weight, and compare."""
    options = make_parser(__doc__, PRESET, steps=200).parse_args(arguments)
    _, tests = read_patches(options.images, 1, 32, options.seed)
    bundle = load_bundle(options.bundle or DEFAULT_BUNDLE, generator=True)
    assert bundle.generator is not None
    generator = bundle.generator.requires_grad_(False)
    random = torch.Generator().manual_seed(options.seed)
    start = torch.randn(len(tests), generator.config.latent_size, generator=random)
    results = {"start": generator(start)}
    for weight in options.weights:
        codes = invert(generator, start, tests, make_loss(weight, options.bundle), options.steps)
        results[name_of(weight)] = generator(codes)
    print(report(results, tests, options.bundle))
    if options.out:
        save_figure([*results.values(), tests], options.out, times=2)


if __name__ == "__main__":
    main()
