"""How fast score vectors are extracted, against the loop of one image of the code that the paper's authors published.

    python benchmarks/features.py [--widths 48 128] [--images 64] [--repeats 7]

Theirs takes one image after the other: forward pass, backward pass, all gradients joined into a vector, centred and
whitened. Their network normalises its weights spectrally in every pass and pools behind the convolution
(``published``); the second rival is spared the normalisation and has the same plain weights as ours (``plain``). All
are timed in turns, ratios are medians over the repeats, and the vectors are compared.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

import afv_metric
from afv_metric.bundles.bundle import Bundle, load_bundle
from afv_metric.fisher.engine import FisherEngine
from afv_metric.fisher.statistics import FisherStatistics, collect_statistics, inverse_root
from afv_metric.fisher.vectors import ScoreFeatures, extract
from afv_metric.networks import Discriminator, DiscriminatorConfig, PooledConv2d


class PlainNetwork(nn.Module):
    """The discriminator as everybody writes it: convolutions, then mean pooling, then the mean of the head."""

    def __init__(self, discriminator: Discriminator, *, normalized: bool) -> None:
        super().__init__()
        self.slope = discriminator.config.slope
        self.pooled = [block.pooled for block in discriminator.residual_blocks()]
        self.layers = nn.ModuleList()
        for layer in discriminator.convolutions():
            size = layer.kernel_size[0]
            plain = nn.Conv2d(layer.in_channels, layer.out_channels, size, padding=size // 2)
            with torch.no_grad():
                plain.weight.copy_(layer.weight)
                assert plain.bias is not None
                assert layer.bias is not None
                plain.bias.copy_(layer.bias)
            self.layers.append(spectral_norm(plain) if normalized else plain)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Mean logit of the images."""
        maps = images
        for index, pooled in enumerate(self.pooled):
            conv1, conv2, shortcut = self.layers[3 * index : 3 * index + 3]
            hidden = F.leaky_relu(maps, self.slope) if index else maps
            maps = conv2(F.leaky_relu(conv1(hidden), self.slope)) + shortcut(maps)
            maps = F.avg_pool2d(maps, 2) if pooled else maps
        logit: Tensor = self.layers[-1](F.leaky_relu(maps, self.slope)).mean()
        return logit


def loop_of_one(network: PlainNetwork, means: Tensor, roots: Tensor, images: Tensor) -> Tensor:
    """Score vectors one image at a time, ``(N, P)``."""
    vectors = []
    for image in images:
        gradients = torch.autograd.grad(network(image[None] / 127.5 - 1), list(network.parameters()))
        vectors.append((torch.cat([gradient.flatten() for gradient in gradients]) - means) * roots)
    return torch.stack(vectors)


def joined(statistics_: FisherStatistics, epsilon: float) -> tuple[Tensor, Tensor]:
    """Means of the score, and factors that whiten it and divide it by the root of their number."""
    means, roots = [], []
    for layer in statistics_.layers:
        for mean, variance in (
            (layer.weight_mean, layer.weight_variance),
            (layer.bias_mean, layer.bias_variance),
        ):
            means.append(mean.flatten())
            roots.append(inverse_root(variance, epsilon).flatten())
    length = sum(map(len, means))
    return torch.cat(means).float(), torch.cat(roots).float() / length**0.5


def make_bundle(width: int) -> Bundle:
    """A network of this width with random weights, as speed does not depend on them."""
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(width=width, slope=0.0)).baked()
    statistics_ = collect_statistics(FisherEngine(discriminator), [torch.rand(16, 3, 32, 32) * 2 - 1])
    shipped = load_bundle(afv_metric.DEFAULT_BUNDLE)
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(width=width, slope=0.0)).baked()
    return Bundle(**{**vars(shipped), "discriminator": discriminator, "statistics": statistics_, "golden": {}})


def seconds(function: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Time of one call, and what it gives."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def lines(width: int, count: int, repeats: int) -> None:
    """Print the ratios at one width."""
    bundle = make_bundle(width)
    assert any(isinstance(layer, PooledConv2d) for layer in bundle.discriminator.convolutions())
    features = ScoreFeatures(bundle)
    means, roots = joined(bundle.statistics, bundle.epsilon)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    published = PlainNetwork(bundle.discriminator, normalized=True)
    plain = PlainNetwork(bundle.discriminator, normalized=False)
    candidates: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: torch.cat(list(extract(features, images, batch_size=16))),
        "plain": lambda: loop_of_one(plain, means, roots, images),
        "published": lambda: loop_of_one(published, means, roots, images),
    }
    times: dict[str, list[float]] = {name: [] for name in candidates}
    vectors: dict[str, Tensor] = {}
    for repeat in range(repeats + 1):  # the first warms up
        names = list(candidates)
        for name in names[repeat % 3 :] + names[: repeat % 3]:
            spent, vectors[name] = seconds(candidates[name])
            if repeat:
                times[name].append(spent)
    error = float((vectors["ours"] - vectors["plain"]).norm() / vectors["plain"].norm())
    print(
        f"width {width}, {features.size:,} numbers per image: {count / statistics.median(times['ours']):.0f} images/s; "
        f"the same vectors as the plain loop to {error:.0e}"
    )
    for name in ("plain", "published"):
        ratios = sorted(theirs / ours for theirs, ours in zip(times[name], times["ours"], strict=True))
        spread = f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"  loop of one, {name}: {statistics.median(ratios):.2f} times our time {spread}")


def main() -> None:
    """Print versions and all lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[48, 128])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    print(
        f"afv_metric {afv_metric.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{torch.get_num_threads()} threads, float32"
    )
    for width in options.widths:
        lines(width, options.images, options.repeats)


if __name__ == "__main__":
    main()
