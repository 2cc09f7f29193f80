"""The three forms and their gradients against the oracle."""

import oracle
import pytest
import torch
from conftest import make_discriminator, make_images, make_statistics
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from afv_metric.fisher.comparison import Comparison, total_of
from afv_metric.fisher.engine import FisherEngine
from afv_metric.fisher.forms import FORMS, ActivationForm, FisherForm, LocalForm, Part, Term

EPSILON = 0.03
ALL = pytest.mark.parametrize("form", list(FORMS))
POSITION = pytest.mark.parametrize("form", ["local", "activation"])
OUTPUTS = pytest.mark.parametrize("output", ["logit", "sigmoid"])
BOTH_KINDS = (Term("texture", 0, (3, 4), 0.5), Term("direction", 1, (4, 6)))


def _comparison(discriminator, form, output="logit", pooling=2.0, blocks=None, terms=None, **options):
    engine = FisherEngine(discriminator.baked(), output)
    statistics = make_statistics(discriminator, output)
    if form == "fisher":
        made = FisherForm(engine, statistics, EPSILON)
    elif form == "local":
        made = LocalForm(engine, statistics, EPSILON, (1.0,), pooling, blocks)
    else:
        layers = range(13) if blocks is None else [3 * block + part for block in blocks for part in range(3)]
        made = ActivationForm(engine, statistics, EPSILON, terms or (Term("direction", 0, layers),), pooling)
    return Comparison(made, **options), statistics


def compare(comparison, *images):
    return total_of(comparison.compare_parts(*images))


@given(
    count=st.integers(1, 3),
    width=st.integers(1, 4),
    height=st.sampled_from([32, 36]),
    breadth=st.sampled_from([32, 44]),
    output=st.sampled_from(["logit", "sigmoid"]),
)
def test_fisher_is_equation_5(count, width, height, breadth, output):
    discriminator = make_discriminator(width)
    comparison, statistics = _comparison(discriminator, "fisher", output)
    first, second = make_images(count, height, breadth, 1), make_images(count, height, breadth, 2)
    expected = oracle.fisher_distance(discriminator, first, second, statistics, EPSILON, output)
    # Whitening factors are kept in float32, as a bundle keeps its statistics.
    torch.testing.assert_close(compare(comparison, first, second), expected, rtol=1e-5, atol=1e-9)


@OUTPUTS
def test_fisher_with_weighted_positions_is_that_of_the_weighted_logit(output):
    discriminator = make_discriminator()
    comparison, statistics = _comparison(discriminator, "fisher", output)
    first, second = make_images(2, seed=1), make_images(2, seed=2)
    coarse = make_images(2, 8, 8, seed=3)[:, :1] + 1
    weights = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    expected = oracle.fisher_distance(discriminator, first, second, statistics, EPSILON, output, coarse)
    torch.testing.assert_close(compare(comparison, first, second, weights), expected, rtol=1e-5, atol=1e-9)


@given(width=st.integers(1, 3), height=st.sampled_from([32, 36]), output=st.sampled_from(["logit", "sigmoid"]))
def test_local_is_the_distance_of_an_untied_copy(width, height, output):
    discriminator = make_discriminator(width)
    comparison, statistics = _comparison(discriminator, "local", output)
    first, second = make_images(1, height, seed=1), make_images(1, height, seed=2)
    second = (first + 0.3 * second).clamp(-1, 1)
    maps = oracle.local_maps(discriminator, first, second, statistics, EPSILON, output)
    torch.testing.assert_close(compare(comparison, first, second)[0], oracle.pool(maps), rtol=1e-4, atol=1e-6)


def test_local_is_accurate_for_images_that_are_nearly_equal():
    discriminator = make_discriminator()
    comparison, statistics = _comparison(discriminator, "local")
    first = make_images(1)
    second = first + 1e-6 * make_images(1, seed=2)
    exact = sum(oracle.local_maps(discriminator, first, second, statistics, EPSILON)[0])
    form = comparison.form
    first, second = (dict(form.describe(0, image))[Part(0, 0)] for image in (first, second))
    torch.testing.assert_close(form.map(Part(0, 0), first, second).sum() * len(form.layers), exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("pooling", [1, 2.5, 8])
@pytest.mark.parametrize("blocks", [None, (0,), (1, 2)])
def test_pooling_and_blocks_of_local(pooling, blocks):
    discriminator = make_discriminator()
    comparison, statistics = _comparison(discriminator, "local", pooling=pooling, blocks=blocks)
    first, second = make_images(1, seed=1), make_images(1, seed=2)
    maps = oracle.local_maps(discriminator, first, second, statistics, EPSILON)
    expected = oracle.pool(oracle.layers_of(maps, blocks), pooling)
    torch.testing.assert_close(compare(comparison, first, second)[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("blocks", [None, (0,), (1, 2)])
@pytest.mark.parametrize("pooling", [2, 8])
def test_activation_is_the_distance_of_whitened_directions(pooling, blocks):
    discriminator = make_discriminator()
    comparison, statistics = _comparison(discriminator, "activation", pooling=pooling, blocks=blocks)
    first, second = make_images(1, seed=1), make_images(1, seed=2)
    engine = comparison.form.engine
    maps = []
    for (layer, x), (_, y) in zip(engine.inputs(first), engine.inputs(second), strict=True):
        directions = []
        for inputs in (x, y):
            vectors = _whitened(statistics, layer, inputs)
            directions.append(vectors / (vectors.square().sum(1, keepdim=True) + oracle.FLOOR).sqrt())
        maps.append((directions[0] - directions[1]).square().sum(1))
    expected = oracle.pool(oracle.layers_of(maps, blocks), pooling)
    torch.testing.assert_close(compare(comparison, first, second)[0], expected, rtol=1e-5, atol=1e-8)


def _whitened(statistics, layer, inputs):
    """Whitened inputs of one image, (positions, channels)."""
    factor = statistics.layers[layer].input_factor
    return inputs[0].flatten(1).T @ (oracle.inverse_root_matrix(factor, EPSILON) / len(factor) ** 0.5)


def test_texture_is_the_relative_difference_of_variances_in_windows():
    discriminator = make_discriminator((2, 3, 4, 5), strided_stem=True)
    comparison, statistics = _comparison(discriminator, "activation", terms=(Term("texture", 1, (3,), 0.5),), pooling=3)
    first, second = make_images(1, 64, 80, seed=1), make_images(1, 64, 80, seed=2)
    variances = []
    for image in (first, second):
        inputs = dict(comparison.form.engine.inputs(F.avg_pool2d(image, 2)))[3]
        maps = _whitened(statistics, 3, inputs).T.unflatten(1, inputs.shape[2:])
        # Cells of 2x2 at the edges stand for those beyond.
        rows, columns = ([0, 1, *range(size), size - 2, size - 1] for size in maps.shape[1:])
        windows = maps[:, rows][:, :, columns].unfold(1, 6, 2).unfold(2, 6, 2)
        profile = torch.tensor([1.0, 1, 2, 2, 1, 1], dtype=maps.dtype) / 8
        weights = profile[:, None] * profile
        mean = (windows * weights).sum((3, 4), keepdim=True)
        variances.append(((windows - mean).square() * weights).sum((3, 4)))
    x, y = variances
    values = ((x - y).square() / ((x + y).square() + (0.05 / 2) ** 2)).mean(0)
    expected = 0.5 * (values**3).mean() ** (1 / 3)
    torch.testing.assert_close(compare(comparison, first, second)[0], expected, rtol=1e-5, atol=1e-9)


def test_terms_add_up():
    discriminator = make_discriminator()
    first, second = make_images(2, 32, 48, seed=1), make_images(2, 32, 48, seed=2)
    whole = compare(_comparison(discriminator, "activation", terms=BOTH_KINDS)[0], first, second)
    parts = [compare(_comparison(discriminator, "activation", terms=(term,))[0], first, second) for term in BOTH_KINDS]
    torch.testing.assert_close(whole, parts[0] + parts[1])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("moving", [(), (0,), (1,), (0, 1)])
def test_bands_of_rows_change_nothing(monkeypatch, moving, weighted):
    discriminator = make_discriminator((2, 3, 4, 5), strided_stem=True)
    comparison, _ = _comparison(discriminator, "activation", terms=BOTH_KINDS, pooling=8)
    pair = [make_images(1, 208, 32, seed=seed).requires_grad_(seed - 1 in moving) for seed in (1, 2)]
    weights = make_images(1, 208, 32, seed=3)[:, :1] + 1 if weighted else None
    whole = compare(comparison, *pair, weights)
    wanted = [pair[index] for index in moving]
    expected = torch.autograd.grad(whole.sum(), wanted) if wanted else ()
    for pixels in ("_BAND_PIXELS", "_TRACKED_BAND_PIXELS"):
        monkeypatch.setattr(f"afv_metric.fisher.comparison.{pixels}", 1)
    described = []
    describe = comparison.form.describe
    monkeypatch.setattr(
        comparison.form, "describe", lambda *arguments: described.append(len(arguments[1])) or describe(*arguments)
    )
    cut = compare(comparison, *pair, weights)
    torch.testing.assert_close(cut, whole, rtol=1e-10, atol=0)
    bands = {(): 6, (0,): 12, (1,): 12, (0, 1): 6}[moving]  # of two levels, 4 and 2; both images together or apart
    assert len(described) == bands
    for ours, theirs in zip(torch.autograd.grad(cut.sum(), wanted) if wanted else (), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    # In the backward pass every band is computed again, but for what needs no gradient.
    assert len(described) == bands + (6 if wanted else 0)


def test_the_stream_ends_before_layers_that_nobody_needs(monkeypatch):
    comparison, _ = _comparison(make_discriminator(2), "local", blocks=(1, 2))
    engine, consumed = comparison.form.engine, []
    signals = engine.signals
    monkeypatch.setattr(
        engine,
        "signals",
        lambda *args, **kwargs: (consumed.append(one.layer) or one for one in signals(*args, **kwargs)),
    )
    compare(comparison, make_images(1, seed=1), make_images(1, seed=2))
    assert min(consumed) == min(comparison.form.layers) == 3


@POSITION
def test_maps_are_those_of_the_blocks_that_count(form):
    discriminator = make_discriminator()
    first, second = make_images(2, seed=1), make_images(2, seed=2)
    maps = [
        compare(_comparison(discriminator, form, blocks=blocks, spatial=True)[0], first, second)
        for blocks in [(0, 1), (0,), (1,)]
    ]
    torch.testing.assert_close(maps[0], (maps[1] + maps[2]) / 2)


@POSITION
@pytest.mark.parametrize("weighted", [False, True])
def test_a_high_exponent_of_pooling_loses_no_small_distance(form, weighted):
    comparison, _ = _comparison(make_discriminator(), form, pooling=16, blocks=(1, 2))
    first = make_images(2, 32, 36)
    second = first + 1e-4 * make_images(2, 32, 36, seed=2)
    weights = make_images(2, 32, 36, 3)[:, :1] + 1 if weighted else None
    exact = compare(comparison, first, second, weights)
    rounded = compare(comparison, first.float(), second.float(), None if weights is None else weights.float())
    assert (exact > 0).all()
    assert (exact < 1e-4).all()
    torch.testing.assert_close(rounded.double(), exact, rtol=0.02, atol=0)


CASES = pytest.mark.parametrize(
    ("form", "settings"),
    [
        *((form, {}) for form in FORMS),
        *((form, {"pooling": 8, "blocks": (1, 2)}) for form in ("local", "activation")),
        ("activation", {"terms": BOTH_KINDS, "pooling": 8}),
    ],
)


@CASES
@OUTPUTS
@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_are_those_of_finite_differences(form, settings, output, spatial, weighted):
    comparison, _ = _comparison(make_discriminator(2), form, output, spatial=spatial, **settings)
    first, second = (make_images(2, 32, 48, seed).requires_grad_() for seed in (1, 2))
    weights = make_images(2, 32, 48, 3)[:, :1] + 1 if weighted and not spatial else None
    # Fast mode: one random direction, enough to tell a wrong term in thousands of pixels.
    assert torch.autograd.gradcheck(
        lambda x, y: compare(comparison, x, y, weights), (first, second), fast_mode=True, eps=1e-7, atol=1e-5, rtol=1e-4
    )


@CASES
def test_second_derivatives_are_those_of_finite_differences(form, settings):
    comparison, _ = _comparison(make_discriminator(2), form, **settings)
    first, second = make_images(1, 32, 32, 1).requires_grad_(), make_images(1, 32, 32, 2)
    (gradient,) = torch.autograd.grad(compare(comparison, first, second).sum(), first, create_graph=True)
    (ours,) = torch.autograd.grad(gradient.square().sum(), first)
    way = make_images(1, 32, 32, 3)

    def norm(step):
        moved = (first.detach() + step * way).requires_grad_()
        return torch.autograd.grad(compare(comparison, moved, second).sum(), moved)[0].square().sum()

    expected = (norm(1e-7) - norm(-1e-7)) / 2e-7
    torch.testing.assert_close((ours * way).sum(), expected, rtol=1e-3, atol=1e-9)


def test_fisher_gradient_is_that_of_double_backward():
    discriminator = make_discriminator()
    comparison, statistics = _comparison(discriminator, "fisher")
    first, second = make_images(1, seed=1).requires_grad_(), make_images(1, seed=2)
    compare(comparison, first, second).sum().backward()
    parameters = [
        p for name in oracle.layer_names(discriminator) for p in discriminator.get_submodule(name).parameters()
    ]
    image = first.detach().requires_grad_()
    of_first = torch.autograd.grad(oracle.logit(discriminator, image), parameters, create_graph=True)
    of_second = torch.autograd.grad(oracle.logit(discriminator, second), parameters)
    variances = [v for layer in statistics.layers for v in (layer.weight_variance, layer.bias_variance)]
    distance = sum(
        ((u - v) * oracle.inverse_root(variance, EPSILON)).square().sum()
        for u, v, variance in zip(of_first, of_second, variances, strict=True)
    ) / sum(p.numel() for p in parameters)
    (expected,) = torch.autograd.grad(distance, image)
    torch.testing.assert_close(first.grad, expected, rtol=1e-5, atol=float(expected.abs().max()) * 1e-6)


@ALL
@settings(max_examples=6)
@given(count=st.integers(1, 5), chunk_size=st.integers(1, 6), spatial=st.booleans(), one=st.booleans())
def test_chunks_change_nothing(form, count, chunk_size, spatial, one):
    comparison, _ = _comparison(make_discriminator(2), form, spatial=spatial)
    chunked = Comparison(comparison.form, spatial, chunk_size)
    first, second = make_images(1 if one else count, seed=1), make_images(count, seed=2)
    first, second = (images.requires_grad_() for images in (first, second))
    results = [compare(one, first, second) for one in (comparison, chunked)]
    gradients = [torch.autograd.grad(result.square().sum(), (first, second)) for result in results]
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(compare(chunked, first, second), results[0], rtol=1e-10, atol=1e-12)


def test_fisher_windows_are_scores_of_the_logit_of_a_window():
    comparison, _ = _comparison(make_discriminator(3), "fisher")
    form, image = comparison.form, make_images(1, 48, 40)
    windows, whole = form.describe_for_map(0, image), form.describe(0, image)
    share = form.window**2 / (48 * 40)
    for (_, (weight, bias)), (_, (expected_weight, expected_bias)) in zip(windows, whole, strict=True):
        assert weight.shape[1:3] == (3, 3)
        torch.testing.assert_close(weight.sum((1, 2)) * share, expected_weight.flatten(2), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(bias.sum((1, 2)) * share, expected_bias, rtol=1e-9, atol=1e-9)
