"""The monitors, each against a direct computation, and that measuring leaves the run alone."""

from __future__ import annotations

import logging
import sys
from copy import deepcopy
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from afv_metric import AFVDistance
from afv_metric.bundles.bundle import Bundle
from afv_metric.fisher.engine import FisherEngine
from afv_metric.fisher.statistics import collect_statistics
from afv_metric.images.cache import ImageSet, ImageView
from afv_metric.networks import Discriminator, Generator
from afv_metric.train import monitor as module
from afv_metric.train.monitor import Monitor
from afv_metric.train.recipes import Recipe

RECIPE = Recipe(
    negatives=0.5,
    width=4,
    generator_width=4,
    latent_size=8,
    augmentation="none",
    monitor_samples=60,
    held_out=0.1,
    seed=3,
)


class _State:
    """Networks, and nothing else of a run."""

    def __init__(self, recipe=RECIPE):
        torch.manual_seed(recipe.seed)
        self.discriminator = Discriminator(recipe.discriminator)
        self.generator = Generator(recipe.generator)
        self.generator.to_image.weight.data *= 20  # so that its images differ
        self.averaged_discriminator = self.discriminator.baked().requires_grad_(False)
        self.averaged_generator = deepcopy(self.generator).eval().requires_grad_(False)


def _image_set(count, seed=0, shift=0.0):
    """Images not unlike the generated ones, brighter or darker."""
    latents = torch.randn(count, RECIPE.latent_size, generator=torch.Generator().manual_seed(seed))
    small = (_State().averaged_generator(latents) + shift).clamp(-1, 1) * 127.5 + 127.5
    pixels = F.interpolate(small, scale_factor=2).byte().permute(0, 2, 3, 1).contiguous()
    return ImageSet(ImageView(pixels), None, (), [""] * count, "")


def _small(images, rows):
    return F.avg_pool2d(images.images[torch.tensor(rows)].float() / 127.5 - 1, 2)


def _generated(state, recipe=RECIPE):
    latents = torch.randn(recipe.monitor_samples, recipe.latent_size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return latents, state.averaged_generator(latents)


@pytest.fixture(scope="module")
def state():
    return _State()


@pytest.fixture(scope="module")
def images():
    return _image_set(20, 1), _image_set(10, 2, shift=0.02)


@pytest.fixture(scope="module")
def values(state, images):
    return Monitor(RECIPE, *images).measure(state)


def test_everything_that_needs_nothing_else_is_measured_and_finite(values):
    kinds = {name.partition("/")[0] for name in values}
    assert kinds == {
        "fisher_similarity",
        "logit",
        "generator_drift",
        "dead_channels",
        "singular_value",
    }
    assert all(isinstance(value, float) and np.isfinite(value) for value in values.values())


def test_similarities_are_those_of_mean_score_vectors(state, images, values):
    _, generated = _generated(state)
    statistics = collect_statistics(FisherEngine(state.averaged_discriminator.baked()), [generated])
    bundle = Bundle("", state.averaged_discriminator, None, statistics)
    metric = AFVDistance(bundle, form="fisher")
    of_generated = metric.score_vectors(generated).double().mean(0)
    # As many train images as held-out ones, evenly spread.
    for name, real in (("train", _small(images[0], range(0, 20, 2))), ("held_out", _small(images[1], range(10)))):
        distance = (metric.score_vectors(real).double().mean(0) - of_generated).square().mean()
        assert values[f"fisher_similarity/{name}"] == pytest.approx(float(torch.exp(-10 * distance)), rel=1e-3)
    assert 0.01 < values["fisher_similarity/held_out"] < 0.9 * values["fisher_similarity/train"] < 0.9


def test_logits_are_means_of_the_averaged_discriminator(state, images, values):
    _, generated = _generated(state)
    real = {"train": _small(images[0], range(0, 20, 2)), "held_out": _small(images[1], range(10))}
    for name, some in (real | {"generated": generated}).items():
        expected = float(state.averaged_discriminator.logit(some).mean())
        assert values[f"logit/{name}"] == pytest.approx(expected, rel=1e-4)
    assert abs(values["logit/negatives"] - values["logit/train"]) > 1e-4


def test_logits_are_those_before_the_sigmoid_of_the_loss(state, images, values):
    recipe = replace(RECIPE, loss="least-squares")
    measured = Monitor(recipe, *images).measure(state)
    assert measured["logit/train"] == pytest.approx(values["logit/train"], rel=1e-5)
    assert measured["fisher_similarity/train"] != pytest.approx(values["fisher_similarity/train"], rel=1e-6)


def test_the_drift_is_the_squared_distance_of_both_generators(images, values):
    assert values["generator_drift"] == 0
    state = _State()
    with torch.no_grad():
        state.generator.to_image.bias += 0.1
    latents, averaged = _generated(state)
    expected = (deepcopy(state.generator).eval()(latents).detach() - averaged).square().sum((1, 2, 3)).mean()
    assert Monitor(RECIPE, *images).measure(state)["generator_drift"] == pytest.approx(float(expected), rel=1e-4)


def test_the_largest_singular_value_of_a_layer_whose_values_are_known(images):
    state = _State()
    weight = torch.zeros(4, 4, 3, 3)
    weight[0, 0, 0, 0], weight[1, 1, 1, 1] = 3.0, -3.0
    state.averaged_discriminator.get_submodule("blocks.1.conv1").weight.data = weight
    values = Monitor(RECIPE, *images).measure(state)
    assert values["singular_value/blocks.1.conv1"] == pytest.approx(3)
    matrix = state.averaged_discriminator.get_submodule("blocks.0.conv2").weight.detach().flatten(1).double().numpy()
    assert values["singular_value/blocks.0.conv2"] == pytest.approx(np.linalg.norm(matrix, 2))


def test_dead_channels_are_counted_where_they_are(images, values):
    assert values["dead_channels/blocks.2.conv1"] == 0
    state = _State()
    with torch.no_grad():
        state.averaged_discriminator.get_submodule("blocks.2.conv1").bias[:3] = -1e3
        state.averaged_discriminator.get_submodule("blocks.3.conv2").bias[0] = -1e3
    measured = Monitor(RECIPE, *images).measure(state)
    names = {name for name in measured if name.startswith("dead_channels/") and measured[name] > values[name]}
    assert names == {"dead_channels/blocks.2.conv1", "dead_channels/blocks.3"}
    assert measured["dead_channels/blocks.2.conv1"] == 0.75
    assert measured["dead_channels/blocks.3"] == 0.25


@pytest.mark.parametrize("kind", ["train", "generated", "negatives"])
def test_a_channel_that_one_kind_of_images_reaches_is_alive(images, kind):
    recipe = replace(RECIPE, width=24)
    monitor, state = Monitor(recipe, *images), _State(recipe)
    engine = FisherEngine(state.averaged_discriminator)
    kinds = monitor._images | {"generated": _generated(state)[1], "negatives": monitor._negatives}
    with torch.no_grad():
        highest = {name: dict(engine.inputs(some))[4].amax((0, 2, 3)) for name, some in kinds.items()}
        others = torch.stack([values for name, values in highest.items() if name != kind]).amax(0)
        channel = int((highest[kind] - others).argmax())
        assert highest[kind][channel] > others[channel], "the seed gives no such channel; take another"
        state.averaged_discriminator.get_submodule("blocks.1.conv1").bias -= 1e3 * (torch.arange(24) != channel)
        middle = (highest[kind] + others)[channel] / 2
        state.averaged_discriminator.get_submodule("blocks.1.conv1").bias[channel] -= middle
    assert monitor.measure(state)["dead_channels/blocks.1.conv1"] == pytest.approx(23 / 24)


def test_measuring_is_repeatable_and_leaves_no_trace(images, tmp_path):
    labels = torch.arange(20) % 2
    labelled = images[0]._replace(labels=labels), images[1]._replace(labels=labels[:10])
    state = _State(replace(RECIPE, augmentation="multiscale"))
    state.generator.train()
    state.generator.blocks[0].norm1.eval()
    networks = (state.discriminator, state.generator, state.averaged_discriminator, state.averaged_generator)
    modes = [part.training for part in chain(*(network.modules() for network in networks))]
    weights = deepcopy([network.state_dict() for network in networks])
    monitor = Monitor(replace(RECIPE, augmentation="multiscale"), *labelled, evaluate=_evaluate, inception=_Features())
    first = monitor.measure(state)
    assert [part.training for part in chain(*(network.modules() for network in networks))] == modes
    for network, before in zip(networks, weights, strict=True):
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(weight.grad is not None for network in networks for weight in network.parameters())

    torch.rand(7)
    again = Monitor(replace(RECIPE, augmentation="multiscale"), *labelled, evaluate=_evaluate, inception=_Features())
    assert first == again.measure(state) == again.measure(state)


def test_no_other_process_is_met(state, images, tmp_path, monkeypatch):
    def meet(*arguments, **settings):
        raise AssertionError("the other processes do not measure")

    for name in ("all_reduce", "all_gather", "broadcast", "barrier"):
        monkeypatch.setattr(torch.distributed, name, meet)
    for name, answer in (("is_initialized", True), ("get_rank", 0), ("get_world_size", 2)):
        monkeypatch.setattr(torch.distributed, name, lambda *arguments, answer=answer: answer)
    pytest.importorskip("torchmetrics")
    values = Monitor(RECIPE, *images, evaluate=_evaluate, inception=_Features()).measure(state)
    assert {"inception_score", "agreement/local/noise"} <= values.keys()


def test_without_held_out_images_their_monitors_are_left_out(state, images):
    values = Monitor(RECIPE, images[0], _image_set(0)).measure(state)
    assert "fisher_similarity/train" in values
    assert not any("held_out" in name for name in values)


def test_a_set_smaller_than_the_batches_and_larger_ones_give_means(state, images):
    few = Monitor(replace(RECIPE, monitor_samples=7), *images).measure(state)
    _, generated = _generated(state, replace(RECIPE, monitor_samples=7))
    expected = float(state.averaged_discriminator.logit(generated).mean())
    assert few["logit/generated"] == pytest.approx(expected, rel=1e-4)


# Agreement with people


def _evaluate(bundle):
    return {"local/noise": float(bundle.discriminator.head.weight.sum()), "local/mean": 0.5}


def test_the_network_in_the_making_is_evaluated(state, images, bundle):
    values = Monitor(RECIPE, *images, evaluate=_evaluate).measure(state)
    expected = _evaluate(replace(bundle, discriminator=state.averaged_discriminator))
    assert values["agreement/local/noise"] == pytest.approx(expected["local/noise"])
    assert values["agreement/local/mean"] == values["random_agreement/local/mean"] == 0.5


def test_the_untrained_network_is_scored_once_and_does_not_depend_on_training(images):
    scored = []

    def evaluate(bundle):
        scored.append(bundle)
        return {"local/noise": 0.25 * len(scored)}

    begun, trained = _State(), _State(replace(RECIPE, seed=8))
    monitor = Monitor(RECIPE, *images, evaluate=evaluate)
    first, second = monitor.measure(trained), monitor.measure(begun)
    assert len(scored) == 3
    for name, weight in begun.averaged_discriminator.state_dict().items():
        assert torch.equal(scored[0].discriminator.state_dict()[name], weight)
    assert {(one.levels, one.blocks, one.pooling) for one in scored} == {((0, 0.67, 0.33), (1, 2), 8)}
    assert (first["agreement/local/noise"], second["agreement/local/noise"]) == (0.5, 0.75)
    assert first["random_agreement/local/noise"] == second["random_agreement/local/noise"] == 0.25


# The linear probe


def _labelled(count, seed, *, random_labels=False):
    """Dark and bright images; the labels say which, or nothing."""
    labels = torch.arange(count) % 2
    images = _image_set(count, seed)
    pixels = images.images[torch.arange(count)].permute(0, 2, 3, 1) // 2
    pixels[labels == 1] += 100
    if random_labels:
        labels = torch.randint(2, (count,), generator=torch.Generator().manual_seed(seed))
    return ImageSet(ImageView(pixels.contiguous()), labels + 5, (), [""] * count, "")


def test_the_probe_tells_what_can_be_told(state):
    recipe = replace(RECIPE, monitor_samples=40)
    easy = Monitor(recipe, _labelled(60, 1), _labelled(40, 2)).measure(state)
    assert easy["probe_accuracy"] == 1
    hopeless = Monitor(recipe, _labelled(60, 1, random_labels=True), _labelled(40, 2, random_labels=True))
    assert 0.2 < hopeless.measure(state)["probe_accuracy"] < 0.8


def test_the_probe_needs_two_classes_on_both_sides_and_the_same(state, images):
    one_class = images[1]._replace(labels=torch.zeros(10, dtype=torch.int64))
    other_classes = _labelled(10, 1)._replace(classes=("cat", "dog"))
    for train, held_out in (
        (images[0], _labelled(10, 1)),
        (_labelled(10, 1), one_class),
        (_labelled(10, 1), other_classes),
    ):
        assert "probe_accuracy" not in Monitor(RECIPE, train, held_out).measure(state)


def test_classification_is_ridge_regression_with_the_best_leave_one_out_weight():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    labels = (features[:, 0] + 0.5 * torch.randn(12, generator=generator) > 0).long() * 3
    others = torch.randn(50, 5, generator=generator, dtype=torch.float64)
    targets = F.one_hot(labels // 3, 2).double()
    centred = targets - targets.mean(0)
    scale = float(torch.linalg.eigvalsh(features @ features.T).clamp_min(0).mean())

    def fit(rows, weight):
        x, y = features[rows], centred[rows]
        return torch.linalg.solve(x.T @ x + weight * torch.eye(5, dtype=torch.float64), x.T @ y)

    def leave_one_out(weight):
        rests = [torch.tensor([other for other in range(12) if other != row]) for row in range(12)]
        errors = [features[row] @ fit(rest, weight) - centred[row] for row, rest in enumerate(rests)]
        return float(torch.stack(errors).square().sum())

    best = min((10.0**exponent * scale for exponent in range(-4, 3)), key=leave_one_out)
    expected = (others @ fit(torch.arange(12), best) + targets.mean(0)).argmax(1) * 3
    assert torch.equal(module._classify(features, labels, others), expected)


# Inception Score and Fréchet distance


class _Features(nn.Module):
    """Two features of uint8 images: twelve times mean red and mean green in [0, 1]."""

    num_features = 2

    def forward(self, images):
        assert images.dtype == torch.uint8
        return images.float().mean((2, 3))[:, :2] / 255 * 12


def test_inception_score_and_frechet_distance_of_a_network(state, images):
    pytest.importorskip("torchmetrics")
    monitor = Monitor(RECIPE, *images, inception=_Features())
    values, again = monitor.measure(state), monitor.measure(state)
    assert (values["inception_score"], values["fid"]) == (again["inception_score"], again["fid"])
    _, generated = _generated(state)
    generated_features, real_features = (
        _Features()((some * 127.5 + 127.5).round().byte()).double()
        for some in (generated, _small(images[0], range(0, 20, 2)))
    )
    gap = (generated_features.mean(0) - real_features.mean(0)).square().sum()
    first, second = generated_features.T.cov(), real_features.T.cov()
    roots = torch.linalg.eigvals(first @ second).sqrt().real.sum()
    assert values["fid"] == pytest.approx(float(gap + first.trace() + second.trace() - 2 * roots), rel=1e-3)
    shares = generated_features.softmax(1)
    score = (shares * (shares / shares.mean(0)).log()).sum(1).mean().exp()
    # Over ten parts of six images, which lowers it a little.
    assert values["inception_score"] == pytest.approx(float(score), rel=0.1)
    assert values["inception_score"] > 1


def test_without_torchmetrics_one_line_says_what_is_missing(state, images, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.inception", None)
    with caplog.at_level(logging.INFO, "afv_metric.train.monitor"):
        monitor = Monitor(RECIPE, *images)
        values = monitor.measure(state) | monitor.measure(state)
    assert len([record for record in caplog.records if "no Inception Score and FID" in record.message]) == 1
    assert "torchmetrics[image]" in caplog.text
    assert "inception_score" not in values


def test_weights_that_cannot_be_fetched_are_no_error(images, monkeypatch, caplog):
    inception = pytest.importorskip("torchmetrics.image.inception")

    def unreachable(*arguments, **settings):
        raise OSError("no route to host")

    monkeypatch.setattr(inception, "InceptionScore", unreachable)
    with caplog.at_level(logging.INFO, "afv_metric.train.monitor"):
        Monitor(RECIPE, *images)
    assert "no route to host" in caplog.text
