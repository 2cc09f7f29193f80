"""``python -m afv_metric.train RECIPE --data PATH --out RUN``, and ``... export RUN --out BUNDLE``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from afv_metric.bundle import BundleError, load_bundle, save_bundle
from afv_metric.forms import FORMS
from afv_metric.hub import HubError
from afv_metric.train.export import export_run
from afv_metric.train.loop import DivergenceError, save_grid, train
from afv_metric.train.recipes import RECIPES


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING if options.quiet else logging.INFO, format="%(message)s")
    try:
        if options.command == "export":
            _export(options)
        else:
            _train(options)
    except (ValueError, FileNotFoundError, DivergenceError, BundleError, HubError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m afv_metric.train", description="Train a metric on any images.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="RECIPE | export")
    for name, recipe in RECIPES.items():
        command = commands.add_parser(name, help=f"train with the recipe {name!r}")
        command.add_argument("--data", type=Path, help="folder of images, in class folders or not")
        command.add_argument("--out", type=Path, help="folder of the run; an interrupted run there is resumed")
        command.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="change settings")
        command.add_argument("--show", action="store_true", help="print the settings and leave")
        command.add_argument("--init", metavar="BUNDLE", help="start both networks from a bundle")
        command.set_defaults(recipe=recipe)
    export = commands.add_parser("export", help="turn a run into a bundle, with a grid of samples beside it")
    export.add_argument("run", type=Path, help="folder of the run, or one of its checkpoints")
    export.add_argument("--out", type=Path, required=True, help="folder of the bundle")
    export.add_argument("--name", help="name of the bundle; that of the folder if not given")
    export.add_argument("--samples", type=int, default=10_000, help="generated samples for the statistics")
    export.add_argument("--seed", type=int, default=0, help="seed of the samples")
    export.add_argument("--form", choices=list(FORMS), default="activation", help="default form of the distance")
    export.add_argument("--levels", type=float, nargs="+", default=[1.0], help="weight of each level, finest first")
    export.add_argument("--epsilon", type=float, default=0.03, help="relative floor of the whitening")
    export.add_argument("--data-name", default="", help="what the run was trained on, for the record")
    export.add_argument("--licence", default="unstated", help="licence of the weights")
    export.add_argument("--card", type=Path, help="Markdown file that becomes the model card")
    for command in commands.choices.values():
        command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps, ...")
        command.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def _train(options: argparse.Namespace) -> None:
    recipe = options.recipe.override(options.set)
    if options.show:
        print(json.dumps(asdict(recipe), indent=2))
        return
    if options.data is None or options.out is None:
        raise ValueError("training needs --data, a folder of images, and --out, a folder for the run")
    init = load_bundle(options.init, generator=True) if options.init else None
    train(recipe, options.data, options.out, init=init, device=options.device, quiet=options.quiet)


def _export(options: argparse.Namespace) -> None:
    bundle = export_run(
        options.run,
        options.name or options.out.name,
        samples=options.samples,
        seed=options.seed,
        device=options.device,
        quiet=options.quiet,
        provenance={"data": options.data_name} if options.data_name else None,
    )
    bundle = replace(
        bundle,
        form=options.form,
        levels=tuple(options.levels),
        epsilon=options.epsilon,
        licence={"weights": options.licence},
        card=options.card.read_text() if options.card else f"# {bundle.name}\n",
    )
    save_bundle(bundle, options.out)
    assert bundle.generator is not None
    latents = bundle.generator.sample_latents(64, generator=torch.Generator().manual_seed(options.seed))
    save_grid(bundle.generator, latents, options.out / "samples.png")


if __name__ == "__main__":
    sys.exit(main())
