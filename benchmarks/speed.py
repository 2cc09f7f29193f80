"""Speed and memory of the distances, side by side in one run.

    python benchmarks/speed.py [--widths 64 128] [--batch 32] [--repeats 9] [--weights BUNDLE]

First the default distance against lpips (alex), as a score and as a loss: time, and peak memory of a fresh process.
Then a training step inside of activation checkpointing, where decoder and distance are computed twice.
At last the form ``fisher`` against rivals that work on the plain network (convolution, then pooling):

* ``vmap``: ``torch.func.vmap(grad(logit))``, all scores of a batch, then the whitened difference;
* ``loop``: one backward pass of autograd per image.

Every line pairs two ways, in turns, and prints the median over the repeats of the ratio of their times: absolute times
on a shared machine say little.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import afv_metric
from afv_metric.fisher.comparison import Comparison, total_of
from afv_metric.fisher.engine import FisherEngine
from afv_metric.fisher.forms import ActivationForm, FisherForm, Form, LocalForm, Term
from afv_metric.fisher.statistics import collect_statistics
from afv_metric.networks import Discriminator, DiscriminatorConfig

EPSILON = 0.03


def compare(form: Form, first: Tensor, second: Tensor, chunk_size: int | None = None) -> Tensor:
    """Distances of pairs by a form."""
    return total_of(Comparison(form, chunk_size=chunk_size).compare_parts(first, second))


def plain_logit(parameters: dict[str, Tensor], slope: float, pools: int, images: Tensor) -> Tensor:
    """Logit of images by convolutions followed by mean pooling: ``(N,)``."""

    def convolve(name: str, maps: Tensor) -> Tensor:
        weight = parameters[f"{name}.weight"]
        return F.conv2d(maps, weight, parameters[f"{name}.bias"], padding=weight.shape[-1] // 2)

    maps = images
    for index in range(pools + 2):
        name = f"blocks.{index}"
        hidden = F.leaky_relu(maps, slope) if index else maps
        hidden = F.leaky_relu(convolve(f"{name}.conv1", hidden), slope)
        maps = convolve(f"{name}.conv2", hidden) + convolve(f"{name}.shortcut", maps)
        maps = F.avg_pool2d(maps, 2) if index < pools else maps
    return convolve("head", F.leaky_relu(maps, slope)).mean((1, 2, 3))


class Rivals:
    """Our Fisher distance and the two others, on one network."""

    def __init__(self, width: int) -> None:
        torch.manual_seed(0)
        discriminator = Discriminator(DiscriminatorConfig(width=width, slope=0.2, gain=8.0)).baked()
        self.parameters = {name: value.detach() for name, value in discriminator.named_parameters()}
        self.engine = FisherEngine(discriminator)
        self.statistics = collect_statistics(self.engine, [torch.rand(16, 3, 32, 32) * 2 - 1])
        form = FisherForm(self.engine, self.statistics, EPSILON)
        self.form = form
        names = [name.removesuffix(".weight") for name in self.parameters if name.endswith(".weight")]
        self.whitening = {
            f"{name}.{part}": form._tensors[f"{part}{index}"]
            for index, name in enumerate(names)
            for part in ("weight", "bias")
        }
        self.score = torch.func.grad(self._logit_of_one)

    def _logit_of_one(self, parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return plain_logit(parameters, 0.2, 2, image[None])[0]

    def _whitened(self, scores: dict[str, Tensor], others: dict[str, Tensor]) -> Tensor:
        parts = [
            ((scores[name] - others[name]) * factor).square().flatten(1).sum(1)
            for name, factor in self.whitening.items()
        ]
        return torch.stack(parts).sum(0) / self.form.parameter_count

    def vmap(self, first: Tensor, second: Tensor) -> Tensor:
        """All scores of a batch by vmap."""
        score = torch.func.vmap(self.score, in_dims=(None, 0))
        return self._whitened(score(self.parameters, first), score(self.parameters, second))

    def ours(self, first: Tensor, second: Tensor) -> Tensor:
        """Ours."""
        return compare(self.form, first, second)

    def ours_in_eights(self, first: Tensor, second: Tensor) -> Tensor:
        """Ours, eight pairs at a time."""
        return compare(self.form, first, second, chunk_size=8)

    def vmap_in_eights(self, first: Tensor, second: Tensor) -> Tensor:
        """By vmap, eight pairs at a time."""
        return torch.cat([self.vmap(x, y) for x, y in zip(first.split(8), second.split(8), strict=True)])

    def loop(self, first: Tensor, second: Tensor) -> Tensor:
        """Scores one image at a time."""
        leaves = {name: value.detach().requires_grad_() for name, value in self.parameters.items()}

        def scores(image: Tensor) -> dict[str, Tensor]:
            with torch.enable_grad():
                gradients = torch.autograd.grad(self._logit_of_one(leaves, image), list(leaves.values()))
            return {name: gradient[None] for name, gradient in zip(leaves, gradients, strict=True)}

        return torch.cat([self._whitened(scores(x), scores(y)) for x, y in zip(first, second, strict=True)])


def with_gradient(distance: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Distance and its gradient with respect to the first images, as a loss takes them; returns the gradient."""

    def run(first: Tensor, second: Tensor) -> Tensor:
        first = first.detach().requires_grad_()
        return torch.autograd.grad(distance(first, second).sum(), first)[0]

    return run


def seconds(function: Callable[..., object], *arguments: Tensor) -> float:
    """Time of one call."""
    if arguments and arguments[0].is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    function(*arguments)
    if arguments and arguments[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratio(
    first: Callable[..., object], second: Callable[..., object], arguments: tuple[Tensor, ...], repeats: int
) -> str:
    """Median time of the second over the first, in turns after one warm-up each."""
    seconds(first, *arguments), seconds(second, *arguments)
    pairs = [(seconds(first, *arguments), seconds(second, *arguments)) for _ in range(repeats)]
    ratios = sorted(b / a for a, b in pairs)
    times = [statistics.median(column) * 1e3 for column in zip(*pairs, strict=True)]
    return (
        f"{statistics.median(ratios):6.2f}x  ({ratios[0]:.2f} to {ratios[-1]:.2f}; {times[1]:.0f} / {times[0]:.0f} ms)"
    )


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _peak(function: Callable[..., object], small: tuple[Tensor, ...], large: tuple[Tensor, ...]) -> float:
    """MiB by which a call raises the peak of this process, after one on small images."""
    function(*small)
    before = _peak_resident(reset=True)
    function(*large)
    return (_peak_resident() - before) / 1024


def _peak_of_rival(which: str, width: int, batch: int) -> float:
    images = torch.rand(2, batch, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        return _peak(getattr(Rivals(width), which), (images[0, :2], images[1, :2]), tuple(images))


def _peak_of_peer(which: str, weights: str, count: int, side: int, loss: bool) -> float:
    function = peers(weights)[which]
    images = torch.rand(2, count, 3, side, side) * 2 - 1
    with torch.set_grad_enabled(loss):
        return _peak(with_gradient(function) if loss else function, tuple(images[:, :, :, :64, :64]), tuple(images))


def _peak_resident(reset: bool = False) -> int:
    """Highest resident size of this process, in KiB, as Linux keeps it; optionally from now on."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def peak_memory(measure: Callable[..., float], *arguments: object) -> float:
    """Peak memory in MiB, measured in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def fisher_lines(width: int, batch: int, repeats: int) -> None:
    """The fisher distance and its gradient against both rivals."""
    rivals = Rivals(width)
    images = tuple(torch.rand(2, batch, 3, 32, 32) * 2 - 1)
    with torch.no_grad():
        values = rivals.ours(*images)
        print(f"width {width}, {batch} pairs of 32x32")
        print(f"  largest relative difference to vmap {largest_difference(values, rivals.vmap(*images)):.1e},", end=" ")
        print(f"to the loop {largest_difference(values, rivals.loop(*images)):.1e}")
        print("  fisher, against vmap:            ", ratio(rivals.ours, rivals.vmap, images, repeats))
        print("  fisher, against the loop of one: ", ratio(rivals.ours, rivals.loop, images, repeats))
    ours, theirs = with_gradient(rivals.ours), with_gradient(rivals.vmap)
    print(f"  largest relative difference of gradients {largest_difference(ours(*images), theirs(*images)):.1e}")
    print("  fisher loss, against vmap with double backward:", ratio(ours, theirs, images, repeats))
    for words, pair in (("as they come", ("ours", "vmap")), ("both in eights", ("ours_in_eights", "vmap_in_eights"))):
        peaks = [peak_memory(_peak_of_rival, which, width, 64) for which in pair]
        print(f"  peak extra memory at 64 pairs, {words}: ours {peaks[0]:.0f} MiB, vmap {peaks[1]:.0f} MiB", end="")
        print(f", share {peaks[0] / peaks[1]:.2f}")


def floor_lines(width: int, batch: int, repeats: int) -> None:
    """Forward passes of the same engine that each form costs per score."""
    rivals = Rivals(width)
    images = tuple(torch.rand(2, batch, 3, 32, 32) * 2 - 1)
    settings = (rivals.engine, rivals.statistics, EPSILON)
    forms = {
        "fisher": (rivals.form, 3),
        "local": (LocalForm(*settings), 2),
        "activation": (ActivationForm(*settings, [Term("direction", 0, tuple(range(rivals.engine.head + 1)))]), 1),
    }
    with torch.inference_mode():
        for name, (form, floor) in forms.items():
            pairs = [
                (
                    seconds(functools.partial(compare, form), *images),
                    sum(seconds(rivals.engine.logit, part) for part in images),
                )
                for _ in range(repeats + 1)
            ]
            passes = statistics.median(a / b for a, b in pairs[1:])
            print(f"  {name}, all layers: {passes:.2f} forward passes per score, floor {floor}")


def peers(weights: str) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Our default distance and lpips (alex)."""
    import contextlib
    import io
    import warnings

    import lpips

    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = lpips.LPIPS(net="alex").eval().requires_grad_(False)
    return {"ours": afv_metric.AFVDistance(weights), "lpips": peer}


def lpips_lines(weights: str, repeats: int) -> None:
    """The default distance against lpips (alex)."""
    try:
        metrics = peers(weights)
    except Exception as error:  # not installed, or its torchvision weights cannot be had
        print(f"lpips (alex) is not at hand: {error}")
        return
    print(f"default distance of {weights}, relative to lpips (alex): below 1 is faster, or smaller")
    for count, side in ((16, 64), (1, 256), (8, 256), (1, 512), (1, 1024)):
        pair = tuple(torch.rand(2, count, 3, side, side) * 2 - 1)
        for loss in (False, True):
            ours, theirs = (with_gradient(metrics[which]) if loss else metrics[which] for which in ("ours", "lpips"))
            with torch.set_grad_enabled(loss):
                time_ratio = ratio(theirs, ours, pair, repeats)
            peaks = [peak_memory(_peak_of_peer, which, weights, count, side, loss) for which in ("ours", "lpips")]
            print(
                f"  {count:2} x {side}x{side} as a {'loss' if loss else 'score'}: time {time_ratio}; "
                f"peak {peaks[0]:.0f} and {peaks[1]:.0f} MiB",
                flush=True,
            )


def training_step(weights: str, recompute: bool) -> Callable[[Tensor, Tensor], None]:
    """A step of a small decoder of codes, an eighth of the images' size, by the default distance.

    Args:
        weights: The bundle.
        recompute: Whether decoder and distance are inside of ``torch.utils.checkpoint``.
    """
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(32, 64, 3, padding=1)]
    for _ in range(3):
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 3, padding=1), nn.LeakyReLU(0.1)]
    decoder = nn.Sequential(*layers, nn.Conv2d(64, 3, 3, padding=1), nn.Tanh())
    optimizer = torch.optim.Adam(decoder.parameters())
    metric = afv_metric.AFVDistance(weights, reduction="mean")

    def loss(codes: Tensor, target: Tensor) -> Tensor:
        value: Tensor = metric(decoder(codes), target)
        return value

    def step(codes: Tensor, target: Tensor) -> None:
        optimizer.zero_grad()
        (checkpoint(loss, codes, target, use_reentrant=False) if recompute else loss(codes, target)).backward()
        optimizer.step()

    return step


def _codes_and_target(count: int, side: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 32, side // 8, side // 8), torch.rand(count, 3, side, side) * 2 - 1


def _peak_of_step(weights: str, recompute: bool, count: int, side: int) -> float:
    return _peak(training_step(weights, recompute), _codes_and_target(1, 64), _codes_and_target(count, side))


def checkpoint_lines(weights: str, repeats: int) -> None:
    """A training step inside of ``checkpoint(use_reentrant=False)`` against one that keeps everything."""
    count, side = 2, 256
    outside, inside = (training_step(weights, recompute) for recompute in (False, True))
    time_ratio = ratio(outside, inside, _codes_and_target(count, side), repeats)
    peaks = [peak_memory(_peak_of_step, weights, recompute, count, side) for recompute in (True, False)]
    print(f"training step of a decoder, {count} x {side}x{side}, inside of checkpoint, relative to outside:")
    print(f"  time {time_ratio}; peak {peaks[0]:.0f} and {peaks[1]:.0f} MiB", flush=True)


def main() -> None:
    """Print all lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="*", default=[64, 128])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--weights", default=afv_metric.DEFAULT_BUNDLE, help="bundle (default: the shipped one)")
    options = parser.parse_args()
    print(f"afv_metric {afv_metric.__version__}, torch {torch.__version__}, python {platform.python_version()}, "
          f"{torch.get_num_threads()} threads, seed 0")  # fmt: skip
    lpips_lines(options.weights, options.repeats)
    checkpoint_lines(options.weights, options.repeats)
    for width in options.widths:
        fisher_lines(width, options.batch, options.repeats)
        floor_lines(width, options.batch, options.repeats)


if __name__ == "__main__":
    main()
