"""The distance as a loss: bring a blurred image, or noise, back to its original by gradient descent on the pixels.

    python examples/reconstruct.py examples/images/reference.png --start blur --out build/reconstruct

Writes ``strip.png`` (before, after and target side by side), ``curve.csv`` and, if matplotlib is installed,
``curve.png``; prints the first and the last distance and their ratio.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from afv_metric import DEFAULT_BUNDLE, AFVDistance
from afv_metric.images import read_image


def reconstruct(
    metric: AFVDistance, target: Tensor, start: Tensor, steps: int = 300, rate: float = 0.03
) -> tuple[Tensor, list[float]]:
    """Lower the distance to a target with Adam over the pixels, which stay in [-1, 1].

    Args:
        metric: The distance.
        target: Image ``(1, 3, H, W)`` in [-1, 1].
        start: Where to start from, likewise.
        steps: Steps of Adam.
        rate: Step size of the first; it falls to 0 in a straight line.

    Returns:
        The last image, and ``steps + 1`` distances: those of the start, and of the image after each step.
    """
    image = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([image], lr=rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=steps)
    distances = []
    for _ in range(steps):
        distance = metric(image, target).sum()
        distances.append(distance.item())
        optimizer.zero_grad()
        distance.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            image.clamp_(-1, 1)
    return image.detach(), [*distances, metric(image.detach(), target).item()]


def make_start(target: Tensor, kind: str) -> Tensor:
    """Blur the target, or forget it in favour of noise."""
    if kind == "blur":
        blurred: Tensor = gaussian_blur(target, [13, 13], [2.5, 2.5])
        return blurred
    noise = 0.3 * torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    return noise.clamp(-1, 1).to(target)


def write_results(folder: Path, images: list[Tensor], distances: list[float]) -> None:
    """Write the images side by side, and the curve of the distance."""
    folder.mkdir(parents=True, exist_ok=True)
    strip = torch.cat(images, 3)[0].permute(1, 2, 0).cpu().numpy()
    Image.fromarray(np.uint8((strip * 127.5 + 127.5).round())).save(folder / "strip.png")
    with (folder / "curve.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("step", "distance"), *enumerate(distances)])
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure()
    figure.subplots(subplot_kw={"yscale": "log", "xlabel": "step", "ylabel": "distance"}).plot(distances)
    figure.savefig(folder / "curve.png")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description="Reconstruct an image by lowering its distance to the original.")
    parser.add_argument("image", type=Path)
    parser.add_argument("--start", choices=["blur", "noise"], default="blur", help="what to start from (blur)")
    parser.add_argument("--steps", type=int, default=300, help="steps of Adam (300)")
    parser.add_argument("--rate", type=float, default=0.03, help="step size at the start (0.03)")
    parser.add_argument("--form", choices=["fisher", "local", "activation"], help="default: the bundle's")
    parser.add_argument("--weights", default=DEFAULT_BUNDLE, help="name, folder or hub id of a bundle")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    options = parser.parse_args(arguments)

    metric = AFVDistance(options.weights, form=options.form).to(options.device)
    target = read_image(options.image).to(options.device) / 127.5 - 1
    start = make_start(target, options.start)
    image, distances = reconstruct(metric, target, start, options.steps, options.rate)
    write_results(options.out, [start, image, target], distances)
    ratio = distances[0] / distances[-1] if distances[-1] else float("inf")
    print(f"{metric.form}: distance {distances[0]:.4g} to {distances[-1]:.4g}, {ratio:.1f} times lower")


if __name__ == "__main__":
    main()
