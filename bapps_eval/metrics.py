"""The distances that can be scored: ours, and the peers they are held against."""

from __future__ import annotations

import importlib
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from afv_metric.bundle import load_bundle
from afv_metric.distance import AFVDistance
from afv_metric.forms import FORMS
from afv_metric.hub import DEFAULT_BUNDLE
from afv_metric.train.export import random_bundle
from bapps_eval.data import JudgedSet, batches

__all__ = ["METRICS", "Choice", "Distance", "Metric", "l2", "make_metrics", "measure", "ssim"]

Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Metric:
    """A distance and what it is.

    Attributes:
        name: Heading of its row.
        distance: Takes two batches ``(N, 3, H, W)`` in [-1, 1], gives ``(N,)``.
        form: Form of the AFV distance; None for others.
        bundle: Name of the AFV bundle, for ``afv-random`` of the one that it is the initialisation of.
        bundle_hash: What identifies that bundle.
    """

    name: str
    distance: Distance
    form: str | None = None
    bundle: str | None = None
    bundle_hash: str | None = None


@dataclass(frozen=True)
class Choice:
    """Which AFV metrics to make, and where.

    Attributes:
        weights: Names, folders or hub ids of bundles; the default bundle if empty.
        forms: Forms of the distance; each bundle's own if empty.
        device: Where the metrics compute.
    """

    weights: Sequence[str] = ()
    forms: Sequence[str] = ()
    device: str = "cpu"


def l2(img0: Tensor, img1: Tensor) -> Tensor:
    """Mean squared difference, which orders pairs of one size as the Euclidean distance does.

    Args:
        img0: ``(N, 3, H, W)`` in [-1, 1].
        img1: Likewise.

    Returns:
        ``(N,)`` in [0, 4].

    Example:
        >>> l2(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.5))
        tensor([0.2500])
    """
    return (img0 - img1).square().mean((1, 2, 3))


def ssim(img0: Tensor, img1: Tensor, *, signed: bool = False) -> Tensor:
    """One minus the structural similarity of Wang et al. 2004: Gaussian window 11x11, sigma 1.5.

    It is taken of each colour channel, with mirrored borders. SSIM depends on where zero is: on the tuning parts of
    SRIJ, HECD and LIVE blur, values in [0, 1] (dynamic range 1), the usual convention and the stronger rival, give rank
    correlations of .451, .326, .909; values in [-1, 1] (dynamic range 2) give .449, .160, .918.

    Args:
        img0: ``(N, 3, H, W)`` in [-1, 1], at least 6x6.
        img1: Likewise.
        signed: Whether to compute on values in [-1, 1] rather than [0, 1].

    Returns:
        ``(N,)`` in [0, 2], 0 for identical images.

    Example:
        >>> images = torch.rand(2, 3, 16, 16) * 2 - 1
        >>> ssim(images, images)
        tensor([0., 0.])
    """
    if not signed:
        img0, img1 = (img0 + 1) / 2, (img1 + 1) / 2
    range_of_values = 2.0 if signed else 1.0
    c1, c2 = (0.01 * range_of_values) ** 2, (0.03 * range_of_values) ** 2
    mean0, mean1 = _smooth(img0), _smooth(img1)
    variance0, variance1 = _smooth(img0 * img0) - mean0 * mean0, _smooth(img1 * img1) - mean1 * mean1
    covariance = _smooth(img0 * img1) - mean0 * mean1
    luminance = (2 * mean0 * mean1 + c1) / (mean0 * mean0 + mean1 * mean1 + c1)
    structure = (2 * covariance + c2) / (variance0 + variance1 + c2)
    return 1 - (luminance * structure).mean((1, 2, 3))


def _smooth(images: Tensor) -> Tensor:
    """Mean under a Gaussian window at every pixel, in the same size."""
    radius, sigma = 5, 1.5
    steps = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    window = torch.exp(-(steps**2) / (2 * sigma**2))
    window /= window.sum()
    channels = images.shape[1]
    images = F.pad(images, (radius,) * 4, mode="reflect")
    images = F.conv2d(images, window.view(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)
    return F.conv2d(images, window.view(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)


def _make_plain(name: str, distance: Distance, choice: Choice) -> list[Metric]:
    return [Metric(name, distance)]


def _make_afv(choice: Choice, *, random: bool) -> list[Metric]:
    metrics = []
    for weights in choice.weights or [DEFAULT_BUNDLE]:
        bundle = load_bundle(weights, generator=random)
        used = random_bundle(bundle) if random else bundle
        for form in [form for form in FORMS if form in choice.forms] or [bundle.form]:
            distance = partial(_quiet, AFVDistance(used, form=form).to(choice.device))
            name = f"{'afv-random' if random else 'afv'}/{bundle.name}/{form}"
            metrics.append(Metric(name, distance, form, bundle.name, bundle.hash))
    return metrics


def _quiet(distance: Distance, img0: Tensor, img1: Tensor) -> Tensor:
    with warnings.catch_warnings():
        # A batch of bright images alone looks like [0, 1] to the metric; here the range is known.
        warnings.filterwarnings("ignore", r"img[01] have values from")
        return distance(img0, img1)


def _make_lpips(net: str, choice: Choice) -> list[Metric]:
    try:
        lpips = importlib.import_module("lpips")
    except ImportError as error:
        raise ImportError(
            f"the metric lpips-{net} needs another package: pip install 'afv-metric[peers]', or lpips"
        ) from error
    with warnings.catch_warnings():
        # It calls torchvision in a way that torchvision has deprecated.
        warnings.simplefilter("ignore")
        network = lpips.LPIPS(net=net, verbose=False).eval().to(choice.device)

    def distance(img0: Tensor, img1: Tensor) -> Tensor:
        values: Tensor = network(img0, img1)
        return values.flatten()

    return [Metric(f"lpips-{net}", distance)]


METRICS: dict[str, Callable[[Choice], list[Metric]]] = {
    "afv": partial(_make_afv, random=False),
    "afv-random": partial(_make_afv, random=True),
    "l2": partial(_make_plain, "l2", l2),
    "ssim": partial(_make_plain, "ssim", ssim),
    "ssim-signed": partial(_make_plain, "ssim-signed", partial(ssim, signed=True)),
    "lpips-alex": partial(_make_lpips, "alex"),
    "lpips-squeeze": partial(_make_lpips, "squeeze"),
}


def make_metrics(names: Sequence[str], choice: Choice) -> list[Metric]:
    """Make metrics by name; ``afv`` and ``afv-random`` give one for each bundle and form.

    Args:
        names: Keys of :data:`METRICS`; repeated ones count once.
        choice: Bundles, forms and device.

    Returns:
        The metrics in order. Those of bundles of one name have the start of the hash in theirs.

    Raises:
        ImportError: If a metric needs a package that is not installed.
        ValueError: If two metrics are the same.

    Example:
        >>> [metric.name for metric in make_metrics(["ssim", "l2"], Choice())]
        ['ssim', 'l2']
    """
    metrics = [metric for name in dict.fromkeys(names) for metric in METRICS[name](choice)]
    counts = Counter(metric.name for metric in metrics)
    metrics = [
        replace(metric, name=f"{metric.name}@{(metric.bundle_hash or '')[:8]}") if counts[metric.name] > 1 else metric
        for metric in metrics
    ]
    twice = [name for name, count in Counter(metric.name for metric in metrics).items() if count > 1]
    if twice:
        raise ValueError(f"given twice: {', '.join(twice)}")
    return metrics


@torch.inference_mode()
def measure(
    metrics: Sequence[Metric],
    judged: JudgedSet,
    *,
    batch_size: int = 32,
    device: str = "cpu",
    advance: Callable[[int], object] = lambda count: None,
) -> list[NDArray[np.float64]]:
    """Take all distances on a set in one pass over its images.

    Args:
        metrics: The metrics, on ``device``.
        judged: The set.
        batch_size: Most items at a time.
        device: Where the metrics compute.
        advance: Told how many items were done, after each batch.

    Returns:
        For each metric the distances of the first image of each item to the others, ``(N, 1)`` or ``(N, 2)``.

    Raises:
        ValueError: If an image cannot be read, or a metric does not give one finite number for each pair.
    """
    tables = [np.empty((len(judged), len(judged.images[0]) - 1)) for _ in metrics]
    for rows, columns in batches(judged, batch_size):
        first, *others = (column.to(device) for column in columns)
        for index, other in enumerate(others):
            for metric, table in zip(metrics, tables, strict=True):
                values = metric.distance(first, other)
                if values.shape != rows.shape:
                    raise ValueError(f"{metric.name} gave {tuple(values.shape)} for {len(rows)} pairs of {judged.name}")
                table[rows, index] = values.double().cpu().numpy()
                wrong = rows[~np.isfinite(table[rows, index])]
                if len(wrong):
                    paths = judged.images[wrong[0]]
                    raise ValueError(f"{metric.name} is not finite on {paths[0]} and {paths[1 + index]}")
        advance(len(rows))
    return tables
