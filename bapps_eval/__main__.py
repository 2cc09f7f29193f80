"""``python -m bapps_eval``: score metrics by how well they agree with people."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afv_metric.bundles.bundle import BundleError
from afv_metric.bundles.resolve import HubError
from afv_metric.distributed import init_distributed, rank_and_world_size
from afv_metric.runtime import parse_device, read_versions
from bapps_eval.data import TASKS, JudgedSet, default_root, distinguish, read_pairs, read_root
from bapps_eval.download import URL, download
from bapps_eval.formats import format_text, write_csv, write_json, write_markdown
from bapps_eval.html import GALLERY, write_html
from bapps_eval.metrics import NAMES, Choice, check_names, make_metrics
from bapps_eval.report import make_report
from bapps_eval.results import Results, load_results, plan_results
from bapps_eval.run import evaluate, records

_OUTPUTS = {"csv": write_csv, "json": write_json, "markdown": write_markdown}
_MOST_ERRORS = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: What follows ``python -m bapps_eval``; from the command line if None.

    Returns:
        Exit status: 0; 1 if some items failed, 2 after an error of usage or input, 130 if it was interrupted.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    make_parser, run = (_make_report_parser, _report) if given[:1] == ["report"] else (_make_parser, _evaluate)
    options = make_parser().parse_args(given[1:] if run is _report else given)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        return run(options)
    except (BundleError, HubError, ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(str(error) or _on_interrupt(options), file=sys.stderr)
        return 130


def _report(options: argparse.Namespace) -> int:
    """Make the outputs again from a file of results."""
    _check_outputs(options)
    return _write_outputs(load_results(options.file), options)


def _evaluate(options: argparse.Namespace) -> int:
    """Measure, and make the outputs."""
    if options.resume and not options.results:
        raise ValueError("--resume goes on from a file of results: give it with --results FILE")
    _check_outputs(options)
    check_names(options.metric)
    sets = _read_sets(options)
    with init_distributed(options.device) as device:
        metrics = make_metrics(options.metric, Choice(options.weights, str(device)))
        results = evaluate(
            metrics,
            plan_results(sets, records(metrics), _settings(options), read_versions()),
            batch_size=options.batch_size,
            device=str(device),
            workers=options.workers,
            file=options.results,
            resume=options.resume,
            quiet=options.quiet,
        )
        return _write_outputs(results, options) if rank_and_world_size()[0] == 0 else 0


def _check_outputs(options: argparse.Namespace) -> None:
    """See that the outputs can be written, before the work."""
    for name in (*_OUTPUTS, "html", "results"):
        path: Path | None = getattr(options, name, None)
        if path is None:
            continue
        place = next(parent for parent in path.absolute().parents if parent.exists())
        if path.is_dir() or not place.is_dir() or not os.access(path if path.exists() else place, os.W_OK):
            raise OSError(f"--{name} cannot be written to {path}: {place} is no folder to write to, or {path} no file")


def _read_sets(options: argparse.Namespace) -> list[JudgedSet]:
    """The sets that were asked for."""
    roots = options.root
    if options.download:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("--download is for one process: do it first, without torchrun")
        roots = roots or [default_root()]
        try:
            download(roots[0], split=options.split, tasks=options.task, url=options.url, quiet=options.quiet)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt("interrupted; the same command goes on with the download") from error
    elif not roots and not options.pairs:
        roots = [default_root()]
        if not roots[0].exists():
            raise ValueError(
                f"There is no BAPPS at {roots[0]}: run this again with --download to fetch it,\n"
                "or with --root DIR (or the environment variable BAPPS_ROOT) if you have it, or sets laid out so,\n"
                "or with --pairs FILE.csv for judged pairs of your own: reference,distorted,distance[,group] on a line."
            )
    options.root = roots  # what was used, for the record
    sets = [
        judged
        for root in roots
        for judged in read_root(root, options.split, tasks=options.task, families=options.families)
    ]
    sets = distinguish([*sets, *map(read_pairs, options.pairs)])
    return [judged.limited(options.limit) for judged in sets] if options.limit else sets


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """Whatever decides the numbers."""
    paths = {key: [str(path.absolute()) for path in getattr(options, key)] for key in ("root", "pairs")}
    keys = ("split", "task", "families", "limit", "metric", "weights", "batch_size")
    return paths | {key: getattr(options, key) for key in keys} | {"device": str(options.device)}


def _write_outputs(results: Results, options: argparse.Namespace) -> int:
    """Write the files that were asked for, print the tables and what failed; returns the exit status."""
    errors = [
        f"error: {judged.name}: {error}"
        for judged, failed in zip(results.sets, results.failures, strict=True)
        for error in failed.values()
    ]
    for line in errors[:_MOST_ERRORS]:
        print(line, file=sys.stderr)
    if len(errors) > _MOST_ERRORS:
        print(f"error: and {len(errors) - _MOST_ERRORS:,} more items", file=sys.stderr)
    report = make_report(results)
    for name, write in _OUTPUTS.items():
        if path := getattr(options, name):
            write(path, report)
    if options.html:
        write_html(options.html, report, options.gallery)
    # A terminal that lacks a character still gets its table.
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(format_text(report).encode(encoding, "replace").decode(encoding), flush=True)
    except BrokenPipeError:  # the reader left; the interpreter would complain once more when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1 if errors else 0


def _on_interrupt(options: argparse.Namespace) -> str:
    """What is left of an interrupted run, and how to go on."""
    file = getattr(options, "results", None)
    if file is None:
        return "interrupted; with --results FILE what is measured is kept, and --resume goes on from there"
    return f"interrupted; what was measured is in {file}: the same command with --resume goes on from there"


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bapps_eval",
        description="Score perceptual metrics by how well they agree with people.",
        epilog="Scores are fractions: 2AFC and JND in [0, 1], rank correlations in [-1, 1]. "
        "'python -m bapps_eval report RESULTS' makes the outputs again from a file of results. "
        "'torchrun --nproc-per-node N -m bapps_eval ... --device cuda' takes N GPUs. "
        "Exit status: 0 all good, 1 some items failed, 2 error of usage or input, 130 interrupted.",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--root",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders in the layout of BAPPS (default, without --pairs: $BAPPS_ROOT, or the cache)",
    )
    data.add_argument(
        "--pairs",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE.csv",
        help="lists reference,distorted,distance[,group] of judged pairs, paths relative to the list",
    )
    data.add_argument("--split", choices=["val", "train"], default="val", help="which part of BAPPS (default: val)")
    data.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS), help="which tasks of it (default: both)")
    data.add_argument("--families", nargs="+", default=[], metavar="NAME", help="which families of it (default: all)")
    data.add_argument("--limit", type=_parse_count, metavar="N", help="only N items of each set, evenly spread")
    data.add_argument("--download", action="store_true", help="first fetch what is not there of BAPPS to --root")
    data.add_argument("--url", default=URL, help=f"where from (default: {URL})")
    metrics = parser.add_argument_group("metrics")
    metrics.add_argument(
        "--metric",
        nargs="+",
        default=["afv"],
        metavar="NAME",
        help=f"what to score; differences are to the first: {', '.join(NAMES)} (default: afv)",
    )
    metrics.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="BUNDLE",
        help="bundles of afv, afv-random and d-pool: names, folders, hub ids",
    )
    metrics.add_argument(
        "--device", type=parse_device, default="cpu", help="cpu (default), cuda, mps, ..., or auto: the best there is"
    )
    metrics.add_argument("--batch-size", type=_parse_count, default=64, metavar="N", help="items at a time (64)")
    metrics.add_argument("--workers", type=_parse_number, metavar="N", help="processes that decode images")
    outputs = parser.add_argument_group("outputs, beside the table")
    outputs.add_argument(
        "--results",
        type=Path,
        metavar="FILE.jsonl",
        help="write raw distances there as they come; a file that is there is replaced, unless --resume",
    )
    outputs.add_argument("--resume", action="store_true", help="keep what is in --results, and measure the rest")
    _add_outputs(outputs)
    outputs.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _make_report_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bapps_eval report",
        description="Make table, CSV, JSON, Markdown and HTML from a file of results; nothing is measured.",
    )
    parser.add_argument("file", type=Path, metavar="RESULTS", help="what --results wrote")
    _add_outputs(parser.add_argument_group("outputs, beside the table"))
    return parser


def _add_outputs(outputs: argparse._ArgumentGroup) -> None:
    outputs.add_argument("--csv", type=Path, metavar="FILE", help="a line for each metric and set, with all digits")
    outputs.add_argument("--json", type=Path, metavar="FILE", help="everything: scores, settings, versions, hashes")
    outputs.add_argument("--markdown", type=Path, metavar="FILE", help="the table for a README")
    outputs.add_argument("--html", type=Path, metavar="FILE", help="a page with plots and a gallery, without requests")
    outputs.add_argument(
        "--gallery",
        type=_parse_number,
        default=GALLERY,
        metavar="N",
        help=f"items in the gallery of the page for each metric and set ({GALLERY})",
    )


def _parse_count(text: str, least: int = 1) -> int:
    count = int(text)
    if count < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, got {count}")
    return count


def _parse_number(text: str) -> int:
    return _parse_count(text, least=0)


if __name__ == "__main__":
    sys.exit(main())
