"""``python -m experiments.bigan``: train a BiGAN on 32x32 images, and make a metric of its encoder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from afv_metric.cli.options import add
from afv_metric.cli.outcome import if_interrupted, run
from afv_metric.cli.parser import Parser
from afv_metric.runtime import find_device
from afv_metric.train.settings import override
from experiments.bigan.encoder import save_encoder
from experiments.bigan.training import BiGANRecipe, export_run, train


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse(sys.argv[1:] if arguments is None else arguments)
    return run(lambda: options.command(options), debug=options.debug, quiet=options.quiet)


def _parser() -> Parser:
    parser = Parser(prog="python -m experiments.bigan", description="Train a BiGAN, and make a metric of its encoder.")
    commands = parser.add_subparsers(required=True, metavar="train | export")

    command = commands.add_parser("train", help="train a BiGAN, or go on with a run that was interrupted")
    command.add_argument("data", type=Path, nargs="+", help="folders or archives of images")
    command.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run")
    command.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help=f"change settings: {', '.join(f'{field.name} ({field.default})' for field in fields(BiGANRecipe))}",
    )
    add(command, "device")
    command.set_defaults(command=_train)

    command = commands.add_parser("export", help="write the encoder of a run")
    command.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder of the encoder")
    command.add_argument("--name", help="name of the encoder; that of the folder if not given")
    command.set_defaults(command=_export)

    for command in commands.choices.values():
        add(command, "quiet")
    return parser


def _train(options: argparse.Namespace) -> None:
    recipe = override(BiGANRecipe(), options.set)
    with if_interrupted(lambda: "interrupted; the same command goes on from the last checkpoint"):
        train(recipe, options.data, options.out, device=find_device(options.device), quiet=options.quiet)


def _export(options: argparse.Namespace) -> None:
    save_encoder(export_run(options.run, options.name or options.out.resolve().name), options.out)


if __name__ == "__main__":
    sys.exit(main())
