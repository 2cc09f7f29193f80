"""How agreement with people grows with training: the kept checkpoints of a run, its random start, L2 and SSIM.

    python benchmarks/agreement.py RUN --root DIR --pairs FILE.csv [FILE.csv ...] [--form activation] [--limit 500]
        [--checkpoints ITERATION ...] [--samples 3000] [--teraflops 10] [--picture FILE.png] [--json FILE] [--quiet]

Each checkpoint becomes a bundle with the settings of ``python -m afv_metric.train export`` and is scored as
``python -m bapps_eval`` scores it. The table, Markdown, gives every set, their mean and how far that is above the same
network at its random initialisation, with 95 % bootstrap intervals over the items.

Two extrapolations to the 800,000 iterations of the paper follow, which are arithmetic and no measurements: what the
mean would be if every doubling of the iterations went on adding what it added in this run (a straight line over the
logarithm, by least squares), and how long they would take at the speed of the run and on a GPU that sustains so many
teraflops (``--teraflops``), from the products and sums counted in one iteration.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from afv_metric.bundle import save_bundle
from afv_metric.environment import read_versions
from afv_metric.files import replacing, save_figure
from afv_metric.forms import FORMS
from afv_metric.train.checkpoint import checkpoints
from afv_metric.train.export import export_run, read_recipe
from afv_metric.train.loop import iterate
from afv_metric.train.recipes import Recipe
from afv_metric.train.state import State
from bapps_eval.data import JudgedSet, distinguish, read_pairs, read_root
from bapps_eval.measuring import measure
from bapps_eval.metrics import Choice, make_metrics
from bapps_eval.report import format_interval, format_number
from bapps_eval.scores import Summary, summarise

PUBLISHED_ITERATIONS = 800_000
CPU = torch.device("cpu")


class Row(NamedTuple):
    """One row of the table.

    Attributes:
        name: What was measured.
        iterations: Iterations of training; None where there is no training.
        hours: Hours of training.
        summary: Scores on the sets; differences are to the random initialisation.
    """

    name: str
    iterations: int | None
    hours: float | None
    summary: Summary


def measure_run(
    run: Path, chosen: Sequence[int], sets: Sequence[JudgedSet], form: str, samples: int, quiet: bool
) -> list[Row]:
    """Score checkpoints of a run, oldest first, then the random initialisation, L2 and SSIM.

    Args:
        run: Folder of the run.
        chosen: Iterations of the checkpoints.
        sets: What people judged.
        form: Form of the distance.
        samples: Generated samples for the statistics of each checkpoint.
        quiet: Show no progress bar.
    """
    known: list[tuple[str, int | None, float | None]] = []
    distances: list[list[NDArray[np.float64]]] = []
    with tempfile.TemporaryDirectory() as folder, tqdm(total=len(chosen) + 1, disable=quiet, unit="checkpoint") as bar:
        for iteration in chosen:
            bundle = export_run(run, f"{iteration}", checkpoint=iteration, samples=samples, quiet=True)
            place = save_bundle(bundle, Path(folder) / bundle.name)
            distances += measure(make_metrics([f"afv:{form}"], Choice([str(place)])), sets)
            known.append((f"{iteration:,} iterations", iteration, bundle.training["hours"]))
            bar.update()
        rivals = make_metrics([f"afv-random:{form}", "l2", "ssim"], Choice([str(place)]))
        distances = measure(rivals, sets) + distances
        bar.update()
    random, l2, ssim, *trained = summarise(sets, distances)
    rows = [Row(*facts, summary) for facts, summary in zip(known, trained, strict=True)]
    rivals_rows = zip(("random initialisation", "L2", "SSIM"), (random, l2, ssim), strict=True)
    return [*rows, *(Row(name, None, None, summary) for name, summary in rivals_rows)]


def format_table(rows: Sequence[Row], sets: Sequence[JudgedSet]) -> str:
    """The rows as a Markdown table."""
    lines = [["", "hours", *(judged.name for judged in sets), "mean", "above random"]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        summary = row.summary
        difference = f"{summary.difference:+.3f}".replace("0.", ".", 1)
        lines.append(
            [
                row.name,
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


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the mean over the hours of training."""
    from matplotlib.figure import Figure

    figure = Figure((6, 4), layout="constrained")
    axes = figure.subplots(subplot_kw={"xlabel": "hours of training", "ylabel": "mean agreement with people"})
    trained = [(row.hours, row.summary) for row in rows if row.hours is not None]
    hours = [hours for hours, _ in trained]
    low, high = zip(*(summary.interval for _, summary in trained), strict=True)
    axes.fill_between(hours, low, high, alpha=0.15, lw=0)
    axes.plot(hours, [summary.mean for _, summary in trained], marker="o", label="this run")
    for colour, row in zip(("C1", "C2", "C3"), (row for row in rows if not row.iterations), strict=True):
        axes.axhline(row.summary.mean, color=colour, ls="--", label=row.name)
    axes.legend()
    save_figure(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Agreement with people over the training of a run.")
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--root", type=Path, action="append", default=[], help="sets in the layout of BAPPS")
    parser.add_argument("--pairs", type=Path, nargs="+", default=[], help="CSV files of judged pairs")
    parser.add_argument("--form", choices=list(FORMS), default="activation", help="of the distance (activation)")
    parser.add_argument("--limit", type=int, help="items of each set, evenly spread; all if not given")
    parser.add_argument("--checkpoints", type=int, nargs="+", help="iterations; all that are kept if not given")
    parser.add_argument("--samples", type=int, default=3_000, help="generated samples for the statistics (3000)")
    parser.add_argument("--teraflops", type=float, default=10, help="what a GPU is assumed to sustain (10)")
    parser.add_argument("--picture", type=Path, help="draw the curve into this PNG")
    parser.add_argument("--json", type=Path, help="write the numbers")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    options = parser.parse_args(arguments)
    kept = checkpoints(options.run)
    chosen = sorted(options.checkpoints or kept)
    missing = [iteration for iteration in chosen if iteration not in kept]
    if missing or not chosen:
        parser.error(f"{options.run} keeps the checkpoints {', '.join(map(str, kept)) or 'of no iteration'}")
    if not options.root and not options.pairs:
        parser.error("give sets with --root DIR, --pairs FILE.csv or both")
    if options.picture and importlib.util.find_spec("matplotlib") is None:
        parser.error('--picture is drawn by matplotlib: pip install "afv-metric[plots]"')

    found = [judged for root in options.root for judged in read_root(root)]
    sets = distinguish([*found, *map(read_pairs, options.pairs)])
    sets = [judged.limited(options.limit) for judged in sets] if options.limit else sets
    versions = read_versions()
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    rows = measure_run(options.run, chosen, sets, options.form, options.samples, options.quiet)
    print(format_table(rows, sets))
    recipe = read_recipe(json.loads((options.run / "recipe.json").read_text()))
    operations = count_operations(recipe)
    exaflop = operations * PUBLISHED_ITERATIONS / 1e18
    last = [row for row in rows if row.iterations][-1]
    assert last.iterations
    assert last.hours is not None
    here = last.hours / last.iterations * PUBLISHED_ITERATIONS
    print(f"\n{operations / 1e9:.1f} GFLOP an iteration; {PUBLISHED_ITERATIONS:,} iterations: {exaflop:.3f} EFLOP,")
    print(
        f"{here:.0f} hours at the speed of this run, {exaflop * 1e6 / options.teraflops / 3600:.1f} GPU hours at ",
        end="",
    )
    print(f"{options.teraflops:g} TFLOP/s (assumed)")
    if len(chosen) > 1:
        slope, end = growth(rows)
        print(f"{slope:+.4f} a doubling; {format_number(end)} at {PUBLISHED_ITERATIONS:,} iterations if that went on")
    if options.picture:
        draw(rows, options.picture)
    if options.json:
        content = {"versions": versions, "sets": [judged.name for judged in sets], "operations": operations}
        content["rows"] = [{**row._asdict(), "summary": vars(row.summary)} for row in rows]
        with replacing(options.json) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
