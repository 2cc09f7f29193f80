"""``afv-metric eval`` and ``eval-report``: the command lines of ``python -m bapps_eval``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from afv_metric.cli.options import add, count
from afv_metric.cli.outcome import DONE, SOME_FAILED, emit, if_interrupted, say
from afv_metric.cli.outputs import try_outputs

if TYPE_CHECKING:
    from bapps_eval.data import JudgedSet
    from bapps_eval.results import Results

__all__ = ["add_eval", "add_eval_report"]

_OUTPUTS = ("csv", "json", "markdown", "html")
# Whatever decides the numbers.
_SETTINGS = ("root", "pairs", "split", "task", "families", "limit", "metric", "weights", "batch_size", "device")
_MOST_ERRORS = 10


def add_eval(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``eval``."""
    command.epilog = (
        "Scores are fractions: 2AFC and JND in [0, 1], rank correlations in [-1, 1]. "
        "'afv-metric eval-report RESULTS' makes the outputs again from a file of results. "
        "'torchrun --nproc-per-node N -m bapps_eval ... --device cuda' takes N GPUs."
    )
    data = command.add_argument_group("data")
    data.add_argument(
        "--root", type=Path, nargs="+", default=[], metavar="DIR",
        help="folders in the layout of BAPPS (default, without --pairs: $BAPPS_ROOT, or the cache)",
    )  # fmt: skip
    data.add_argument(
        "--pairs", type=Path, nargs="+", default=[], metavar="FILE.csv",
        help="lists reference,distorted,distance[,group] of judged pairs, paths relative to the list",
    )  # fmt: skip
    data.add_argument("--split", choices=("val", "train"), default="val", help="which part of BAPPS (default: val)")
    data.add_argument(
        "--task", nargs="+", choices=("2afc", "jnd"), default=["2afc", "jnd"], help="which tasks of it (default: both)"
    )
    data.add_argument("--families", nargs="+", default=[], metavar="NAME", help="which families of it (default: all)")
    data.add_argument("--limit", type=count(), metavar="N", help="only N items of each set, evenly spread")
    data.add_argument("--download", action="store_true", help="first fetch what is not there of BAPPS to --root")
    data.add_argument("--url", help="where from (default: the authors' server)")
    metrics = command.add_argument_group("metrics")
    metrics.add_argument(
        "--metric", nargs="+", default=["afv"], metavar="NAME",
        help="what to score; differences are to the first: afv (default), afv:FORM, afv-random, d-pool, l2, psnr, "
        "ssim, ms-ssim, lpips-alex, lpips-vgg, dists, piq:NAME, torchmetrics:NAME, MODULE:CALLABLE, ...",
    )  # fmt: skip
    metrics.add_argument(
        "--weights", nargs="+", default=[], metavar="BUNDLE",
        help="bundles of afv, afv-random and d-pool: names, folders, hub ids",
    )  # fmt: skip
    add(command, "device")
    add(command, "batch-size", default=64)
    command.add_argument("--workers", type=count(0), metavar="N", help="processes that decode images")
    outputs = command.add_argument_group("outputs, beside the table")
    outputs.add_argument(
        "--results", type=Path, metavar="FILE.jsonl",
        help="write raw distances there as they come; a file that is there is replaced, unless --resume",
    )  # fmt: skip
    outputs.add_argument("--resume", action="store_true", help="keep what is in --results, and measure the rest")
    _add_outputs(outputs)
    add(command, "quiet")
    command.set_defaults(command=_evaluate)


def add_eval_report(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``eval-report``."""
    command.add_argument("file", type=Path, metavar="RESULTS", help="what --results of eval wrote")
    _add_outputs(command.add_argument_group("outputs, beside the table"))
    command.set_defaults(command=_report)


def _add_outputs(outputs: argparse._ArgumentGroup) -> None:
    outputs.add_argument("--csv", type=Path, metavar="FILE", help="a line per metric and set, with all digits")
    outputs.add_argument("--json", type=Path, metavar="FILE", help="everything: scores, settings, versions, hashes")
    outputs.add_argument("--markdown", type=Path, metavar="FILE", help="the table for a README")
    outputs.add_argument("--html", type=Path, metavar="FILE", help="a page with plots and a gallery, without requests")
    outputs.add_argument(
        "--gallery", type=count(0), default=12, metavar="N",
        help="items in the gallery of the page per metric and set (%(default)s)",
    )  # fmt: skip


def _report(options: argparse.Namespace) -> int:
    from bapps_eval.results import load_results

    try_outputs(options, *_OUTPUTS, others=[options.file])
    return _write_outputs(load_results(options.file), options)


def _evaluate(options: argparse.Namespace) -> int:
    """Measure, and make the outputs."""
    from afv_metric.distributed import init_distributed, rank_and_world_size
    from afv_metric.runtime import find_device
    from bapps_eval.metrics import Choice, check_names, make_metrics
    from bapps_eval.run import evaluate

    if options.resume and not options.results:
        raise ValueError("--resume goes on from a file of results: give it with --results FILE")
    try_outputs(options, *_OUTPUTS, "results", others=options.pairs)
    check_names(options.metric)
    options.device = str(find_device(options.device))
    sets = _read_sets(options)
    settings = {name: getattr(options, name) for name in _SETTINGS}
    settings |= {name: [str(path.absolute()) for path in settings[name]] for name in ("root", "pairs")}
    kept = "with --results FILE what is measured is kept, and --resume goes on from there"
    if options.results:
        kept = f"what was measured is in {options.results}: the same command with --resume goes on from there"
    with if_interrupted(lambda: f"interrupted; {kept}"), init_distributed(options.device) as device:
        metrics = make_metrics(options.metric, Choice(options.weights, str(device)))
        results = evaluate(
            metrics,
            sets,
            settings=settings,
            batch_size=options.batch_size,
            device=str(device),
            workers=options.workers,
            file=options.results,
            resume=options.resume,
            quiet=options.quiet,
        )
        return _write_outputs(results, options) if rank_and_world_size()[0] == 0 else DONE


def _read_sets(options: argparse.Namespace) -> list[JudgedSet]:
    """The sets that were asked for."""
    from bapps_eval.data import default_root, distinguish, read_pairs, read_root
    from bapps_eval.download import URL, download

    roots = options.root
    if options.download:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("--download is for one process: do it first, without torchrun")
        roots = roots or [default_root()]
        with if_interrupted(lambda: "interrupted; the same command goes on with the download"):
            download(roots[0], split=options.split, tasks=options.task, url=options.url or URL, quiet=options.quiet)
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


def _write_outputs(results: Results, options: argparse.Namespace) -> int:
    """Write the files that were asked for, print the tables and what failed; returns the exit status."""
    from afv_metric.files import atomic_write
    from bapps_eval import formats
    from bapps_eval.html import write_html
    from bapps_eval.report import make_report

    failures = zip(results.sets, results.failures, strict=True)
    errors = [f"error: {judged.name}: {error}" for judged, failed in failures for error in failed.values()]
    for line in errors[:_MOST_ERRORS]:
        say(line)
    if len(errors) > _MOST_ERRORS:
        say(f"error: and {len(errors) - _MOST_ERRORS:,} more items")
    if errors and not results.scored().sets:
        say("error: not one set could be scored")
        return SOME_FAILED
    report = make_report(results)
    for name in ("csv", "json", "markdown"):
        if path := getattr(options, name):
            with atomic_write(path) as temporary:
                temporary.write_bytes(getattr(formats, f"format_{name}")(report).encode())
    if options.html:
        write_html(options.html, report, options.gallery)
    emit(formats.format_text(report))
    return SOME_FAILED if errors else DONE
