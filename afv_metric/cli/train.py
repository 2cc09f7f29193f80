"""``train`` and ``report``: runs, and their curves."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afv_metric.bundles.resolve import DEFAULT_BUNDLE
from afv_metric.cli.options import add_device, add_quiet, add_reading, add_tiles, pictures_of, reader_of, tiling_of
from afv_metric.cli.outcome import Interrupted, emit
from afv_metric.cli.outputs import try_output
from afv_metric.suggestions import did_you_mean

if TYPE_CHECKING:
    from afv_metric.bundles.bundle import Bundle
    from afv_metric.metric import AFVDistance
    from afv_metric.train.recipes import Recipe

__all__ = ["add_report", "add_train"]


def add_train(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``train``."""
    command.epilog = (
        "A run that was interrupted goes on with the same command. 'afv-metric export' makes a bundle of a run, "
        "'afv-metric report' draws it; 'afv-metric adapt' needs no training."
    )
    command.add_argument(
        "recipe", metavar="RECIPE", help="folder (your own images), tiny-imagenet, imagenet, cifar10 or another recipe"
    )
    command.add_argument("--data", type=Path, nargs="+", help="folders or archives of images, in classes or not")
    command.add_argument(
        "--held-out",
        type=Path,
        nargs="+",
        default=[],
        help="images that only the monitors see; a share of the data if none are given",
    )
    command.add_argument("--out", type=Path, help="folder of the run; an interrupted run there is resumed")
    command.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="change settings")
    command.add_argument("--show", action="store_true", help="print the settings of the recipe, and exit")
    command.add_argument(
        "--init",
        metavar="BUNDLE",
        help="start both networks, and take their shapes, from a bundle; none: from scratch "
        f"(default: {DEFAULT_BUNDLE} for the recipe folder, none for the others)",
    )
    command.add_argument(
        "--judged", type=Path, nargs="+", default=[], metavar="DIR | CSV",
        help="images judged by people, as afv-metric eval reads them: watch the agreement with them",
    )  # fmt: skip
    add_tiles(command)
    add_reading(command)
    command.add_argument(
        "--on-divergence", choices=["stop", "rollback"], default="stop",
        help="when training fails: stop, or go back two checkpoints and on with half the rates",
    )  # fmt: skip
    add_device(command)
    add_quiet(command)
    command.set_defaults(command=_train)


def add_report(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``report``."""
    command.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN | BUNDLE", help="folders of the runs; or with --data one bundle"
    )
    command.add_argument("--out", type=Path, help="the HTML file; report.html in the first folder if not given")
    command.add_argument(
        "--data", type=Path, nargs="+",
        help="images: report what the bundle makes of them, beside the bundle --before; needs no judgements",
    )  # fmt: skip
    command.add_argument(
        "--before", default=DEFAULT_BUNDLE, metavar="BUNDLE", help="what to compare with (default: %(default)s)"
    )
    command.add_argument(
        "--judged", type=Path, nargs="+", default=[], metavar="DIR | CSV",
        help="images judged by people, as afv-metric eval reads them: report the agreement with them",
    )  # fmt: skip
    add_tiles(command)
    add_reading(command)
    add_quiet(command)
    command.set_defaults(command=_report)


def _train(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from afv_metric.bundles.bundle import load_bundle
    from afv_metric.distributed import init_distributed, rank_and_world_size
    from afv_metric.runtime import find_device
    from afv_metric.train.loop import StoppedError, train
    from afv_metric.train.recipes import RECIPES
    from afv_metric.train.settings import override

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
    try:
        with init_distributed(find_device(options.device)) as device:
            train(
                recipe,
                options.data,
                options.out,
                held_out=options.held_out,
                init=init,
                evaluate=_evaluation(options.judged) if rank_and_world_size()[0] == 0 else None,
                reader=reader_of(options, pictures_of(options.data)),
                tiling=tiling_of(options, cut=options.recipe == "folder"),
                cache=options.cache,
                on_divergence=options.on_divergence,
                device=device,
                quiet=options.quiet,
            )
    except StoppedError as stopped:
        raise Interrupted(f"{stopped}; the same command goes on from there", 128 + stopped.signal) from stopped


def _shaped_as(bundle: Bundle | None, recipe: Recipe) -> Recipe:
    """The recipe with the shapes of a bundle's networks, which a run that starts from it must have."""
    from dataclasses import replace

    if bundle is None or bundle.generator is None:
        return recipe
    discriminator, generator = bundle.discriminator.config, bundle.generator.config
    return replace(
        recipe,
        width=discriminator.width,
        image_size=discriminator.image_size,
        channels=discriminator.channels,
        strided_stem=discriminator.strided_stem,
        slope=discriminator.slope,
        generator_width=generator.width,
        latent_size=generator.latent_size,
    )


def _judged_sets(paths: Sequence[Path]) -> Any:
    data = import_module("bapps_eval.data")  # by name, as bapps_eval stands above this package
    sets = [
        judged
        for path in paths
        for judged in ([data.read_pairs(path)] if path.suffix == ".csv" else data.read_root(path))
    ]
    return data.distinguish(sets)


def _evaluation(paths: Sequence[Path]) -> Callable[[Bundle], dict[str, float]] | None:
    """The scoring of judged sets, for the monitors; None without any."""
    if not paths:
        return None
    evaluation: Callable[[Bundle], dict[str, float]] = import_module("bapps_eval.watch").make_evaluation(
        _judged_sets(paths)
    )
    return evaluation


def _judge(paths: Sequence[Path], metrics: Mapping[str, AFVDistance]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Tables of the scores of metrics on judged sets."""
    made = [import_module("bapps_eval.metrics").Metric(name, metric) for name, metric in metrics.items()]
    results = import_module("bapps_eval.run").evaluate(made, _judged_sets(paths), workers=0)
    tables = import_module("bapps_eval.formats").grids(import_module("bapps_eval.report").make_report(results.scored()))
    return [
        (title, head, [[f"{cell.text} {cell.interval}".strip() for cell in row] for row in rows])
        for title, head, rows in tables
    ]


def _report(options: argparse.Namespace) -> None:
    from afv_metric.train.report import write_report

    out = options.out or options.runs[0] / "report.html"
    if options.data:
        _domain_report(options, out)
        return
    try_output(out, "--out")
    write_report(options.runs, out)
    emit(str(out))


def _domain_report(options: argparse.Namespace, out: Path) -> None:
    from functools import partial

    from afv_metric.bundles.bundle import load_bundle
    from afv_metric.train.domain import write_domain_report

    if len(options.runs) > 1:
        raise ValueError(f"with --data the report is on one bundle, got {len(options.runs)}")
    try_output(out, "--out")
    options.weights = options.runs[0]
    after = load_bundle(options.runs[0])
    write_domain_report(
        load_bundle(options.before),
        after,
        options.data,
        out,
        reader=reader_of(options, pictures_of(options.data), after),
        tiling=tiling_of(options, cut=True),
        cache=options.cache,
        judge=partial(_judge, options.judged) if options.judged else None,
        quiet=options.quiet,
    )
    emit(str(out))
