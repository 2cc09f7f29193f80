"""``train`` and ``report``: runs, and their curves."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from afv_metric.bundles.bundle import Bundle, load_bundle
from afv_metric.bundles.resolve import DEFAULT_BUNDLE
from afv_metric.cli.items import pictures_of, reader_of, tiling_of
from afv_metric.cli.outcome import Interrupted, emit
from afv_metric.cli.outputs import try_outputs
from afv_metric.distributed import init_distributed, rank_and_world_size
from afv_metric.metric import AFVDistance
from afv_metric.runtime import find_device
from afv_metric.suggestions import did_you_mean
from afv_metric.train import loop
from afv_metric.train.domain import write_domain_report
from afv_metric.train.recipes import RECIPES, Recipe
from afv_metric.train.report import write_report
from afv_metric.train.settings import override

__all__ = ["report", "train"]


def train(options: argparse.Namespace) -> None:
    """Train a metric on images."""
    if options.recipe not in RECIPES:
        hint = did_you_mean(options.recipe, RECIPES)
        raise ValueError(f"there is no recipe {options.recipe!r}, only {', '.join(RECIPES)}{hint}")
    if not options.show and (options.data is None or options.out is None):
        raise ValueError("training needs --data, folders or archives of images, and --out, a folder for the run")
    chosen = options.init or (DEFAULT_BUNDLE if options.recipe == "folder" else "none")
    init = None if chosen == "none" else load_bundle(chosen, generator=True)
    recipe = override(_shaped_as(init, RECIPES[options.recipe]), options.set)
    if options.show:
        emit(json.dumps(asdict(recipe), indent=2))
        return
    evaluate = None
    try:
        with init_distributed(find_device(options.device)) as device:
            if options.judged and rank_and_world_size()[0] == 0:
                evaluate = import_module("bapps_eval.watch").make_evaluation(_judged_sets(options.judged))
            loop.train(
                recipe,
                options.data,
                options.out,
                held_out=options.held_out,
                init=init,
                evaluate=evaluate,
                reader=reader_of(options, pictures_of(options.data)),
                tiling=tiling_of(options, cut=options.recipe == "folder"),
                cache=options.cache,
                on_divergence=options.on_divergence,
                device=device,
                quiet=options.quiet,
            )
    except loop.StoppedError as stopped:
        raise Interrupted(f"{stopped}; the same command goes on from there", 128 + stopped.signal) from stopped


def _shaped_as(bundle: Bundle | None, recipe: Recipe) -> Recipe:
    """The recipe with the shapes of a bundle's networks, which a run that starts from it must have."""
    if bundle is None or bundle.generator is None:
        return recipe
    discriminator, generator = bundle.discriminator.config, bundle.generator.config
    names = ("width", "image_size", "channels", "strided_stem", "slope")
    shape: dict[str, Any] = {name: getattr(discriminator, name) for name in names}
    return replace(recipe, **shape, generator_width=generator.width, latent_size=generator.latent_size)


def _judged_sets(paths: Sequence[Path]) -> Any:
    data = import_module("bapps_eval.data")  # by name, as bapps_eval stands above this package
    sets = ([data.read_pairs(path)] if path.suffix == ".csv" else data.read_root(path) for path in paths)
    return data.distinguish(list(itertools.chain(*sets)))


def _judge(paths: Sequence[Path], metrics: Mapping[str, AFVDistance]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Tables of the scores of metrics on judged sets."""
    made = [import_module("bapps_eval.metrics").Metric(name, metric) for name, metric in metrics.items()]
    results = import_module("bapps_eval.run").evaluate(made, _judged_sets(paths), workers=0)
    tables = import_module("bapps_eval.formats").grids(import_module("bapps_eval.report").make_report(results.scored()))
    return [
        (title, head, [[f"{cell.text} {cell.interval}".strip() for cell in row] for row in rows])
        for title, head, rows in tables
    ]


def report(options: argparse.Namespace) -> None:
    """Draw the curves and samples of runs, or what a bundle makes of images, into one HTML file."""
    options.out = options.out or options.runs[0] / "report.html"
    if options.data and len(options.runs) > 1:
        raise ValueError(f"with --data the report is on one bundle, got {len(options.runs)}")
    try_outputs(options, "out")
    if options.data:
        options.weights = options.runs[0]
        after = load_bundle(options.weights)
        write_domain_report(
            load_bundle(options.before),
            after,
            options.data,
            options.out,
            reader=reader_of(options, pictures_of(options.data), after),
            tiling=tiling_of(options, cut=True),
            cache=options.cache,
            judge=partial(_judge, options.judged) if options.judged else None,
            quiet=options.quiet,
        )
    else:
        write_report(options.runs, options.out)
    emit(str(options.out))
