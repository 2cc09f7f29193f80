"""``python -m bapps_eval``: score metrics by how well they agree with people."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from afv_metric.bundle import BundleError
from afv_metric.hub import HubError
from bapps_eval.data import JudgedSet, distinguish, read_pairs, read_root
from bapps_eval.metrics import METRICS, Choice, make_metrics, measure
from bapps_eval.report import format_table, write_csv, write_json
from bapps_eval.scores import summarise


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: What follows ``python -m bapps_eval``; from the command line if None.

    Returns:
        Exit status: 0, or 1 after an error, which is on stderr.
    """
    parser = _make_parser()
    options = parser.parse_args(arguments)
    if not options.root and not options.pairs:
        parser.error("nothing to score on: give --root or --pairs, or set BAPPS_ROOT")
    try:
        _run(options)
    except (BundleError, HubError, ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    sets: list[JudgedSet] = [judged for root in options.root for judged in read_root(root, options.split)]
    sets = distinguish([*sets, *map(read_pairs, options.pairs)])
    if options.limit:
        sets = [judged.limited(options.limit) for judged in sets]
    metrics = make_metrics(options.metric, Choice(options.weights, options.forms, options.device))
    with tqdm(total=sum(map(len, sets)), disable=options.quiet, unit="item") as bar:
        by_set = [
            measure(metrics, judged, batch_size=options.batch_size, device=options.device, advance=bar.update)
            for judged in sets
        ]
    summaries = summarise(sets, list(zip(*by_set, strict=True)))
    print(format_table(sets, metrics, summaries))
    if options.csv:
        write_csv(options.csv, sets, metrics, summaries)
    if options.json:
        write_json(options.json, sets, metrics, summaries, vars(options))


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bapps_eval",
        description="Score perceptual metrics by how well they agree with people.",
        epilog="Scores are fractions: 2AFC and JND mAP in [0, 1], rank correlations (SROCC) in [-1, 1].",
    )
    root = os.environ.get("BAPPS_ROOT")
    parser.add_argument(
        "--root",
        type=Path,
        nargs="*",
        default=[Path(root)] if root else [],
        metavar="DIR",
        help="folders in the layout of BAPPS; the environment variable BAPPS_ROOT if not given",
    )
    parser.add_argument("--split", choices=["val", "train"], default="val", help="which part of them (default: val)")
    parser.add_argument(
        "--pairs",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE.csv",
        help="lists reference,distorted,distance[,group] of judged pairs, paths relative to the list",
    )
    parser.add_argument(
        "--metric",
        nargs="+",
        choices=list(METRICS),
        default=["afv"],
        metavar="NAME",
        help=f"what to score; differences are to the first: {', '.join(METRICS)} (default: afv)",
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="BUNDLE",
        help="bundles of afv and afv-random: names, folders, hub ids",
    )
    parser.add_argument(
        "--forms",
        nargs="+",
        choices=["fisher", "local", "activation"],
        default=[],
        metavar="FORM",
        help="forms of afv and afv-random: fisher, local, activation (default: the bundle's)",
    )
    parser.add_argument("--device", type=_parse_device, default="cpu", help="cpu, cuda, cuda:1, mps, ...")
    parser.add_argument(
        "--batch-size", type=_parse_count, default=32, metavar="N", help="items at a time (default: 32)"
    )
    parser.add_argument("--limit", type=_parse_count, metavar="N", help="only N items of each set, evenly spread")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table there, with all digits")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _parse_device(text: str) -> str:
    try:
        return str(torch.device(text))
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(str(error).splitlines()[0]) from error


def _parse_count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {count}")
    return count


if __name__ == "__main__":
    sys.exit(main())
