"""From a run to a bundle: the averaged discriminator, and Fisher statistics over generated samples."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from afv_metric.bundle import Bundle
from afv_metric.fisher import Energy, FisherEngine
from afv_metric.networks import Discriminator, Generator
from afv_metric.statistics import FisherStatistics, collect_statistics
from afv_metric.train.checkpoint import latest_checkpoint, load_checkpoint
from afv_metric.train.recipes import Recipe

__all__ = ["export_run", "random_bundle", "sample_statistics"]

_BATCH = 100


def sample_statistics(
    discriminator: Discriminator, generator: Generator, energy: Energy, samples: int, seed: int, *, quiet: bool = True
) -> FisherStatistics:
    """Fisher statistics of a discriminator over samples of a generator.

    Args:
        discriminator: Baked discriminator.
        generator: Generator in evaluation mode, on the same device.
        energy: ``"logit"`` or ``"sigmoid"``.
        samples: Number of samples.
        seed: Seed of the latents.
        quiet: Show no progress bar.
    """
    latents = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def batches() -> Iterator[Tensor]:
        with tqdm(total=samples, desc="statistics", disable=quiet, unit="sample") as bar:
            for start in range(0, samples, _BATCH):
                count = min(_BATCH, samples - start)
                yield generator(generator.sample_latents(count, generator=latents))
                bar.update(count)

    return collect_statistics(FisherEngine(deepcopy(discriminator), energy), batches())


def export_run(
    run: str | Path,
    name: str,
    *,
    samples: int = 10_000,
    seed: int = 0,
    device: str | torch.device = "cpu",
    quiet: bool = False,
    provenance: dict[str, Any] | None = None,
) -> Bundle:
    """Make a bundle of a run's last checkpoint.

    Args:
        run: Folder of the run, or one checkpoint of it.
        name: Name of the bundle.
        samples: Generated samples for the statistics.
        seed: Seed of their latents.
        device: Where to compute.
        quiet: Show no progress bar.
        provenance: Further facts for the bundle's ``training`` record, such as the data.

    Returns:
        The bundle, not yet saved.

    Raises:
        FileNotFoundError: If there is no checkpoint.
    """
    path = Path(run) if Path(run).is_file() else latest_checkpoint(run)
    if path is None:
        raise FileNotFoundError(
            f"no checkpoint in {run}; train first: python -m afv_metric.train RECIPE --data ... --out {run}"
        )
    saved = load_checkpoint(path)
    recipe = Recipe(**saved["recipe"])
    discriminator = Discriminator(recipe.discriminator.plain())
    discriminator.load_state_dict(saved["averaged_discriminator"])
    generator = Generator(recipe.generator)
    generator.load_state_dict(saved["averaged_generator"])
    discriminator, generator = discriminator.to(device).eval(), generator.to(device).eval()
    energy: Energy = "logit" if recipe.loss == "hinge" else "sigmoid"
    statistics = sample_statistics(discriminator, generator, energy, samples, seed, quiet=quiet)
    training = {"iterations": saved["iteration"], "hours": round(saved["seconds"] / 3600, 2), "recipe": asdict(recipe)}
    return Bundle(
        name=name,
        discriminator=discriminator.cpu(),
        generator=generator.cpu(),
        statistics=statistics,
        energy=energy,
        sampling={"source": "generator", "generator_mode": "averaged weights, evaluation mode", "seed": seed},
        training=training | (provenance or {}),
    )


def random_bundle(bundle: Bundle, *, samples: int = 1_000, quiet: bool = True) -> Bundle:
    """The same network at its random initialisation, to tell what training is worth.

    Architecture, seed, form, levels and epsilon are those of the bundle, and the statistics are taken over samples of
    its generator, so that nothing differs but the weights of the discriminator.

    Args:
        bundle: A bundle with its generator and the recipe of its training.
        samples: Generated samples for the statistics.
        quiet: Show no progress bar.

    Raises:
        ValueError: If the generator was not loaded.
    """
    if bundle.generator is None:
        raise ValueError("the generator is needed: load_bundle(..., generator=True)")
    recipe = Recipe(**bundle.training["recipe"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        discriminator = Discriminator(recipe.discriminator).baked()
    statistics = sample_statistics(discriminator, bundle.generator, bundle.energy, samples, recipe.seed, quiet=quiet)
    return replace(
        bundle, name=f"{bundle.name}-random", discriminator=discriminator, statistics=statistics, training={}, hash=""
    )
