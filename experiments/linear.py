"""A linear classifier of features of any length: a support vector machine with dropout, by mini-batches.

For features x of length about 1 and every class k, with y = +1 for its own examples and -1 for the others, it minimises

    penalty / 2 (|w_k|^2 + b_k^2) + mean over examples of max(0, 1 - y (w_k . x + b_k))^2,

one against the rest. Times C N that is the objective of LIBLINEAR and of scikit-learn's ``LinearSVC`` for
C = 1 / (penalty N), N being the number of examples; the intercept is penalised as it is there. Dropout is torch's.

Features come in batches, from a table that may lie in a file far larger than the memory (:class:`StoredBatches`) or
from anything else with the same two methods. Penalties are compared in one pass over the features, which costs hardly
more than one of them alone when the features are long.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from afv_metric.train.divergence import DivergenceError

__all__ = [
    "Batches", "LinearClassifier", "Scaling", "Schedule", "StoredBatches", "count_correct", "measure_scaling",
    "seeded", "train_svm",
]  # fmt: skip

_MOMENTUM = 0.9
_BIAS_RATE = 0.1  # the gradients of the intercept add up over the examples, those of a weight largely cancel
_LAST_STEPS = 0.9  # the share of the steps after which the rate is below a fortieth of the first one
_JUDGED = 100  # steps, below which a run may be too short to have settled
_WORST_LOSS = 1.5  # per class; weights of 0 have 1, to which noise adds a little where there is nothing to learn


def seeded(*key: int) -> torch.Generator:
    """A generator whose numbers depend on all parts of a key, and on nothing else.

    Example:
        >>> draws = [int(torch.randint(2**40, (), generator=seeded(*key))) for key in ((1, 2), (1, 2), (2, 1))]
        >>> draws[0] == draws[1], draws[0] == draws[2]
        (True, False)
    """
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)


class Batches(Protocol):
    """Examples to train on, in another order every epoch.

    Attributes:
        size: Numbers per example.
    """

    size: int

    def __len__(self) -> int:
        """Batches per epoch."""

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Features ``(n, size)`` and int64 labels ``(n,)`` of all batches of one epoch, a function of its number."""


class StoredBatches:
    """Batches of consecutive rows of a table whose rows were stored in random order.

    Single rows at random places of a file on disk are read far more slowly than rows in a row. Which rows share a batch
    changes from epoch to epoch only by where the first batch begins. Where ``batch_size`` does not divide N, one batch
    of every epoch, its last rows, is shorter and counts as a whole step: its examples weigh more than others do.

    Args:
        features: ``(N, size)``, float16 or float32, in memory or mapped; never changed.
        labels: int64 ``(N,)``.
        batch_size: Examples per batch.
        seed: Seed of the order of the batches.

    Example:
        >>> batches = StoredBatches(torch.zeros(10, 3), torch.arange(10), 4, seed=0)
        >>> len(batches), sorted(torch.cat([labels for _, labels in batches.epoch(0)]).tolist()) == list(range(10))
        (3, True)
    """

    def __init__(self, features: Tensor, labels: Tensor, batch_size: int, seed: int) -> None:
        self.features = features
        self.labels = labels
        self.batch_size = batch_size
        self.seed = seed
        self.size = features.shape[1]

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All batches of one epoch; the one that reaches over the end goes on at the beginning."""
        count, size = len(self.labels), self.batch_size
        drawn = seeded(self.seed, number)
        first = int(torch.randint(count, (), generator=drawn))
        for batch in torch.randperm(len(self), generator=drawn).tolist():
            start = first + batch * size
            stop = min(start + size, first + count)
            pieces = [slice(start, min(stop, count)), slice(max(start, count) - count, max(stop, count) - count)]
            parts = [piece for piece in pieces if piece.start < piece.stop]
            yield _joined(self.features, parts), _joined(self.labels, parts)


def _joined(table: Tensor, parts: Sequence[slice]) -> Tensor:
    return table[parts[0]] if len(parts) == 1 else torch.cat([table[part] for part in parts])


class Scaling(NamedTuple):
    """What features become before they are classified: (x - mean) scale.

    Attributes:
        mean: ``(size,)``; None: 0.
        scale: ``(size,)``, or one number for all.
    """

    mean: Tensor | None
    scale: Tensor


def measure_scaling(features: Tensor | Iterable[Tensor], *, each: bool) -> Scaling:
    """The scaling that gives training examples a mean squared length of 1.

    Args:
        features: Examples, ``(N, size)``, or batches of them, of which one at a time is held.
        each: Standardise every feature for itself, as pooled features and pixels need; features that are whitened
            already only get a common factor.

    Example:
        >>> scaling = measure_scaling(torch.tensor([[3.0, 4.0], [0.0, 5.0]]), each=False)
        >>> round(scaling.scale.item(), 4), scaling.mean
        (0.2, None)
    """
    total, squares, count = torch.zeros(()), torch.zeros(()), 0
    for batch in features.split(256) if isinstance(features, Tensor) else features:
        total = total + batch.float().sum(0)
        squares = squares + batch.float().pow(2).sum(0)
        count += len(batch)
    if not each:
        return Scaling(None, (squares.sum() / count).clamp_min(torch.finfo().tiny).rsqrt())
    mean = total / count
    variance = squares / count - mean**2
    # Features that do not vary, but for rounding, carry nothing and are left out.
    varies = variance > 1e-6 * (squares / count)
    scale = torch.where(varies, variance.clamp_min(torch.finfo().tiny).rsqrt(), 0)
    return Scaling(mean, scale / varies.sum().clamp_min(1).sqrt())


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        epochs: Passes over the examples.
        rate: Step size of the first step; it falls to 0 along half a cosine. Meant for features of length about 1.
        dropout: Probability p of a number to be dropped, in [0, 1).
    """

    epochs: int
    rate: float = 2.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")
        if not self.rate > 0:
            raise ValueError(f"rate must be positive, got {self.rate}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")


class LinearClassifier(NamedTuple):
    """One linear function per class; the largest wins.

    Attributes:
        weight: ``(classes, size)``, for the features as they are, before scaling.
        bias: ``(classes,)``.
    """

    weight: Tensor
    bias: Tensor

    def decide(self, features: Tensor) -> Tensor:
        """Values of the functions ``(N, classes)`` for features ``(N, size)`` of any floating kind."""
        return features.to(self.weight) @ self.weight.T + self.bias


def train_svm(
    batches: Batches,
    classes: int,
    scaling: Scaling,
    schedule: Schedule,
    penalties: Sequence[float],
    *,
    device: str | torch.device = "cpu",
    seed: int = 0,
    quiet: bool = True,
) -> list[LinearClassifier]:
    """Train by stochastic gradients with Nesterov's momentum; the objective is in :mod:`experiments.linear`.

    Args:
        batches: The examples; labels from 0 to ``classes`` - 1.
        classes: Number of classes.
        scaling: Applied to the features; the penalty sees the weights of the scaled ones.
        schedule: Epochs, step size and dropout.
        penalties: Weights of the L2 penalty; all are trained at once.
        device: Device to compute on.
        seed: Seed of the dropout.
        quiet: Whether to show no progress bar.

    Returns:
        One classifier for each penalty.

    Raises:
        DivergenceError: If the weights are no longer finite, or if a classifier's loss over the last tenth of at least
            100 steps is above 1.5 per class: weights of 0 have 1, and a step size that is low enough leads to less.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
        >>> batches = StoredBatches(features, torch.arange(3), 3, seed=0)
        >>> scaling = measure_scaling(features, each=False)
        >>> (classifier,) = train_svm(batches, 3, scaling, Schedule(50), [1e-4])
        >>> classifier.decide(features).argmax(1).tolist()
        [0, 1, 2]
    """
    mean = None if scaling.mean is None else scaling.mean.to(device)
    scale = scaling.scale.to(device)
    decay = torch.tensor(penalties, device=device).repeat_interleave(classes)[:, None]
    weight, bias = (torch.zeros(len(decay), length, device=device, requires_grad=True) for length in (batches.size, 1))
    groups: list[dict[str, Any]] = [{"params": [weight]}, {"params": [bias], "lr": _BIAS_RATE * schedule.rate}]
    optimizer = torch.optim.SGD(groups, schedule.rate, _MOMENTUM, nesterov=True)
    steps, taken = schedule.epochs * len(batches), 0
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    last, judged = torch.zeros(len(decay), device=device), 0
    bar = tqdm(total=steps, desc="classifier", unit="step", disable=quiet)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for epoch in range(schedule.epochs):
            for features, labels in batches.epoch(epoch):
                features, labels = features.to(device, torch.float32), labels.to(device)
                inputs = F.dropout(features if mean is None else features - mean, schedule.dropout)
                signs = 2.0 * F.one_hot(labels, classes).T.repeat(len(penalties), 1) - 1
                # The scale is applied to the weights, of which there are fewer than numbers in a batch.
                slack = (1 - signs * ((weight * scale) @ inputs.T + bias)).clamp_min(0).square()
                if steps >= _JUDGED and taken >= _LAST_STEPS * steps:
                    last += slack.detach().sum(1)
                    judged += len(labels)
                optimizer.zero_grad()
                penalty = (decay * weight.square()).sum() / 2 + (decay * bias.square()).sum() / 2
                (slack.sum() / len(labels) + penalty).backward()
                optimizer.step()
                falling.step()
                taken += 1
                bar.update()
            if not weight.isfinite().all():
                raise DivergenceError(f"the classifier diverged in epoch {epoch + 1}; lower its rate {schedule.rate:g}")
    bar.close()
    worst = last.view(len(penalties), classes).mean(1).max().item() / max(judged, 1)
    if not worst <= _WORST_LOSS:
        raise DivergenceError(
            f"the classifier ended with a loss of {worst:.3g} per class, where weights of 0 have 1; lower its rate "
            f"{schedule.rate:g}"
        )
    unscaled = weight.detach() * scale
    shifted = bias.detach() if mean is None else bias.detach() - unscaled @ mean[:, None]
    weights, biases = unscaled.cpu().split(classes), shifted.cpu().squeeze(1).split(classes)
    return [LinearClassifier(*parts) for parts in zip(weights, biases, strict=True)]


def count_correct(classifiers: Sequence[LinearClassifier], examples: Iterable[tuple[Tensor, Tensor]]) -> list[int]:
    """How many examples each classifier puts into their own class.

    Args:
        classifiers: Classifiers of the same features.
        examples: Batches of features ``(n, size)`` and labels ``(n,)``.
    """
    correct = [0] * len(classifiers)
    for features, labels in examples:
        for index, classifier in enumerate(classifiers):
            correct[index] += int((classifier.decide(features).argmax(1) == labels).sum())
    return correct
