"""``python -m experiments NAME ... --out DIR``: a table, figures, and a JSON file of all numbers."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from afv_metric.files import atomic_write
from afv_metric.runtime import parse_device, read_versions
from afv_metric.train.loop import StoppedError

_EXPERIMENTS = {
    "classify": "linear classifiers on score vectors and their rivals (Table 1)",
    "sets": "Fisher distances between classes, and their bias (Figure 2)",
    "neighbours": "nearest neighbours, and whether the generator copies (Figures 6 and 7)",
    "compress": "an index of score vectors at a few bytes an image",
    "monitor": "training runs that differ in one setting, and their curves (Figures 3, 4, 5 and 8)",
    "mnist": "bidirectional GANs and their rivals on MNIST (Donahue et al., Table 1)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an experiment; returns the exit status."""
    options = _parser().parse_args(arguments)
    options.device = str(options.device)
    logging.basicConfig(level=logging.WARNING if options.quiet else logging.INFO, format="%(message)s")
    try:
        _run(options)
    except StoppedError as stopped:
        print(f"{stopped}; the same command goes on from there", file=sys.stderr)
        return 128 + stopped.signal
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    commands = parser.add_subparsers(dest="experiment", required=True, metavar=" | ".join(_EXPERIMENTS))
    for name, summary in _EXPERIMENTS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        import_module(f"experiments.{name}").add_arguments(command)
        command.add_argument("--out", type=Path, required=True, help="folder of the figures and of the numbers")
        command.add_argument("--seed", type=int, default=0, help="of all that is left to chance")
        command.add_argument("--device", type=parse_device, default="cpu", help="cpu (default), cuda, mps, or auto")
        command.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def _run(options: argparse.Namespace) -> None:
    started = time.perf_counter(), time.process_time()
    record: dict[str, Any] = import_module(f"experiments.{options.experiment}").run(options)
    settings = {name: value for name, value in vars(options).items() if name not in ("experiment", "out", "quiet")}
    whole = {
        **record,
        "settings": settings,
        "seconds": round(time.perf_counter() - started[0], 1),
        "processor_seconds": round(time.process_time() - started[1], 1),
        "threads": torch.get_num_threads(),
        "versions": read_versions(),
    }
    with atomic_write(options.out / f"{options.experiment}.json") as temporary:
        temporary.write_text(json.dumps(whole, indent=1, default=str, allow_nan=False) + "\n", encoding="utf-8")
    print(_aligned(record["table"]))


def _aligned(table: Sequence[Sequence[str]]) -> str:
    """Text of a table; its first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        first, *others = (
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *others]).rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
