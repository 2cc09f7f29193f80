"""The training report: curves, recipe and sample grids of one run or several, in one self-contained HTML file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from markupsafe import Markup

from afv_metric.fisher.forms import FORMS
from afv_metric.page import data_uri, write_page
from afv_metric.train.checkpoint import sample_grids
from afv_metric.train.figures import Panel, Points, draw_svg, points_of
from afv_metric.train.log import read_records

__all__ = ["format_number", "write_report"]

_MOST_GRIDS = 8  # of a run
_PARTS = ("conv1", "conv2", "shortcut", "head")


def write_report(runs: Sequence[str | Path], out: str | Path) -> Path:
    """Write the report of one run, or of several side by side.

    It has the figures of the paper's experiments (3, 4, 5 and 8), agreement with people, losses, layers, the recipes
    and their differences, sample grids and times. What a run did not measure is left out, with a sentence that says so.

    Raises:
        FileNotFoundError: If a folder holds no run.
        ImportError: If matplotlib is not installed.
        ValueError: If no run is given, or a file of a run cannot be understood.
    """
    if not runs:
        raise ValueError("a report needs at least one run")
    names = [Path(run).resolve().name for run in runs]
    read = []
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        number = f" ({names[: index + 1].count(name)})" if names.count(name) > 1 else ""
        read.append(_Run(Path(run), name + number))
    title = "Training report: " + ", ".join(run.name for run in read)
    write_page(out, "report.html.j2", title=title, lead="", **_content(read))
    return Path(out)


class _Run:
    """What a run's folder holds: its recipe, curves of what both logs recorded, and sample grids by iterations."""

    def __init__(self, folder: Path, name: str) -> None:
        path = folder / "recipe.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} holds no run: there is no recipe.json; give the folder of a training run"
            )
        try:
            self.recipe = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        self.name, self.grids = name, sample_grids(folder)
        self.gamma = float(self.recipe.get("gamma", 0))
        self._curves: dict[str, Points] = {}
        for log in ("monitors", "stats"):  # of what is in both the statistics count
            records = read_records(folder / f"{log}.jsonl")
            for key in dict.fromkeys(key for record in records for key in record):
                if points := points_of(records, key):
                    self._curves[key] = points
        self.iterations = max((int(points[-1][0]) for points in self._curves.values()), default=0)
        self.seconds = self.last("seconds") or 0.0
        held_out, seconds = dict(self.curve("fisher_similarity/held_out")), self.curve("seconds")
        steps = zip([(0.0, 0.0), *seconds], seconds, strict=False)
        self._curves |= {
            "gap": [(x, y - held_out[x]) for x, y in self.curve("fisher_similarity/train") if x in held_out],
            "drift": [(x, y) for x, y in self.curve("generator_drift") if y > 0],  # at the start 0, without a logarithm
            "hours": [(x, y / 3600) for x, y in seconds],
            "pace": [(x, (y - before) / (x - start)) for (start, before), (x, y) in steps if x > start and y > before],
        }

    def curve(self, key: str) -> Points:
        """Finite values against iterations."""
        return self._curves.get(key, ())

    def last(self, key: str) -> float | None:
        """The newest finite value."""
        points = self.curve(key)
        return points[-1][1] if points else None

    def names(self, prefix: str) -> list[str]:
        """What follows a prefix in the names of the curves, in the order of their appearance."""
        return [key.removeprefix(prefix) for key in self._curves if key.startswith(prefix)]

    @property
    def agreement(self) -> tuple[list[str], list[list[str]]] | None:
        """Head and rows of a table of the forms on the judged sets, last and untrained."""
        forms = [form for form in FORMS if self.curve(f"agreement/{form}/mean")]
        rows = []
        for judged in self.names(f"agreement/{forms[0]}/") if forms else ():
            pairs = [[self.last(f"{kind}agreement/{form}/{judged}") for kind in ("", "random_")] for form in forms]
            rows.append([judged, *(" / ".join(map(format_number, pair)) for pair in pairs)])
        return (["set", *(f"{form}: last / untrained" for form in forms)], rows) if forms else None

    @property
    def pictures(self) -> list[tuple[int, str]]:
        """Sample grids as data, evenly spread from the first to the last."""
        found = list(self.grids.items())
        count = min(len(found), _MOST_GRIDS)
        some = (found[round(index * (len(found) - 1) / max(count - 1, 1))] for index in range(count))
        return [(step, data_uri(path.read_bytes(), "image/png")) for step, path in some]


def _content(runs: Sequence[_Run]) -> dict[str, Any]:
    """All that the template shows, and the functions that it calls."""

    def draw(title: str, keys: Sequence[str], panels: Sequence[Panel], columns: int) -> tuple[Markup, list[str]]:
        """A figure, empty if there is nothing to draw, and the runs that lack all of its keys."""
        lacking = [run.name for run in runs if not any(run.curve(key) for key in keys)]
        shown = [panel for panel in panels if any(panel.curves.values())]
        return Markup(draw_svg(title, shown, columns) if shown and len(lacking) < len(runs) else ""), lacking

    def panels(labels: Mapping[str, str]) -> list[Panel]:
        """A panel per run, with curves of these labels and keys."""
        return [Panel(run.name, {label: run.curve(key) for label, key in labels.items()}) for run in runs]

    def titled(run: _Run, title: str) -> str:
        return f"{run.name}: {title}" if len(runs) > 1 else title

    dead = {run.name: run.names("dead_channels/") for run in runs}
    names = dict.fromkeys(name for run in runs for name in run.recipe)
    settings = [[name, *(_setting(run.recipe.get(name)) for run in runs)] for name in names]
    return {
        "runs": runs,
        "draw": draw,
        "panel": Panel,
        "panels": panels,
        "each": lambda key: {run.name: run.curve(key) for run in runs},
        "number": format_number,
        "duration": _duration,
        "agreement_keys": [f"agreement/{form}/mean" for form in FORMS],
        "agreement_panels": [Panel(run.name, _agreement_curves(run)) for run in runs],
        "any_dead": any(y for run in runs for name in dead[run.name] for _, y in run.curve(f"dead_channels/{name}")),
        "dead_keys": [f"dead_channels/{name}" for some in dead.values() for name in some],
        "dead_panels": [
            Panel(titled(run, title), _dead_curves(run, within))
            for run in runs
            for title, within in (("first convolutions of the blocks", True), ("ends of the blocks", False))
        ],
        "spectrum_keys": [f"singular_value/{name}" for run in runs for name in run.names("singular_value/")],
        "spectrum_panels": [
            Panel(titled(run, "singular value"), {part: _mean_curve(run, "singular_value/", part) for part in _PARTS})
            for run in runs
        ],
        "differing": [[f"≠ {name}", *values] for name, *values in settings if len(set(values)) > 1],
        "same": [row for row in settings if len(set(row[1:])) == 1],
    }


def _agreement_curves(run: _Run) -> dict[str, Points]:
    curves: dict[str, Points] = {}
    for form in FORMS:
        curves[form] = points = run.curve(f"agreement/{form}/mean")
        untrained = run.last(f"random_agreement/{form}/mean")
        if points and untrained is not None:
            curves[f"{form}, untrained"] = [(min(points[0][0], 0.0), untrained), (points[-1][0], untrained)]
    return curves


def _dead_curves(run: _Run, within: bool) -> dict[str, Points]:
    """Curves of the first convolutions of blocks, or of their ends; ``blocks.0.conv1`` is in the first."""
    names = [name for name in run.names("dead_channels/") if name.endswith(".conv1") == within]
    return {f"block {int(name.split('.')[1]) + 1}": run.curve(f"dead_channels/{name}") for name in names}


def _mean_curve(run: _Run, prefix: str, part: str) -> Points:
    """Geometric mean, over the layers of one part, of a monitor of layers."""
    layers = [dict(run.curve(prefix + name)) for name in run.names(prefix) if name.rpartition(".")[2] == part]
    measured = sorted(set.intersection(*map(set, layers))) if layers else []
    columns = [(x, [layer[x] for layer in layers]) for x in measured]
    return [(x, geometric_mean(column)) for x, column in columns if min(column) > 0]


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else "unset" if value is None else json.dumps(value)


def _duration(seconds: float) -> str:
    """Time for people, such as ``59 s`` or ``55 h 33 min``."""
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min" if minutes else f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_number(value: float | None) -> str:
    """Three digits; a dash for nothing."""
    return "\N{EN DASH}" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
