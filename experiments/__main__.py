"""``python -m experiments NAME ... --out DIR``: a table, figures, and a JSON file of all numbers."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from afv_metric.cli.options import add, whole
from afv_metric.cli.outcome import Interrupted, emit, run
from afv_metric.cli.outputs import try_output
from afv_metric.cli.parser import Parser
from afv_metric.files import atomic_write
from afv_metric.runtime import find_device, read_versions
from afv_metric.train.loop import StoppedError

_NO_SETTINGS = ("debug", "experiment", "out", "parser", "quiet")
_EXPERIMENTS = {
    "classify": "linear classifiers on score vectors and their rivals (Table 1)",
    "sets": "Fisher distances between classes, and their bias (Figure 2)",
    "neighbours": "nearest neighbours, and whether the generator copies (Figures 6 and 7)",
    "compress": "an index of score vectors at a few bytes per image",
    "monitor": "training runs that differ in one setting, and their curves (Figures 3, 4, 5 and 8)",
    "mnist": "bidirectional GANs and their rivals on MNIST (Donahue et al., Table 1)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an experiment; returns the exit status."""
    options = _parser().parse(sys.argv[1:] if arguments is None else arguments)
    return run(lambda: _run(options), debug=options.debug, quiet=options.quiet)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m experiments", description="Run an experiment: a table, figures, and a JSON file of all numbers."
    )
    commands = parser.add_subparsers(dest="experiment", required=True, metavar=" | ".join(_EXPERIMENTS))
    for name, summary in _EXPERIMENTS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        import_module(f"experiments.{name}").add_arguments(command)
        command.add_argument("--out", type=Path, required=True, help="folder of the figures and of the numbers")
        command.add_argument("--seed", type=whole, default=0, help="seed of all that is random (0)")
        add(command, "device", "quiet")
    return parser


def _run(options: Namespace) -> None:
    started = time.perf_counter(), time.process_time()
    options.device = str(find_device(options.device))
    try_output(options.out / f"{options.experiment}.json", "--out")
    try:
        record: dict[str, Any] = import_module(f"experiments.{options.experiment}").run(options)
    except StoppedError as stopped:
        raise Interrupted(f"{stopped}; the same command goes on from there", 128 + stopped.signal) from stopped
    settings = {name: value for name, value in vars(options).items() if name not in _NO_SETTINGS}
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
    header, *rows = record["table"]
    emit(
        tabulate(
            rows, header, tablefmt="plain", disable_numparse=True, colalign=["left", *["right"] * (len(header) - 1)]
        )
    )


if __name__ == "__main__":
    sys.exit(main())
