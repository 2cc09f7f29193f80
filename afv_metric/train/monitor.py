"""Monitors of a training run: what the averaged discriminator, the metric in the making, is worth at an iteration.

All of it is measured on the same images and the same latents every time, so that a curve moves only with the weights.
Measuring changes nothing in the run: no random state, no mode, no buffer. It meets no other process either, so one
process of a job can measure while the others go on.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import random
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
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
from afv_metric.networks import Discriminator, Generator
from afv_metric.train.export import BLOCKS, POOLING, TERMS
from afv_metric.train.negatives import corrupt
from afv_metric.train.recipes import Recipe

__all__ = ["Monitor", "Monitored"]

_BATCH = 50
# Of judged images: halves and quarters. Whole images, too, would take 3/4 of the time.
_LEVELS = (0.0, 0.67, 0.33)
_SKETCH = 2048  # numbers that a score vector is reduced to for the linear probe
_log = logging.getLogger(__name__)


class Monitored(Protocol):
    """What is measured of a run; :class:`afv_metric.train.state.State` has it."""

    generator: Generator
    averaged_discriminator: Discriminator
    averaged_generator: Generator


class Monitor:
    """The monitors of one run.

    Real images are augmented as in training, once and for all, by the seed of the recipe.
    There are as many train images as held-out ones, so that the bias of the Fisher Similarity, which depends on the
    number of images (see :mod:`afv_metric.fisher.sets`), is the same for both.

    Args:
        recipe: The recipe of the run.
        images: Its training images.
        held_out: Images kept aside; without any, their monitors are left out.
        evaluate: Scores of a bundle by name, such as ``FORM/SET``, on images judged by people; the bundle compares
            images at half and quarter size.
        inception: Network for Inception Score and Fréchet distance, from uint8 images ``(N, 3, S, S)`` to features
            ``(N, F)``. If None it is torchmetrics' Inception network, if that and its weights can be had; otherwise one
            line in the log says what is missing.
        device: Where the networks are.

    Example:
        >>> from afv_metric.images.cache import Rows
        >>> from afv_metric.train.state import State
        >>> recipe = Recipe(width=4, generator_width=4, monitor_samples=8)
        >>> pixels = torch.randint(256, (12, 64, 64, 3), dtype=torch.uint8)
        >>> images = ImageSet(Rows(pixels), None, (), [""] * 12, "")
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
        self.output = recipe.output
        self._evaluate = evaluate
        self._untrained: dict[str, float] | None = None
        count = min(recipe.monitor_samples, len(images.images))
        sets = {"train": images}
        if len(held_out.images):
            count = min(count, len(held_out.images))
            sets["held_out"] = held_out
        with _random_states_kept(self.device):
            torch.default_generator.manual_seed(recipe.seed)
            self._images = {name: self._crop(one, count, recipe.augmentation) for name, one in sets.items()}
            self._negatives = torch.cat([corrupt(batch) for batch in self._images["train"].split(_BATCH)])
            self._inception = _Inception.make(inception, self.device) if recipe.channels == 3 else None
        self._probe = None
        if images.classes == held_out.classes:  # else the numbers of the classes mean different things
            train, others = self._labelled(images), self._labelled(held_out)
            self._probe = (train, others) if train and others else None

    @torch.no_grad()
    def measure(self, state: Monitored) -> dict[str, float]:
        """Measure everything.

        Logits are those of the averaged discriminator, also where the loss has a sigmoid on them.

        Args:
            state: The networks, on the device; they are left as they are.

        Returns:
            Finite numbers by name, where LAYER is ``blocks.0.conv1`` or the like:

            - ``fisher_similarity/{train,held_out}``: to generated images.
            - ``logit/{train,held_out,generated,negatives}``: means.
            - ``generator_drift``: mean of ||G(z) - averaged G(z)||^2, both in evaluation mode.
            - ``dead_channels/LAYER``: share of the channels that are nowhere positive before the activation, on any of
              these images; ``blocks.0`` is the end of a block.
            - ``singular_value/LAYER``, ``smallest_singular_value/LAYER``, ``effective_rank/LAYER``: of the weights as a
              matrix ``(C_out, C_in k^2)``; the rank is exp of the entropy of the singular values, scaled to sum 1.
            - ``agreement/NAME``: what ``evaluate`` gives; ``random_agreement/NAME``: what it gives for
              the same network and seed before any training, with the information of the train images.
            - ``probe_accuracy``: of a linear classifier on Adversarial Fisher Vectors of labelled images, not
              augmented, on held-out ones.
            - ``inception_score``, ``fid``.
        """
        with _random_states_kept(self.device):
            torch.default_generator.manual_seed(self.recipe.seed)
            discriminator = deepcopy(state.averaged_discriminator)
            generated, drift = self._generate(state)
            values = {"generator_drift": drift} | _spectra(discriminator)
            engine = FisherEngine(discriminator, self.output)
            statistics = collect_statistics(engine, self._batches(generated))
            values |= self._similarities(engine, statistics)
            values |= self._logits(engine, generated)
            if self._evaluate or self._probe:
                bundle = self._bundle(state.averaged_discriminator, statistics)
                values |= self._agreement(bundle) | self._probe_accuracy(bundle)
            if self._inception:
                values |= self._inception.measure(self._batches(self._images["train"]), self._batches(generated))
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def _crop(self, images: ImageSet, count: int, augmentation: str) -> Tensor:
        """Evenly spread images as the networks see them, ``(count, 3, S, S)`` in [-1, 1], on the CPU."""
        batches = (images.images[rows].float() / 127.5 - 1 for rows in _spread(len(images.images), count).split(_BATCH))
        return torch.cat([augment(batch, self.recipe.image_size, augmentation) for batch in batches])

    def _labelled(self, images: ImageSet) -> tuple[Tensor, Tensor] | None:
        """Unaugmented images and their labels; None unless there are two classes."""
        if images.labels is None:
            return None
        count = min(self.recipe.monitor_samples, len(images.images))
        labels = images.labels[_spread(len(images.images), count)]
        return (self._crop(images, count, "none"), labels) if len(labels.unique()) > 1 else None

    def _batches(self, images: Tensor) -> Iterator[Tensor]:
        return (batch.to(self.device) for batch in images.split(_BATCH))

    def _generate(self, state: Monitored) -> tuple[Tensor, float]:
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
        of_generated = [(layer.weight_mean, layer.bias_mean) for layer in statistics.layers]
        return {
            f"fisher_similarity/{name}": fisher_similarity(
                mean_scores(engine, self._batches(images)), of_generated, statistics, Bundle.epsilon
            )
            for name, images in self._images.items()
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
                        alive[layer] = positive | alive[layer] if layer in alive else positive
            values[f"logit/{name}"] = total / len(images)
        return values | {f"dead_channels/{layer}": 1 - float(some.float().mean()) for layer, some in alive.items()}

    def _bundle(self, discriminator: Discriminator, statistics: FisherStatistics) -> Bundle:
        return Bundle(
            "monitored",
            discriminator,
            None,
            statistics,
            self.output,
            levels=_LEVELS,
            blocks=BLOCKS,
            terms=TERMS,
            pooling=POOLING,
        )

    def _agreement(self, bundle: Bundle) -> dict[str, float]:
        if not self._evaluate:
            return {}
        if self._untrained is None:
            # As the run began, whatever it was initialised from; over real images, as no generator belongs to it.
            torch.default_generator.manual_seed(self.recipe.seed)
            untrained = Discriminator(self.recipe.discriminator).baked().to(self.device)
            engine = FisherEngine(untrained, self.output)
            statistics = collect_statistics(engine, self._batches(self._images["train"]))
            scores = self._evaluate(self._bundle(untrained, statistics))
            self._untrained = {f"random_agreement/{name}": score for name, score in scores.items()}
        return {f"agreement/{name}": score for name, score in self._evaluate(bundle).items()} | self._untrained

    def _probe_accuracy(self, bundle: Bundle) -> dict[str, float]:
        if not self._probe:
            return {}
        train, held_out = self._probe
        scores = ScoreFeatures(bundle, sketch=_SKETCH).to(self.device)
        features, of_held_out = (
            F.normalize(torch.cat([scores(batch) for batch in self._batches(images)]))
            for images, _ in (train, held_out)
        )
        predicted = _classify(features, train[1], of_held_out)
        return {"probe_accuracy": float((predicted == held_out[1]).float().mean())}


@dataclass
class _Inception:
    """Inception Score and Fréchet distance by torchmetrics.

    Attributes:
        score: ``torchmetrics.image.inception.InceptionScore``.
        distance: ``torchmetrics.image.fid.FrechetInceptionDistance``, which keeps the real images' statistics.
        knows_real: Whether it has seen them.
    """

    score: Any
    distance: Any
    knows_real: bool = False

    @staticmethod
    def make(network: nn.Module | None, device: torch.device) -> _Inception | None:
        """Make both with one network, or torchmetrics' own; None, and a line in the log, if they cannot be had."""
        # Another process of a job, which does not measure, must not be waited for.
        settings = {"sync_on_compute": False}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that features are kept in memory
                inception = importlib.import_module("torchmetrics.image.inception")
                fid = importlib.import_module("torchmetrics.image.fid")
                score = inception.InceptionScore("logits_unbiased" if network is None else network, **settings)
                real = {"feature": 2048 if network is None else network, "reset_real_features": False}
                distance = fid.FrechetInceptionDistance(**real, **settings)
        except (ImportError, OSError, RuntimeError) as error:
            _log.info(
                "no Inception Score and FID (%s); they need torchmetrics[image] and the weights that it fetches",
                str(error).splitlines()[0],
            )
            return None
        return _Inception(score.to(device), distance.to(device))

    def measure(self, real: Iterator[Tensor], generated: Iterator[Tensor]) -> dict[str, float]:
        """Both scores; the real images are measured once."""
        if not self.knows_real:
            for images in real:
                self.distance.update(_to_uint8(images), real=True)
            self.knows_real = True
        for images in generated:
            self.score.update(_to_uint8(images))
            self.distance.update(_to_uint8(images), real=False)
        torch.default_generator.manual_seed(0)  # the score shuffles the images into ten parts
        values = {"inception_score": float(self.score.compute()[0]), "fid": float(self.distance.compute())}
        self.score.reset()
        self.distance.reset()
        return values


@contextlib.contextmanager
def _random_states_kept(device: torch.device) -> Iterator[None]:
    """Put the global random states of torch, numpy and Python back at the end."""
    kept = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])


def _spread(length: int, count: int) -> Tensor:
    """Evenly spread rows, so that every part of sorted images is represented."""
    return torch.arange(count) * length // count


def _to_uint8(images: Tensor) -> Tensor:
    return (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def _spectra(discriminator: Discriminator) -> dict[str, float]:
    """Largest and smallest singular value and effective rank of every layer."""
    values = {}
    for name, layer in discriminator.named_modules():
        if isinstance(layer, nn.Conv2d):
            singular = torch.linalg.svdvals(layer.weight.flatten(1).cpu().double())
            shares = singular / singular.sum()
            values[f"singular_value/{name}"] = float(singular[0])
            values[f"smallest_singular_value/{name}"] = float(singular[-1])
            values[f"effective_rank/{name}"] = float(torch.special.entr(shares).sum().exp())
    return values


def _classify(features: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    """Classes of other images by ridge regression; its weight is chosen by the leave-one-out error, in closed form.

    Args:
        features: ``(N, F)``.
        labels: ``(N,)``.
        others: ``(M, F)``.

    Returns:
        ``(M,)``, on the CPU.
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
