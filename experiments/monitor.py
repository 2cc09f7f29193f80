"""Training runs that differ in one setting, drawn together (Figures 3, 4, 5 and 8 of the paper).

- ``training-set-size`` (Figures 3 to 5): what the discriminator makes of training, held-out and generated images where
  the training set is small and where it is large.
- ``generator-pull`` (Figure 8): the generator as a sampler that takes small steps, with the proximal term of eq. 7, of
  weight gamma, that holds it near its own average, and without.

Every run is trained from scratch, in a folder of its own, where an interrupted one goes on and a finished one stays as
it is.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from afv_metric.files import save_figure
from afv_metric.train.divergence import DivergenceError
from afv_metric.train.log import read_records
from afv_metric.train.loop import train
from afv_metric.train.recipes import RECIPES
from afv_metric.train.report import write_report
from afv_metric.train.settings import override
from experiments import missing_matplotlib

__all__ = ["add_arguments", "draw", "read_curves", "run"]

_SETTINGS = {"training-set-size": ("images", "sizes"), "generator-pull": ("gamma", "gammas")}
_PANELS = ("fisher_similarity", "logit", "generator_drift", "sample_variance", "inception_score")
_STYLES = {"train": "-", "held_out": "--", "generated": ":"}
_log = logging.getLogger(__name__)

Curves = Mapping[str, Sequence[tuple[int, float]]]
"""Finite values of each monitor and statistic of a run, against iterations."""


def read_curves(run: Path) -> Curves:
    """What a run has recorded, see :data:`Curves`; a monitor counts before a statistic of the same name."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for name in ("monitors", "stats"):
        found: dict[str, list[tuple[int, float]]] = {}
        for record in read_records(run / f"{name}.jsonl"):
            for key, value in record.items():
                if key.partition("/")[0] in _PANELS and isinstance(value, int | float) and math.isfinite(value):
                    found.setdefault(key, []).append((record["iteration"], value))
        curves = found | curves
    return curves


def draw(curves: Mapping[str, Curves], path: Path) -> None:
    """Draw the curves of runs into a PNG, one panel per kind of monitor; needs matplotlib.

    Args:
        curves: The curves of each run, by its label.
        path: The PNG.

    Raises:
        ValueError: If no run has recorded anything that the figure shows.
    """
    from matplotlib.figure import Figure

    recorded = {key for of_run in curves.values() for key in of_run}
    panels = [panel for panel in _PANELS if any(key.partition("/")[0] == panel for key in recorded)]
    if not panels:
        raise ValueError(f"no run below {path.parent} has recorded what the figure shows; train longer")
    figure = Figure(figsize=(4 * len(panels), 3.6), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, (label, of_run) in enumerate(curves.items()):
            for key in (key for key in of_run if key.partition("/")[0] == panel):
                part = key.partition("/")[2]
                name = label if part in ("", "train") else None
                axes.plot(*zip(*of_run[key], strict=True), _STYLES.get(part, "-"), color=f"C{number}", label=name)
        parts = sorted({key.partition("/")[2] for key in recorded if key.startswith(f"{panel}/")}, reverse=True)
        axes.set_title(panel.replace("_", " ") + f" ({', '.join(parts)})".replace("_", "-") * bool(parts), fontsize=9)
        axes.set(xlabel="iteration", yscale="log" if panel == "generator_drift" else "linear")
        axes.grid(alpha=0.25)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    save_figure(figure, path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("data", type=Path, nargs="+", metavar="DATA", help="folders or archives of images")
    parser.add_argument("--figure", choices=list(_SETTINGS), required=True, help="setting in which the runs differ")
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
        help="weight of the proximal term in each run of generator-pull (default: 0 0.001)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train, write the figure as PNG and the report of all runs as HTML, and return the numbers at the end of each.

    A run that diverges is part of the result: the others are trained all the same.

    Raises:
        ValueError: If a value is not possible, before any run begins; or as for ``train``.
        StoppedError: If a signal stopped a run; its state is saved.
    """
    if missing := missing_matplotlib():
        raise ImportError(missing)
    setting, option = _SETTINGS[options.figure]
    values: Sequence[float] = getattr(options, option)
    if any(assignment.partition("=")[0] == setting for assignment in options.set):
        raise ValueError(f"the runs differ in {setting}: give its values by --{option}, not by --set")
    recipe = override(replace(RECIPES[options.recipe], seed=options.seed), options.set)
    changes: list[dict[str, Any]] = [{setting: value} for value in values]
    recipes = [replace(recipe, **change) for change in changes]
    smallest = min((value for value in values if value), default=math.inf) if setting == "images" else math.inf
    folders = [options.out / f"{setting}-{value or 'all' if setting == 'images' else f'{value:g}'}" for value in values]
    _refuse_other_samples(recipe.monitor_samples, smallest, folders)
    failures = []
    for number, (own, folder) in enumerate(zip(recipes, folders, strict=True), start=1):
        _log.info("run %d of %d: %s", number, len(recipes), folder)
        failures.append("")
        try:
            train(own, options.data, folder, held_out=options.held_out, device=options.device, quiet=options.quiet)
        except DivergenceError as error:
            failures[-1] = str(error)
            _log.warning("%s: %s", folder, error)
    curves = {folder.name: read_curves(folder) for folder in folders}
    draw(curves, options.out / f"{options.figure}.png")
    write_report(folders, options.out / f"{options.figure}.html")
    described = [
        {
            "run": folder.name,
            setting: value,
            "iterations": max((points[-1][0] for points in curves[folder.name].values()), default=0),
            "failure": failure,
            # Statistics are of single batches: a mean of ten.
            "end": {
                key: sum(y for _, y in points[-10:]) / len(points[-10:]) if key == "sample_variance" else points[-1][1]
                for key, points in sorted(curves[folder.name].items())
            },
        }
        for folder, value, failure in zip(folders, values, failures, strict=True)
    ]
    keys = sorted({key for one in described for key in one["end"]})
    rows = [["run", "iterations", *keys]]
    for one in described:
        name = one["run"] + ", diverged" * bool(one["failure"])
        ends = [f"{one['end'][key]:.4g}" if key in one["end"] else "" for key in keys]
        rows.append([name, f"{one['iterations']:,}", *ends])
    shared = {name: value for name, value in asdict(recipe).items() if name != setting}
    return {"figure": options.figure, "recipe": shared, "runs": described, "table": rows}


def _refuse_other_samples(samples: int, smallest: float, folders: Sequence[Path]) -> None:
    """Similarities of runs are compared only where monitors measure on as many images; ``train`` lets this change."""
    if samples > smallest:
        raise ValueError(
            f"the smallest training set has {smallest:g} images, fewer than the {samples} that monitors measure on: "
            f"similarities depend on this number. Give --set monitor_samples={smallest:g}, or larger sets"
        )
    for folder in folders:
        if (file := folder / "recipe.json").exists():
            before = json.loads(file.read_text())["monitor_samples"]
            if before != samples:
                raise ValueError(
                    f"the monitors of {folder} measure on {before} images and would now on {samples}. "
                    f"Give --set monitor_samples={before}, or another --out"
                )
