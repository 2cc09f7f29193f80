"""What the examples of the loss share: patches of images, L1 plus the weighted distance, a table and a figure."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional as F

from afv_metric import AFVDistance
from afv_metric.images import read_image
from afv_metric.images.listing import list_images

Loss = Callable[[Tensor, Tensor], Tensor]
IMAGES = Path(__file__).parent / "images"


def make_parser(description: str | None, preset: float, steps: int) -> argparse.ArgumentParser:
    """The arguments that all examples have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder of images to learn from (the examples)")
    parser.add_argument("--weights", type=float, nargs="+", default=[0, preset], help="of the distance; L1 has 1")
    parser.add_argument("--steps", type=int, default=steps, help=f"steps of Adam ({steps})")
    parser.add_argument("--seed", type=int, default=0, help="seed (0)")
    parser.add_argument("--bundle", help="name, folder or hub id of a bundle; the default if not given")
    parser.add_argument("--out", type=Path, help="figure to write, a PNG")
    return parser


def read_patches(folder: Path, count: int, side: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw square patches, half the shorter side at least, from the images of a folder.

    Returns:
        Patches to train on, ``(count, 3, side, side)`` in [-1, 1], and 32 to test on: of every fifth image, or, where
        there are fewer than ten images, of the left half of each,
        which no patch for training touches.
    """
    random = np.random.default_rng(seed)
    paths = list(list_images(folder)[0].values())
    images = [read_image(paths[index]) / 127.5 - 1 for index in random.permutation(len(paths))[: count + 32]]
    if len(images) < 10:
        tests, images = (
            [im[..., : im.shape[3] // 4 * 2] for im in images],
            [im[..., im.shape[3] // 4 * 2 :] for im in images],
        )
    else:
        tests, images = images[::5], [image for index, image in enumerate(images) if index % 5]
    return _draw(images, count, side, random), _draw(tests, 32, side, random)


def _draw(images: Sequence[Tensor], count: int, side: int, random: np.random.Generator) -> Tensor:
    patches = []
    for index in range(count):
        image = images[index % len(images)]
        size = int(random.integers(min(image.shape[2:]) // 2, min(image.shape[2:]), endpoint=True))
        top, left = (int(random.integers(0, length - size, endpoint=True)) for length in image.shape[2:])
        patch = image[..., top : top + size, left : left + size]
        patches.append(F.interpolate(patch, (side, side), mode="bicubic", antialias=True).clamp(-1, 1))
    return torch.cat(patches)


def make_loss(weight: float, bundle: str | None) -> Loss:
    """L1 plus the weighted distance; a low exponent spreads the gradient over the image."""
    if not weight:
        return F.l1_loss
    distance = AFVDistance(*([bundle] if bundle else []), form="activation", pooling=2, reduction="mean", check=False)
    return lambda output, target: F.l1_loss(output, target) + weight * distance(output, target)


def report(results: Mapping[str, Tensor], target: Tensor, bundle: str | None) -> str:
    """Mean L1 and distance to the target, and LPIPS, which was no part of the loss, if it is installed."""
    measures: dict[str, Loss] = {"L1": F.l1_loss}
    measures["distance"] = AFVDistance(*([bundle] if bundle else []), reduction="mean", check=False)
    try:
        import lpips

        measures["LPIPS"] = lpips.LPIPS(net="alex", verbose=False)
    except ImportError:
        pass
    with torch.no_grad():
        rows = [
            (name, *(f"{float(measure(images, target).mean()):.4f}" for measure in measures.values()))
            for name, images in results.items()
        ]
    return str(tabulate(rows, ("", *measures), tablefmt="plain", disable_numparse=True))


def save_figure(rows: Sequence[Tensor], path: Path, columns: int = 8, times: int = 1) -> None:
    """Write rows of images below one another."""
    picture = torch.cat([torch.cat(list(row[:columns]), 2) for row in rows], 1)
    pixels = (picture.clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(1, 2, 0).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.repeat(times, 0).repeat(times, 1)).save(path, optimize=True)


def name_of(weight: float) -> str:
    """What a loss is called in tables."""
    return f"L1 + {weight:g} distance" if weight else "L1"
