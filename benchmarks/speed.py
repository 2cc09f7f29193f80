"""Speed and memory of the distances, side by side in one run.

    python benchmarks/speed.py [--widths 64 128] [--batch 32] [--repeats 9]

Every line pairs two ways to the same numbers, in turns, and prints the median over the repeats of the ratio of their
times: absolute times on a shared machine say little. The rivals work on the plain network (convolution, then pooling):

* ``vmap``: ``torch.func.vmap(grad(energy))``, all scores of a batch, then the whitened difference;
* ``loop``: one backward pass of autograd an image.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import afv_metric
from afv_metric.fisher.comparison import Comparison
from afv_metric.fisher.engine import FisherEngine
from afv_metric.fisher.forms import FORMS, FisherForm
from afv_metric.fisher.statistics import collect_statistics
from afv_metric.networks import Discriminator, DiscriminatorConfig

EPSILON = 0.03


def plain_energy(parameters: dict[str, Tensor], slope: float, pools: int, images: Tensor) -> Tensor:
    """Energy of images by convolutions followed by mean pooling: ``(N,)``."""

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
        # Chunks whose scores of one layer fit into the processor's cache; they bound memory, and change no number.
        self.chunk = max(1, 1024 // width)
        self.ours = Comparison(self.engine, form, chunk_size=self.chunk)
        names = [name.removesuffix(".weight") for name in self.parameters if name.endswith(".weight")]
        self.whitening = {
            f"{name}.{part}": form.get_buffer(f"{part}_{index}")
            for index, name in enumerate(names)
            for part in ("weight", "bias")
        }
        self.score = torch.func.vmap(torch.func.grad(self._energy_of_one), in_dims=(None, 0))

    def _energy_of_one(self, parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return plain_energy(parameters, 0.2, 2, image[None])[0]

    def _whitened(self, scores: dict[str, Tensor], others: dict[str, Tensor]) -> Tensor:
        parts = [
            ((scores[name] - others[name]) * factor).square().flatten(1).sum(1)
            for name, factor in self.whitening.items()
        ]
        return torch.stack(parts).sum(0) / self.ours.form.parameter_count  # type: ignore[operator]

    def vmap(self, first: Tensor, second: Tensor) -> Tensor:
        """All scores by vmap."""
        return self._whitened(self.score(self.parameters, first), self.score(self.parameters, second))

    def loop(self, first: Tensor, second: Tensor) -> Tensor:
        """Scores one image at a time."""
        leaves = {name: value.detach().requires_grad_() for name, value in self.parameters.items()}

        def scores(image: Tensor) -> dict[str, Tensor]:
            with torch.enable_grad():
                gradients = torch.autograd.grad(self._energy_of_one(leaves, image), list(leaves.values()))
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
    ours: Callable[..., object], theirs: Callable[..., object], arguments: tuple[Tensor, ...], repeats: int
) -> str:
    """Median time of the second over the first, in turns after one warm-up each."""
    seconds(ours, *arguments), seconds(theirs, *arguments)
    pairs = [(seconds(ours, *arguments), seconds(theirs, *arguments)) for _ in range(repeats)]
    ratios = sorted(b / a for a, b in pairs)
    ours_seconds = statistics.median(a for a, _ in pairs)
    return f"{statistics.median(ratios):6.2f}x  ({ratios[0]:.2f} to {ratios[-1]:.2f}; ours {ours_seconds * 1e3:.0f} ms)"


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _peak(which: str, width: int, batch: int, queue: multiprocessing.Queue[float]) -> None:
    rivals = Rivals(width)
    images = torch.rand(2, batch, 3, 32, 32) * 2 - 1
    function = getattr(rivals, which)
    with torch.no_grad():
        function(images[0, :2], images[1, :2])
        before = _peak_resident(reset=True)
        function(images[0], images[1])
    queue.put((_peak_resident() - before) / 1024)


def _peak_resident(reset: bool = False) -> int:
    """Highest resident size of this process, in KiB, as Linux keeps it; optionally from now on."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def peak_memory(which: str, width: int, batch: int) -> float:
    """MiB by which a call raises the peak of a fresh process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_peak, args=(which, width, batch, queue))
    process.start()
    result = float(queue.get())
    process.join()
    return result


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
    peaks = [peak_memory(which, width, 64) for which in ("ours", "vmap")]
    print(f"  peak extra memory at batch 64: ours {peaks[0]:.0f} MiB, vmap {peaks[1]:.0f} MiB", end="")
    print(f", share {peaks[0] / peaks[1]:.2f}")


def floor_lines(width: int, batch: int, repeats: int) -> None:
    """How far each form stands from its floor in forward passes of the same engine."""
    rivals = Rivals(width)
    images = tuple(torch.rand(2, batch, 3, 32, 32) * 2 - 1)

    def forwards(first: Tensor, second: Tensor) -> None:
        for part in (*first.split(rivals.chunk), *second.split(rivals.chunk)):
            rivals.engine(part)

    with torch.inference_mode():
        for name, floor in (("fisher", 3), ("local", 2), ("activation", 1)):
            form = FORMS[name](rivals.engine, rivals.statistics, EPSILON)  # type: ignore[index]
            pairs = [
                (seconds(Comparison(rivals.engine, form, chunk_size=rivals.chunk), *images), seconds(forwards, *images))
                for _ in range(repeats + 1)
            ]
            passes = statistics.median(a / b for a, b in pairs[1:])
            print(f"  {name}: {passes:.2f} forward passes a score, floor {floor}: {passes / floor:.2f}x the floor")


def lpips_lines(repeats: int) -> None:
    """The default bundle against lpips (alex) on one 256x256 pair."""
    try:
        import contextlib
        import io
        import warnings

        import lpips

        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peer = lpips.LPIPS(net="alex").eval()
    except Exception as error:  # not installed, or its torchvision weights cannot be had
        print(f"lpips (alex) is not at hand: {error}")
        return
    pair = tuple(torch.rand(2, 1, 3, 256, 256) * 2 - 1)
    print("one 256x256 pair, default bundle; lpips (alex) takes as many times as long (below 1: less):")
    with torch.inference_mode():
        for form in FORMS:
            metric = afv_metric.AFVDistance(form=form)
            print(f"  {form}: {ratio(metric, peer, pair, repeats)}")


def main() -> None:
    """Print all lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    print(f"afv_metric {afv_metric.__version__}, torch {torch.__version__}, python {platform.python_version()}, "
          f"{torch.get_num_threads()} threads, seed 0")  # fmt: skip
    for width in options.widths:
        fisher_lines(width, options.batch, options.repeats)
        floor_lines(width, options.batch, options.repeats)
    lpips_lines(options.repeats)


if __name__ == "__main__":
    main()
