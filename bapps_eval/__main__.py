"""``python -m bapps_eval``: score metrics by how well they agree with people."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import distributed
from tqdm import tqdm

from afv_metric.bundles.bundle import BundleError
from afv_metric.bundles.resolve import HubError
from afv_metric.runtime import parse_device, read_versions
from afv_metric.train.distributed import joined, process
from bapps_eval.data import TASKS, JudgedSet, default_root, distinguish, read_pairs, read_root
from bapps_eval.download import URL, download
from bapps_eval.html import GALLERY, write_html
from bapps_eval.metrics import NAMES, Choice, Metric, make_metrics
from bapps_eval.report import format_text, make_report, write_csv, write_json, write_markdown
from bapps_eval.results import MetricRecord, Results, load_results, measured_before, save_results
from bapps_eval.run import FloatArray, Times, measure

_OUTPUTS = {"csv": write_csv, "json": write_json, "markdown": write_markdown}


class _UsageError(ValueError):
    """The command cannot be meant as it was given."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: What follows ``python -m bapps_eval``; from the command line if None.

    Returns:
        Exit status: 0; 1 after an error and 2 after one of usage, which is on stderr; 130 if it was interrupted.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    make_parser, run = (_make_report_parser, _report) if given[:1] == ["report"] else (_make_parser, _evaluate)
    options = make_parser().parse_args(given[1:] if run is _report else given)
    try:
        run(options)
    except _UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except (BundleError, HubError, ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(str(error) or _on_interrupt(options), file=sys.stderr)
        return 130
    return 0


def _report(options: argparse.Namespace) -> None:
    """Make the outputs again from a file of results."""
    _write_outputs(load_results(options.file), options)


def _evaluate(options: argparse.Namespace) -> None:
    """Measure, and make the outputs."""
    if options.resume and not options.results:
        raise _UsageError("error: --resume goes on from a file of results: give it with --results FILE.npz")
    sets = _read_sets(options)
    with joined(options.device) as device:
        metrics = _make_metrics(options, str(device))
        planned = Results(sets, _describe(metrics), [], _settings(options), read_versions())
        results = _measure(planned, metrics, options, str(device))
        first = process()[0] == 0
    if first:
        _write_outputs(results, options)


def _read_sets(options: argparse.Namespace) -> list[JudgedSet]:
    """The sets that were asked for.

    Raises:
        _UsageError: If there is nothing to score on.
    """
    roots = options.root
    if options.download:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise _UsageError("error: --download is for one process: do it first, without torchrun")
        roots = roots or [default_root()]
        try:
            download(roots[0], split=options.split, tasks=options.task, url=options.url, quiet=options.quiet)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt("interrupted; the same command goes on with the download") from error
    elif not roots and not options.pairs:
        roots = [default_root()]
        if not roots[0].exists():
            raise _UsageError(
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


def _make_metrics(options: argparse.Namespace, device: str) -> list[Metric]:
    try:
        return make_metrics(options.metric, Choice(options.weights, device))
    except ValueError as error:
        raise _UsageError(f"error: {error}") from error


def _describe(metrics: Sequence[Metric]) -> list[MetricRecord]:
    return [MetricRecord(metric.name, metric.bundle, metric.bundle_hash, metric.form) for metric in metrics]


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """What decides the numbers."""
    paths = {key: [str(path.absolute()) for path in getattr(options, key)] for key in ("root", "pairs")}
    keys = ("split", "task", "families", "limit", "metric", "weights", "batch_size")
    return paths | {key: getattr(options, key) for key in keys} | {"device": str(options.device)}


def _measure(planned: Results, metrics: Sequence[Metric], options: argparse.Namespace, device: str) -> Results:
    """Measure what is not there yet; after each set all that is there is saved."""
    rank, processes = process()
    done: dict[str, list[FloatArray]] = {}
    if options.resume and rank == 0 and options.results.exists():
        done = measured_before(load_results(options.results), planned)
    skipped = [list(done)]
    if processes > 1:
        distributed.broadcast_object_list(skipped)
    left = [judged for judged in planned.sets if judged.name not in skipped[0]]

    def finish(index: int, distances: list[FloatArray]) -> None:
        done[left[index].name] = distances
        if options.results and rank == 0:
            save_results(options.results, _collect(planned, done))

    # Every process has its share of the items, and the first one shows how far it is with its own.
    total = sum(-(-len(judged) // processes) for judged in left)
    times = Times()
    quiet = options.quiet or rank > 0
    with tqdm(total=total, disable=quiet, unit="item") as bar:
        measure(
            metrics,
            left,
            batch_size=options.batch_size,
            device=device,
            workers=options.workers,
            advance=bar.update,
            finished=finish,
            times=times,
        )
    if left and not quiet:
        seconds = times.waiting + times.computing
        share = f"{times.waiting / seconds:.0%} of the time waiting for images to be decoded"
        print(f"{sum(map(len, left)) / seconds:.0f} items a second, {share}", file=sys.stderr)
    return _collect(planned, done)


def _collect(planned: Results, done: dict[str, list[FloatArray]]) -> Results:
    """Results of the sets that are done."""
    sets = [judged for judged in planned.sets if judged.name in done]
    return Results(
        sets,
        planned.metrics,
        [[done[judged.name][metric] for judged in sets] for metric in range(len(planned.metrics))],
        planned.settings,
        planned.versions,
        [judged.name for judged in planned.sets if judged.name not in done],
    )


def _write_outputs(results: Results, options: argparse.Namespace) -> None:
    """Print the tables, and write the files that were asked for."""
    report = make_report(results)
    # A terminal that lacks a character still gets its table.
    encoding = sys.stdout.encoding or "utf-8"
    print(format_text(report).encode(encoding, "replace").decode(encoding), flush=True)
    for name, write in _OUTPUTS.items():
        if path := getattr(options, name):
            write(path, report)
    if options.html:
        write_html(options.html, report, options.gallery)


def _on_interrupt(options: argparse.Namespace) -> str:
    """What is left of an interrupted run, and how to go on."""
    file = getattr(options, "results", None)
    if file is None:
        return "interrupted; with --results FILE.npz finished sets are kept, and --resume goes on from there"
    if not file.exists():
        return f"interrupted before the first set was finished; nothing is in {file}"
    return f"interrupted; finished sets are in {file}: the same command with --resume goes on from there"


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bapps_eval",
        description="Score perceptual metrics by how well they agree with people.",
        epilog="Scores are fractions: 2AFC and JND in [0, 1], rank correlations in [-1, 1]. "
        "'python -m bapps_eval report RESULTS.npz' makes the outputs again from a file of results. "
        "'torchrun --nproc-per-node N -m bapps_eval ... --device cuda' takes N GPUs. "
        "Exit status: 0 all good, 1 error, 2 error of usage, 130 interrupted.",
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
        metavar="FILE.npz",
        help="write raw distances there after each set; a file that is there is replaced, unless --resume",
    )
    outputs.add_argument(
        "--resume", action="store_true", help="keep the sets that are finished in --results, skip them"
    )
    _add_outputs(outputs)
    outputs.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _make_report_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bapps_eval report",
        description="Make table, CSV, JSON, Markdown and HTML from a file of results; nothing is measured.",
    )
    parser.add_argument("file", type=Path, metavar="RESULTS.npz", help="what --results wrote")
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
