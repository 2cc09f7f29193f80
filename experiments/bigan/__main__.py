"""``python -m experiments.bigan``: train a BiGAN on 32x32 images, and make a metric of its encoder."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from afv_metric.runtime import parse_device
from experiments.bigan.encoder import save_encoder
from experiments.bigan.training import BiGANRecipe, export_run, train


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING if options.quiet else logging.INFO, format="%(message)s")
    command: Callable[[argparse.Namespace], None] = options.run_command
    try:
        command(options)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.bigan", description=__doc__.partition(": ")[2])
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
    command.add_argument("--device", type=parse_device, default="cpu", help="cpu (default), cuda, mps, or auto")
    command.set_defaults(run_command=_train)

    command = commands.add_parser("export", help="write the encoder of a run")
    command.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder of the encoder")
    command.add_argument("--name", help="name of the encoder; that of the folder if not given")
    command.set_defaults(run_command=_export)

    for command in commands.choices.values():
        command.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def _train(options: argparse.Namespace) -> None:
    recipe = BiGANRecipe().override(options.set)
    train(recipe, options.data, options.out, device=options.device, quiet=options.quiet)


def _export(options: argparse.Namespace) -> None:
    save_encoder(export_run(options.run, options.name or options.out.resolve().name), options.out)


if __name__ == "__main__":
    sys.exit(main())
