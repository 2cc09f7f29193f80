"""The distance as a loss: bring a blurred image, or noise, back to its original by gradient descent on the pixels.

    python examples/reconstruct.py examples/images/reference.png --start blur --out build/reconstruct
    python examples/reconstruct.py IMAGE --forms activation local fisher l2 lpips-alex --out FOLDER

Writes ``strip.png`` (the start, what each distance makes of it, and the target, side by side), ``curve.csv`` and, if
matplotlib is installed, ``curve.png``; prints the first and the last distance, their ratio, and the root mean square
error of the result in levels of 255. Those of LPIPS need the package ``lpips`` and the weights of its networks.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from afv_metric import DEFAULT_BUNDLE, AFVDistance, Bundle, load_bundle
from afv_metric.fisher.forms import FORMS, FormName
from afv_metric.images import read_image

CHOICES = (*FORMS, "l2", "lpips-alex", "lpips-squeeze", "lpips-vgg")


def reconstruct(
    metric: Callable[[Tensor, Tensor], Tensor], target: Tensor, start: Tensor, steps: int = 300, rate: float = 0.03
) -> tuple[Tensor, list[float]]:
    """Lower the distance to a target with Adam over the pixels, which stay in [-1, 1].

    Args:
        metric: The distance.
        target: Image ``(1, 3, H, W)`` in [-1, 1].
        start: Image to start from, ``(1, 3, H, W)`` in [-1, 1].
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


def make_metric(name: str, bundle: Bundle, pooling: float | None, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Make a distance: a form of the bundle's, ``l2``, or LPIPS with one of its networks."""
    if name == "l2":
        return F.mse_loss
    if name.startswith("lpips-"):
        from lpips import LPIPS

        network: nn.Module = LPIPS(net=name.removeprefix("lpips-"), verbose=False).to(device)
        return network
    return AFVDistance(bundle, form=cast(FormName, name), pooling=pooling)


def write_results(folder: Path, images: Sequence[Tensor], distances: Mapping[str, Sequence[float]]) -> None:
    """Write the images side by side, and the curve of each distance."""
    folder.mkdir(parents=True, exist_ok=True)
    strip = torch.cat(list(images), 3)[0].permute(1, 2, 0).cpu().numpy()
    Image.fromarray(np.uint8((strip * 127.5 + 127.5).round())).save(folder / "strip.png")
    with (folder / "curve.csv").open("w", newline="") as file:
        rows = enumerate(zip(*distances.values(), strict=True))
        csv.writer(file).writerows([("step", *distances), *((step, *values) for step, values in rows)])
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure()
    axes = figure.subplots(subplot_kw={"yscale": "log", "xlabel": "step", "ylabel": "distance, of the first"})
    for name, values in distances.items():
        axes.plot([value / values[0] for value in values], label=name)
    axes.legend()
    figure.savefig(folder / "curve.png")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description="Reconstruct an image by lowering its distance to the original.")
    parser.add_argument("image", type=Path)
    parser.add_argument("--start", choices=["blur", "noise"], default="blur", help="what to start from (blur)")
    parser.add_argument("--steps", type=int, default=300, help="steps of Adam (300)")
    parser.add_argument("--rate", type=float, default=0.03, help="step size at the start (0.03)")
    parser.add_argument(
        "--forms", nargs="+", choices=CHOICES, metavar="NAME", help=f"{', '.join(CHOICES)}; the bundle's"
    )
    parser.add_argument("--pooling", type=float, help="exponent of the pooling over positions; default: the bundle's")
    parser.add_argument("--weights", default=DEFAULT_BUNDLE, help="name, folder or hub id of a bundle")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    options = parser.parse_args(arguments)

    bundle = load_bundle(options.weights)
    target = read_image(options.image).to(options.device) / 127.5 - 1
    start = make_start(target, options.start)
    images, curves = [start], {}
    for name in options.forms or [bundle.form]:
        metric = make_metric(name, bundle, options.pooling, options.device)
        image, curve = reconstruct(metric, target, start, options.steps, options.rate)
        images.append(image)
        curves[name] = curve
        ratio = curve[0] / curve[-1] if curve[-1] else float("inf")
        error = 127.5 * (image - target).square().mean().sqrt().item()
        print(f"{name}: distance {curve[0]:.4g} to {curve[-1]:.4g}, {ratio:.3g} times lower; {error:.1f} of 255 off")
    write_results(options.out, [*images, target], curves)


if __name__ == "__main__":
    main()
