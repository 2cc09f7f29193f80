import dataclasses

import pytest
import torch

from afv_metric.bundles.bundle import BundleError
from afv_metric.bundles.twin import random_twin
from afv_metric.fisher.sampling import sample_statistics
from afv_metric.networks import Discriminator, DiscriminatorConfig

RECIPE = {"width": 4, "image_size": 32, "slope": 0.2, "head": "position", "gain": 8.0, "spectral_norm": True, "seed": 7}


def test_nothing_differs_but_the_weights_of_the_discriminator(bundle):
    trained = dataclasses.replace(bundle, training={"recipe": RECIPE | {"loss": "hinge"}}, golden={"pairs": "x"})
    state = torch.get_rng_state()
    twin = random_twin(trained)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    expected = Discriminator(DiscriminatorConfig(4, 32, 0.2, "position", 8.0, True)).baked()
    for name, value in expected.state_dict().items():
        assert torch.equal(twin.discriminator.state_dict()[name], value)
    assert twin.statistics.count == bundle.statistics.count  # neither sees more samples than the other
    again = sample_statistics(expected, bundle.generator, bundle.output, bundle.statistics.count, 7)
    assert torch.equal(twin.statistics.layers[0].weight_mean, again.layers[0].weight_mean)
    assert (twin.levels, twin.blocks, twin.pooling) == (bundle.levels, bundle.blocks, bundle.pooling)
    assert (twin.name, twin.golden, twin.hash) == ("tiny-bundle-random", {}, "")


@pytest.mark.parametrize("training", [{}, {"recipe": {"width": 4}}, {"recipe": RECIPE | {"width": -1}}])
def test_without_a_recipe_there_is_none(bundle, training):
    with pytest.raises(BundleError, match="tiny-bundle has no random twin"):
        random_twin(dataclasses.replace(bundle, training=training))
