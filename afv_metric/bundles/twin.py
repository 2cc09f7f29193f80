"""The random twin of a bundle: the same network before any training, to measure what training adds."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch

from afv_metric.bundles.bundle import Bundle, BundleError, training_stages
from afv_metric.fisher.sampling import sample_statistics
from afv_metric.networks import Discriminator, DiscriminatorConfig

__all__ = ["random_twin"]


def random_twin(bundle: Bundle) -> Bundle:
    """Make the bundle of the same network at its random initialisation.

    Architecture, seed (of the first run, where the bundle's run was started from another bundle), the definition of
    the distance and the number of samples behind the statistics are those of the bundle, and these are samples of its
    generator, so that nothing differs but the weights of the discriminator.

    Raises:
        BundleError: If the bundle records no recipe.
        ValueError: If the generator was not loaded.
    """
    if bundle.generator is None:
        raise ValueError("the generator is needed: load_bundle(..., generator=True)")
    recipe = training_stages(bundle.training)[0].get("recipe", {})
    known = {field.name for field in fields(DiscriminatorConfig)}
    shape: dict[str, Any] = {name: value for name, value in recipe.items() if name in known}
    shape["channels"] = bundle.channels  # the first run may have been of others
    try:
        seed = int(recipe["seed"])
        config = DiscriminatorConfig(**shape)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"the bundle {bundle.name} has no random twin: its recipe lacks or spoils {error}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        discriminator = Discriminator(config).baked()
    statistics = sample_statistics(discriminator, bundle.generator, bundle.output, bundle.statistics.count, seed)
    name = f"{bundle.name}-random"
    return replace(
        bundle, name=name, discriminator=discriminator, statistics=statistics, training={}, golden={}, hash=""
    )
