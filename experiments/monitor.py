"""Training runs that differ in one setting, and the figure of their curves: the paper on monitoring and on MCMC.

- ``training-set-size`` (Figures 3, 4 and 5): Fisher Similarity and mean energies of train and held-out images, for runs
  on more and on fewer images. Where those of train and held-out images part, the discriminator learns by heart.
- ``generator-pull`` (Figure 8): the generator as a sampler that takes small steps, with the term of eq. 7, of weight
  gamma, that holds it near its own average, and without.

Every run is trained from scratch, in a folder of its own, where an interrupted one goes on and a finished one stays as
it is.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from afv_metric.files import save_figure
from afv_metric.images.cache import draw_images, load_images, split_held_out
from afv_metric.train.divergence import DivergenceError
from afv_metric.train.log import read_records
from afv_metric.train.loop import train
from afv_metric.train.recipes import RECIPES, Recipe
from afv_metric.train.report import write_report

__all__ = ["FIGURES", "Curves", "Figure", "Panel", "Run", "add_arguments", "draw", "read_curves", "rerun", "run"]

_MOST_POINTS = 60  # of a curve; more are replaced by means of neighbours
_COLOURS = ("#2a78d6", "#d9622b", "#138a63", "#7a5cd0", "#b98200", "#c8457f", "#4b7f8c", "#8a5a3c")
_log = logging.getLogger(__name__)

Curves = Mapping[str, Sequence[tuple[int, float]]]
"""Finite values of each monitor and statistic of a run, against iterations."""


class Panel(NamedTuple):
    """One pair of axes of a figure.

    Attributes:
        title: What is drawn.
        curves: Lines that are drawn of each run, by the names of monitors or statistics, with their style.
        logarithmic: Whether the values are drawn on a logarithmic scale.
    """

    title: str
    curves: Mapping[str, str]
    logarithmic: bool = False


class Figure(NamedTuple):
    """What a figure compares, and what it shows.

    Attributes:
        setting: Setting of the recipe that the runs differ in.
        panels: Its panels; those of which no run has anything are left out.
    """

    setting: str
    panels: tuple[Panel, ...]


FIGURES = {
    "training-set-size": Figure(
        "images",
        (
            Panel("Fisher Similarity, train images", {"fisher_similarity/train": "-"}),
            Panel("Fisher Similarity, held-out images", {"fisher_similarity/held_out": "-"}),
            Panel("mean logit, train and held-out (dashed)", {"logit/train": "-", "logit/held_out": "--"}),
            Panel("mean logit, generated images", {"logit/generated": "-"}),
            Panel("Inception Score", {"inception_score": "-"}),
        ),
    ),
    "generator-pull": Figure(
        "gamma",
        (
            Panel("Fisher Similarity, held-out images", {"fisher_similarity/held_out": "-"}),
            Panel("distance to the average generator", {"generator_drift": "-"}, logarithmic=True),
            Panel("variance of generated images", {"sample_variance": "-"}),
            Panel("mean logit, train and generated (dashed)", {"logit/train": "-", "logit/generated": "--"}),
            Panel("Inception Score", {"inception_score": "-"}),
        ),
    ),
}
"""Figures by the name that the command has for them."""

_ENDS = {
    "fisher_similarity/train": "similarity, train",
    "fisher_similarity/held_out": "held-out",
    "logit/train": "logit, train",
    "logit/held_out": "held-out",
    "logit/generated": "generated",
    "generator_drift": "to the average",
    "sample_variance": "sample variance",
    "inception_score": "Inception Score",
}


@dataclass(frozen=True)
class Run:
    """One run of a figure.

    Attributes:
        value: Of the setting that the runs differ in.
        label: What to call it.
        folder: Where it is.
        failure: Why it ended early, if training diverged.
    """

    value: float
    label: str
    folder: Path
    failure: str = ""


def rerun(
    figure: Figure,
    recipe: Recipe,
    values: Sequence[float],
    data: Sequence[Path],
    out: Path,
    *,
    held_out: Sequence[Path] = (),
    device: str = "cpu",
    quiet: bool = False,
) -> list[Run]:
    """Train a run for every value of a setting, or go on with those that are not finished.

    A run that diverges is part of the result: the others are trained all the same.

    Args:
        figure: What they differ in.
        recipe: All other settings.
        values: Of that setting, one run each.
        data: Images, for :func:`~afv_metric.train.loop.train`.
        out: Folder of the runs' folders.
        held_out: Images for the monitors alone; the recipe's share of the data if none are given.
        device: Where to train.
        quiet: Show no progress bars.

    Returns:
        The runs, in the order of the values.

    Raises:
        ValueError: If a value is not possible, before any run begins; or as for ``train``.
        StoppedError: If a signal stopped a run; its state is saved.
    """
    changes: dict[float, dict[str, Any]] = {value: {figure.setting: value} for value in values}
    recipes = {value: replace(recipe, **change) for value, change in changes.items()}
    _refuse_other_samples(recipe, [out / _names(figure.setting, value)[0] for value in values])
    if figure.setting == "images":
        _refuse_sizes(recipe, list(recipes), data, held_out, quiet)
    runs: list[Run] = []
    for value, own in recipes.items():
        name, label = _names(figure.setting, value)
        folder = out / name
        _log.info("run %d of %d: %s", len(runs) + 1, len(recipes), folder)
        failure = ""
        try:
            train(own, list(data), folder, held_out=list(held_out), device=device, quiet=quiet)
        except DivergenceError as error:
            failure = str(error)
            _log.warning("%s: %s", folder, error)
        runs.append(Run(value, label, folder, failure))
    return runs


def _names(setting: str, value: float) -> tuple[str, str]:
    """Name of a run's folder, and what to call it.

    Example:
        >>> _names("images", 5000), _names("gamma", 0.0)
        (('images-5000', '5,000 images'), ('gamma-0', 'gamma 0'))
    """
    if setting == "images":
        return (f"images-{value}", f"{value:,} images") if value else ("images-all", "all images")
    text = str(value).removesuffix(".0")  # all digits, as two values must not share a folder
    return f"{setting}-{text}", f"{setting} {text}"


def _refuse_other_samples(recipe: Recipe, folders: Iterable[Path]) -> None:
    """Similarities of runs are compared only where monitors look at as many images; ``train`` lets this change."""
    for folder in folders:
        if (file := folder / "recipe.json").exists():
            before = json.loads(file.read_text())["monitor_samples"]
            if before != recipe.monitor_samples:
                raise ValueError(
                    f"the monitors of {folder} look at {before} images and would now look at "
                    f"{recipe.monitor_samples}. Give --set monitor_samples={before}, or another --out"
                )


def _refuse_sizes(
    recipe: Recipe, sizes: Sequence[float], data: Sequence[Path], held_out: Sequence[Path], quiet: bool
) -> None:
    """Raise now what would else be found out when the runs before are trained."""
    images = load_images(list(data), 2 * recipe.image_size, quiet=quiet)
    if held_out:
        aside = load_images(list(held_out), 2 * recipe.image_size, quiet=quiet)
    else:
        images, aside = split_held_out(images, recipe.held_out, recipe.seed)
    counts = {len(draw_images(images, int(size), recipe.seed).names) for size in sizes}
    looked_at = min(recipe.monitor_samples, len(aside.names) or recipe.monitor_samples)
    if len(counts) > 1 and looked_at > min(counts):
        raise ValueError(
            f"the smallest training set has {min(counts)} images, fewer than the {looked_at} that monitors look at: "
            "similarities depend on this number, which must be that of all runs. "
            f"Give --set monitor_samples={min(counts)}, or larger sets"
        )


def read_curves(run: Path) -> Curves:
    """What a run has recorded, see :data:`Curves`; a monitor counts before a statistic of the same name."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for name in ("monitors", "stats"):
        found: dict[str, list[tuple[int, float]]] = {}
        for record in read_records(run / f"{name}.jsonl"):
            for key, value in record.items():
                if key not in ("iteration", "seconds") and isinstance(value, int | float) and math.isfinite(value):
                    found.setdefault(key, []).append((record["iteration"], value))
        curves = found | curves
    return curves


def draw(figure: Figure, runs: Sequence[Run], path: Path) -> None:
    """Draw the curves of the runs into a PNG; needs matplotlib.

    Raises:
        ValueError: If no run has recorded anything that the figure shows.
    """
    from matplotlib.figure import Figure as Picture

    curves = {run.label: read_curves(run.folder) for run in runs}
    panels = [
        panel for panel in figure.panels if any(key in of_run for of_run in curves.values() for key in panel.curves)
    ]
    if not panels:
        raise ValueError(f"no run below {path.parent} has recorded what the figure shows; train longer")
    picture = Picture(figsize=(4 * len(panels), 3.6), layout="constrained")
    for axes, panel in zip(picture.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, (label, of_run) in enumerate(curves.items()):
            for key, style in panel.curves.items():
                points = _thin([point for point in of_run.get(key, ()) if point[1] > 0 or not panel.logarithmic])
                axes.plot(
                    [x for x, _ in points],
                    [y for _, y in points],
                    style,
                    color=_COLOURS[number % len(_COLOURS)],
                    linewidth=1.4,
                    marker="o",
                    markersize=2.5,
                    label=label if style == "-" else None,
                )
        if panel.logarithmic:
            axes.set_yscale("log")
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel("iteration")
        axes.grid(alpha=0.25)
    handles, labels = picture.axes[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), frameon=False)
    save_figure(picture, path)


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``_MOST_POINTS`` points, each the mean of as many neighbours.

    Example:
        >>> _thin([(float(x), 1.0) for x in range(120)])[:2]
        [(0.5, 1.0), (2.5, 1.0)]
    """
    size = max(1, -(-len(points) // _MOST_POINTS))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _ends(curves: Curves) -> dict[str, float]:
    """The last value of every curve that is in the table; of statistics, which are of single batches, a mean of ten."""
    ends = {}
    for key in _ENDS:
        if points := curves.get(key):
            last = points[-10:] if key == "sample_variance" else points[-1:]
            ends[key] = sum(value for _, value in last) / len(last)
    return ends


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("data", type=Path, nargs="+", metavar="DATA", help="folders or archives of images")
    parser.add_argument("--figure", choices=list(FIGURES), required=True, help="what the runs differ in")
    parser.add_argument("--recipe", choices=list(RECIPES), default="cifar10", help="of all runs (default: %(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="change settings of all runs")
    parser.add_argument(
        "--held-out", type=Path, nargs="+", default=[], metavar="DATA",
        help="images that only the monitors see; a share of the data if none are given",
    )  # fmt: skip
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[1000, 5000, 0], metavar="N",
        help="training images of each run of training-set-size; 0: all (default: 1000 5000 0)",
    )  # fmt: skip
    parser.add_argument(
        "--gammas", type=float, nargs="+", default=[0.0, 1e-3], metavar="G",
        help="weight of the generator's pull, of each run of generator-pull (default: 0 0.001)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train, write the figure as PNG and the report of all runs as HTML, and return the numbers at the end of each."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError('the figures are drawn by matplotlib: pip install "afv-metric[plots]"')
    figure = FIGURES[options.figure]
    varied = {"images": "--sizes", "gamma": "--gammas"}[figure.setting]
    if any(assignment.partition("=")[0] == figure.setting for assignment in options.set):
        raise ValueError(f"the runs differ in {figure.setting}: give its values by {varied}, not by --set")
    recipe = replace(RECIPES[options.recipe], seed=options.seed).override(options.set)
    runs = rerun(
        figure,
        recipe,
        options.sizes if figure.setting == "images" else options.gammas,
        options.data,
        options.out,
        held_out=options.held_out,
        device=options.device,
        quiet=options.quiet,
    )
    draw(figure, runs, options.out / f"{options.figure}.png")
    write_report([one.folder for one in runs], options.out / f"{options.figure}.html")
    described = []
    for one in runs:
        curves = read_curves(one.folder)
        iterations = max((points[-1][0] for points in curves.values()), default=0)
        described.append(
            {
                figure.setting: one.value,
                "run": one.folder.name,
                "iterations": iterations,
                "failure": one.failure,
                "end": _ends(curves),
            }
        )
    return {
        "figure": options.figure,
        "recipe": {name: value for name, value in asdict(recipe).items() if name != figure.setting},
        "runs": described,
        "table": _table(runs, described),
    }


def _table(runs: Sequence[Run], described: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    measured = [key for key in _ENDS if any(key in one["end"] for one in described)]
    rows = [["run", "iterations", *(_ENDS[key] for key in measured)]]
    for one, of_run in zip(runs, described, strict=True):
        ends = [f"{of_run['end'][key]:.4g}" if key in of_run["end"] else "" for key in measured]
        rows.append([one.label + ", diverged" * bool(one.failure), f"{of_run['iterations']:,}", *ends])
    return rows
