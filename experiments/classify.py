"""Table 1 of the paper: linear classifiers on Adversarial Fisher Vectors and on what they are compared with.

Each kind of features is computed once and stored on disk in half precision, or computed anew for every epoch, as moved
and mirrored images must be. Sketches of the vectors are taken as these are computed. Whitened vectors are divided by a
common factor, pooled features and pixels are standardised one by one, all by the first few thousand training images.

D-pool is the discriminator's last map averaged over positions; ``d-pool-blocks`` joins the averages of all blocks.

For features of up to 32,768 numbers, penalties and dropout that are not given are compared on a tenth of the training
images, and the best pair is trained with all of them; longer ones take the defaults. The test images are used
once, at the end.

Each row of the table is added to ``rows.jsonl`` as soon as it is known, so that what a later kind of features fails at
costs no earlier one. A rerun starts anew: it removes that file and what a killed run left behind of its features, and
a folder is therefore for one run at a time.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from afv_metric.bundles.bundle import Bundle, load_bundle
from afv_metric.bundles.resolve import DEFAULT_BUNDLE
from afv_metric.bundles.twin import random_twin
from afv_metric.files import atomic_write, save_figure
from afv_metric.fisher.vectors import Features, ScoreFeatures, UInt8Images, extract
from afv_metric.images.cache import ImageSet, ImageView, draw_images, load_images
from afv_metric.networks import DiscriminatorConfig
from afv_metric.train.divergence import DivergenceError
from experiments import missing_matplotlib
from experiments.features import PixelFeatures, PooledFeatures, store
from experiments.intervals import share_interval
from experiments.linear import (
    Batches,
    LinearClassifier,
    Schedule,
    StoredBatches,
    count_correct,
    measure_scaling,
    seeded,
    train_svm,
)
from experiments.supervised import classify_images, crop_and_flip, supervised_network, train_supervised

__all__ = ["Examples", "Row", "Settings", "add_arguments", "classify", "draw", "read_examples", "run"]

Kind = Literal["afv", "d-pool", "d-pool-blocks", "pixels", "afv-random", "d-pool-random", "supervised"]

_BATCH = 128
_HELD_OUT = 0.1
_PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
_DROPOUTS = (0.0, 0.5)
_LONG = 32_768  # numbers per image, above which penalties and dropout are not compared
_LONG_PENALTY, _LONG_DROPOUT = 1e-5, 0.5
_STEPS, _LONG_STEPS, _FEWEST_EPOCHS = 4_000, 2_400, 10
_SCALING_IMAGES = 4_096
_STORED = ".features-"  # how the folders of stored features begin
_Source = ScoreFeatures | PooledFeatures | PixelFeatures
_log = logging.getLogger(__name__)


class Examples(NamedTuple):
    """Images with their classes.

    Attributes:
        images: The pixels.
        labels: int64 ``(N,)``.
    """

    images: ImageView
    labels: Tensor


@dataclass(frozen=True)
class Settings:
    """How features are classified.

    Attributes:
        augment: Whether to move and mirror the training images, with features computed anew in every epoch.
        sketches: Lengths of sketches of the vectors, besides the vectors themselves.
        epochs: Epochs of a linear classifier; None: as many as make 2,400 steps for features of more than 32,768
            numbers, or else 4,000, but at least 10.
        rate: Step size of a linear classifier; where it diverges, a fourth of it is tried, at most three times.
        dropout: Dropout of a linear classifier; None: chosen from 0 and .5, or .5 for features of more than 32,768
            numbers.
        penalty: L2 penalty of a linear classifier; None: chosen, or 1e-5 for features of more than 32,768 numbers.
        supervised_epochs: Epochs of the supervised network.
        device: Device to compute on.
        seed: Seed of everything that is drawn.
        quiet: Whether to show no progress bars.
    """

    augment: bool = False
    sketches: tuple[int, ...] = ()
    epochs: int | None = None
    rate: float = 2.0
    dropout: float | None = None
    penalty: float | None = None
    supervised_epochs: int = 20
    device: str = "cpu"
    seed: int = 0
    quiet: bool = True

    def __post_init__(self) -> None:
        if any(size < 1 for size in self.sketches):
            raise ValueError(f"sketches have at least one number, got {self.sketches}")
        for name in ("epochs", "supervised_epochs"):
            if (epochs := getattr(self, name)) is not None and epochs < 1:
                raise ValueError(f"{name} must be at least 1, got {epochs}")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        features: Kind of the features.
        size: Numbers per image; of the supervised network its parameters.
        train_accuracy: Share of the training images, not augmented, in their own class.
        test_accuracy: Share of the test images in their own class.
        interval: 95 % interval of the test accuracy by Wilson's formula, for the test images as a sample.
        processor_minutes: Time of the processor, the extraction of the features included.
        penalty: L2 penalty that was used; None for the supervised network.
        dropout: Dropout that was used; None for the supervised network.
        rate: Step size the classifier was trained with in the end, lower than that of the settings if that diverged;
            None for the supervised network.
        epochs: Epochs of the training.
        compared: Dropout, penalty, accuracy on the images held out, and step size, of all that were compared.
    """

    features: str
    size: int
    train_accuracy: float
    test_accuracy: float
    interval: tuple[float, float]
    processor_minutes: float
    penalty: float | None
    dropout: float | None
    rate: float | None
    epochs: int
    compared: list[tuple[float, float, float, float]]


def read_examples(
    train: Sequence[str | Path],
    test: Sequence[str | Path],
    size: int,
    *,
    limit: int = 0,
    seed: int = 0,
    quiet: bool = False,
) -> tuple[Examples, Examples, tuple[str, ...]]:
    """Read training and test images, both in random order, with classes of the same names.

    Args:
        train: Folders with a folder for each class, or CIFAR archives; see :mod:`afv_metric.images.sources`.
        test: Folders or archives of the test images.
        size: Side of the images in pixels.
        limit: Largest number of either; 0: all.
        seed: Seed of choice and order.
        quiet: Whether to show no progress bar.

    Returns:
        Training images, test images and the names of the classes.

    Raises:
        ValueError: If the images have no classes, fewer than two, or the test images others than the training images,
            or if the test images are the training images.
    """
    read = [load_images(paths, size, quiet=quiet) for paths in (train, test)]
    if read[0].fingerprint == read[1].fingerprint:
        raise ValueError(
            f"{_listed(test)} holds the images of {_listed(train)}: give test images that are not trained on"
        )
    sets = [draw_images(images, min(limit, len(images.names)), seed) for images in read]
    classes = sets[0].classes
    for images, paths in zip(sets, (train, test), strict=True):
        if images.labels is None or len(images.classes) < 2:
            raise ValueError(
                f"{_listed(paths)}: no classes; give folders with a folder for each class, or CIFAR archives"
            )
        if unknown := sorted(set(images.classes) - set(classes)):
            raise ValueError(f"{_listed(paths)}: classes without training images: {', '.join(unknown[:5])}")
    number = torch.tensor([classes.index(name) for name in sets[1].classes])
    return _shuffled(sets[0], torch.arange(len(classes)), seed), _shuffled(sets[1], number, seed), classes


def _listed(paths: Sequence[str | Path]) -> str:
    return " and ".join(map(str, paths))


def _shuffled(images: ImageSet, number: Tensor, seed: int) -> Examples:
    assert images.labels is not None
    order = torch.randperm(len(images.names), generator=torch.Generator().manual_seed(seed))
    return Examples(images.images.take(order), number[images.labels[order]])


class _Augmented:
    """Images moved and mirrored; the same slice is the same images again, whichever thread asks for it."""

    def __init__(self, images: ImageView, *key: int) -> None:
        self._images, self._key = images, key

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, chosen: slice) -> Tensor:
        return crop_and_flip(self._images[chosen], seeded(*self._key, chosen.start))


class _Streamed:
    """Features of moved and mirrored images, computed when asked for; see :class:`~experiments.linear.Batches`."""

    def __init__(self, features: Features, examples: Examples, settings: Settings) -> None:
        self._features, self._examples, self._settings = features, examples, settings
        self.size = features.size

    def __len__(self) -> int:
        return math.ceil(len(self._examples.labels) / _BATCH)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        key = self._settings.seed, number
        order = torch.randperm(len(self._examples.labels), generator=seeded(*key))
        moved = _Augmented(self._examples.images.take(order), *key)
        return _extracted(self._features, moved, self._examples.labels[order], self._settings)


def _extracted(
    features: Features, images: UInt8Images, labels: Tensor, settings: Settings
) -> Iterator[tuple[Tensor, Tensor]]:
    batches = extract(features, images, batch_size=_BATCH, device=settings.device)
    return zip(batches, labels.split(_BATCH), strict=True)


def classify(
    kinds: Sequence[Kind],
    bundle: Bundle,
    train: Examples,
    test: Examples,
    classes: int,
    settings: Settings,
    folder: Path,
) -> Iterator[Row]:
    """Train and test a classifier on every kind of features.

    Args:
        kinds: The kinds; ``"afv"`` comes with its sketches.
        bundle: The network, with its generator where a kind is at random initialisation.
        train: Training images in random order.
        test: Test images.
        classes: Number of classes.
        settings: How the features are classified.
        folder: Folder for features that are stored on disk; they are removed before their rows are yielded.

    Yields:
        A row for each kind and for each sketch, as soon as it is known.
    """
    random = random_twin(bundle) if any(kind.endswith("-random") for kind in kinds) else bundle
    for kind in kinds:
        chosen = random if kind.endswith("-random") else bundle
        sources: list[_Source] = []
        if kind == "supervised":
            yield _classify_supervised(bundle.discriminator.config, train, test, classes, settings)
        elif kind == "pixels":
            sources = [PixelFeatures(train.images.shape[-1])]
        elif kind.startswith("d-pool"):
            sources = [PooledFeatures(chosen, every_block=kind == "d-pool-blocks")]
        else:
            sources = [ScoreFeatures(chosen)]
        if kind == "afv":
            sizes = sorted(set(settings.sketches), reverse=True)
            sources += [ScoreFeatures(bundle, size, settings.seed) for size in sizes]
        for number, features in enumerate(sources):
            name = f"{kind}, sketch" if number else kind
            yield _classify_features(name, features.to(settings.device), train, test, classes, settings, folder)


class _Fit(NamedTuple):
    classifier: LinearClassifier
    penalty: float
    dropout: float
    rate: float
    epochs: int
    compared: list[tuple[float, float, float, float]]


def _classify_features(
    name: str,
    features: _Source,
    train: Examples,
    test: Examples,
    classes: int,
    settings: Settings,
    folder: Path,
) -> Row:
    started = time.process_time()
    with tempfile.TemporaryDirectory(dir=folder, prefix=_STORED) as temporary:
        table = None
        # Penalties and dropout are compared on a table in any case.
        if not settings.augment or features.size <= _LONG:
            path = Path(temporary) / "features.f16"
            table = store(features, train.images, path, device=settings.device, quiet=settings.quiet)
        fit = _fit(features, table, train, classes, settings)
        if table is None:
            seen = _extracted(features, train.images, train.labels, settings)
        else:
            seen = zip(table.split(_BATCH), train.labels.split(_BATCH), strict=True)
        of_train = count_correct([fit.classifier], seen)[0]
        of_test = count_correct([fit.classifier], _extracted(features, test.images, test.labels, settings))[0]
    row = Row(
        features=name,
        size=features.size,
        train_accuracy=of_train / len(train.labels),
        test_accuracy=of_test / len(test.labels),
        interval=share_interval(of_test, len(test.labels)),
        processor_minutes=(time.process_time() - started) / 60,
        penalty=fit.penalty,
        dropout=fit.dropout,
        rate=fit.rate,
        epochs=fit.epochs,
        compared=fit.compared,
    )
    _log.info("%s, %d numbers: test accuracy %.4f", name, features.size, row.test_accuracy)
    return row


def _fit(features: _Source, table: Tensor | None, train: Examples, classes: int, settings: Settings) -> _Fit:
    """Choose a penalty, if that is asked for, and train with it."""
    long = features.size > _LONG
    steps = _LONG_STEPS if long else _STEPS
    epochs = settings.epochs or max(_FEWEST_EPOCHS, math.ceil(steps * _BATCH / len(train.labels)))
    sample: Tensor | Iterator[Tensor]
    if table is None:
        rows = torch.arange(min(_SCALING_IMAGES, len(train.labels)))
        some = _extracted(features, train.images.take(rows), train.labels[rows], settings)
        sample = (batch for batch, _ in some)
    else:
        sample = table[:_SCALING_IMAGES]
    scaling = measure_scaling(sample, each=not isinstance(features, ScoreFeatures))

    def fit(
        batches: Batches, dropout: float, penalties: Sequence[float], rate: float = settings.rate
    ) -> tuple[list[LinearClassifier], float]:
        """The classifiers, and the step size that did not diverge."""
        try:
            found = train_svm(
                batches, classes, scaling, Schedule(epochs, rate, dropout), penalties,
                device=settings.device, seed=settings.seed, quiet=settings.quiet,
            )  # fmt: skip
            return found, rate
        except DivergenceError as error:
            if rate < settings.rate / 50:
                raise
            _log.warning("%s; trying a fourth of it", error)
        return fit(batches, dropout, penalties, rate / 4)

    penalties: Sequence[float] = _PENALTIES if settings.penalty is None else [settings.penalty]
    dropouts: Sequence[float] = _DROPOUTS if settings.dropout is None else [settings.dropout]
    compared: list[tuple[float, float, float, float]] = []
    if long or table is None or len(penalties) == len(dropouts) == 1:
        penalty = _LONG_PENALTY if settings.penalty is None else settings.penalty
        dropout = _LONG_DROPOUT if settings.dropout is None else settings.dropout
    else:
        kept = len(table) - max(1, round(_HELD_OUT * len(table)))
        held_out = list(zip(table[kept:].split(1024), train.labels[kept:].split(1024), strict=True))
        for dropout in dropouts:
            candidates, rate = fit(
                StoredBatches(table[:kept], train.labels[:kept], _BATCH, settings.seed), dropout, penalties
            )
            right = count_correct(candidates, held_out)
            compared += [
                (dropout, penalty, number / (len(table) - kept), rate)
                for penalty, number in zip(penalties, right, strict=True)
            ]
        dropout, penalty, _, _ = max(compared, key=lambda found: found[2])
    batches: Batches
    if settings.augment or table is None:
        batches = _Streamed(features, train, settings)
    else:
        batches = StoredBatches(table, train.labels, _BATCH, settings.seed)
    (classifier,), rate = fit(batches, dropout, [penalty])
    return _Fit(classifier, penalty, dropout, rate, epochs, compared)


def _classify_supervised(
    config: DiscriminatorConfig, train: Examples, test: Examples, classes: int, settings: Settings
) -> Row:
    started = time.process_time()
    network = supervised_network(config, classes, settings.seed)
    train_supervised(
        network, train.images.__getitem__, train.labels, epochs=settings.supervised_epochs,
        device=settings.device, seed=settings.seed, quiet=settings.quiet,
    )  # fmt: skip
    of_train, of_test = (
        int((classify_images(network, examples.images, device=settings.device) == examples.labels).sum())
        for examples in (train, test)
    )
    return Row(
        features="supervised",
        size=sum(parameter.numel() for parameter in network.parameters()),
        train_accuracy=of_train / len(train.labels),
        test_accuracy=of_test / len(test.labels),
        interval=share_interval(of_test, len(test.labels)),
        processor_minutes=(time.process_time() - started) / 60,
        penalty=None,
        dropout=None,
        rate=None,
        epochs=settings.supervised_epochs,
        compared=[],
    )


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw test accuracy against the number of features, with intervals; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    curve = sorted((row.size, row.test_accuracy) for row in rows if row.features.split(",")[0] == "afv")
    if len(curve) > 1:
        axes.plot(*zip(*curve, strict=True), "-", color="#2a78d6", linewidth=1)
    for row in rows:
        low, high = row.interval
        error = [[row.test_accuracy - low], [high - row.test_accuracy]]
        colour = "#2a78d6" if row.features.startswith("afv") and "random" not in row.features else "#666666"
        axes.errorbar(row.size, row.test_accuracy, error, fmt="o", color=colour, markersize=4, capsize=2)
        axes.annotate(
            row.features.removeprefix("afv, "),
            (row.size, row.test_accuracy),
            (6, 5),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set(xscale="log", xlabel="features (supervised: parameters)", ylabel="test accuracy")
    axes.margins(x=0.15)
    axes.grid(alpha=0.25)
    save_figure(figure, path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    kinds = get_args(Kind)
    parser.add_argument("--weights", default=DEFAULT_BUNDLE, metavar="BUNDLE", help="name, folder or hub id")
    for name in ("train", "test"):
        parser.add_argument(
            f"--{name}", type=Path, nargs="+", required=True, metavar="DATA",
            help="folders with a folder for each class, or CIFAR archives",
        )  # fmt: skip
    parser.add_argument("--features", nargs="+", choices=kinds, default=list(kinds), help="kinds of features (all)")
    parser.add_argument(
        "--sketch", type=int, nargs="+", default=[], metavar="K", help="also sketches of the vectors of these lengths"
    )
    parser.add_argument("--augment", action="store_true", help="move and mirror the images, anew every epoch")
    parser.add_argument(
        "--epochs", type=int, metavar="N",
        help=f"of a linear classifier; default: those that make {_STEPS:,} steps, or {_LONG_STEPS:,} for more than "
        f"{_LONG:,} features",
    )  # fmt: skip
    parser.add_argument("--rate", type=float, default=Settings.rate, help=f"step size ({Settings.rate:g})")
    parser.add_argument(
        "--dropout", type=float,
        help="share of features dropped; default: the best of 0 and .5 on held-out images "
        f"({_LONG_DROPOUT:g} for more than {_LONG:,} features)",
    )  # fmt: skip
    parser.add_argument(
        "--penalty", type=float,
        help=f"L2 penalty, 1 / (C N) of LinearSVC; default: the best on held-out images ({_LONG_PENALTY:g} for more "
        f"than {_LONG:,} features)",
    )  # fmt: skip
    parser.add_argument(
        "--supervised-epochs", type=int, default=Settings.supervised_epochs, metavar="N",
        help=f"of the supervised network ({Settings.supervised_epochs})",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="use at most N images of either set")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train and test, write ``rows.jsonl`` row by row and ``accuracy.png`` last, and return all numbers."""
    settings = Settings(
        augment=options.augment,
        sketches=tuple(options.sketch),
        epochs=options.epochs,
        rate=options.rate,
        dropout=options.dropout,
        penalty=options.penalty,
        supervised_epochs=options.supervised_epochs,
        device=options.device,
        seed=options.seed,
        quiet=options.quiet,
    )
    kinds = list(dict.fromkeys(options.features))
    bundle = load_bundle(options.weights, generator=any(kind.endswith("-random") for kind in kinds))
    size = bundle.discriminator.config.image_size
    train, test, classes = read_examples(
        options.train, options.test, size, limit=options.limit, seed=options.seed, quiet=options.quiet
    )
    options.out.mkdir(parents=True, exist_ok=True)
    for stale in options.out.glob(f"{_STORED}{'?' * 8}"):
        shutil.rmtree(stale)
    finished = options.out / "rows.jsonl"
    finished.unlink(missing_ok=True)
    rows: list[Row] = []
    for row in classify(kinds, bundle, train, test, len(classes), settings, options.out):
        rows.append(row)
        with atomic_write(finished) as temporary:
            temporary.write_text("".join(json.dumps(asdict(each)) + "\n" for each in rows), encoding="utf-8")
    head = ["features", "numbers", "train accuracy", "test accuracy", "95 % interval", "processor minutes"]
    record: dict[str, Any] = {
        "bundle": {"name": bundle.name, "sha256": bundle.hash},
        "classes": classes,
        "images": {"train": len(train.labels), "test": len(test.labels)},
        "used": asdict(settings),
        "rows": [asdict(row) for row in rows],
        "notes": [],
        "table": [head, *map(_line, rows)],
    }
    picture = options.out / "accuracy.png"
    if missing := missing_matplotlib():
        picture.unlink(missing_ok=True)  # an earlier run's would be taken for this one's
        record["notes"].append(f"there is no accuracy.png: {missing}")
    else:
        draw(rows, picture)
    return record


def _line(row: Row) -> list[str]:
    return [
        row.features,
        f"{row.size:,} weights" if row.features == "supervised" else f"{row.size:,}",
        f"{row.train_accuracy:.4f}",
        f"{row.test_accuracy:.4f}",
        f"{row.interval[0]:.4f} to {row.interval[1]:.4f}",
        f"{row.processor_minutes:.1f}",
    ]
