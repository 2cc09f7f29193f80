"""From a run to a bundle: the averaged discriminator, and Fisher statistics over generated samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from afv_metric.bundles.bundle import Bundle
from afv_metric.fisher.forms import Term
from afv_metric.fisher.sampling import sample_statistics
from afv_metric.networks import Discriminator, Generator
from afv_metric.runtime import read_machines
from afv_metric.train.checkpoint import best_checkpoints, checkpoints, latest_checkpoint, load_checkpoint, read_recipe

__all__ = ["BLOCKS", "LEVELS", "POOLING", "TERMS", "export_run", "find_checkpoint"]

LEVELS, BLOCKS, POOLING = (0.25, 0.5, 0.25), (1, 2), 8.0
TERMS = (
    Term("direction", 1, (7,), 1.0),
    Term("texture", 0, (3,), 1.25),
    Term("direction", 0, (3,), 0.06),
    Term("texture", 0, (0,), 0.1),
)
"""How the shipped bundle turns its network into a distance, chosen on images that people judged; see its card."""

# What else of a checkpoint a bundle records, and under which name.
_RECORDED = {"data": "data_fingerprint", "init": "init", "before": "before", "rate_factor": "rate_factor"}


def find_checkpoint(run: str | Path, which: str | int = "latest") -> Path:
    """Find one checkpoint of the folder of a run; a checkpoint itself is given back.

    Which is ``"latest"``; ``"best"``, the one with the highest Fisher Similarity of held-out and generated images; or
    an iteration.

    Raises:
        FileNotFoundError: If the run has no such checkpoint.
        ValueError: If it is none of the three.
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
    hint = ". Which is best is known where monitors have measured held-out images" if which == "best" else ""
    iterations = ", ".join(map(str, kept))
    raise FileNotFoundError(f"{run} has no checkpoint {which!r}; it keeps those of the iterations {iterations}{hint}")


def export_run(
    run: str | Path,
    name: str,
    *,
    checkpoint: str | int = "latest",
    samples: int = 10_000,
    seed: int = 0,
    device: str | torch.device = "cpu",
    quiet: bool = False,
) -> Bundle:
    """Make a bundle of a checkpoint of a run, with the distance defined as by the shipped one.

    With the default of 10,000 samples the variance of a typical parameter of the shipped network is uncertain by 2 %,
    and so are ``fisher`` distances, by a common factor; the others by .3 %. 50,000 halve that, at five times the cost.

    Returns:
        The bundle, not yet saved, without golden distances; the same in every process of a job.

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
        hours = float(f"{saved['seconds'] / 3600:.3g}")
        training: dict[str, Any] = {"iterations": saved["iteration"], "hours": hours}
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path} is no checkpoint of a run: {error!r}") from error
    discriminator, generator = discriminator.to(device).eval(), generator.to(device).eval()
    statistics = sample_statistics(discriminator, generator, recipe.output, samples, seed, quiet=quiet)
    training |= {name: saved[key] for key, name in _RECORDED.items() if key in saved}
    if machines := read_machines(path.parent):
        training["machines"] = machines
    return Bundle(
        name=name,
        discriminator=discriminator.cpu(),
        generator=generator.cpu(),
        statistics=statistics,
        output=recipe.output,
        levels=LEVELS,
        blocks=BLOCKS,
        terms=TERMS,
        pooling=POOLING,
        data_range=tuple(saved["data_range"]) if saved.get("data_range") else None,
        sampling={"source": "generator", "generator_mode": "averaged weights, evaluation mode", "seed": seed},
        training=training | {"recipe": saved["recipe"]},
        licence={"weights": "unstated"},
        card=f"# {name}\n",
    )
