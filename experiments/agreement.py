"""How agreement with people grows with training: checkpoints and bundles beside their random start, L2 and SSIM.

    python experiments/agreement.py RUN [RUN | BUNDLE ...] --root DIR --pairs FILE.csv [FILE.csv ...]
        [--forms activation] [--by-level] [--limit 500] [--checkpoints ITERATION ...] [--samples 3000]
        [--teraflops 10] [--picture FILE.png] [--json FILE] [--quiet]

Each kept checkpoint becomes a bundle with the settings of ``python -m afv_metric.train export`` and is scored as
``python -m bapps_eval`` scores it. The table, Markdown, gives every set, their mean and how far that is above the same
network (of the last checkpoint or bundle) at its random initialisation in the same form, with 95 % bootstrap intervals
over the items; with ``--by-level`` also each level of the image pyramid alone.

For a run two extrapolations to the 800,000 iterations of the paper follow, which are arithmetic and no measurements:
what the mean of the first form would be if every doubling of the iterations went on adding what it added in this run (a
straight line over the logarithm, by least squares; where its checkpoints span a doubling), and how long they would take
at the speed of the run and on a GPU that sustains so many teraflops (``--teraflops``), from the products and sums
counted in one iteration.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from afv_metric.bundles.bundle import Bundle, load_bundle, save_bundle
from afv_metric.files import atomic_write, save_figure
from afv_metric.fisher.forms import FORMS
from afv_metric.runtime import read_versions
from afv_metric.train.checkpoint import checkpoints
from afv_metric.train.export import export_run, read_recipe, training_stages
from afv_metric.train.loop import iterate
from afv_metric.train.recipes import Recipe
from afv_metric.train.state import State
from bapps_eval.data import JudgedSet, distinguish, read_pairs, read_root
from bapps_eval.metrics import Choice, make_metrics
from bapps_eval.report import format_interval, format_number
from bapps_eval.run import measure
from bapps_eval.scores import Summary, summarise

PUBLISHED_ITERATIONS = 800_000
Distances = list[NDArray[np.float64]]
CPU = torch.device("cpu")


class Row(NamedTuple):
    """One row of the table.

    Attributes:
        name: What was measured.
        form: Form of the distance; empty for L2 and SSIM.
        iterations: Iterations of training, with those of the bundles that it started from, at the bundle's own levels;
            None where there is none of that.
        hours: Hours of training, likewise.
        summary: Scores on the sets; differences are to the random initialisation.
    """

    name: str
    form: str
    iterations: int | None
    hours: float | None
    summary: Summary


def read_bundles(sources: Sequence[Path], chosen: Collection[int] | None, samples: int) -> Iterator[Bundle]:
    """The bundles of bundle folders, and of the checkpoints of runs, oldest first.

    Args:
        sources: Folders of runs and of bundles.
        chosen: Iterations of the checkpoints; all if None.
        samples: Generated samples for the statistics of each checkpoint.
    """
    for source in sources:
        if (source / "config.json").exists():
            yield load_bundle(source, generator=True)
        for iteration in checkpoints(source):
            if chosen is None or iteration in chosen:
                yield export_run(
                    source, f"{source.name}-{iteration}", checkpoint=iteration, samples=samples, quiet=True
                )


def measure_all(
    bundles: Iterable[Bundle], sets: Sequence[JudgedSet], forms: Sequence[str], by_level: bool, quiet: bool
) -> list[Row]:
    """Score bundles in some forms, then the random initialisation of the last, L2 and SSIM.

    Args:
        bundles: The bundles, with their generators.
        sets: What people judged.
        forms: Forms of the distance.
        by_level: Whether to score each level alone, too.
        quiet: Show no progress.
    """
    known: list[tuple[str, int | None, float | None]] = []
    distances: dict[str, list[Distances]] = {form: [] for form in forms}
    with tempfile.TemporaryDirectory() as folder:
        for number, bundle in enumerate(tqdm(bundles, disable=quiet, unit="bundle")):
            stages = training_stages(bundle.training)
            iterations, hours = (sum(stage.get(key, 0) for stage in stages) or None for key in ("iterations", "hours"))
            known.append((bundle.name, iterations, hours))
            variants = [bundle]
            for level in range(len(bundle.levels) if by_level else 0):
                known.append((f"{bundle.name}, level {level} alone", None, None))
                variants.append(replace(bundle, levels=(*[0.0] * level, 1.0)))
            places = [str(save_bundle(some, Path(folder) / f"{number}-{k}")) for k, some in enumerate(variants)]
            found = iter(measure(make_metrics([f"afv:{form}" for form in forms], Choice(places)), sets))
            for form in forms:
                distances[form] += islice(found, len(places))
        names = [*(f"afv-random:{form}" for form in forms), "l2", "ssim"]
        *random, l2, ssim = measure(make_metrics(names, Choice(places[:1])), sets)
    rows: list[Row] = []
    for form, of_random in zip(forms, random, strict=True):
        facts: list[tuple[str, str, int | None, float | None]]
        facts = [(name, form, iterations, hours) for name, iterations, hours in known]
        measured = distances[form]
        if not rows:  # once is enough for what has no form
            facts += [("L2", "", None, None), ("SSIM", "", None, None)]
            measured = [*measured, l2, ssim]
        random_summary, *summaries = summarise(sets, [of_random, *measured])
        rows += [Row(*fact, summary) for fact, summary in zip(facts, summaries, strict=True)]
        rows.append(Row("random initialisation", form, None, None, random_summary))
    return rows


def format_table(rows: Sequence[Row], sets: Sequence[JudgedSet]) -> str:
    """The rows as a Markdown table."""
    lines = [["", "form", "hours", *(judged.name for judged in sets), "mean", "above random"]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        summary = row.summary
        difference = f"{summary.difference:+.3f}".replace("0.", ".", 1)
        lines.append(
            [
                row.name,
                row.form,
                "" if row.hours is None else f"{row.hours:.2f}",
                *map(format_number, summary.scores),
                f"{format_number(summary.mean)} {format_interval(summary.interval)}",
                f"{difference} {format_interval(summary.difference_interval)}" if summary.difference else "",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def growth(rows: Sequence[Row]) -> tuple[float, float]:
    """What a doubling of the iterations adds to the mean, and the mean at the published number if that went on.

    Raises:
        ValueError: If there are fewer than two checkpoints.
    """
    logarithms = [math.log2(row.iterations) for row in rows if row.iterations]
    if len(logarithms) < 2:
        raise ValueError("a line takes two checkpoints at least")
    means = [row.summary.mean for row in rows if row.iterations]
    line = np.polynomial.Polynomial.fit(logarithms, means, 1)
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
    trained = [row for row in rows if row.iterations and row.hours is not None]
    first, last = trained[0], trained[-1]
    assert first.iterations
    assert last.iterations
    assert last.hours is not None
    operations = count_operations(read_recipe(json.loads((run / "recipe.json").read_text())))
    exaflop = operations * PUBLISHED_ITERATIONS / 1e18
    here, there = last.hours / last.iterations * PUBLISHED_ITERATIONS, exaflop * 1e6 / teraflops / 3600
    yield f"{run.name}: {operations / 1e9:.1f} GFLOP an iteration; {PUBLISHED_ITERATIONS:,} take {exaflop:.3f} EFLOP,"
    yield f"{here:.0f} hours at the speed of this run, {there:.1f} GPU hours at {teraflops:g} TFLOP/s (assumed)"
    if last.iterations >= 2 * first.iterations:  # what less than a doubling added says nothing about one
        slope, end = growth(rows)
        yield f"{slope:+.4f} a doubling; {format_number(end)} at {PUBLISHED_ITERATIONS:,} iterations if that went on"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the mean of the first form over the hours of training."""
    from matplotlib.figure import Figure

    figure = Figure((6, 4), layout="constrained")
    axes = figure.subplots(subplot_kw={"xlabel": "hours of training", "ylabel": "mean agreement with people"})
    trained = [(row.hours, row.summary) for row in rows if row.hours is not None]
    hours = [hours for hours, _ in trained]
    low, high = zip(*(summary.interval for _, summary in trained), strict=True)
    axes.fill_between(hours, low, high, alpha=0.15, lw=0)
    axes.plot(hours, [summary.mean for _, summary in trained], marker="o", label="this run")
    for number, row in enumerate(row for row in rows if row.hours is None):
        axes.axhline(row.summary.mean, color=f"C{number + 1}", ls="--", label=row.name)
    axes.legend()
    save_figure(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Agreement with people over the training of a run.")
    parser.add_argument("sources", type=Path, nargs="+", metavar="RUN|BUNDLE", help="folders of runs and of bundles")
    parser.add_argument("--root", type=Path, action="append", default=[], help="sets in the layout of BAPPS")
    parser.add_argument("--pairs", type=Path, nargs="+", default=[], help="CSV files of judged pairs")
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=["activation"], help="default: activation")
    parser.add_argument("--by-level", action="store_true", help="score each level alone, too")
    parser.add_argument("--limit", type=int, help="items of each set, evenly spread; all if not given")
    parser.add_argument("--checkpoints", type=int, nargs="+", help="iterations; all that are kept if not given")
    parser.add_argument("--samples", type=int, default=3_000, help="generated samples for the statistics (3000)")
    parser.add_argument("--teraflops", type=float, default=10, help="what a GPU is assumed to sustain (10)")
    parser.add_argument("--picture", type=Path, help="draw the curve of a run into this PNG")
    parser.add_argument("--json", type=Path, help="write the numbers")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    options = parser.parse_args(arguments)
    for source in options.sources:
        kept = checkpoints(source)
        if not (source / "config.json").exists() and not (set(options.checkpoints or kept) & set(kept)):
            parser.error(f"{source} keeps the checkpoints {', '.join(map(str, kept)) or 'of no iteration'}")
    if not options.root and not options.pairs:
        parser.error("give sets with --root DIR, --pairs FILE.csv or both")
    if options.picture and importlib.util.find_spec("matplotlib") is None:
        parser.error('--picture is drawn by matplotlib: pip install "afv-metric[plots]"')

    found = [judged for root in options.root for judged in read_root(root)]
    sets = distinguish([*found, *map(read_pairs, options.pairs)])
    sets = [judged.limited(options.limit) for judged in sets] if options.limit else sets
    versions = read_versions()
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    bundles = read_bundles(options.sources, options.checkpoints, options.samples)
    rows = measure_all(bundles, sets, options.forms, options.by_level, options.quiet)
    print(format_table(rows, sets))
    first = [row for row in rows if row.form in ("", options.forms[0])]
    for run in (source for source in options.sources if checkpoints(source)):
        print("\n".join(extrapolate(run, first, options.teraflops)))
    if options.picture:
        draw(first, options.picture)
    if options.json:
        content: dict[str, Any] = {"versions": versions, "sets": [judged.name for judged in sets]}
        content["rows"] = [{**row._asdict(), "summary": vars(row.summary)} for row in rows]
        with atomic_write(options.json) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
