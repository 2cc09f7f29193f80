"""Set distances: which classes are close, and how far apart chance alone puts two sets of images (Figure 2).

Two measurements, both by :mod:`afv_metric.fisher.sets`, whose notes say what D, its bias and its interval are:

- The Fisher distances of all pairs of classes, without bias, and the dendrogram of their average linkage. Scores are
  summed once per class, in blocks of images: 32 blocks, or as few as keep the scores of all classes within 1.5 GB in
  single precision, 8 at least. At width 48, 100 classes thus have 17 blocks each, and 222 are the most. The intervals
  of the closest pairs are ordinary ones, although the pairs were chosen as the closest: chance helped to choose them,
  and their distances are rather too small.
- The distance of two disjoint samples of the whole data, at several sizes. As they are samples of one distribution, all
  that is found is bias: c/n for n images per set, c being 2 where the images vary as the generated ones do that the
  whitening comes from, less what its floor takes off.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.cluster.hierarchy import dendrogram, leaves_list, linkage
from scipy.spatial.distance import squareform
from torch import Tensor
from tqdm import tqdm

from afv_metric.bundles.bundle import Bundle, load_bundle
from afv_metric.bundles.resolve import DEFAULT_BUNDLE
from afv_metric.files import atomic_write, save_figure
from afv_metric.fisher.engine import FisherEngine
from afv_metric.fisher.sets import BlockScores, SetComparison, block_scores, compare_sets, similarity_at
from afv_metric.fisher.statistics import FisherStatistics
from afv_metric.images.cache import ImageSet, ImageView, load_images
from afv_metric.images.tensors import to_network_range
from afv_metric.runtime import parallel_map
from bapps_eval.data import FloatArray
from bapps_eval.formats import format_number
from experiments import missing_matplotlib

__all__ = ["add_arguments", "compare_all", "compare_halves", "run", "score_classes", "score_sets"]

_BATCH = 64
_BLOCKS, _FEWEST_BLOCKS = 32, 8  # of a class
_SEGMENT_BLOCKS = 16  # of what one size of the halves has beyond the next smaller
_MOST_BYTES = 1.5e9  # of the scores of all classes
_CLOSEST = 5
_SIZES = (50, 100, 200, 500, 1000)
_SHARE = 0.1  # of the corrected distance, that the bias may be for a number of images to be enough


def score_sets(
    bundle: Bundle, images: ImageView, sets: Iterable[Sequence[Tensor]], *, device: str | torch.device = "cpu"
) -> Iterator[BlockScores]:
    """Mean scores of sets of images, block by block; on the CPU one set per core.

    Args:
        bundle: The discriminator.
        images: Decoded images at the size of the network.
        sets: Rows of each block of each set, int64 ``(n,)``; which image is in which block is left to chance.
        device: Device to compute on.

    Yields:
        The scores of each set in single precision, on the CPU.
    """
    engine = FisherEngine(bundle.discriminator, bundle.output)

    def score(blocks: Sequence[Tensor]) -> BlockScores:
        batches = ((_read(images, rows).to(device) for rows in block.split(_BATCH)) for block in blocks)
        counts, means = block_scores(engine, batches)
        return BlockScores(counts, [[(weight.float(), bias.float()) for weight, bias in block] for block in means])

    for _, scores in parallel_map(score, sets, device):
        yield scores


def _read(images: ImageView, rows: Tensor) -> Tensor:
    return to_network_range(images[rows], normalize=False, dtype=torch.float32)


def score_classes(
    bundle: Bundle,
    images: ImageSet,
    most: int,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    quiet: bool = True,
) -> list[BlockScores]:
    """Mean scores of every class, from random images of it.

    Args:
        bundle: The discriminator.
        images: Labelled images.
        most: Largest number of images per class.
        seed: Seed of the choice.
        device: Device to compute on.
        quiet: Whether to show no progress bar.

    Raises:
        ValueError: If there are no classes, one has a single image, or there are too many for the memory.
    """
    if images.labels is None:
        raise ValueError("the images have no classes; put those of each class into a folder of its own")
    blocks = _block_count(len(images.classes), _parameter_count(bundle.statistics))
    chance = torch.Generator().manual_seed(seed)
    sets = []
    for number, name in enumerate(images.classes):
        rows = (images.labels == number).nonzero()[:, 0]
        chosen = rows[torch.randperm(len(rows), generator=chance)[:most]]
        if len(chosen) < 2:
            raise ValueError(f"class {name!r}: the distance needs two images of a class or more, got {len(chosen)}")
        sets.append(chosen.tensor_split(min(blocks, len(chosen))))
    scored = score_sets(bundle, images.images, sets, device=device)
    return list(tqdm(scored, desc="classes", total=len(sets), disable=quiet))


def _parameter_count(statistics: FisherStatistics) -> int:
    return sum(layer.weight_variance.numel() + layer.bias_variance.numel() for layer in statistics.layers)


def _block_count(classes: int, parameters: int) -> int:
    """Blocks of a class, such that the scores of all fit into the memory that they may take."""
    of_one = 4 * parameters  # single precision
    count = min(_BLOCKS, int(_MOST_BYTES // (classes * of_one)))
    if count < _FEWEST_BLOCKS:
        raise ValueError(
            f"{classes} classes are too many: {_FEWEST_BLOCKS} blocks of {parameters:,} numbers each would take more "
            f"than {_MOST_BYTES / 1e9:g} GB. Give a folder of {int(_MOST_BYTES // (_FEWEST_BLOCKS * of_one))} classes "
            "at most"
        )
    return count


def compare_all(
    scores: Sequence[BlockScores], bundle: Bundle, *, seed: int = 0, quiet: bool = True
) -> dict[tuple[int, int], SetComparison]:
    """Compare every pair of several sets.

    Args:
        scores: Blocks of each set.
        bundle: The bundle by which they were scored.
        seed: Seed of the intervals.
        quiet: Whether to show no progress bar.

    Returns:
        The comparisons, by the numbers of both sets, the closest pair first.
    """
    pairs = tqdm(list(combinations(range(len(scores)), 2)), desc="pairs", disable=quiet)
    found = {
        (one, other): compare_sets(scores[one], scores[other], bundle.statistics, bundle.epsilon, seed=seed)
        for one, other in pairs
    }
    return dict(sorted(found.items(), key=lambda item: item[1].corrected))


def compare_halves(
    bundle: Bundle,
    images: ImageView,
    sizes: Sequence[int],
    *,
    draws: int = 5,
    seed: int = 0,
    device: str | torch.device = "cpu",
    quiet: bool = True,
) -> dict[int, list[SetComparison]]:
    """Compare disjoint random samples of one set of images, which differ by chance alone.

    A draw's smaller samples are part of its larger ones, which saves scores; the draws are independent choices.

    Args:
        bundle: The discriminator.
        images: Decoded images.
        sizes: Images of each sample.
        draws: Pairs of samples of each size.
        seed: Seed of the choices, and of the intervals.
        device: Device to compute on.
        quiet: Whether to show no progress bar.

    Returns:
        The comparisons of each size, sizes in rising order.

    Raises:
        ValueError: If two samples of a size do not fit into the images, or a size is below 2.
    """
    sizes = sorted(set(sizes))
    if sizes[0] < 2 or 2 * sizes[-1] > len(images):
        raise ValueError(
            f"two samples of {sizes[0]} to {sizes[-1]} images were asked for; each needs 2 images at least, and "
            f"{len(images) // 2} at most, half of the {len(images)} that there are"
        )
    chance = torch.Generator().manual_seed(seed)
    lengths = [size - smaller for smaller, size in zip([0, *sizes], sizes, strict=False)]

    def samples() -> Iterator[Sequence[Tensor]]:
        """Rows of each block of the first and the second sample of each draw; no block is on both sides of a size."""
        for _ in range(draws):
            order = torch.randperm(len(images), generator=chance)
            for sample in order[: 2 * sizes[-1]].chunk(2):
                yield [
                    block
                    for segment in sample.split(lengths)
                    for block in segment.tensor_split(min(_SEGMENT_BLOCKS, len(segment)))
                ]

    found: dict[int, list[SetComparison]] = {size: [] for size in sizes}
    scored = score_sets(bundle, images, samples(), device=device)
    pairs = zip(scored, scored, strict=True)
    for draw, pair in enumerate(tqdm(pairs, desc="samples of one set", total=draws, disable=quiet)):
        blocks = 0
        for size, length in zip(sizes, lengths, strict=True):
            blocks += min(_SEGMENT_BLOCKS, length)
            first, second = (BlockScores(scores.counts[:blocks], scores.means[:blocks]) for scores in pair)
            found[size].append(compare_sets(first, second, bundle.statistics, bundle.epsilon, seed=seed + draw))
    return found


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("data", type=Path, nargs="+", metavar="DATA", help="folders or archives of images, in classes")
    parser.add_argument("--weights", default=DEFAULT_BUNDLE, metavar="BUNDLE", help="name, folder or hub id")
    parser.add_argument("--images-per-class", type=int, default=1000, metavar="N", help="at most (1000)")
    parser.add_argument(
        "--sizes", type=int, nargs="+", metavar="N",
        help=f"images of the samples that show the bias; default: those of {', '.join(map(str, _SIZES))} that fit",
    )  # fmt: skip
    parser.add_argument("--draws", type=int, default=5, metavar="N", help="pairs of samples of each size (5)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, write ``classes.png``, ``classes.csv`` and ``bias.png``, and return all numbers.

    Images without classes have the bias alone.
    """
    if missing := missing_matplotlib():
        raise ImportError(missing)
    for name in ("images_per_class", "draws"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    bundle = load_bundle(options.weights)
    images = load_images(options.data, bundle.discriminator.config.image_size, quiet=options.quiet)
    settings = {"seed": options.seed, "device": options.device, "quiet": options.quiet}
    sizes = options.sizes or [size for size in _SIZES if 2 * size <= len(images.images)] or [len(images.images) // 2]
    halves = compare_halves(bundle, images.images, sizes, draws=options.draws, **settings)
    record: dict[str, Any] = {
        "bundle": {"name": bundle.name, "sha256": bundle.hash},
        "data": {"images": len(images.images), "fingerprint": images.fingerprint},
        "bias": _describe_halves(halves),
    }
    rows = []
    if len(images.classes) > 1:
        scores = score_classes(bundle, images, options.images_per_class, **settings)
        compared = compare_all(scores, bundle, seed=options.seed, quiet=options.quiet)
        corrected = _matrix(len(scores), {pair: found.corrected for pair, found in compared.items()})
        joined = linkage(squareform(corrected.clip(0), checks=False), "average")
        names = images.classes
        pairs = {(names[one], names[other]): found for (one, other), found in list(compared.items())[:_CLOSEST]}
        record["classes"] = {
            "names": list(names),
            "images": [sum(one.counts) for one in scores],
            "blocks": max(len(one.counts) for one in scores),
            "plain": _matrix(len(scores), {pair: found.distance for pair, found in compared.items()}).tolist(),
            "corrected": corrected.tolist(),
            "order": [names[leaf] for leaf in _leaves(joined)],
            "linkage": joined.tolist(),
            "closest": [{"classes": list(pair)} | _describe(found) for pair, found in pairs.items()],
        }
        _write_matrix(names, corrected, options.out / "classes.csv")
        _draw_classes(names, corrected, joined, options.out / "classes.png")
        rows = [_row(", ".join(pair), [found], _show_interval(found)) for pair, found in pairs.items()]
    _draw_bias(halves, record, options.out / "bias.png")
    rows += [_row(f"chance alone, {len(found)} draws", found, _count_zeros(found)) for found in halves.values()]
    head = ["sets", "images", "D", "without bias", "95 % interval", "similarity", "without bias", "images needed"]
    return record | {"table": [head, *rows]}


def _describe_halves(halves: Mapping[int, Sequence[SetComparison]]) -> dict[str, Any]:
    largest = max(halves)
    of_one = _mean(largest * sum(found.biases) for found in halves[largest])
    return {
        "sizes": {str(size): [_describe(found) for found in draws] for size, draws in halves.items()},
        "distance_times_images": {
            str(size): size * _mean(found.distance for found in draws) for size, draws in halves.items()
        },
        "bias_times_images": of_one,
        # Two sets of one distribution have this plain Fisher Similarity at these numbers of images.
        "images_for_similarity": {
            f"{similarity:g}": math.ceil(10 * of_one / -math.log(similarity)) for similarity in (0.9, 0.95, 0.99)
        },
    }


def _matrix(count: int, values: Mapping[tuple[int, int], float]) -> FloatArray:
    """Values of pairs as a symmetric matrix with a diagonal of 0."""
    matrix = np.zeros((count, count))
    for (one, other), value in values.items():
        matrix[one, other] = matrix[other, one] = value
    return matrix


def _describe(found: SetComparison) -> dict[str, Any]:
    low, high = found.interval
    return {
        "images": found.counts,
        "distance": {"plain": found.distance, "corrected": found.corrected, "interval": (low, high)},
        "similarity": {
            "plain": similarity_at(found.distance),
            "corrected": similarity_at(found.corrected),
            "interval": (similarity_at(high), similarity_at(low)),
        },
        "needed": found.images_for(_SHARE),
    }


def _show_interval(found: SetComparison) -> str:
    low, high = found.interval
    return f"{low:.5f} to {high:.5f}"


def _count_zeros(draws: Sequence[SetComparison]) -> str:
    """How many of the intervals hold 0, the truth where only chance is at work; a mean of their ends would be none."""
    return f"{sum(low <= 0 <= high for low, high in (found.interval for found in draws))} of {len(draws)} hold 0"


def _row(name: str, draws: Sequence[SetComparison], interval: str) -> list[str]:
    """Means over draws, which have one size and so one meaning."""
    counts = sorted(set(draws[0].counts))
    corrected = _mean(found.corrected for found in draws)
    needed = draws[0].images_for(_SHARE) if len(draws) == 1 else None
    return [
        name,
        " and ".join(map(str, counts)),
        f"{_mean(found.distance for found in draws):.5f}",
        f"{corrected:.5f}",
        interval,
        f"{_mean(similarity_at(found.distance) for found in draws):.3f}",
        f"{similarity_at(corrected):.3f}",
        str(needed or ""),
    ]


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _leaves(joined: FloatArray) -> list[int]:
    leaves: list[int] = leaves_list(joined).tolist()
    return leaves


def _write_matrix(names: Sequence[str], corrected: FloatArray, path: Path) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["", *names])
        for name, row in zip(names, corrected.tolist(), strict=True):
            writer.writerow([name, *(f"{value:.6g}" for value in row)])


# The figures


def _draw_classes(names: Sequence[str], corrected: FloatArray, joined: FloatArray, path: Path) -> None:
    """The distances of classes in the order of their dendrogram, beside it."""
    from matplotlib.figure import Figure

    tree = dendrogram(joined, no_plot=True)
    leaves = _leaves(joined)
    ordered = corrected[np.ix_(leaves, leaves)]
    shown = np.ma.masked_array(ordered, np.eye(len(leaves), dtype=np.bool_))
    labels = [names[leaf] for leaf in leaves]
    side = min(3.5 + 0.45 * len(names), 24)
    size = 9 if len(names) <= 30 else max(3, 270 / len(names))
    figure = Figure(figsize=(side * 1.45, side), layout="constrained")
    branches, matrix = figure.subplots(1, 2, width_ratios=(1, 3))
    # scipy puts leaves at 5, 15, 25, ...; rows of the matrix are at 0, 1, 2, ...
    for across, along in zip(tree["icoord"], tree["dcoord"], strict=True):
        branches.plot(along, [(place - 5) / 10 for place in across], color="#2a78d6", linewidth=1.2)
    branches.set(ylim=(len(names) - 0.5, -0.5), yticks=[], xlabel="mean distance")
    branches.set_xlim(1.04 * (float(joined[:, 2].max()) or 1.0), 0)  # 0 where no class differs from another
    branches.spines[["left", "top", "right"]].set_visible(False)
    picture = matrix.imshow(shown, cmap="viridis", vmin=0, vmax=max(float(shown.max()), 1e-6), aspect="auto")
    matrix.set_xticks(range(len(labels)), labels, rotation=90, fontsize=size)
    matrix.set_yticks(range(len(labels)), labels, fontsize=size)
    if len(names) <= 16:
        middle = float(shown.max()) / 2
        for (row, column), value in np.ndenumerate(ordered):
            if row != column:
                colour = "white" if value < middle else "black"
                matrix.text(column, row, format_number(value), ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(picture, ax=matrix, label="Fisher distance without bias")
    save_figure(figure, path)


def _draw_bias(halves: Mapping[int, Sequence[SetComparison]], record: Mapping[str, Any], path: Path) -> None:
    """Distance with and without its bias, and plain similarity, of samples that differ by chance alone."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    sizes = np.array(list(halves), dtype=float)
    of_one = record["bias"]["bias_times_images"]
    figure = Figure(figsize=(13, 4), layout="constrained")
    plain, corrected, similarity = figure.subplots(1, 3)
    fine = np.geomspace(sizes[0], sizes[-1] * 1.0001, 100)
    plain.plot(fine, of_one / fine, color="#888888", linewidth=1, label=f"{of_one:.2f} / n")
    plain.plot(fine, 2 / fine, ":", color="#888888", linewidth=1, label="2 / n")
    similarity.plot(
        fine, np.exp(-10 * of_one / fine), color="#888888", linewidth=1, label=f"exp(-10 x {of_one:.2f} / n)"
    )
    draws = max(map(len, halves.values()))
    for number in range(draws):
        found = [of_size[number] for of_size in halves.values()]
        label = f"{draws} draws" if number == 0 else None
        places = sizes * 1.03 ** (number - (draws - 1) / 2)  # side by side
        style: dict[str, Any] = {"color": "#2a78d6", "markersize": 4, "linestyle": "none", "marker": "o"}
        plain.plot(places, [one.distance for one in found], label=label, **style)
        similarity.plot(places, [similarity_at(one.distance) for one in found], label=label, **style)
        ends = np.array([one.interval for one in found]).T
        middles = np.array([one.corrected for one in found])
        corrected.plot(places, middles, label=label, **style)
        corrected.vlines(places, *ends, color="#2a78d6", linewidth=1)
    for pair in record.get("classes", {}).get("closest", [])[:1]:
        distance, name = pair["distance"]["corrected"], ", ".join(pair["classes"])
        for axes in (plain, corrected):
            axes.axhline(distance, linestyle="--", color="#d9622b", linewidth=1, label=f"{name}: without bias")
    corrected.axhline(0, color="#888888", linewidth=1)
    plain.set_yscale("log")
    plain.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    plain.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    plain.yaxis.set_minor_locator(NullLocator())
    plain.set(title="D of two samples of one set")
    corrected.set(title="without bias, and its 95 % intervals")
    similarity.set(title="Fisher Similarity exp(-10 D), not corrected", ylim=(None, 1))
    for axes in (plain, corrected, similarity):
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="images per set, n")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7, frameon=False)
    save_figure(figure, path)
