"""``python -m afv_metric.train RECIPE --data PATH --out RUN``, and what to do with a run afterwards."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from afv_metric.bundles.bundle import Bundle, BundleError, load_bundle, reserve_folder, save_bundle
from afv_metric.bundles.push import push_bundle
from afv_metric.bundles.resolve import DEFAULT_BUNDLE, HubError
from afv_metric.bundles.validate import validate_bundle
from afv_metric.distributed import LostProcessError, init_distributed, rank_and_world_size
from afv_metric.fisher.forms import FORMS
from afv_metric.runtime import parse_device
from afv_metric.train.adapt import adapt_bundle
from afv_metric.train.card import decorate_bundle, make_card, write_card
from afv_metric.train.divergence import DivergenceError
from afv_metric.train.export import BLOCKS, LEVELS, POOLING, export_run
from afv_metric.train.loop import StoppedError, train
from afv_metric.train.recipes import RECIPES, Recipe
from afv_metric.train.report import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING if options.quiet else logging.INFO, format="%(message)s")
    command: Callable[[argparse.Namespace], None] = options.run_command
    try:
        command(options)
    except StoppedError as stopped:
        print(f"{stopped}; the same command goes on from there", file=sys.stderr)
        return 128 + stopped.signal
    except (ValueError, OSError, DivergenceError, LostProcessError, BundleError, HubError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m afv_metric.train", description="Train a metric on any images.")
    commands = parser.add_subparsers(required=True, metavar="RECIPE | adapt | report | export | card | validate | push")
    for name, recipe in RECIPES.items():
        _add_recipe(commands.add_parser(name, help=f"train with the recipe {name!r}"), recipe)

    adapt = commands.add_parser("adapt", help="whiten a bundle by your own images; minutes, and no training")
    adapt.add_argument("--data", type=Path, nargs="+", required=True, help="folders or archives of images")
    adapt.add_argument("--out", type=Path, required=True, help="folder of the new bundle")
    adapt.add_argument("--init", metavar="BUNDLE", default=DEFAULT_BUNDLE, help="whose network (default: %(default)s)")
    adapt.add_argument("--name", help="name of the new bundle; that of the folder if not given")
    adapt.add_argument("--samples", type=int, default=5_000, help="crops of the images (default: %(default)s)")
    adapt.add_argument("--seed", type=int, default=0, help="seed of the crops")
    adapt.add_argument("--cache", type=Path, help="folder for the decoded images")
    adapt.set_defaults(run_command=_adapt)

    report = commands.add_parser("report", help="draw the curves and samples of runs into one HTML file")
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of the runs")
    report.add_argument("--out", type=Path, help="the HTML file; report.html in the first run if not given")
    report.set_defaults(run_command=_report)

    export = commands.add_parser("export", help="turn a run into a bundle, with its card and a grid of samples")
    export.add_argument("run", type=Path, help="folder of the run, or one of its checkpoints")
    export.add_argument("--out", type=Path, required=True, help="folder of the bundle")
    export.add_argument("--checkpoint", default="latest", help="latest, best (by Fisher Similarity) or an iteration")
    export.add_argument("--name", help="name of the bundle; that of the folder if not given")
    export.add_argument("--samples", type=int, default=10_000, help="generated samples for the statistics")
    export.add_argument("--seed", type=int, default=0, help="seed of the samples")
    export.add_argument("--form", choices=list(FORMS), default="activation", help="default form of the distance")
    export.add_argument("--levels", type=float, nargs="+", default=LEVELS, help="weight of each level, finest first")
    export.add_argument(
        "--blocks",
        type=int,
        nargs="*",
        default=BLOCKS,
        help="blocks whose layers count, from 0 on; all layers if empty",
    )
    export.add_argument("--pooling", type=float, default=POOLING, help="exponent of the pooling over positions")
    export.add_argument("--epsilon", type=float, default=0.03, help="relative floor of the whitening")
    export.add_argument("--data-name", default="", help="what the run was trained on, for the record")
    export.add_argument("--licence", default="unstated", help="licence of the weights")
    export.set_defaults(run_command=_export)

    card = commands.add_parser("card", help="write the model card of a bundle anew")
    card.add_argument("bundle", type=Path, help="folder of the bundle")
    card.add_argument("--run", type=Path, help="folder of the run, for its curves")
    card.add_argument("--agreement", type=Path, metavar="JSON", help="results of python -m bapps_eval --json")
    card.add_argument("--chosen", default="", metavar="TEXT", help="how form, levels and epsilon were chosen")
    card.add_argument("--notes", type=Path, metavar="MARKDOWN", help="what the numbers say, and the limits")
    card.add_argument("--dry-run", action="store_true", help="print the card instead")
    card.set_defaults(run_command=_card)

    validate = commands.add_parser("validate", help="check that a bundle is whole and computes what it should")
    validate.add_argument("bundle", help="name, folder or hub id")
    validate.add_argument("--samples", type=int, default=1_000, help="fresh samples for the whitening")
    validate.add_argument("--seed", type=int, help="seed of the samples; another than the bundle's if not given")
    validate.set_defaults(run_command=_validate)

    push = commands.add_parser("push", help="validate a bundle and upload it to the Hugging Face hub")
    push.add_argument("bundle", type=Path, help="folder of the bundle")
    push.add_argument("repository", metavar="OWNER/NAME")
    push.add_argument("--private", action="store_true", help="if the repository is made, make it private")
    push.add_argument("--revision", help="branch; it is made if it does not exist")
    push.add_argument("--samples", type=int, default=1_000, help="fresh samples for the validation")
    push.add_argument("--dry-run", action="store_true", help="say what would be uploaded, and upload nothing")
    push.set_defaults(run_command=_push)

    for name, command in commands.choices.items():
        if name in ("adapt", "export") or name in RECIPES:
            command.add_argument("--device", type=parse_device, default="cpu", help="cpu (default), cuda, mps, or auto")
        command.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def _add_recipe(command: argparse.ArgumentParser, recipe: Recipe) -> None:
    own = recipe.name == "folder"
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
    command.add_argument("--show", action="store_true", help="print the settings and leave")
    command.add_argument(
        "--init",
        metavar="BUNDLE",
        default=DEFAULT_BUNDLE if own else "none",
        help="start both networks, and take their shapes, from a bundle; none: from scratch (default: %(default)s)",
    )
    command.add_argument(
        "--judged", type=Path, nargs="+", default=[], metavar="DIR | CSV",
        help="images judged by people, as python -m bapps_eval reads them: watch the agreement with them",
    )  # fmt: skip
    command.add_argument("--cache", type=Path, help="folder for the decoded images")
    command.add_argument(
        "--on-divergence", choices=["stop", "rollback"], default="stop",
        help="when training fails: stop, or go back two checkpoints and on with half the rates",
    )  # fmt: skip
    command.set_defaults(run_command=_train, recipe=recipe)


def _train(options: argparse.Namespace) -> None:
    init = None if options.init == "none" else load_bundle(options.init, generator=True)
    recipe = _shaped_as(init, options.recipe).override(options.set)
    if options.show:
        print(json.dumps(asdict(recipe), indent=2))
        return
    if options.data is None or options.out is None:
        raise ValueError("training needs --data, folders or archives of images, and --out, a folder for the run")
    with init_distributed(options.device) as device:
        train(
            recipe,
            options.data,
            options.out,
            held_out=options.held_out,
            init=init,
            evaluate=_evaluation(options.judged) if rank_and_world_size()[0] == 0 else None,
            cache=options.cache,
            on_divergence=options.on_divergence,
            device=device,
            quiet=options.quiet,
        )


def _shaped_as(bundle: Bundle | None, recipe: Recipe) -> Recipe:
    """The recipe with the shapes of a bundle's networks, which a run that starts from it must have."""
    if bundle is None or bundle.generator is None:
        return recipe
    discriminator, generator = bundle.discriminator.config, bundle.generator.config
    return replace(
        recipe,
        width=discriminator.width,
        image_size=discriminator.image_size,
        slope=discriminator.slope,
        generator_width=generator.width,
        latent_size=generator.latent_size,
    )


def _evaluation(paths: Sequence[Path]) -> Callable[[Bundle], dict[str, float]] | None:
    """The scoring of judged sets, for the monitors; None without any."""
    if not paths:
        return None
    from bapps_eval.data import distinguish, read_pairs, read_root
    from bapps_eval.watch import make_evaluation

    sets = [judged for path in paths for judged in ([read_pairs(path)] if path.suffix == ".csv" else read_root(path))]
    return make_evaluation(distinguish(sets))


def _adapt(options: argparse.Namespace) -> None:
    with reserve_folder(options.out):
        bundle = adapt_bundle(
            load_bundle(options.init, generator=True),
            options.data,
            options.name or options.out.resolve().name,
            samples=options.samples,
            seed=options.seed,
            cache=options.cache,
            device=options.device,
            quiet=options.quiet,
        )
        save_bundle(bundle, options.out, decorate_bundle)


def _report(options: argparse.Namespace) -> None:
    out = options.out or options.runs[0] / "report.html"
    write_report(options.runs, out)
    print(out)


def _export(options: argparse.Namespace) -> None:
    with init_distributed(options.device) as device, contextlib.ExitStack() as stack:
        if rank_and_world_size()[0] == 0:
            stack.enter_context(reserve_folder(options.out))
        bundle = export_run(
            options.run,
            options.name or options.out.resolve().name,
            checkpoint=options.checkpoint,
            samples=options.samples,
            seed=options.seed,
            form=options.form,
            levels=options.levels,
            blocks=options.blocks or None,
            pooling=options.pooling,
            epsilon=options.epsilon,
            licence=options.licence,
            device=device,
            quiet=options.quiet,
            provenance={"data": options.data_name} if options.data_name else None,
        )
        if rank_and_world_size()[0] == 0:
            run = options.run if options.run.is_dir() else options.run.parent
            save_bundle(bundle, options.out, partial(decorate_bundle, run=run))


def _card(options: argparse.Namespace) -> None:
    make = make_card if options.dry_run else write_card
    notes = options.notes.read_text(encoding="utf-8") if options.notes else ""
    print(make(options.bundle, options.run, agreement=options.agreement, chosen=options.chosen, notes=notes))


def _validate(options: argparse.Namespace) -> None:
    report = validate_bundle(options.bundle, samples=options.samples, seed=options.seed, quiet=options.quiet)
    print(report)
    if not report.passed:
        raise ValueError(f"{options.bundle} does not pass")


def _push(options: argparse.Namespace) -> None:
    pushed = push_bundle(
        options.bundle,
        options.repository,
        private=options.private,
        revision=options.revision,
        dry_run=options.dry_run,
        samples=options.samples,
        quiet=options.quiet,
    )
    print(pushed)


if __name__ == "__main__":
    sys.exit(main())
