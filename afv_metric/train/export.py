"""From a run to a bundle: the averaged discriminator, and Fisher statistics over generated samples."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields, replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from tqdm import tqdm

from afv_metric.bundles.bundle import Bundle
from afv_metric.fisher.engine import Energy, FisherEngine
from afv_metric.fisher.forms import FORMS, FormName
from afv_metric.fisher.statistics import FisherStatistics, LayerStatistics, collect_statistics
from afv_metric.metric import AFVDistance
from afv_metric.networks import Discriminator, Generator
from afv_metric.train.checkpoint import best_checkpoints, checkpoints, latest_checkpoint, load_checkpoint
from afv_metric.train.distributed import process
from afv_metric.train.recipes import Recipe

__all__ = [
    "BLOCKS",
    "GOLDEN_NAME",
    "LEVELS",
    "POOLING",
    "export_run",
    "find_checkpoint",
    "golden_distances",
    "golden_pairs",
    "random_bundle",
    "read_recipe",
    "sample_statistics",
    "training_stages",
    "with_golden_distances",
]

LEVELS, BLOCKS, POOLING = (0.25, 0.5, 0.25), (1, 2), 8.0
"""How the shipped bundle turns its network into a distance, chosen on images that people judged; see its card."""

_BATCH = 100
GOLDEN_NAME = "shake256-1"  # names the images of golden_pairs; other images get another name
# What runs did that were made before a setting existed, where that is not its default of today.
_EARLIER = {"held_out": 0.0}
# What else of a checkpoint a bundle records, and under which name.
_RECORDED = {"data": "data_fingerprint", "init": "init", "before": "before", "rate_factor": "rate_factor"}
_log = logging.getLogger(__name__)


def sample_statistics(
    discriminator: Discriminator, generator: Generator, energy: Energy, samples: int, seed: int, *, quiet: bool = True
) -> FisherStatistics:
    """Fisher statistics of a discriminator over samples of a generator.

    In a job of several processes each takes its share of the samples, which are the same for any number of processes,
    and all of them get the same statistics; between numbers of processes these differ by rounding in float64.

    Args:
        discriminator: Baked discriminator.
        generator: Generator in evaluation mode, on the same device.
        energy: ``"logit"`` or ``"sigmoid"``.
        samples: Number of samples, over all processes together.
        seed: Seed of the latents.
        quiet: Show no progress bar.

    Returns:
        Statistics in float64 on the CPU.

    Raises:
        ValueError: If there are fewer samples than processes.

    Example:
        >>> from afv_metric.networks import DiscriminatorConfig, GeneratorConfig
        >>> networks = Discriminator(DiscriminatorConfig(width=4)).baked(), Generator(GeneratorConfig(width=4)).eval()
        >>> sample_statistics(*networks, "logit", samples=5, seed=0).count
        5
    """
    rank, count = process()
    if samples < count:
        raise ValueError(f"Fisher statistics need at least one sample a process, got {samples} for {count} processes")
    random = torch.Generator().manual_seed(seed)
    sizes = [min(_BATCH, samples - start) for start in range(0, samples, _BATCH)]
    latents = torch.cat([generator.sample_latents(size, generator=random) for size in sizes])
    mine = latents.tensor_split(count)[rank]

    @torch.no_grad()
    def batches() -> Iterator[Tensor]:
        with tqdm(total=len(mine), desc="statistics", disable=quiet or rank > 0, unit="sample") as bar:
            for some in mine.split(_BATCH):
                yield generator(some)
                bar.update(len(some))

    began = time.monotonic()
    statistics = collect_statistics(FisherEngine(deepcopy(discriminator), energy), batches())
    if count > 1:
        statistics = _merge_over_processes(statistics, latents.device)
    seconds = time.monotonic() - began
    if rank == 0:
        _log.info(
            "Fisher statistics over %d samples in %.1f s: %.0f samples/s in %d process%s",
            *(samples, seconds, samples / seconds, count, "" if count == 1 else "es"),
        )
    return statistics


def _merge_over_processes(statistics: FisherStatistics, device: torch.device) -> FisherStatistics:
    """Merge the statistics of all processes, in the order of their ranks, so that all get the same bits."""
    values = [value for layer in statistics.layers for value in layer]
    mine = torch.cat([torch.tensor([statistics.count], dtype=torch.float64), *(value.flatten() for value in values)])
    mine = mine.to(device)
    gathered = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, mine)

    def unpack(flat: Tensor) -> FisherStatistics:
        count, *parts = flat.cpu().split([1, *(value.numel() for value in values)])
        shaped = (part.view_as(value) for part, value in zip(parts, values, strict=True))
        layers = zip(*[shaped] * len(LayerStatistics._fields), strict=True)  # as many at a time as a layer has
        return FisherStatistics(int(count), tuple(LayerStatistics(*layer) for layer in layers))

    return reduce(FisherStatistics.merge, map(unpack, gathered))


def find_checkpoint(run: str | Path, which: str | int = "latest") -> Path:
    """Find one checkpoint of a run.

    Args:
        run: Folder of the run, or a checkpoint itself, which is given back.
        which: ``"latest"``; ``"best"``, the one with the highest Fisher Similarity of held-out and generated images; or
            an iteration.

    Raises:
        FileNotFoundError: If the run has no such checkpoint.
        ValueError: If ``which`` is none of the three.
    """
    run = Path(run)
    if run.is_file():
        return run
    kept = checkpoints(run)
    if which == "latest":
        path = latest_checkpoint(run)
    elif which == "best":
        path = next(iter(best_checkpoints(run, 1)), None)
    elif str(which).isdecimal():
        path = kept.get(int(which))
    else:
        raise ValueError(f'the checkpoint must be "latest", "best" or an iteration, got {which!r}')
    if path is not None:
        return path
    if not kept:
        raise FileNotFoundError(
            f"no checkpoint in {run}; train first: python -m afv_metric.train RECIPE --data ... --out {run}"
        )
    raise FileNotFoundError(
        f"{run} has no checkpoint {which!r}; it keeps those of the iterations {', '.join(map(str, kept))}"
        + (". Which is best is known where monitors have looked at held-out images" if which == "best" else "")
    )


def read_recipe(saved: Mapping[str, Any]) -> Recipe:
    """The recipe that a run or a bundle recorded, also an earlier version of this package.

    Settings that did not exist then get the value that describes what was done without them.

    Args:
        saved: The recorded settings.

    Raises:
        ValueError: If there are settings that this version does not know.

    Example:
        >>> read_recipe({"width": 4}).held_out, read_recipe({"width": 4, "held_out": 0.1}).held_out
        (0.0, 0.1)
    """
    known = {field.name for field in fields(Recipe)}
    unknown = sorted(saved.keys() - known)
    if unknown:
        raise ValueError(f"the recorded settings {', '.join(unknown)} are unknown: a newer afv_metric is needed")
    return Recipe(**{name: value for name, value in _EARLIER.items() if name in known} | dict(saved))


def training_stages(training: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The records of all runs that a bundle's weights went through, each started from the bundle of the one before.

    Args:
        training: The ``training`` record of a bundle.

    Example:
        >>> [stage["hours"] for stage in training_stages({"hours": 2, "before": {"hours": 1}})]
        [1, 2]
    """
    before = training.get("before")
    return [*(training_stages(before) if before else []), training]


def export_run(
    run: str | Path,
    name: str,
    *,
    checkpoint: str | int = "latest",
    samples: int = 10_000,
    seed: int = 0,
    form: FormName = "activation",
    levels: Sequence[float] = LEVELS,
    blocks: Sequence[int] | None = BLOCKS,
    pooling: float = POOLING,
    epsilon: float = 0.03,
    licence: str = "",
    device: str | torch.device = "cpu",
    quiet: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> Bundle:
    """Make a bundle of a checkpoint of a run.

    With the default of 10,000 samples the variance of a typical parameter of the shipped network is uncertain by 2 %,
    and so are ``fisher`` distances, by a common factor; the others by .3 %. 50,000 halve that, at five times the cost.

    Args:
        run: Folder of the run, or one checkpoint of it.
        name: Name of the bundle.
        checkpoint: Which checkpoint of the folder, see :func:`find_checkpoint`.
        samples: Generated samples for the statistics.
        seed: Seed of their latents.
        form: Default form of the distance.
        levels: Weight of each level of the image pyramid, finest first.
        blocks: Residual blocks whose layers count in the forms ``local`` and ``activation``; all layers if None.
        pooling: Exponent of their pooling over positions.
        epsilon: Relative floor of the whitening.
        licence: Licence of the weights.
        device: Where to compute.
        quiet: Show no progress bar.
        provenance: Further facts for the bundle's ``training`` record, such as ``data``, a line about the images.

    Returns:
        The bundle with its golden distances, not yet saved; the same in every process of a job.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If the file is no checkpoint of a run, or of a newer version.
    """
    path = find_checkpoint(run, checkpoint)
    saved = load_checkpoint(path)
    try:
        recipe = read_recipe(saved["recipe"])
        discriminator = Discriminator(recipe.discriminator.plain())
        discriminator.load_state_dict(saved["averaged_discriminator"])
        generator = Generator(recipe.generator)
        generator.load_state_dict(saved["averaged_generator"])
        training: dict[str, Any] = {"iterations": saved["iteration"], "hours": _three_digits(saved["seconds"] / 3600)}
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path} is no checkpoint of a run: {error!r}") from error
    discriminator, generator = discriminator.to(device).eval(), generator.to(device).eval()
    statistics = sample_statistics(discriminator, generator, recipe.energy, samples, seed, quiet=quiet)
    training |= {name: saved[key] for key, name in _RECORDED.items() if key in saved}
    machines = path.parent / "machines.json"
    if machines.exists():
        training["machines"] = json.loads(machines.read_text())
    bundle = Bundle(
        name=name,
        discriminator=discriminator.cpu(),
        generator=generator.cpu(),
        statistics=statistics,
        energy=recipe.energy,
        form=form,
        levels=tuple(levels),
        blocks=None if blocks is None else tuple(blocks),
        pooling=pooling,
        epsilon=epsilon,
        sampling={"source": "generator", "generator_mode": "averaged weights, evaluation mode", "seed": seed},
        training=training | {"recipe": saved["recipe"]} | dict(provenance or {}),
        licence={"weights": licence or "unstated"},
        card=f"# {name}\n",
    )
    return with_golden_distances(bundle)


def random_bundle(bundle: Bundle, *, samples: int = 1_000, quiet: bool = True) -> Bundle:
    """The same network at its random initialisation, to tell what training is worth.

    Architecture, seed (of the first run, where the bundle's run was started from another bundle) and the definition of
    the distance are those of the bundle, and the statistics are taken over samples of its generator, so that nothing
    differs but the weights of the discriminator.

    Args:
        bundle: A bundle with its generator and the recipe of its training.
        samples: Generated samples for the statistics.
        quiet: Show no progress bar.

    Raises:
        ValueError: If the generator was not loaded.
    """
    if bundle.generator is None:
        raise ValueError("the generator is needed: load_bundle(..., generator=True)")
    recipe = read_recipe(training_stages(bundle.training)[0]["recipe"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        discriminator = Discriminator(recipe.discriminator).baked()
    statistics = sample_statistics(discriminator, bundle.generator, bundle.energy, samples, recipe.seed, quiet=quiet)
    return replace(
        bundle,
        name=f"{bundle.name}-random",
        discriminator=discriminator,
        statistics=statistics,
        training={},
        golden={},
        hash="",
    )


def golden_pairs() -> tuple[Tensor, Tensor]:
    """Three fixed pairs of images: chequered colours against a noisy, a shifted and a mirrored copy.

    They are made of a hash and whole numbers, so they are the same on every machine and in every release.

    Returns:
        ``(3, 3, 40, 44)`` uint8 each.

    Example:
        >>> first, second = golden_pairs()
        >>> first.shape, (first != second).flatten(1).any(1)
        (torch.Size([3, 3, 40, 44]), tensor([True, True, True]))
    """
    squares, fine = 3 * 3 * 5 * 6, 3 * 40 * 44
    content = hashlib.shake_256(GOLDEN_NAME.encode()).digest(squares + fine)
    random = torch.tensor(list(content), dtype=torch.uint8)
    first = random[:squares].view(3, 3, 5, 6).repeat_interleave(8, 2).repeat_interleave(8, 3)[..., :44]
    noise = random[squares:].view(3, 40, 44)
    noisy = first[0] // 8 * 7 + noise // 8
    return first.contiguous(), torch.stack([noisy, first[1].roll((1, 3), (1, 2)), first[2].flip(2)])


def golden_distances(bundle: Bundle, forms: Iterable[FormName] = FORMS) -> dict[str, list[float]]:
    """Distances of :func:`golden_pairs`, in float64, with the bundle's statistics as they are stored.

    A copy of the bundle, on any machine and in any release that keeps its numbers, gives the same to about 1e-6.

    Args:
        bundle: The bundle, saved or not.
        forms: Forms of the distance.

    Returns:
        Three distances for each form.
    """
    layers = (LayerStatistics(*(value.float() for value in layer)) for layer in bundle.statistics.layers)
    stored = replace(bundle, statistics=FisherStatistics(bundle.statistics.count, tuple(layers)))
    with torch.no_grad():
        return {form: AFVDistance(stored, form=form).double()(*golden_pairs()).tolist() for form in forms}


def with_golden_distances(bundle: Bundle) -> Bundle:
    """The bundle with a record of its :func:`golden_distances`, by which a copy is known to compute the same."""
    return replace(bundle, golden={"pairs": GOLDEN_NAME, "distances": golden_distances(bundle)})


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")
