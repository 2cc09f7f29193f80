"""How agreement with people grows with training: checkpoints and bundles beside their random start and the peers.

    python -m experiments.agreement RUN|BUNDLE [...] --root DIR --pairs FILE.csv [FILE.csv ...]
        [--forms activation] [--by-level] [--peers l2 ssim ...] [--limit 500] [--checkpoints ITERATION ...]
        [--samples 3000] [--teraflops 10] [--picture FILE.png] [--json FILE] [--quiet]

The tuning sets are five: the triplets of material renders, super-resolution, recolouring, blur, and TID2013 (whole
images, rank correlation over all pairs), each as a folder or a CSV list as ``python -m bapps_eval`` takes them. Each
kept checkpoint becomes a bundle with the settings of ``python -m afv_metric.train export`` and is scored as
``python -m bapps_eval`` scores it. The table, Markdown, gives every set, their mean and how far that is above the same
network (of the last checkpoint or bundle) at its random initialisation in the same form, with 95 % bootstrap intervals
over the items; with ``--by-level`` also each level of the image pyramid alone. Peers whose package or weights are not
on this machine are left out.

For a run two extrapolations to the 800,000 iterations of the paper follow, which are arithmetic and no measurements:
the mean of the first form if every doubling of the iterations went on adding what it added in this run (a straight line
over the logarithm, by least squares; where its checkpoints span a doubling), and the time that they would take at the
speed of the run and on a GPU that sustains so many teraflops (``--teraflops``), from the products and sums counted in
one iteration.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from afv_metric import AFVDistance
from afv_metric.bundles.bundle import Bundle, load_bundle, training_stages
from afv_metric.bundles.twin import random_twin
from afv_metric.cli.outcome import emit, run
from afv_metric.cli.outputs import try_output
from afv_metric.files import atomic_write, save_figure
from afv_metric.fisher.forms import FORMS, FormName
from afv_metric.runtime import read_versions
from afv_metric.train.checkpoint import checkpoints, read_recipe
from afv_metric.train.export import export_run
from afv_metric.train.loop import iterate
from afv_metric.train.recipes import Recipe
from afv_metric.train.state import State
from bapps_eval.data import JudgedSet, distinguish, read_pairs, read_root
from bapps_eval.formats import finite, format_interval, format_number
from bapps_eval.metrics import Metric
from bapps_eval.run import evaluate
from bapps_eval.scores import Sample, score_set
from experiments import missing_matplotlib
from experiments.peers import PEERS, peers_at_hand

PUBLISHED_ITERATIONS = 800_000
CPU = torch.device("cpu")


class Row(NamedTuple):
    """One row of the table.

    Attributes:
        name: Name of the bundle, checkpoint or peer.
        form: Form of the distance; empty for peers.
        iterations: Iterations of training, with those of the bundles that it started from, at the bundle's own levels;
            None where there is none of that.
        hours: Hours of training, counted in the same way.
        scores: Score on each set.
        mean: Mean of the scores.
        interval: 95 % interval of the mean.
        difference: The mean less that of the random initialisation.
        difference_interval: 95 % interval of the difference.
    """

    name: str
    form: str
    iterations: int | None
    hours: float | None
    scores: list[float]
    mean: float
    interval: tuple[float, float]
    difference: float = 0.0
    difference_interval: tuple[float, float] = (0.0, 0.0)


def read_bundles(sources: Sequence[Path], chosen: Collection[int] | None, samples: int) -> Iterator[Bundle]:
    """The bundles of bundle folders, and of the checkpoints of runs, oldest first.

    Args:
        sources: Folders of runs and of bundles.
        chosen: Iterations of the checkpoints; all if None.
        samples: Number of generated samples for the statistics of each checkpoint.
    """
    for source in sources:
        if (source / "config.json").exists():
            yield load_bundle(source, generator=True)
        for iteration in checkpoints(source):
            if chosen is None or iteration in chosen:
                name = f"{source.name}-{iteration}"
                yield export_run(source, name, checkpoint=iteration, samples=samples, quiet=True)


def measure_all(
    bundles: Iterable[Bundle],
    sets: Sequence[JudgedSet],
    forms: Sequence[FormName],
    peers: Sequence[Metric],
    by_level: bool,
    quiet: bool,
) -> list[Row]:
    """Score bundles in some forms, the peers, and the random initialisation of the last bundle.

    Args:
        bundles: The bundles, with their generators.
        sets: The judged sets.
        forms: Forms of the distance.
        peers: Other metrics.
        by_level: Whether to score each level alone, too.
        quiet: Whether to show no progress.

    Raises:
        ValueError: If an item cannot be read or compared.
    """
    trained: list[tuple[str, int | None, float | None]] = []
    found: dict[str, list[list[NDArray[np.float64]]]] = {form: [] for form in forms}
    last: Bundle | None = None
    for last in tqdm(bundles, disable=quiet, unit="bundle"):
        stages = training_stages(last.training)
        iterations, hours = (sum(stage.get(key, 0) for stage in stages) or None for key in ("iterations", "hours"))
        trained.append((last.name, iterations, hours))
        variants = [last]
        for level in range(len(last.levels) if by_level else 0):
            trained.append((f"{last.name}, level {level} alone", None, None))
            variants.append(replace(last, levels=(*[0.0] * level, 1.0)))
        for form in forms:
            found[form].append(_distances([Metric("afv", AFVDistance(some, form=form)) for some in variants], sets))
    assert last is not None
    untrained = random_twin(last)
    others = _distances(peers, sets) if peers else None
    rows: list[Row] = []
    for form in forms:
        facts: list[tuple[str, str, int | None, float | None]]
        facts = [
            ("random initialisation", form, None, None),
            *((name, form, count, hours) for name, count, hours in trained),
        ]
        parts = [_distances([Metric("random", AFVDistance(untrained, form=form))], sets), *found[form]]
        if others and not rows:  # once is enough for what has no form
            facts += [(peer.name, "", None, None) for peer in peers]
            parts.append(others)
        samples = [
            score_set(judged, np.concatenate(of_set))
            for judged, of_set in zip(sets, zip(*parts, strict=True), strict=True)
        ]
        random, *measured = _rows(facts, samples)
        rows += [*measured, random]
    return rows


def _distances(metrics: Sequence[Metric], sets: Sequence[JudgedSet]) -> list[NDArray[np.float64]]:
    """For every set ``(metrics, N, 1 or 2)``."""
    results = evaluate(metrics, sets)
    for failed in results.failures:
        for error in failed.values():
            raise ValueError(error)
    return list(results.distances)


def _rows(facts: Sequence[tuple[str, str, int | None, float | None]], samples: Sequence[Sample]) -> list[Row]:
    mean = Sample.mean(samples)
    less = mean.differences
    return [
        Row(
            *fact,
            [float(sample.values[rank]) for sample in samples],
            float(mean.values[rank]),
            mean.intervals[rank],
            float(less.values[rank]),
            less.intervals[rank],
        )
        for rank, fact in enumerate(facts)
    ]


def format_table(rows: Sequence[Row], sets: Sequence[JudgedSet]) -> str:
    """The rows as a Markdown table."""
    lines = []
    for row in rows:
        difference = format_number(row.difference)
        sign = "" if difference.startswith("-") else "+"
        lines.append(
            [
                row.name,
                row.form,
                "" if row.hours is None else f"{row.hours:.2f}",
                *map(format_number, row.scores),
                f"{format_number(row.mean)} {format_interval(row.interval)}",
                f"{sign}{difference} {format_interval(row.difference_interval)}" if row.difference else "",
            ]
        )
    head = ["", "form", "hours", *(judged.name for judged in sets), f"mean of {len(sets)}", "above random"]
    return tabulate(lines, head, tablefmt="pipe", disable_numparse=True)


def growth(rows: Sequence[Row]) -> tuple[float, float]:
    """What a doubling of the iterations adds to the mean, and the mean at the published number if that went on.

    Raises:
        ValueError: If there are fewer than two checkpoints.
    """
    logarithms = [math.log2(row.iterations) for row in rows if row.iterations]
    if len(logarithms) < 2:
        raise ValueError("a line takes two checkpoints at least")
    line = np.polynomial.Polynomial.fit(logarithms, [row.mean for row in rows if row.iterations], 1)
    return float(line.deriv()(0)), float(line(math.log2(PUBLISHED_ITERATIONS)))


def count_operations(recipe: Recipe) -> int:
    """Products and sums in the convolutions and matrix products of one iteration."""
    state = State(recipe, CPU)
    side = 2 * recipe.image_size
    images = torch.zeros(recipe.batch_size, 3, side, side, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        iterate(state, recipe, images, CPU)
    return int(counter.get_total_flops())


def extrapolate(run: Path, rows: Sequence[Row], teraflops: float) -> Iterator[str]:
    """Lines on what the published number of iterations of a run would take, and bring, from its rows in one form."""
    rows = [row for row in rows if row.name.rpartition("-")[0] == run.name]
    trained = [(row.iterations, row.hours) for row in rows if row.iterations and row.hours is not None]
    (first, _), (iterations, hours) = trained[0], trained[-1]
    operations = count_operations(read_recipe(json.loads((run / "recipe.json").read_text())))
    exaflop = operations * PUBLISHED_ITERATIONS / 1e18
    here, there = hours / iterations * PUBLISHED_ITERATIONS, exaflop * 1e6 / teraflops / 3600
    yield f"{run.name}: {operations / 1e9:.1f} GFLOP per iteration; {PUBLISHED_ITERATIONS:,} take {exaflop:.3f} EFLOP,"
    yield f"{here:.0f} hours at the speed of this run, {there:.1f} GPU hours at {teraflops:g} TFLOP/s (assumed)"
    if iterations >= 2 * first:  # what less than a doubling added says nothing about one
        slope, end = growth(rows)
        yield f"{slope:+.4f} per doubling; {format_number(end)} at {PUBLISHED_ITERATIONS:,} iterations if that went on"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the mean of the first form over the hours of training."""
    from matplotlib.figure import Figure

    figure = Figure((6, 4), layout="constrained")
    axes = figure.subplots(subplot_kw={"xlabel": "hours of training", "ylabel": "mean agreement with people"})
    trained = [row for row in rows if row.hours is not None]
    hours = [row.hours or 0.0 for row in trained]
    low, high = zip(*(row.interval for row in trained), strict=True)
    axes.fill_between(hours, low, high, alpha=0.15, lw=0)
    axes.plot(hours, [row.mean for row in trained], marker="o", label="this run")
    for number, row in enumerate(row for row in rows if row.hours is None):
        axes.axhline(row.mean, color=f"C{number + 1}", ls="--", label=row.name)
    axes.legend()
    save_figure(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment."""
    parser = argparse.ArgumentParser(description="Agreement with people over the training of a run.")
    parser.add_argument("sources", type=Path, nargs="+", metavar="RUN|BUNDLE", help="folders of runs and of bundles")
    parser.add_argument("--root", type=Path, action="append", default=[], help="sets in the layout of BAPPS")
    parser.add_argument("--pairs", type=Path, nargs="+", default=[], help="CSV files of judged pairs")
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=["activation"], help="default: activation")
    parser.add_argument("--by-level", action="store_true", help="score each level alone, too")
    parser.add_argument("--peers", nargs="*", default=PEERS, metavar="NAME", help=f"default: {' '.join(PEERS)}")
    parser.add_argument("--limit", type=int, help="items of each set, evenly spread; all if not given")
    parser.add_argument("--checkpoints", type=int, nargs="+", help="iterations; all that are kept if not given")
    parser.add_argument("--samples", type=int, default=3_000, help="generated samples for the statistics (3000)")
    parser.add_argument("--teraflops", type=float, default=10, help="assumed sustained speed of a GPU (10)")
    parser.add_argument("--picture", type=Path, help="draw the curve of a run into this PNG")
    parser.add_argument("--json", type=Path, help="write the numbers")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for source in options.sources:
        kept = checkpoints(source)
        if not (source / "config.json").exists() and not (set(options.checkpoints or kept) & set(kept)):
            parser.error(f"{source} keeps the checkpoints {', '.join(map(str, kept)) or 'of no iteration'}")
    if not options.root and not options.pairs:
        parser.error("give sets with --root DIR, --pairs FILE.csv or both")
    if options.picture and (missing := missing_matplotlib()):
        parser.error(missing)
    try_output(options.picture, "--picture")
    try_output(options.json, "--json")
    read = [judged for root in options.root for judged in read_root(root)]
    sets = distinguish([*read, *map(read_pairs, options.pairs)])
    sets = [judged.limited(options.limit) for judged in sets] if options.limit else sets
    versions = read_versions()
    bundles = read_bundles(options.sources, options.checkpoints, options.samples)
    peers = peers_at_hand(options.peers)
    rows = measure_all(bundles, sets, options.forms, peers, options.by_level, options.quiet)
    first = [row for row in rows if row.form in ("", options.forms[0])]
    if options.picture:
        draw(first, options.picture)
    if options.json:
        names = [judged.name for judged in sets]
        content = {"versions": versions, "sets": names, "rows": [row._asdict() for row in rows]}
        with atomic_write(options.json) as temporary:
            temporary.write_text(json.dumps(finite(content), indent=1) + "\n", encoding="utf-8")
    emit(", ".join(f"{name} {version}" for name, version in versions.items()))
    emit(format_table(rows, sets))
    for folder in (source for source in options.sources if checkpoints(source)):
        emit("\n".join(extrapolate(folder, first, options.teraflops)))


if __name__ == "__main__":
    sys.exit(run(main))
