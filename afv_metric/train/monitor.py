"""Monitors of a training run: what the averaged discriminator, the metric in the making, measures at an iteration.

All of it is measured on the same images and the same latents every time, so that a curve moves only with the weights.
Measuring changes nothing in the run: no mode, no buffer; random numbers are a function of the iteration there. It meets
no other process either, so one process of a job can measure while the others go on.
"""

from __future__ import annotations

import importlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afv_metric.bundles.bundle import Bundle
from afv_metric.fisher.engine import FisherEngine
from afv_metric.fisher.sets import fisher_similarity, mean_scores
from afv_metric.fisher.statistics import FisherStatistics, collect_statistics
from afv_metric.fisher.vectors import ScoreFeatures
from afv_metric.images.augment import augment
from afv_metric.images.cache import ImageSet
from afv_metric.networks import Discriminator
from afv_metric.train.export import BLOCKS, POOLING, TERMS
from afv_metric.train.negatives import corrupt
from afv_metric.train.recipes import Recipe
from afv_metric.train.state import State

__all__ = ["Monitor"]

_BATCH = 50
# Of the forms fisher and local: half and quarter size. Full size, too, would take 3/4 of the time.
_LEVELS = (0.0, 0.67, 0.33)
_SKETCH = 2048  # numbers that a score vector is reduced to for the linear probe
_log = logging.getLogger(__name__)

_Labelled = tuple[Tensor, Tensor]


class Monitor:
    """The monitors of one run.

    Real images are augmented as in training, once and for all, by the seed of the recipe.
    There are as many train images as held-out ones, so that the bias of the Fisher Similarity, which depends on the
    number of images (see :mod:`afv_metric.fisher.sets`), is the same for both.

    Without held-out images their monitors are left out. ``evaluate`` gives scores by name, such as ``FORM/SET``, of a
    bundle that has the terms of an exported one, and for the other forms levels of half and quarter size.
    ``inception`` maps uint8 images ``(N, 3, S, S)`` to features ``(N, F)``; default: torchmetrics' network, if at hand.

    Example:
        >>> from afv_metric.images.cache import ImageView
        >>> recipe = Recipe(width=4, generator_width=4, monitor_samples=8)
        >>> pixels = torch.randint(256, (12, 64, 64, 3), dtype=torch.uint8)
        >>> images = ImageSet(ImageView(pixels), None, (), [""] * 12, "")
        >>> values = Monitor(recipe, images, images).measure(State(recipe, torch.device("cpu")))
        >>> 0 <= values["fisher_similarity/held_out"] <= 1, values["generator_drift"]
        (True, 0.0)
    """

    def __init__(
        self,
        recipe: Recipe,
        images: ImageSet,
        held_out: ImageSet,
        *,
        evaluate: Callable[[Bundle], dict[str, float]] | None = None,
        inception: nn.Module | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.recipe, self.device = recipe, torch.device(device)
        self._evaluate = evaluate
        count = min(recipe.monitor_samples, len(images.images))
        sets = {"train": images}
        if len(held_out.images):
            count = min(count, len(held_out.images))
            sets["held_out"] = held_out
        torch.default_generator.manual_seed(recipe.seed)
        self._images = {name: self._crop(one, count, recipe.augmentation) for name, one in sets.items()}
        self._negatives = torch.cat([corrupt(batch) for batch in self._images["train"].split(_BATCH)])
        real = self._batches(self._images["train"])
        self._inception = _make_inception(inception, real, self.device) if recipe.channels == 3 else None
        self._untrained = self._evaluate_untrained() if evaluate else {}
        self._probe = None
        if images.classes == held_out.classes:  # else the numbers of the classes mean different things
            train, others = self._labelled(images), self._labelled(held_out)
            self._probe = (train, others) if train and others else None

    @torch.no_grad()
    def measure(self, state: State) -> dict[str, float]:
        """Measure everything, and leave the networks as they are: finite numbers by the names in ``docs/training.md``.

        Logits are those of the averaged discriminator, also where the loss has a sigmoid on them. Dead is a channel
        that is nowhere positive before the activation on any of these images. Singular values are the largest of the
        weights as a matrix ``(C_out, C_in k^2)``.
        """
        torch.default_generator.manual_seed(self.recipe.seed)
        discriminator = deepcopy(state.averaged_discriminator)
        generated, drift = self._generate(state)
        values = {"generator_drift": drift} | _singular_values(discriminator)
        engine = FisherEngine(discriminator, self.recipe.output)
        statistics = collect_statistics(engine, self._batches(generated))
        values |= self._similarities(engine, statistics)
        values |= self._logits(engine, generated)
        bundle = self._bundle(state.averaged_discriminator, statistics)
        if self._evaluate:
            values |= {f"agreement/{name}": score for name, score in self._evaluate(bundle).items()}
            values |= self._untrained
        if self._probe:
            values["probe_accuracy"] = self._probe_accuracy(bundle, *self._probe)
        if self._inception:
            values |= self._inception(self._batches(generated))
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def _crop(self, images: ImageSet, count: int, augmentation: str) -> Tensor:
        """Evenly spread images as the networks see them, ``(count, 3, S, S)`` in [-1, 1], on the CPU."""
        batches = (images.images[rows].float() / 127.5 - 1 for rows in _spread(len(images.images), count).split(_BATCH))
        return torch.cat([augment(batch, self.recipe.image_size, augmentation) for batch in batches])

    def _labelled(self, images: ImageSet) -> _Labelled | None:
        """Unaugmented images and their labels; None unless there are two classes."""
        if images.labels is None:
            return None
        count = min(self.recipe.monitor_samples, len(images.images))
        labels = images.labels[_spread(len(images.images), count)]
        return (self._crop(images, count, "none"), labels) if len(labels.unique()) > 1 else None

    def _batches(self, images: Tensor) -> Iterator[Tensor]:
        return (batch.to(self.device) for batch in images.split(_BATCH))

    def _generate(self, state: State) -> tuple[Tensor, float]:
        """Images of the averaged generator, and their mean squared distance to those of the one in training."""
        averaged, current = (deepcopy(network).eval() for network in (state.averaged_generator, state.generator))
        seeded = torch.Generator().manual_seed(self.recipe.seed)
        latents = averaged.sample_latents(self.recipe.monitor_samples, generator=seeded)
        generated, drift = [], 0.0
        for some in latents.split(_BATCH):
            images = averaged(some)
            drift += float((current(some) - images).square().sum())
            generated.append(images)
        return torch.cat(generated), drift / len(latents)

    def _similarities(self, engine: FisherEngine, statistics: FisherStatistics) -> dict[str, float]:
        generated = [(layer.weight_mean, layer.bias_mean) for layer in statistics.layers]
        means = {name: mean_scores(engine, self._batches(images)) for name, images in self._images.items()}
        return {
            f"fisher_similarity/{name}": fisher_similarity(real, generated, statistics, Bundle.epsilon)
            for name, real in means.items()
        }

    def _logits(self, engine: FisherEngine, generated: Tensor) -> dict[str, float]:
        """Mean logits of all kinds of images, and the channels that are dead on all of them."""
        values: dict[str, float] = {}
        alive: dict[str, Tensor] = {}
        for name, images in (self._images | {"generated": generated, "negatives": self._negatives}).items():
            total = 0.0
            for batch in self._batches(images):
                # Blocks end where the next one's shortcut begins; the head's input has the signs of the last map.
                seen = dict(engine.inputs(batch))
                total += float(engine.logit(batch).sum())
                for index in range(engine.head // 3):
                    end = seen.get(3 * index + 5, seen[engine.head])
                    for layer, maps in ((f"blocks.{index}.conv1", seen[3 * index + 1]), (f"blocks.{index}", end)):
                        positive = maps.amax((0, 2, 3)) > 0
                        alive[layer] = positive | alive.get(layer, positive)
            values[f"logit/{name}"] = total / len(images)
        return values | {f"dead_channels/{layer}": 1 - float(some.float().mean()) for layer, some in alive.items()}

    def _bundle(self, discriminator: Discriminator, statistics: FisherStatistics) -> Bundle:
        bundle = Bundle("monitored", discriminator, None, statistics, self.recipe.output)
        return replace(bundle, levels=_LEVELS, blocks=BLOCKS, terms=TERMS, pooling=POOLING)

    @torch.no_grad()
    def _evaluate_untrained(self) -> dict[str, float]:
        """Agreement of the network as the run began, whatever it was initialised from.

        The statistics are over real images, as no generator belongs to it.
        """
        assert self._evaluate is not None
        torch.default_generator.manual_seed(self.recipe.seed)
        untrained = Discriminator(self.recipe.discriminator).baked().to(self.device)
        engine = FisherEngine(untrained, self.recipe.output)
        bundle = self._bundle(untrained, collect_statistics(engine, self._batches(self._images["train"])))
        return {f"random_agreement/{name}": score for name, score in self._evaluate(bundle).items()}

    def _probe_accuracy(self, bundle: Bundle, train: _Labelled, held_out: _Labelled) -> float:
        scores = ScoreFeatures(bundle, sketch=_SKETCH).to(self.device)
        features, of_held_out = (
            F.normalize(torch.cat([scores(batch) for batch in self._batches(images)]))
            for images, _ in (train, held_out)
        )
        return float((_classify(features, train[1], of_held_out) == held_out[1]).float().mean())


def _make_inception(
    network: nn.Module | None, real: Iterator[Tensor], device: torch.device
) -> Callable[[Iterator[Tensor]], dict[str, float]] | None:
    """What measures Inception Score and Fréchet distance to real images, by torchmetrics, with a network or its own.

    None, and a line in the log, if they cannot be had.
    """
    settings = {"sync_on_compute": False}  # another process of a job, which does not measure, must not be waited for
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that features are kept in memory
            inception = importlib.import_module("torchmetrics.image.inception")
            fid = importlib.import_module("torchmetrics.image.fid")
            score = inception.InceptionScore(network or "logits_unbiased", **settings).to(device)
            distance = fid.FrechetInceptionDistance(network or 2048, reset_real_features=False, **settings).to(device)
    except (ImportError, OSError, RuntimeError) as error:
        _log.info(
            "no Inception Score and FID (%s); they need torchmetrics[image] and the weights that it fetches",
            str(error).splitlines()[0],
        )
        return None
    for images in real:
        distance.update(_to_uint8(images), real=True)

    def measure(generated: Iterator[Tensor]) -> dict[str, float]:
        for images in generated:
            score.update(_to_uint8(images))
            distance.update(_to_uint8(images), real=False)
        torch.default_generator.manual_seed(0)  # the score shuffles the images into ten parts
        values = {"inception_score": float(score.compute()[0]), "fid": float(distance.compute())}
        score.reset()
        distance.reset()
        return values

    return measure


def _spread(length: int, count: int) -> Tensor:
    """Evenly spread rows, so that every part of sorted images is represented."""
    return torch.arange(count) * length // count


def _to_uint8(images: Tensor) -> Tensor:
    return (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def _singular_values(discriminator: Discriminator) -> dict[str, float]:
    layers = {name: layer for name, layer in discriminator.named_modules() if isinstance(layer, nn.Conv2d)}
    matrices = {name: layer.weight.flatten(1).cpu().double() for name, layer in layers.items()}
    return {f"singular_value/{name}": float(torch.linalg.matrix_norm(matrices[name], 2)) for name in matrices}


def _classify(features: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    """Classes of other features ``(M, F)`` by ridge regression on features ``(N, F)`` and their labels.

    Its weight is chosen by the leave-one-out error, in closed form.
    """
    features, others = features.cpu().double(), others.cpu().double()
    classes, rows = labels.unique(return_inverse=True)
    targets = F.one_hot(rows).double()
    offset = targets.mean(0)
    values, vectors = torch.linalg.eigh(features @ features.T)
    values = values.clamp_min(0)
    rotated = vectors.T @ (targets - offset)
    best, chosen = math.inf, torch.zeros_like(targets)
    for exponent in range(-4, 3):
        inverse = 1 / (values + 10.0**exponent * values.mean())
        dual = vectors @ (inverse[:, None] * rotated)
        error = float((dual / (vectors.square() @ inverse)[:, None]).square().sum())
        if error < best:
            best, chosen = error, dual
    predicted: Tensor = classes[(others @ (features.T @ chosen) + offset).argmax(1)]
    return predicted
