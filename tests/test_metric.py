import copy
import dataclasses

import pytest
import safetensors.torch
import torch
from conftest import TINY_BUNDLE, fake_gpu, make_images
from hypothesis import given
from hypothesis import strategies as st

from afv_metric import AFVDistance
from afv_metric.fisher.forms import FORMS

ALL = pytest.mark.parametrize("form", list(FORMS))


@pytest.fixture(params=list(FORMS))
def metric(request, bundle):
    return AFVDistance(bundle, form=request.param)


def _pair(count=2, height=40, width=36):
    return make_images(count, height, width, 1).float(), make_images(count, height, width, 2).float()


@ALL
def test_golden_numbers(bundle, form):
    golden = safetensors.torch.load_file(TINY_BUNDLE.parent / "golden.safetensors")
    metric = AFVDistance(TINY_BUNDLE, form=form)
    single = metric(golden["img0"], golden["img1"])
    torch.testing.assert_close(single.double(), golden[form], rtol=1e-4, atol=1e-7)
    exact = metric(*(golden[name].double() / 127.5 - 1 for name in ("img0", "img1")))
    # Whitening factors are kept in float32: another LAPACK may round their last bit otherwise.
    torch.testing.assert_close(exact, golden[form], rtol=1e-6, atol=1e-9)


def test_golden_vectors():
    golden = safetensors.torch.load_file(TINY_BUNDLE.parent / "golden.safetensors")
    vectors = AFVDistance(TINY_BUNDLE).score_vectors(golden["img0"].double() / 127.5 - 1)
    torch.testing.assert_close(vectors[:, ::101], golden["vectors"], rtol=1e-4, atol=1e-5)


def test_shapes_of_results(metric, bundle):
    first, second = _pair(3)
    assert metric(first, second).shape == (3,)
    assert metric(first[0], second[0]).shape == (1,)
    assert metric(first[:1], second).shape == (3,)
    assert metric(first, second[:1]).shape == (3,)
    maps = AFVDistance(bundle, form=metric.form, spatial=True)(first, second)
    assert maps.shape == (3, 1, 40, 36)
    assert (maps >= 0).all()
    for reduction in ("mean", "sum"):
        reduced = AFVDistance(bundle, form=metric.form, reduction=reduction)(first, second)
        torch.testing.assert_close(reduced, getattr(metric(first, second), reduction)())


@pytest.mark.parametrize(
    "settings", [{}, {"spatial": True}, {"reduction": "mean"}, {"spatial": True, "reduction": "sum"}]
)
def test_parts_add_up_to_the_distance(bundle, metric, settings):
    metric = AFVDistance(bundle, form=metric.form, **settings)
    first, second = _pair()
    second[0] = first[0]
    total, parts = metric(first, second, ret_per_layer=True)
    torch.testing.assert_close(total, metric(first, second), rtol=0, atol=0)
    assert all(values.shape == total.shape for values in parts.values())
    torch.testing.assert_close(sum(parts.values()), total)
    if not settings:
        assert all(values[0] == 0 < values[1] for values in parts.values())
        assert parts.keys() == metric.embed(first).parts.keys()
        assert len(parts) > 1


def test_no_distance_is_above_the_range(metric):
    low, high = metric.score_range
    assert low == 0
    assert (high < float("inf")) == (metric.form != "fisher")
    checks = torch.ones(1, 3, 32, 32)
    checks[..., ::2, 1::2] = checks[..., 1::2, ::2] = -1
    found = metric(torch.cat([checks, -torch.ones_like(checks)]), torch.cat([-checks, checks]))
    assert (found > high / 1000).all() if high < float("inf") else (found > 0).all()
    assert (found <= high).all()
    assert (metric.higher_is_better, metric.is_differentiable) == (False, True)


def test_identity_symmetry_and_sign(metric):
    first, second = _pair()
    assert metric(first, first).tolist() == [0, 0]
    assert metric(first[:1], first)[0] == 0
    # forward() sets the distance of equal images to 0 whatever it has computed; embeddings are compared as they are.
    itself = metric.distance_between(metric.embed(first)).diagonal()
    assert itself.abs().max() < 1e-5 * metric(first, second).min()
    assert (metric(first, second) > 0).all()
    torch.testing.assert_close(metric(first, second), metric(second, first), rtol=1e-6, atol=0)


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("value", [None, -1.0, 0.0])
def test_gradient_at_identical_images_is_finite(bundle, metric, spatial, value):
    metric = AFVDistance(bundle, form=metric.form, spatial=spatial)
    image = _pair()[0] if value is None else torch.full((1, 3, 32, 32), value)
    moving = image.clone().requires_grad_()
    result = metric(moving, image)
    result.sum().backward()
    assert not result.any()
    assert not moving.grad.any()


def test_gradient_next_to_identical_images_is_finite_and_small(metric):
    image = _pair()[0]
    moving = (image + 1e-7).requires_grad_()
    metric(moving, image).sum().backward()
    assert moving.grad.isfinite().all()
    assert moving.grad.abs().max() < 1


def test_a_step_down_the_gradient_lowers_the_distance(metric):
    first, second = _pair()
    first.requires_grad_()
    before = metric(first, second)
    (gradient,) = torch.autograd.grad(before.sum(), first)
    after = metric((first - 1e-3 * gradient / gradient.norm()).detach(), second)
    assert after.sum() < before.sum()


@given(batch=st.integers(1, 5), chunk_size=st.integers(1, 5), form=st.sampled_from(list(FORMS)))
def test_batch_and_chunk_size_do_not_change_distances(bundle, batch, chunk_size, form):
    first, second = _pair(5)
    metric = AFVDistance(bundle, form=form)
    expected = metric(first, second)
    parts = [metric(x, y) for x, y in zip(first.split(batch), second.split(batch), strict=True)]
    torch.testing.assert_close(torch.cat(parts), expected, rtol=1e-5, atol=0)
    chunked = AFVDistance(bundle, form=form, chunk_size=chunk_size)
    torch.testing.assert_close(chunked(first, second), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (50, 34), (64, 35)])
def test_any_size_from_32_on(metric, height, width):
    first, second = _pair(1, height, width)
    assert metric(first, second).isfinite().all()


def test_padding_repeats_the_edge_and_has_no_weight(metric):
    first, second = _pair(1, 33, 47)
    padded = [torch.nn.functional.pad(x, (0, 1, 0, 15), mode="replicate") for x in (first, second)]
    mask = torch.nn.functional.pad(torch.ones(1, 1, 33, 47), (0, 1, 0, 15))
    torch.testing.assert_close(metric(first, second), metric(*padded, mask=mask), rtol=1e-5, atol=0)


def test_ranges_and_types_agree(metric):
    pixels = [torch.randint(256, (2, 3, 32, 36), dtype=torch.uint8) for _ in range(2)]
    expected = metric(*pixels)
    torch.testing.assert_close(metric(*(p / 127.5 - 1 for p in pixels)), expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(metric(*(p / 255 for p in pixels), normalize=True), expected, rtol=1e-4, atol=1e-7)
    double = metric(*(p.double() / 127.5 - 1 for p in pixels))
    torch.testing.assert_close(double.float(), expected, rtol=1e-4, atol=1e-7)


def test_grey_is_equal_red_green_and_blue(metric):
    first, second = (images[:, :1] for images in _pair())
    expected = metric(first.expand(-1, 3, -1, -1), second.expand(-1, 3, -1, -1))
    torch.testing.assert_close(metric(first, second), expected)


def test_the_finest_level_alone_is_the_distance_at_native_resolution(bundle):
    first, second = _pair(2, 32, 32)
    metrics = {
        levels: AFVDistance(dataclasses.replace(bundle, levels=levels)) for levels in [(1.0,), (0.0, 1.0), (0.25, 0.75)]
    }
    fine, coarse, both = (metric(first, second) for metric in metrics.values())
    shrunk = [
        torch.nn.functional.avg_pool2d(x, 2)
        for x in (
            torch.nn.functional.interpolate(first, scale_factor=2),
            torch.nn.functional.interpolate(second, scale_factor=2),
        )
    ]
    torch.testing.assert_close(metrics[(1.0,)](*shrunk), fine, rtol=1e-5, atol=0)
    torch.testing.assert_close(both, 0.25 * fine + 0.75 * coarse)


def test_a_mask_of_ones_changes_nothing_and_one_of_zeros_leaves_nothing(metric):
    first, second = _pair(2, 32, 40)
    ones = torch.ones(2, 1, 32, 40)
    torch.testing.assert_close(metric(first, second, mask=ones), metric(first, second), rtol=1e-5, atol=0)
    torch.testing.assert_close(metric(first, second, mask=7 * ones[0, 0]), metric(first, second), rtol=1e-5, atol=0)
    assert metric(first, second, mask=0 * ones).tolist() == [0, 0]


def test_pixels_far_from_the_mask_have_no_influence(bundle, metric):
    metric = AFVDistance(dataclasses.replace(bundle, levels=(1.0,)), form=metric.form)
    first, second = _pair(1, 160, 32)
    mask = torch.zeros(1, 1, 160, 32)
    mask[:, :, :16] = 1
    changed = second.clone()
    changed[:, :, 120:] = -second[:, :, 120:]
    assert metric(first, second, mask=mask) == metric(first, changed, mask=mask)
    near = second.clone()
    near[:, :, :16] = -second[:, :, :16]
    assert metric(first, second, mask=mask) != metric(first, near, mask=mask)
    moving = second.clone().requires_grad_()
    metric(first, moving, mask=mask).sum().backward()
    assert not moving.grad[:, :, 120:].any()
    assert moving.grad[:, :, :16].any()


def test_a_mask_is_a_constant(metric):
    first, second = _pair()
    assert not metric(first, second, mask=torch.ones(40, 36, requires_grad=True)).requires_grad


def test_maps_take_no_mask(bundle):
    with pytest.raises(ValueError, match="multiply the maps by it"):
        AFVDistance(bundle, spatial=True)(*_pair(), mask=torch.ones(40, 36))


@pytest.mark.parametrize("size", [(40, 36), (49, 66)])
def test_the_mean_of_a_map_is_the_distance(bundle, metric, size):
    first, second = _pair(3, *size)
    maps = AFVDistance(bundle, form=metric.form, spatial=True)(first, second)
    torch.testing.assert_close(maps.mean((1, 2, 3)), metric(first, second), rtol=1e-5, atol=0)
    moving = first.clone().requires_grad_()
    expected = torch.autograd.grad(metric(moving, second).sum(), moving)[0]
    mean = AFVDistance(bundle, form=metric.form, spatial=True)(moving, second).mean((1, 2, 3)).sum()
    (gradient,) = torch.autograd.grad(mean, moving)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=float(expected.abs().max()) * 1e-4)


@pytest.mark.parametrize("height", [32, 33])
def test_the_one_image_is_seen_once(metric, height, monkeypatch):
    engine, counts = metric._form.engine, []
    inputs = engine.inputs
    monkeypatch.setattr(engine, "inputs", lambda images: counts.append(len(images)) or inputs(images))
    first, second = _pair(4, height, 32)
    one_by_one = torch.cat([metric(first[:1], other) for other in second])
    counts.clear()
    torch.testing.assert_close(metric(first[:1], second), one_by_one, rtol=1e-5, atol=1e-9)
    assert sorted(set(counts)) == [1, 4]


def test_the_spatial_map_shows_where_images_differ(bundle, metric):
    metric = AFVDistance(dataclasses.replace(bundle, levels=(1.0,)), form=metric.form, spatial=True)
    first = make_images(1, 128, 128).float() * 0.5
    second = first.clone()
    second[:, :, 48:80, 48:80] *= -1
    values = metric(first, second)[0, 0]
    assert values[48:80, 48:80].mean() > 10 * values[:24, :24].mean()


@pytest.mark.parametrize("height", [48, 37])
def test_embedding_gives_the_numbers_of_forward(metric, height):
    images = _pair(4, height, 48)[0]
    table = metric.distance_between(metric.embed(images[:3]), metric.embed(images))
    expected = torch.stack([metric(image, images) for image in images[:3]])
    torch.testing.assert_close(table, expected, rtol=1e-5, atol=1e-9)
    square = metric.distance_between(metric.embed(images))
    assert not square.diagonal().any()
    assert len(metric.embed(images)) == 4


def test_embedding_in_chunks(bundle):
    images = _pair(4)[0]
    whole, chunked = AFVDistance(bundle), AFVDistance(bundle, chunk_size=3)
    torch.testing.assert_close(
        chunked.distance_between(chunked.embed(images)),
        whole.distance_between(whole.embed(images)),
        rtol=1e-5,
        atol=1e-9,
    )


def test_embeddings_of_other_sizes_or_forms_are_refused(bundle):
    metric, other = AFVDistance(bundle, form="local"), AFVDistance(bundle, form="activation")
    small, large = metric.embed(_pair()[0]), metric.embed(_pair(2, 48, 48)[0])
    with pytest.raises(ValueError, match="one image size"):
        metric.distance_between(small, large)
    with pytest.raises(ValueError, match="the form 'activation'"):
        other.distance_between(small)


@ALL
def test_embeddings_of_other_bundles_are_refused(bundle, form):
    images, metric = _pair()[0], AFVDistance(bundle, form=form)
    other_network = copy.deepcopy(bundle)
    with torch.no_grad():
        next(other_network.discriminator.parameters()).mul_(1.5)
    for other in (
        dataclasses.replace(bundle, epsilon=0.3),
        dataclasses.replace(bundle, levels=(1.0,)),
        dataclasses.replace(bundle, statistics=bundle.statistics.merge(bundle.statistics), epsilon=0.1),
        other_network,
    ):
        assert other.hash == metric.bundle_hash
        with pytest.raises(ValueError, match="got another bundle"):
            metric.distance_between(metric.embed(images), AFVDistance(other, form=form).embed(images))
    same = AFVDistance(dataclasses.replace(bundle, name="copy", hash=""), form=form, pooling=3)
    assert not metric.distance_between(same.embed(images)).diagonal().any()


@ALL
def test_embeddings_are_stored_and_chosen_from(bundle, form, tmp_path):
    images, metric = _pair(4)[0], AFVDistance(bundle, form=form)
    embedding = metric.embed(images)
    torch.save(embedding, tmp_path / "embedding.pt")
    loaded = torch.load(tmp_path / "embedding.pt", weights_only=True)
    table = metric.distance_between(embedding)
    assert torch.equal(metric.distance_between(loaded.to("cpu")), table)
    for chosen, expected in ((-1, [3]), (slice(1, 3), [1, 2]), ([0, 3], [0, 3]), (torch.arange(4) == 2, [2])):
        assert torch.equal(metric.distance_between(loaded[chosen], embedding), table[expected])


def test_score_vectors_differ_by_the_fisher_distance(bundle):
    metric = AFVDistance(dataclasses.replace(bundle, levels=(1.0,)), form="fisher", chunk_size=2)
    first, second = _pair(3)
    difference = metric.score_vectors(first) - metric.score_vectors(second)
    torch.testing.assert_close(difference.square().mean(1), metric(first, second), rtol=1e-4, atol=0)


def test_score_vectors_of_odd_sizes_differ_by_the_fisher_distance(bundle):
    metric = AFVDistance(dataclasses.replace(bundle, levels=(1.0,)), form="fisher")
    first, second = _pair(2, 33, 45)
    difference = metric.score_vectors(first) - metric.score_vectors(second)
    torch.testing.assert_close(difference.square().mean(1), metric(first, second), rtol=1e-4, atol=0)


def test_score_vectors_of_generated_samples_are_centred_and_white(bundle):
    metric = AFVDistance(bundle)
    with torch.no_grad():
        samples = bundle.generator(bundle.generator.sample_latents(400, generator=torch.Generator().manual_seed(5)))
    vectors = metric.score_vectors(samples)
    assert vectors.shape == (400, metric._fisher.parameter_count)
    assert vectors.mean(0).abs().mean() < 0.3
    assert 0.5 < vectors.square().mean() < 1.5


def test_the_metric_is_frozen(metric):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), metric)
    model.train()
    assert not metric.training
    assert not any(module.training for module in metric.modules())
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias"]
    assert list(model.state_dict()) == ["0.weight", "0.bias"]
    first, second = _pair()
    before = metric(first, second)
    metric(first.requires_grad_(), second).sum().backward()
    torch.testing.assert_close(metric(first.detach(), second), before, rtol=0, atol=0)


def test_it_follows_the_types_of_the_images(metric):
    first, second = _pair(2, 64, 64)
    exact, single = metric(first.double(), second.double()), metric(first, second)
    assert exact.dtype == metric(first.double(), second).dtype == torch.float64
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=0)
    for dtype in (torch.bfloat16, torch.float16):
        short = first.to(dtype), second.to(dtype)
        torch.testing.assert_close(metric(*short), metric(short[0].float(), short[1].float()), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = metric(first, second)
        table = metric.distance_between(metric.embed(first), metric.embed(second))
    torch.testing.assert_close(mixed, single, rtol=0, atol=0)
    torch.testing.assert_close(table.diag(), single, rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [(32, 32), (49, 66)])
def test_it_stays_on_its_device(metric, bundle, size):
    metric = AFVDistance(bundle, form=metric.form, check=False)  # ranges are numbers, of which a fake GPU has none
    mapping = AFVDistance(bundle, form=metric.form, spatial=True, check=False)
    with fake_gpu(metric, mapping):
        first, second = torch.empty(2, 2, 3, *size, device="cuda")
        results = [
            metric(first, second),
            metric(first[:1], second, mask=torch.ones(size, device="cuda")),
            mapping(first, second),
            metric.distance_between(metric.embed(first)),
            metric.score_vectors(first),
        ]
    assert {result.device.type for result in results} == {"cuda"}


def test_gradients_under_autocast_and_in_half_precision(bundle, metric):
    first, second = _pair(1, 64, 64)
    first.requires_grad_()
    (expected,) = torch.autograd.grad(metric(first, second).sum(), first)
    for spatial in (False, True):
        moving = AFVDistance(bundle, form=metric.form, spatial=spatial)
        with torch.autocast("cpu", torch.bfloat16):
            value = moving(first, second).sum()
        (gradient,) = torch.autograd.grad(value, first)
        assert gradient.dtype == torch.float32
        assert gradient.isfinite().all()
        if not spatial:
            assert torch.cosine_similarity(gradient.flatten(), expected.flatten(), dim=0) > 0.95


def test_one_grey_level_counts_under_autocast_and_in_half_precision(metric):
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(255, (1, 3, 48, 48), generator=generator, dtype=torch.uint8)
    second = first + (torch.rand(first.shape, generator=generator) < 0.1).to(torch.uint8)
    moving = (second / 127.5 - 1).requires_grad_()
    expected = metric(first, second)
    (gradient,) = torch.autograd.grad(metric(first, moving).sum(), moving)
    assert expected > 0
    with torch.autocast("cpu", torch.bfloat16):
        mixed = metric(first, second)
        (mixed_gradient,) = torch.autograd.grad(metric(first, moving).sum(), moving)
    for value in (mixed, copy.deepcopy(metric).bfloat16()(first, second), copy.deepcopy(metric).half()(first, second)):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
    assert torch.cosine_similarity(mixed_gradient.flatten(), gradient.flatten(), dim=0) > 0.999


def test_inference_mode(metric):
    first, second = _pair()
    with torch.inference_mode():
        torch.testing.assert_close(metric(first, second), metric(first.clone(), second.clone()))
    assert metric(first, second).isfinite().all()


def test_a_target_made_in_inference_mode_serves_a_loss(metric):
    first, second = _pair(1, 33, 32)
    (expected,) = torch.autograd.grad(metric(first.requires_grad_(), second).sum(), first)
    with torch.inference_mode():
        target, mask = second.clone(), torch.ones(33, 32)
    (gradient,) = torch.autograd.grad(metric(first, target, mask=mask).sum(), first)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_vmap_gives_distances_and_gradients(metric):
    first, second = _pair(3)
    one = lambda x, y: metric(x, y)[0]  # noqa: E731
    torch.testing.assert_close(torch.vmap(one)(first, second), metric(first, second))
    moving = first.clone().requires_grad_()
    (expected,) = torch.autograd.grad(metric(moving, second).sum(), moving)
    found = torch.vmap(torch.func.grad(one))(first, second)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=float(expected.abs().max()) * 1e-5)


@pytest.mark.slow
@ALL
def test_compiles_without_a_break(bundle, form):
    metric = AFVDistance(bundle, form=form)
    first, second = _pair(1, 32, 32)
    with torch.no_grad():
        compiled = torch.compile(metric, fullgraph=True, backend="eager")(first, second)
        torch.testing.assert_close(compiled, metric(first, second), rtol=1e-5, atol=1e-8)


@pytest.mark.slow
@ALL
def test_a_compiled_loss_and_a_functional_gradient_are_those_of_autograd(bundle, form):
    metric = AFVDistance(bundle, form=form)
    first, second = _pair(1, 32, 32)
    moving = first.clone().requires_grad_()
    expected = torch.autograd.grad(metric(moving, second).sum(), moving)[0]
    compiled = torch.compile(metric, backend="aot_eager")(moving, second).sum()
    close = {"rtol": 1e-4, "atol": float(expected.abs().max()) * 1e-5}
    torch.testing.assert_close(torch.autograd.grad(compiled, moving)[0], expected, **close)
    torch.testing.assert_close(torch.func.grad(lambda image: metric(image, second).sum())(first), expected, **close)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(2, 3, 31, 40), torch.zeros(2, 3, 31, 40)), ValueError, "smallest side the metric takes is 32"),
        ((torch.zeros(0, 3, 32, 32), torch.zeros(0, 3, 32, 32)), ValueError, "hold no image"),
        ((torch.zeros(2, 3, 32, 40), torch.zeros(2, 3, 40, 32)), ValueError, "must have the same size"),
        ((torch.zeros(2, 3, 32, 32), torch.zeros(3, 3, 32, 32)), ValueError, "as many images"),
        ((torch.zeros(2, 32, 32, 3), torch.zeros(2, 32, 32, 3)), ValueError, "channels come before"),
        ((torch.zeros(2, 4, 32, 32), torch.zeros(2, 4, 32, 32)), ValueError, "alpha channel"),
        ((torch.zeros(2, 3, 32, 32).long(), torch.zeros(2, 3, 32, 32)), TypeError, r"torch\.int64"),
        (("a.png", torch.zeros(2, 3, 32, 32)), TypeError, r"must be a torch\.Tensor"),
        ((torch.full((1, 3, 32, 32), 255.0), torch.zeros(1, 3, 32, 32)), ValueError, "values from 255 to 255"),
    ],
)
def test_bad_images_are_refused(bundle, arguments, error, message):
    with pytest.raises(error, match=message):
        AFVDistance(bundle)(*arguments)


def test_bad_masks_are_refused(bundle):
    images = torch.zeros(2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"mask must have shape \(2, 1, 32, 32\)"):
        AFVDistance(bundle)(images, images, mask=torch.ones(2, 3, 32, 32))
    with pytest.raises(TypeError, match="mask must be"):
        AFVDistance(bundle)(images, images, mask=[1])


@pytest.mark.parametrize("form", list(FORMS))
def test_pooling_of_the_caller_replaces_that_of_the_bundle(bundle, form):
    first, second = make_images(1, seed=1).float(), make_images(1, seed=2).float()
    found = [float(AFVDistance(bundle, form=form, pooling=pooling)(first, second)) for pooling in (None, 8, 2, 1)]
    assert found[0] == found[1]
    if form == "fisher":
        assert len(set(found)) == 1
    else:
        assert found[1] > found[2] > found[3]
    other = AFVDistance(dataclasses.replace(bundle, pooling=2.0), form=form)
    assert float(other(first, second)) == found[2]


def test_bad_settings_are_refused(bundle):
    for settings, message in (
        ({"form": "l2"}, "form must be one of"),
        ({"reduction": "max"}, "reduction must be"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"pooling": 0.9}, "pooling must be a finite exponent of at least 1 or None, got 0.9"),
        ({"pooling": float("nan")}, "pooling must be a finite exponent"),
    ):
        with pytest.raises(ValueError, match=message):
            AFVDistance(bundle, **settings)


def test_a_range_that_may_be_a_mistake_is_named_once(bundle):
    metric = AFVDistance(bundle)
    images = torch.rand(2, 3, 32, 32)
    with pytest.warns(UserWarning, match="pass normalize=True") as caught:
        metric(images, images)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    metric(images, images)  # a second warning would be an error here
    metric(torch.tensor(1.0000001).expand(1, 3, 32, 32), -torch.ones(1, 3, 32, 32))
    with pytest.raises(ValueError, match="as normalize=True says"):
        metric(images - 1, images, normalize=True)


def test_images_elsewhere_are_refused(bundle):
    with pytest.raises(ValueError, match="on one device, got cpu and meta"):
        AFVDistance(bundle)(torch.zeros(1, 3, 32, 32, device="meta"), torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"net": "alex"}, "no argument 'net'; 'alex' is a network of lpips"),
        ({"poolnig": 2}, "no argument 'poolnig'; did you mean 'pooling'"),
    ],
)
def test_unknown_arguments_are_explained(arguments, message):
    with pytest.raises(TypeError, match=message):
        AFVDistance(TINY_BUNDLE, **arguments)
