"""Nearest neighbours by score vectors and by pixels, and whether a generator copies (Figures 6 and 7).

Distances are squared Euclidean ones of :mod:`afv_metric.fisher.vectors`; between score vectors that is the ``fisher``
distance at the images' own resolution. The gallery passes by batch by batch and its features are never kept; those of
the queries are, 4 bytes per number: 1,000 queries at width 48 take 0.84 GB.

- Where the images have classes, the neighbours vote: the accuracy of one neighbour and of all k (of tied classes that
  of the nearest wins), and the share of the neighbours that are of the query's class.
- Memorisation: generated images that were copied lie nearer to the training images than held-out images do, at least
  some of them. The medians of both, the share of pairs in which the generated one is nearer (1/2 for equal
  distributions), and the share of generated images below the 5 % quantile of held-out ones (.05) are compared. The
  gallery must hold what the generator was trained on; a part of it, by ``--limit``, rules no copies out. Smooth images
  are near everything, above all by pixels: numbers above those of chance ask for a check of ``closest.png``, numbers at
  or below them rule out copying on a large scale.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy import stats
from torch import Tensor

from afv_metric.bundles.bundle import load_bundle
from afv_metric.bundles.resolve import DEFAULT_BUNDLE
from afv_metric.files import atomic_write
from afv_metric.fisher.vectors import Features, ScoreFeatures, UInt8Images, extract
from afv_metric.images.cache import ImageSet, draw_images, load_images
from afv_metric.networks import Generator
from bapps_eval.data import FloatArray, spread
from experiments.features import PixelFeatures
from experiments.intervals import Interval, format_share, mean_interval, share_interval

__all__ = [
    "Nearness", "Neighbours", "add_arguments", "compare_nearness", "draw_grid", "extract_all", "generate_images",
    "load_queries", "nearest", "nearest_among", "run", "vote",
]  # fmt: skip

_TAIL = 0.05  # quantile of the held-out distances below which copies are looked for
_TILE, _HEAD = 64, 20  # pixels of a picture in a grid, and of the line above them
_BATCH = 100


class Neighbours(NamedTuple):
    """The nearest images of a gallery.

    Attributes:
        distances: Squared Euclidean distances, nearest first, ``(Q, k)``; of equal features rounding may leave some
            millionths of their square length.
        rows: Which image of the gallery, int64 ``(Q, k)``.
    """

    distances: Tensor
    rows: Tensor


def nearest(
    features: Features,
    queries: UInt8Images,
    gallery: UInt8Images,
    k: int,
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    quiet: bool = True,
) -> Neighbours:
    """The k images of a gallery that are nearest to each query.

    Args:
        features: Features to compare; a module is on ``device`` already.
        queries: Decoded images; their features stay in memory.
        gallery: Decoded images of any number; features pass by.
        k: Neighbours of each query.
        batch_size: Images at a time.
        device: Device to compute on.
        quiet: Whether to show no progress bar.

    Raises:
        ValueError: If the gallery has fewer than k images.

    Example:
        >>> images = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8)
        >>> nearest(PixelFeatures(32), images[[7, 3]], images, 2).rows[:, 0]
        tensor([7, 3])
    """
    of_queries = extract_all(features, queries, batch_size=batch_size, device=device, quiet=quiet)
    batches = extract(features, gallery, batch_size=batch_size, device=device, quiet=quiet)
    return nearest_among(of_queries.to(device), batches, k)


def extract_all(features: Features, images: UInt8Images, **settings: Any) -> Tensor:
    """All of :func:`~afv_metric.fisher.vectors.extract`: float32 ``(N, size)`` on the CPU, without a second copy."""
    table = torch.empty(len(images), features.size)
    start = 0
    for batch in extract(features, images, **settings):
        table[start : start + len(batch)] = batch
        start += len(batch)
    return table


def nearest_among(queries: Tensor, batches: Iterable[Tensor], k: int) -> Neighbours:
    """The k nearest of vectors that come batch by batch, by full search in single precision.

    Args:
        queries: ``(Q, size)``, on the device to compute on.
        batches: Vectors ``(n, size)``, any n; the first of equally near ones is kept.
        k: Number of neighbours.

    Raises:
        ValueError: If there are fewer than k.

    Example:
        >>> line = torch.tensor([[0.0], [1.0], [5.0]])
        >>> nearest_among(torch.tensor([[4.0]]), [line[:2], line[2:]], 2)
        Neighbours(distances=tensor([[1., 9.]]), rows=tensor([[2, 1]]))
    """
    squares = torch.linalg.vector_norm(queries, dim=1, keepdim=True).square()
    distances, rows = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    rows = rows.to(queries.device)
    start = 0
    for batch in batches:
        vectors = batch.to(queries)
        found = torch.addmm(vectors.square().sum(1), queries, vectors.T, alpha=-2).add_(squares).clamp_min_(0)
        numbers = torch.arange(start, start + len(batch), device=queries.device).expand_as(found)
        distances, order = torch.cat([distances, found], 1).sort(dim=1, stable=True)
        distances, rows = distances[:, :k], torch.cat([rows, numbers], 1).gather(1, order[:, :k])
        start += len(batch)
    if not 1 <= k <= start:
        raise ValueError(f"{k} neighbours were asked for; there are {start} images to choose from, and 1 is the least")
    return Neighbours(distances.cpu(), rows.cpu())


def vote(labels: Tensor) -> Tensor:
    """The class of most neighbours; of tied ones that of the nearest.

    Args:
        labels: Classes of the neighbours, nearest first, ``(Q, k)``.

    Returns:
        ``(Q,)``.

    Example:
        >>> vote(torch.tensor([[3, 5, 5], [4, 2, 6]]))
        tensor([5, 4])
    """
    votes = (labels[:, :, None] == labels[:, None, :]).sum(2)
    # Multiplied such that a vote counts more than any place, so that no two are equal.
    places = torch.arange(labels.shape[1], device=labels.device)
    winner = (votes * labels.shape[1] - places).argmax(1, keepdim=True)
    return labels.gather(1, winner)[:, 0]


class Nearness(NamedTuple):
    """Distances of generated images to the nearest training image, against those of held-out images.

    Attributes:
        medians: Median distances of the generated and of the held-out images.
        nearer: Share of pairs of one of each in which the generated image is nearer to its neighbour than the held-out
            one to its own; ties count half. 1/2 for equal distributions.
        nearer_interval: 95 % bootstrap interval.
        tail: Share of generated images that are nearer than the 5 % quantile of held-out ones; about .05 by chance.
        tail_interval: 95 % bootstrap interval.
    """

    medians: tuple[float, float]
    nearer: float
    nearer_interval: Interval
    tail: float
    tail_interval: Interval

    def statement(self, *, whole_gallery: bool = True) -> str:
        """What the two intervals say, in words.

        Args:
            whole_gallery: The distances are to all images of the gallery, not to a part of them, which may lack the
                images that were copied.
        """
        if self.nearer_interval[0] > 0.5:
            whole = "nearer to the training images than held-out images are"
        elif self.nearer_interval[1] < 0.5:
            whole = "farther from the training images than held-out images are"
        else:
            whole = "as near to the training images as held-out images are"
        if self.tail_interval[0] > _TAIL:
            tail = "more of them than by chance are among the very near: look whether these are copies"
        elif whole_gallery:
            tail = "no more of them than by chance are among the very near: no sign of copies"
        else:
            tail = (
                "no more of them than by chance are among the very near, but a part of the gallery need not hold what "
                "the generator was trained on: copies are not ruled out"
            )
        return f"generated images are {whole}; {tail}"


def compare_nearness(generated: Tensor, held_out: Tensor, *, resamples: int = 2000, seed: int = 0) -> Nearness:
    """Compare distances to the nearest training image; both samples are drawn anew for the intervals.

    Args:
        generated: Distances of generated images, ``(N,)``.
        held_out: Distances of images of the training distribution that were not trained on, ``(M,)``.
        resamples: Draws of the bootstrap.
        seed: Seed of the draws.

    Raises:
        ValueError: If there are fewer than two of either.

    Example:
        >>> held_out = torch.linspace(1, 2, 101)
        >>> found = compare_nearness(held_out - 0.9, held_out)
        >>> found.tail > 0.9, found.nearer > 0.9
        (True, True)
    """
    if min(len(generated), len(held_out)) < 2:
        raise ValueError(f"two distances of both kinds are needed, got {len(generated)} and {len(held_out)}")
    samples = generated.double().numpy(), held_out.double().numpy()

    def estimate(statistic: Callable[..., FloatArray]) -> tuple[float, Interval]:
        drawn = stats.bootstrap(
            samples, statistic, n_resamples=resamples, method="percentile", batch=100, random_state=seed
        ).confidence_interval
        return float(statistic(*samples)), (float(drawn.low), float(drawn.high))

    medians = float(np.median(samples[0])), float(np.median(samples[1]))
    return Nearness(medians, *estimate(_nearer), *estimate(_tail))


def _nearer(generated: FloatArray, held_out: FloatArray, axis: int = -1) -> FloatArray:
    """Share of pairs of one of each in which the generated one is nearer."""
    farther = stats.mannwhitneyu(generated, held_out, axis=axis, method="asymptotic").statistic
    return np.asarray(1 - farther / (generated.shape[axis] * held_out.shape[axis]))


def _tail(generated: FloatArray, held_out: FloatArray, axis: int = -1) -> FloatArray:
    """Share of generated ones that are nearer than the near quantile of held-out ones."""
    return np.asarray((generated < np.quantile(held_out, _TAIL, axis=axis, keepdims=True)).mean(axis))


@torch.no_grad()
def generate_images(generator: Generator, count: int, seed: int) -> Tensor:
    """Draw images from a generator, rounded to 8 bits as those in files are: uint8 ``(count, 3, S, S)``."""
    latents = generator.sample_latents(count, generator=torch.Generator().manual_seed(seed))
    batches = [generator(some) * 127.5 + 127.5 for some in latents.split(_BATCH)]
    return torch.cat(batches).round().clamp(0, 255).to(torch.uint8).cpu()


def draw_grid(groups: Mapping[str, Tensor], path: Path) -> None:
    """Draw pictures in rows, in groups of columns with a gap between them.

    Args:
        groups: Under the name of each group its pictures, uint8 ``(rows, columns, 3, S, S)``, the rows alike in all.
        path: PNG to write; small pictures are enlarged by a whole number.
    """
    height, _, _, _, side = next(iter(groups.values())).shape
    repeats = max(1, _TILE // side)
    step = side * repeats + 2
    gap = step // 4
    width = sum(pictures.shape[1] for pictures in groups.values()) * step + gap * (len(groups) - 1)
    canvas = Image.new("RGB", (width, _HEAD + height * step), "white")
    drawing, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    left = 0
    for name, pictures in groups.items():
        drawing.text((left + 2, 2), name, "black", font)
        for row, column in np.ndindex(*pictures.shape[:2]):
            tile = Image.fromarray(pictures[row, column].permute(1, 2, 0).numpy())
            tile = tile.resize((side * repeats,) * 2, Image.Resampling.NEAREST)
            canvas.paste(tile, (left + column * step, _HEAD + row * step))
        left += pictures.shape[1] * step + gap
    with atomic_write(path) as temporary:
        canvas.save(temporary, format="PNG")


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--weights", default=DEFAULT_BUNDLE, metavar="BUNDLE", help="name, folder or hub id")
    parser.add_argument(
        "--gallery", type=Path, required=True, metavar="DIR", help="training images: where neighbours are"
    )
    parser.add_argument("--queries", type=Path, required=True, metavar="DIR", help="held-out images")
    parser.add_argument("--count", type=int, default=16, metavar="N", help="held-out images in the picture (16)")
    parser.add_argument("--generated", type=int, default=16, metavar="N", help="generated images in the pictures (16)")
    parser.add_argument("--neighbours", type=int, default=8, metavar="K", help="of each image (8)")
    parser.add_argument(
        "--evaluate", type=int, default=500, metavar="N", help="held-out and generated images to measure with (500)"
    )
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="gallery images to use, at random (all)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, write ``test.png``, ``generated.png`` and ``closest.png``, and return all numbers."""
    for name in ("count", "generated", "neighbours", "evaluate"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(options, name)}")
    bundle = load_bundle(options.weights, generator=True)
    assert bundle.generator is not None
    size = bundle.discriminator.config.image_size
    everything = load_images(options.gallery, size, quiet=options.quiet)
    gallery = draw_images(everything, options.limit, options.seed)
    held_out = load_queries(options, gallery, size)
    count = len(held_out.names)
    generated = generate_images(bundle.generator, options.evaluate, options.seed)
    queries = torch.cat([held_out.images[:], generated])
    kinds: dict[str, Features] = {"afv": ScoreFeatures(bundle).to(options.device), "pixels": PixelFeatures(size)}
    settings = {"device": options.device, "quiet": options.quiet}
    found = {
        name: nearest(features, queries, gallery.images, options.neighbours, **settings)
        for name, features in kinds.items()
    }
    shared = _shared_classes(gallery, held_out)
    shown = spread(count, min(count, options.count)).tolist()
    record: dict[str, Any] = {
        "bundle": {"name": bundle.name, "sha256": bundle.hash},
        "gallery": {"images": len(gallery.names), "fingerprint": gallery.fingerprint},
        "held_out": {"images": count, "fingerprint": held_out.fingerprint},
        "features": {},
    }
    for name, neighbours in found.items():
        distances = neighbours.distances[:, 0]
        nearness = compare_nearness(distances[count:], distances[:count], seed=options.seed)
        statement = nearness.statement(whole_gallery=len(gallery.names) == len(everything.names))
        same = _are_equal(queries, gallery.images[neighbours.rows[:, 0]])
        record["features"][name] = {
            "size": kinds[name].size,
            "memorisation": nearness._asdict() | {"statement": statement},
            "identical": {"held_out": int(same[:count].sum()), "generated": int(same[count:].sum())},
            "classes": _agree(neighbours.rows[:count], *shared) if shared else None,
            "neighbours": {
                "held_out": _list_neighbours(neighbours, shown, gallery, held_out.names),
                "generated": _list_neighbours(neighbours, range(count, len(queries))[: options.generated], gallery),
            },
        }
    nearest_first = count + found["afv"].distances[count:, 0].argsort(stable=True)
    for picture, rows in {
        "test": torch.tensor(shown),
        "generated": torch.arange(count, len(queries))[: options.generated],
        "closest": nearest_first[: options.generated],
    }.items():
        groups = {"query": queries[rows][:, None]}
        for name, title in (("afv", "nearest by score vectors (AFV)"), ("pixels", "nearest by pixels")):
            chosen = found[name].rows[rows]
            groups[title] = gallery.images[chosen.flatten()].unflatten(0, chosen.shape)
        draw_grid(groups, options.out / f"{picture}.png")
    return record | {"table": _table(record["features"], options.neighbours)}


def load_queries(options: argparse.Namespace, gallery: ImageSet, size: int) -> ImageSet:
    """At most ``--evaluate`` of the images of ``--queries``, at random.

    Args:
        options: Arguments ``queries``, ``gallery``, ``evaluate``, ``seed`` and ``quiet``.
        gallery: The images of ``--gallery``, or a part of them.
        size: Image size of the network.

    Raises:
        ValueError: If they are the images of the gallery.
    """
    queries = load_images(options.queries, size, quiet=options.quiet)
    if queries.fingerprint == gallery.fingerprint:
        raise ValueError(
            f"{options.queries} holds the images of {options.gallery}: each would be its own neighbour. Give --queries "
            "other images"
        )
    return draw_images(queries, min(options.evaluate, len(queries.names)), options.seed)


def _shared_classes(gallery: ImageSet, held_out: ImageSet) -> tuple[Tensor, Tensor] | None:
    """Labels of both, numbered as the gallery's; None where one has no classes, or a class that the gallery lacks."""
    if gallery.labels is None or held_out.labels is None or not set(held_out.classes) <= set(gallery.classes):
        return None
    number = torch.tensor([gallery.classes.index(name) for name in held_out.classes])
    return gallery.labels, number[held_out.labels]


def _agree(rows: Tensor, of_gallery: Tensor, expected: Tensor) -> dict[str, Any]:
    """How well the classes of neighbours predict those of the queries."""
    labels = of_gallery[rows]
    share, interval = mean_interval((labels == expected[:, None]).double().mean(1))
    return {
        "one": _accuracy(labels[:, 0] == expected),
        "k": _accuracy(vote(labels) == expected),
        "same_class": {"share": share, "interval": interval},
    }


def _accuracy(right: Tensor) -> dict[str, Any]:
    return {"share": float(right.double().mean()), "interval": share_interval(int(right.sum()), len(right))}


def _are_equal(queries: Tensor, others: Tensor) -> Tensor:
    return (queries == others).flatten(1).all(1)


def _list_neighbours(
    found: Neighbours, queries: Iterable[int], gallery: ImageSet, names: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """The rows of a picture, in words."""
    return [
        {
            "query": names[query] if names else None,
            "neighbours": [gallery.names[row] for row in found.rows[query].tolist()],
            "distances": found.distances[query].tolist(),
        }
        for query in queries
    ]


def _table(features: Mapping[str, Any], k: int) -> list[list[str]]:
    head = [
        "features",
        "held-out median",
        "generated median",
        "generated nearer",
        f"nearer than {_TAIL:.0%} of held-out",
    ]
    classes = next(iter(features.values()))["classes"] is not None
    if classes:
        head += ["1-NN accuracy", f"{k}-NN accuracy", f"of the {k}, same class"]
    rows = []
    for name, of_features in features.items():
        found = of_features["memorisation"]
        row = [name, *(f"{median:.4g}" for median in reversed(found["medians"]))]
        row += [format_share(found[key], found[f"{key}_interval"]) for key in ("nearer", "tail")]
        if classes:
            row += [format_share(score["share"], score["interval"]) for score in of_features["classes"].values()]
        rows.append(row)
    return [head, *rows]
