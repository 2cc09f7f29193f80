import dataclasses

import pytest
import torch
from torch.nn import functional as F

from afv_metric import AFVDistance
from afv_metric.fisher.engine import FisherEngine
from afv_metric.fisher.statistics import collect_statistics
from afv_metric.images.cache import load_images
from afv_metric.train.adapt import adapt_bundle


def _augmented_by(bundle, augmentation):
    recipe = {"width": 4, "augmentation": augmentation}
    return dataclasses.replace(bundle, training={"recipe": recipe})


def test_statistics_are_those_of_the_images(bundle, images):
    adapted = adapt_bundle(_augmented_by(bundle, "none"), images, "mine", samples=2 * 64, quiet=True)
    small = F.avg_pool2d(load_images(images, 64, quiet=True).images[:].float() / 127.5 - 1, 2)
    engine = FisherEngine(adapted.discriminator.baked())
    expected = collect_statistics(engine, [small])  # each image was seen twice, so nothing but the count differs
    assert adapted.statistics.count == 128
    for layer, wanted in zip(adapted.statistics.layers, expected.layers, strict=True):
        for found, value in zip(layer, wanted, strict=True):
            torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-6 * float(value.abs().max()))


def test_nothing_changes_but_the_statistics(bundle, images):
    before = {name: value.clone() for name, value in bundle.discriminator.state_dict().items()}
    adapted = adapt_bundle(_augmented_by(bundle, "multiscale"), images, "mine", samples=70, quiet=True)
    for network in (bundle.discriminator, adapted.discriminator):
        assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    kept = ("form", "levels", "blocks", "pooling", "epsilon", "output", "licence")
    assert all(getattr(adapted, name) == getattr(bundle, name) for name in kept)
    assert adapted.golden == {}
    assert adapted.sampling["bundle"] == f"{bundle.name} {bundle.hash}"
    first, second = torch.rand(2, 2, 3, 40, 44) * 2 - 1
    assert not torch.allclose(AFVDistance(adapted)(first, second), AFVDistance(bundle)(first, second), rtol=1e-3)


def test_crops_are_drawn_by_the_seed_and_by_nothing_else(bundle, images):
    made, state = [], torch.random.get_rng_state()
    for seed in (5, 5, 6):
        some = adapt_bundle(_augmented_by(bundle, "multiscale"), images, "mine", samples=70, seed=seed, quiet=True)
        made.append(some.statistics.layers[0].input_factor)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_a_bundle_that_records_no_recipe_can_be_adapted(bundle, images):
    bare = dataclasses.replace(bundle, training={})
    assert adapt_bundle(bare, images, "mine", samples=3, quiet=True).sampling["augmentation"] == "multiscale"


def test_mistakes_are_named(bundle, images, tmp_path):
    with pytest.raises(ValueError, match="at least one sample, got 0"):
        adapt_bundle(bundle, images, "mine", samples=0)
    with pytest.raises(FileNotFoundError, match="nothing"):
        adapt_bundle(bundle, tmp_path / "nothing", "mine", quiet=True)
