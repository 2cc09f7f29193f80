"""The three forms and their gradients against the oracle."""

import oracle
import pytest
import torch
from conftest import make_discriminator, make_images, make_statistics
from hypothesis import given, settings
from hypothesis import strategies as st

from afv_metric.fisher.comparison import Comparison
from afv_metric.fisher.engine import FisherEngine
from afv_metric.fisher.forms import FORMS, POSITION_FORMS

EPSILON = 0.03
ALL = pytest.mark.parametrize("form", list(FORMS))
POSITION = pytest.mark.parametrize("form", list(POSITION_FORMS))
ENERGIES = pytest.mark.parametrize("energy", ["logit", "sigmoid"])


def _comparison(discriminator, form, energy="logit", settings=(), **options):
    engine = FisherEngine(discriminator.baked(), energy)
    statistics = make_statistics(discriminator, energy)
    return Comparison(engine, FORMS[form](engine, statistics, EPSILON, *settings).double(), **options), statistics


@given(
    count=st.integers(1, 3),
    width=st.integers(1, 4),
    height=st.sampled_from([32, 36]),
    breadth=st.sampled_from([32, 44]),
    energy=st.sampled_from(["logit", "sigmoid"]),
)
def test_fisher_is_equation_5(count, width, height, breadth, energy):
    discriminator = make_discriminator(width)
    comparison, statistics = _comparison(discriminator, "fisher", energy)
    first, second = make_images(count, height, breadth, 1), make_images(count, height, breadth, 2)
    expected = oracle.fisher_distance(discriminator, first, second, statistics, EPSILON, energy)
    # Whitening factors are kept in float32, as a bundle keeps its statistics.
    torch.testing.assert_close(comparison(first, second), expected, rtol=1e-5, atol=1e-9)


@ENERGIES
def test_fisher_with_weighted_positions_is_that_of_the_weighted_energy(energy):
    discriminator = make_discriminator()
    comparison, statistics = _comparison(discriminator, "fisher", energy)
    first, second = make_images(2, seed=1), make_images(2, seed=2)
    coarse = make_images(2, 8, 8, seed=3)[:, :1] + 1
    weights = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    expected = oracle.fisher_distance(discriminator, first, second, statistics, EPSILON, energy, coarse)
    torch.testing.assert_close(comparison(first, second, weights), expected, rtol=1e-5, atol=1e-9)


@given(width=st.integers(1, 3), height=st.sampled_from([32, 36]), energy=st.sampled_from(["logit", "sigmoid"]))
def test_local_is_the_distance_of_an_untied_copy(width, height, energy):
    discriminator = make_discriminator(width)
    comparison, statistics = _comparison(discriminator, "local", energy)
    first, second = make_images(1, height, seed=1), make_images(1, height, seed=2)
    second = (first + 0.3 * second).clamp(-1, 1)
    maps = oracle.local_maps(discriminator, first, second, statistics, EPSILON, energy)
    torch.testing.assert_close(comparison(first, second)[0], oracle.pool(maps), rtol=1e-4, atol=1e-6)


def test_local_is_accurate_for_images_that_are_nearly_equal():
    discriminator = make_discriminator()
    comparison, statistics = _comparison(discriminator, "local")
    first = make_images(1)
    second = first + 1e-6 * make_images(1, seed=2)
    exact = sum(oracle.local_maps(discriminator, first, second, statistics, EPSILON)[0])
    form = comparison.form
    engine = comparison.engine
    pair = [next(s for s in engine.signals(engine(image)) if s.layer == 0) for image in (first, second)]
    ours = form.map(0, *(form.describe(engine, one) for one in pair)).sum() * len(form.layers)
    torch.testing.assert_close(ours, exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("pooling", [1, 2.5, 8])
@pytest.mark.parametrize("blocks", [None, (0,), (1, 2)])
def test_pooling_and_blocks_of_local(pooling, blocks):
    discriminator = make_discriminator()
    comparison, statistics = _comparison(discriminator, "local", settings=(pooling, blocks))
    first, second = make_images(1, seed=1), make_images(1, seed=2)
    maps = oracle.local_maps(discriminator, first, second, statistics, EPSILON)
    expected = oracle.pool(oracle.layers_of(maps, blocks), pooling)
    torch.testing.assert_close(comparison(first, second)[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("blocks", [None, (0,), (1, 2)])
@pytest.mark.parametrize("pooling", [2, 8])
def test_activation_is_the_distance_of_whitened_directions(pooling, blocks):
    discriminator = make_discriminator()
    comparison, statistics = _comparison(discriminator, "activation", settings=(pooling, blocks))
    first, second = make_images(1, seed=1), make_images(1, seed=2)
    engine = comparison.engine
    maps = []
    pairs = list(zip(engine.inputs(engine(first)), engine.inputs(engine(second)), strict=True))
    for one, other in reversed(pairs):
        factor = statistics.layers[one.layer].input_factor
        root = oracle.inverse_root_matrix(factor, EPSILON) / len(factor) ** 0.5
        directions = []
        for signals in (one, other):
            vectors = signals.inputs[0].flatten(1).T @ root
            directions.append(vectors / (vectors.square().sum(1, keepdim=True) + oracle.FLOOR).sqrt())
        maps.append((directions[0] - directions[1]).square().sum(1))
    expected = oracle.pool(oracle.layers_of(maps, blocks), pooling)
    torch.testing.assert_close(comparison(first, second)[0], expected, rtol=1e-5, atol=1e-8)


def test_blocks_behind_those_that_count_are_not_gone_through():
    for blocks, depth in ((None, 4), ((0,), 1), ((1, 2), 3), ((2, 3), 4)):
        comparison, _ = _comparison(make_discriminator(2), "activation", settings=(2, blocks))
        assert len(comparison.see(make_images(1), None).blocks) == depth
        assert [signals.layer for signals in comparison.stream(comparison.see(make_images(1), None))] == list(
            reversed(comparison.form.layers)
        )


def test_the_stream_ends_before_layers_that_nobody_needs(monkeypatch):
    comparison, _ = _comparison(make_discriminator(2), "local", settings=(2, (1, 2)))
    consumed, signals = [], comparison.engine.signals
    monkeypatch.setattr(
        comparison.engine,
        "signals",
        lambda *args, **kwargs: (consumed.append(one.layer) or one for one in signals(*args, **kwargs)),
    )
    comparison(make_images(1, seed=1), make_images(1, seed=2))
    assert min(consumed) == min(comparison.form.layers) == 3


@POSITION
def test_maps_are_those_of_the_blocks_that_count(form):
    discriminator = make_discriminator()
    first, second = make_images(2, seed=1), make_images(2, seed=2)
    maps = [
        _comparison(discriminator, form, settings=(2, blocks), spatial=True)[0](first, second)
        for blocks in [(0, 1), (0,), (1,)]
    ]
    torch.testing.assert_close(maps[0], (maps[1] + maps[2]) / 2)


@POSITION
@pytest.mark.parametrize("weighted", [False, True])
def test_a_high_exponent_of_pooling_loses_no_small_distance(form, weighted):
    settings = (16, (1, 2))
    comparison, _ = _comparison(make_discriminator(), form, settings=settings)
    first = make_images(2, 32, 36)
    second = first + 1e-4 * make_images(2, 32, 36, seed=2)
    weights = make_images(2, 32, 36, 3)[:, :1] + 1 if weighted else None
    exact = comparison(first, second, weights)
    single, _ = _comparison(make_discriminator(), form, settings=settings)
    single.engine.float()
    single.form.float()
    rounded = single(first.float(), second.float(), None if weights is None else weights.float())
    assert (exact > 0).all()
    assert (exact < 1e-4).all()
    torch.testing.assert_close(rounded.double(), exact, rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("form", "settings"), [*((form, ()) for form in FORMS), *((form, (8, (1, 2))) for form in POSITION_FORMS)]
)
@ENERGIES
@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_are_those_of_finite_differences(form, settings, energy, spatial, weighted):
    comparison, _ = _comparison(make_discriminator(2), form, energy, settings, spatial=spatial)
    first, second = (make_images(2, 32, 36, seed).requires_grad_() for seed in (1, 2))
    weights = make_images(2, 32, 36, 3)[:, :1] + 1 if weighted else None
    # Fast mode: one random direction, enough to tell a wrong term in thousands of pixels.
    assert torch.autograd.gradcheck(
        lambda x, y: comparison(x, y, weights), (first, second), fast_mode=True, eps=1e-7, atol=1e-5, rtol=1e-4
    )


def test_fisher_gradient_is_that_of_double_backward():
    discriminator = make_discriminator()
    comparison, statistics = _comparison(discriminator, "fisher")
    first, second = make_images(1, seed=1).requires_grad_(), make_images(1, seed=2)
    comparison(first, second).sum().backward()
    parameters = [
        p for name in oracle.layer_names(discriminator) for p in discriminator.get_submodule(name).parameters()
    ]
    image = first.detach().requires_grad_()
    of_first = torch.autograd.grad(oracle.energy(discriminator, image), parameters, create_graph=True)
    of_second = torch.autograd.grad(oracle.energy(discriminator, second), parameters)
    variances = [v for layer in statistics.layers for v in (layer.weight_variance, layer.bias_variance)]
    distance = sum(
        ((u - v) * oracle.inverse_root(variance, EPSILON)).square().sum()
        for u, v, variance in zip(of_first, of_second, variances, strict=True)
    ) / sum(p.numel() for p in parameters)
    (expected,) = torch.autograd.grad(distance, image)
    torch.testing.assert_close(first.grad, expected, rtol=1e-5, atol=float(expected.abs().max()) * 1e-6)


@ALL
@pytest.mark.parametrize("spatial", [False, True])
def test_a_second_derivative_is_refused(form, spatial):
    comparison, _ = _comparison(make_discriminator(2), form, spatial=spatial)
    first, second = make_images(1, seed=1).requires_grad_(), make_images(1, seed=2)
    (gradient,) = torch.autograd.grad(comparison(first, second).sum(), first, create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        gradient.square().sum().backward()


@ALL
@settings(max_examples=6)
@given(count=st.integers(1, 5), chunk_size=st.integers(1, 6), spatial=st.booleans(), one=st.booleans())
def test_chunks_change_nothing(form, count, chunk_size, spatial, one):
    comparison, _ = _comparison(make_discriminator(2), form, spatial=spatial)
    chunked = Comparison(comparison.engine, comparison.form, spatial, chunk_size)
    first, second = make_images(1 if one else count, seed=1), make_images(count, seed=2)
    first, second = (images.requires_grad_() for images in (first, second))
    results = [compare(first, second) for compare in (comparison, chunked)]
    gradients = [torch.autograd.grad(result.square().sum(), (first, second)) for result in results]
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(chunked(first, second), results[0], rtol=1e-10, atol=1e-12)


def test_fisher_windows_are_scores_of_the_energy_of_a_window():
    discriminator = make_discriminator(3)
    comparison, statistics = _comparison(discriminator, "fisher")
    engine, form = comparison.engine, comparison.form
    image = make_images(1, 48, 40)
    parts = [form.describe_for_map(engine, signals) for signals in engine.signals(engine(image))]
    whole = [form.describe(engine, signals) for signals in engine.signals(engine(image))]
    pixels = 48 * 40
    for (weight, bias), (expected_weight, expected_bias) in zip(parts, whole, strict=True):
        assert weight.shape[1:3] == (3, 3)
        share = form.window**2 / pixels
        torch.testing.assert_close(weight.sum((1, 2)) * share, expected_weight.flatten(2), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(bias.sum((1, 2)) * share, expected_bias, rtol=1e-9, atol=1e-9)
