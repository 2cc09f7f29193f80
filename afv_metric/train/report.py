"""The training report: curves, recipe and sample grids of one run or several, in one self-contained HTML file."""

from __future__ import annotations

import base64
import functools
import importlib
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import geometric_mean
from typing import Any, NamedTuple

from afv_metric.files import atomic_write
from afv_metric.train.log import read_records

__all__ = ["write_report"]

_MOST_POINTS = 300  # of a curve; more are replaced by means of neighbours
_MOST_GRIDS = 8  # of a run
_COLOURS = 8
_DASHES = ("solid", "dashed", "dotted", "dashdot")
_FORMS = ("fisher", "local", "activation")
_NONE = "\N{EN DASH}"

Record = dict[str, Any]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class _Run:
    """What a run's folder holds.

    Attributes:
        name: Name of the folder, or its path where two names are equal.
        recipe: ``recipe.json``.
        stats: Lines of ``stats.jsonl``, in order of iterations.
        monitors: Lines of ``monitors.jsonl``, in order of iterations.
        grids: Iterations and files of the sample grids, in order.
    """

    name: str
    recipe: Record
    stats: list[Record]
    monitors: list[Record]
    grids: list[tuple[int, Path]]

    def curve(self, key: str) -> Points:
        """Finite values of a monitor, or else of a statistic, against iterations."""
        return _points(self.monitors, key) or _points(self.stats, key)

    def last(self, key: str) -> float | None:
        """The newest finite value."""
        points = self.curve(key)
        return points[-1][1] if points else None

    def names(self, prefix: str) -> list[str]:
        """What follows a prefix in the monitors' keys, in the order of their appearance."""
        keys = dict.fromkeys(key for record in self.monitors for key in record)
        return [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]


class _Curve(NamedTuple):
    """One line of a panel; curves of one label have one colour and dash in all panels of a figure."""

    label: str
    points: Points
    colour: int
    dash: int = 0


class _Panel(NamedTuple):
    """Curves on one pair of axes, against iterations."""

    title: str
    curves: Sequence[_Curve]
    logarithmic: bool = False


def write_report(runs: Sequence[str | Path], out: str | Path) -> Path:
    """Write the report of one run, or of several side by side.

    It has the figures of the paper's experiments: Fisher Similarity on train and held-out images (Figure 3), beside the
    Inception Score (4), mean energies (5), the generator's distance to its average (8); agreement with people, losses,
    layers, the recipes and their differences, sample grids and times. What a run did not measure is left out, with a
    sentence that says so.

    Args:
        runs: Folders of runs.
        out: The HTML file; it needs nothing else to be looked at. It is written atomically.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If a folder holds no run.
        ImportError: If matplotlib is not installed.
        ValueError: If no run is given, or a file of a run cannot be understood.
    """
    if not runs:
        raise ValueError("a report needs at least one run")
    read = _distinguish([_read_run(Path(run)) for run in runs])
    title = "Training report: " + ", ".join(run.name for run in read)
    body = "\n".join(section(read) for section in _SECTIONS)
    page = _PAGE.format(title=escape(title), body=body, style=_style())
    with atomic_write(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(out)


# Reading


def _read_run(folder: Path) -> _Run:
    if not (folder / "recipe.json").is_file():
        raise FileNotFoundError(f"{folder} holds no run: there is no recipe.json; give the folder of a training run")
    try:
        recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / 'recipe.json'} is not valid JSON: {error}") from error
    grids = [(int(path.stem.removeprefix("samples-")), path) for path in sorted(folder.glob("samples-*[0-9].png"))]
    return _Run(
        folder.resolve().name,
        recipe,
        read_records(folder / "stats.jsonl"),
        read_records(folder / "monitors.jsonl"),
        grids,
    )


def _distinguish(runs: list[_Run]) -> list[_Run]:
    """Number the runs whose folders have one name."""
    names = [run.name for run in runs]
    return [
        _Run(f"{run.name} ({names[: index + 1].count(run.name)})", *list(vars(run).values())[1:])
        if names.count(run.name) > 1
        else run
        for index, run in enumerate(runs)
    ]


def _points(records: Iterable[Record], key: str) -> Points:
    pairs = ((record["iteration"], record.get(key)) for record in records)
    return [(float(x), float(y)) for x, y in pairs if isinstance(y, int | float) and math.isfinite(y)]


def _thin(points: Points) -> Points:
    """At most ``_MOST_POINTS`` points, each the mean of as many neighbours.

    Example:
        >>> _thin([(float(x), 1.0) for x in range(600)])[:2]
        [(0.5, 1.0), (2.5, 1.0)]
    """
    size = -(-len(points) // _MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), max(size, 1))]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


# Sections: each takes the runs and gives a piece of HTML


def _summary(runs: Sequence[_Run]) -> str:
    rows = []
    for run in runs:
        held_out = run.curve("fisher_similarity/held_out")
        best = max(held_out, key=lambda point: point[1], default=None)
        rows.append(
            [
                run.name,
                str(run.recipe.get("name", "")),
                f"{_iterations(run):,}",
                _duration(_seconds(run)),
                _number(run.last("fisher_similarity/train")),
                _number(run.last("fisher_similarity/held_out")),
                f"{_number(best[1])} at {best[0]:,.0f}" if best else _NONE,
                _number(run.last("logit/train")),
                _number(run.last("logit/held_out")),
                _number(run.last("logit/generated")),
            ]
        )
    head = ["run", "recipe", "iterations", "time", "similarity, train", "held-out", "best held-out"]
    return _section("Where it stands", "", _table([*head, "logit, train", "held-out", "generated"], rows))


def _similarity(runs: Sequence[_Run]) -> str:
    """Figure 3."""

    def of(key: str) -> list[_Curve]:
        return _curve_a_run(runs, lambda run: run.curve(f"fisher_similarity/{key}"))

    def gap(run: _Run) -> Points:
        held_out = dict(run.curve("fisher_similarity/held_out"))
        return [(x, y - held_out[x]) for x, y in run.curve("fisher_similarity/train") if x in held_out]

    panels = [
        _Panel("train images", of("train")),
        _Panel("held-out images", of("held_out")),
        _Panel("train less held-out", _curve_a_run(runs, gap)),
    ]
    lead = (
        "exp(-10 D) of a set of real images and a set of generated ones (Figure 3 of the paper). It rises as the "
        "generator approaches the images, and can fall as the discriminator, which sees for it, learns to tell more "
        "apart. Where it falls on held-out images and not on train ones, the run over-fits."
    )
    return _figure("Fisher Similarity", lead, panels, runs, "Fisher Similarity", "fisher_similarity/train")


def _inception(runs: Sequence[_Run]) -> str:
    """Figure 4."""
    panels = [
        _Panel("Fisher Similarity, held-out", _curve_a_run(runs, lambda run: run.curve("fisher_similarity/held_out"))),
        _Panel("Inception Score", _curve_a_run(runs, lambda run: run.curve("inception_score"))),
        _Panel("Fréchet Inception Distance", _curve_a_run(runs, lambda run: run.curve("fid"))),
    ]
    lead = (
        "Figure 4 of the paper. The Inception Score looks at generated images alone and does not tell over-fitting. It "
        "and the Fréchet distance depend on the number of images: compare them only between runs of one setting."
    )
    return _figure("Fisher Similarity and Inception Score", lead, panels, runs, "Inception Score", "inception_score")


def _energies(runs: Sequence[_Run]) -> str:
    """Figure 5."""
    kinds = ("train", "held_out", "generated", "negatives")
    panels = [
        _Panel(
            run.name,
            [
                _Curve(kind.replace("_", "-"), run.curve(f"logit/{kind}"), index, int(kind == "held_out"))
                for index, kind in enumerate(kinds)
            ],
        )
        for run in runs
    ]
    lead = (
        "Mean of the averaged discriminator D (Figure 5 of the paper). Generated images should stay below real ones, "
        "but not far below; a gap between train and held-out images is memorisation."
    )
    return _figure("Mean energy", lead, panels, runs, "energies", "logit/train")


def _agreement(runs: Sequence[_Run]) -> str:
    panels = []
    for run in runs:
        curves = []
        for colour, form in enumerate(_FORMS):
            points = run.curve(f"agreement/{form}/mean")
            curves.append(_Curve(form, points, colour))
            random = run.last(f"random_agreement/{form}/mean")
            if points and random is not None:
                ends = min(points[0][0], 0.0), points[-1][0]
                curves.append(_Curve(f"{form}, untrained", [(x, random) for x in ends], colour, 1))
        panels.append(_Panel(run.name, curves))
    lead = (
        "Mean score over the judged sets of each form of the distance; dashed, the same network and seed before any "
        "training, with the information of the train images. Training helps where a curve is above its dashed line."
    )
    tables = "".join(_agreement_table(run) for run in runs)
    keys = [f"agreement/{form}/mean" for form in _FORMS]
    return _figure("Agreement with people", lead, panels, runs, "agreement with people", *keys, more=tables)


def _agreement_table(run: _Run) -> str:
    forms = [form for form in _FORMS if run.curve(f"agreement/{form}/mean")]
    if not forms:
        return ""
    rows = []
    for judged in run.names(f"agreement/{forms[0]}/"):
        cells = []
        for form in forms:
            random = run.last(f"random_agreement/{form}/{judged}")
            cells.append(f"{_number(run.last(f'agreement/{form}/{judged}'))} / {_number(random)}")
        rows.append([judged, *cells])
    head = ["set", *(f"{form}: last / untrained" for form in forms)]
    return f"<h3>{escape(run.name)}</h3>{_table(head, rows)}"


def _pull(runs: Sequence[_Run]) -> str:
    """Figure 8."""

    def positive(run: _Run) -> Points:
        return [(x, y) for x, y in run.curve("generator_drift") if y > 0]  # at the start both are one

    panel = _Panel("‖G(z) - Ḡ(z)‖²", _curve_a_run(runs, positive), logarithmic=True)
    keys = ("generator_drift", "fisher_similarity/held_out", "inception_score")
    rows = [
        [run.name, f"{run.recipe.get('gamma', 0):g}", f"{run.recipe.get('noise_std', 0):g}"]
        + [_number(run.last(key)) for key in keys]
        for run in sorted(runs, key=lambda run: float(run.recipe.get("gamma", 0)))
    ]
    head = ["run", "gamma", "noise", "last ‖G(z) - Ḡ(z)‖²", "similarity, held-out", "Inception Score"]
    gammas = {run.recipe.get("gamma", 0) for run in runs}
    lead = (
        "Mean of ‖G(z) - Ḡ(z)‖² over fixed latents, Ḡ being the average of G (Figure 8 of the paper): how fast the "
        "generator moves. The MCMC-inspired term, with weight gamma, holds it down. "
    ) + (
        "The table has the runs side by side."
        if len(gammas) > 1
        else "All runs here have one gamma; give runs that differ in it to see its effect."
    )
    title = "Generator and its average"
    return _figure(title, lead, [panel], runs, "‖G(z) - Ḡ(z)‖²", "generator_drift", more=_table(head, rows))


def _quality(runs: Sequence[_Run]) -> str:
    if not any(run.curve("probe_accuracy") for run in runs):
        return ""
    lead = "Held-out accuracy of a linear classifier on Adversarial Fisher Vectors of labelled images."
    panels = [_Panel("accuracy", _curve_a_run(runs, lambda run: run.curve("probe_accuracy")))]
    return _figure("Linear probe", lead, panels, runs, "accuracy", "probe_accuracy")


def _losses(runs: Sequence[_Run]) -> str:
    panels = [
        _Panel("loss of D", _curve_a_run(runs, lambda run: run.curve("loss_d"))),
        _Panel("loss of G", _curve_a_run(runs, lambda run: run.curve("loss_g"))),
    ]
    lead = f"Of single batches. Curves of more than {_MOST_POINTS} points are thinned to means of neighbours."
    return _figure("Losses", lead, panels, runs, "losses", "loss_d")


def _step_energies(runs: Sequence[_Run]) -> str:
    kinds = {"real": 0, "fake": 2, "corrupted": 3}  # the colours that they have under the averaged discriminator
    panels = [
        _Panel(run.name, [_Curve(kind, run.curve(kind), colour) for kind, colour in kinds.items()]) for run in runs
    ]
    lead = "Mean of the discriminator in training, not averaged, on single batches."
    return _figure("Energies in the step", lead, panels, runs, "energies of the step", "real")


def _dead(runs: Sequence[_Run]) -> str:
    panels = []
    for run in runs:
        names = run.names("dead_channels/")
        within = [name for name in names if name.endswith(".conv1")]
        for title, group in (("first convolutions", within), ("ends", [name for name in names if name not in within])):
            curves = [
                _Curve(f"block {_block(name)}", run.curve(f"dead_channels/{name}"), int(_block(name)) - 1)
                for name in group
            ]
            panels.append(_Panel(f"{run.name}: {title}" if len(runs) > 1 else f"{title} of the blocks", curves))
    lead = (
        "Share of the channels that are positive nowhere on any image of the monitors, before the activation. Dead "
        "channels are capacity that the metric lacks."
    )
    keys = [f"dead_channels/{name}" for run in runs for name in run.names("dead_channels/")]
    if keys and not any(y for run in runs for key in keys for _, y in run.curve(key)):
        return _section("Dead channels", lead, _missing("None is dead, at any time."))
    return _figure("Dead channels", lead, panels, runs, "shares of dead channels", *keys, columns=2)


def _singular_values(runs: Sequence[_Run]) -> str:
    panels = []
    for run in runs:
        for kind, title in _SPECTRUM.items():
            curves = [
                _Curve(part, _mean_curve(run, f"{kind}/", part), index)
                for index, part in enumerate(("conv1", "conv2", "shortcut", "head"))
                if kind == "singular_value" or part != "head"  # which has one singular value
            ]
            panels.append(_Panel(f"{run.name}: {title}" if len(runs) > 1 else title, curves))
    lead = (
        "Of the averaged discriminator's weights as matrices C_out x (C_in k²), geometric means over the blocks. "
        "Spectral normalisation, if any, holds the largest at 1, and the head's at the gain. The effective rank is exp "
        "of the entropy of the singular values, scaled to sum 1: a fall towards 1 is a collapse."
    )
    keys = [f"singular_value/{name}" for run in runs for name in run.names("singular_value/")]
    tables = "".join(_singular_value_table(run) for run in runs)
    return _figure("Singular values", lead, panels, runs, "singular values", *keys, more=tables)


def _singular_value_table(run: _Run) -> str:
    rows = [
        [name, *(_number(run.last(f"{kind}/{name}")) for kind in _SPECTRUM)] for name in run.names("singular_value/")
    ]
    if not rows:
        return ""
    table = _table(["layer", *_SPECTRUM.values()], rows)
    return f"<details><summary>{escape(run.name)}: every layer, at the end</summary>{table}</details>"


_SPECTRUM = {
    "singular_value": "largest singular value",
    "smallest_singular_value": "smallest singular value",
    "effective_rank": "effective rank",
}


def _recipes(runs: Sequence[_Run]) -> str:
    names = dict.fromkeys(name for run in runs for name in run.recipe)
    rows = {name: [_setting(run.recipe.get(name)) for run in runs] for name in names}
    differing = [name for name in names if len(set(rows[name])) > 1]
    head = ["setting", *(run.name for run in runs)]
    table = _table(head, [[name, *rows[name]] for name in names if name not in differing])
    if len(runs) == 1:
        return _section("Recipe", "", f"<details><summary>{len(names)} settings</summary>{table}</details>")
    if differing:
        marked = _table(head, [[f"≠ {name}", *rows[name]] for name in differing], "differs")
        lead = f"The runs differ in {len(differing)} of {len(names)} settings."
    else:
        marked, lead = "", "The runs have the same settings."
    same = f"<details><summary>{len(names) - len(differing)} settings in common</summary>{table}</details>"
    return _section("Recipes", lead, marked + same)


def _samples(runs: Sequence[_Run]) -> str:
    parts = []
    for run in runs:
        if not run.grids:
            parts.append(_missing(f"{run.name} has no sample grids."))
            continue
        count = min(len(run.grids), _MOST_GRIDS)
        chosen = [run.grids[round(index * (len(run.grids) - 1) / max(count - 1, 1))] for index in range(count)]
        images = "".join(
            f'<figure class="grid"><img src="{_inline(path)}" alt="samples of {escape(run.name)} at iteration '
            f'{iteration}"><figcaption>{iteration:,}</figcaption></figure>'
            for iteration, path in chosen
        )
        parts.append(f'<h3>{escape(run.name)}</h3><div class="grids">{images}</div>')
    lead = "The averaged generator on the same latents, by iteration."
    return _section("Samples", lead, "".join(parts))


def _time(runs: Sequence[_Run]) -> str:
    panels = [
        _Panel("seconds an iteration", _curve_a_run(runs, _pace)),
        _Panel("hours", _curve_a_run(runs, lambda run: [(x, y / 3600) for x, y in _points(run.stats, "seconds")])),
    ]
    if any(run.curve("data_share") for run in runs):
        curves = _curve_a_run(runs, lambda run: run.curve("data_share"))
        panels.append(_Panel("share of time spent on data", curves))
    rows = [
        [
            run.name,
            f"{_iterations(run):,}",
            _duration(_seconds(run)),
            _number(_seconds(run) / _iterations(run) if _iterations(run) else None),
            _number(run.last("data_share")),
        ]
        for run in runs
    ]
    head = ["run", "iterations", "time", "seconds an iteration", "share spent on data"]
    lead = "Of the iterations alone: monitors, samples and checkpoints come on top."
    return _figure("Time", lead, panels, runs, "times", "seconds", more=_table(head, rows))


_SECTIONS: tuple[Callable[[Sequence[_Run]], str], ...] = (
    _summary,
    _similarity,
    _inception,
    _energies,
    _agreement,
    _pull,
    _quality,
    _losses,
    _step_energies,
    _dead,
    _singular_values,
    _samples,
    _time,
    _recipes,
)


# What the sections are made of


def _curve_a_run(
    runs: Sequence[_Run], points: Callable[[_Run], Points], label: Callable[[_Run], str] = lambda run: run.name
) -> list[_Curve]:
    return [_Curve(label(run), points(run), index, index // _COLOURS) for index, run in enumerate(runs)]


def _mean_curve(run: _Run, prefix: str, part: str) -> Points:
    """Geometric mean, over the layers of one part, of a monitor of layers."""
    layers = [dict(run.curve(prefix + name)) for name in run.names(prefix) if name.rpartition(".")[2] == part]
    measured = sorted(set.intersection(*map(set, layers))) if layers else []
    columns = [(x, [layer[x] for layer in layers]) for x in measured]
    return [(x, geometric_mean(column)) for x, column in columns if min(column) > 0]


def _pace(run: _Run) -> Points:
    """Seconds an iteration between the lines of the statistics."""
    points = _points(run.stats, "seconds")
    steps = [
        (x, (y - before) / (x - start))
        for (start, before), (x, y) in zip([(0.0, 0.0), *points], points, strict=False)
        if x > start
    ]
    return [(x, pace) for x, pace in steps if pace > 0]


def _block(name: str) -> str:
    """Number of the block of a layer, from 1: ``blocks.0.conv1`` is in the first."""
    digits = re.search(r"\d+", name)
    return str(int(digits.group()) + 1) if digits else "1"


def _iterations(run: _Run) -> int:
    return max((int(record["iteration"]) for record in (*run.stats[-1:], *run.monitors[-1:])), default=0)


def _seconds(run: _Run) -> float:
    points = _points(run.stats, "seconds") or _points(run.monitors, "seconds")
    return points[-1][1] if points else 0.0


def _duration(seconds: float) -> str:
    """Time for people.

    Example:
        >>> _duration(59), _duration(3700), _duration(200_000)
        ('59 s', '1 h 01 min', '55 h 33 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else "unset" if value is None else json.dumps(value)


def _inline(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


# HTML and SVG


def _section(title: str, lead: str, body: str) -> str:
    paragraph = f"<p>{escape(lead)}</p>" if lead else ""
    return f"<section><h2>{escape(title)}</h2>{paragraph}{body}</section>"


def _missing(sentence: str) -> str:
    return f'<p class="missing">{escape(sentence)}</p>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    return f'<div class="table"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def _figure(
    title: str,
    lead: str,
    panels: Sequence[_Panel],
    runs: Sequence[_Run],
    what: str,
    *keys: str,
    columns: int = 3,
    more: str = "",
) -> str:
    """A section with one figure; sentences stand in for what the runs lack.

    Args:
        title: Heading.
        lead: What the figure shows.
        panels: Its panels; empty curves and panels are left out.
        runs: The runs.
        what: What is missing where a run has none of the keys.
        keys: Monitors or statistics that the figure is of.
        columns: Most panels in a row.
        more: HTML below the figure.
    """
    lacking = [run.name for run in runs if not any(run.curve(key) for key in keys)]
    filled = [panel._replace(curves=[curve for curve in panel.curves if curve.points]) for panel in panels]
    shown = [panel for panel in filled if panel.curves]
    if len(lacking) == len(runs) or not shown:
        return _section(title, "", _missing(f"No {what} measured: there is nothing to draw."))
    sentence = _missing(f"Without {what}: {', '.join(lacking)}.") if lacking else ""
    svg = _draw(title, shown, columns)
    return _section(title, lead, f"<figure>{svg}</figure>{sentence}{more}")


def _draw(title: str, panels: Sequence[_Panel], columns: int) -> str:
    """Draw panels in rows, with one legend, as an SVG element whose colours are those of the page."""
    matplotlib, figure_class, ticker = _plotting()
    columns = min(len(panels), columns)
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(_settings(title)):
        width = 10 if columns > 1 else 6.5
        figure = figure_class(figsize=(width, 2.9 * rows + 0.4), layout="constrained")
        handles: dict[str, Any] = {}
        for index, panel in enumerate(panels):
            axes = figure.add_subplot(rows, columns, index + 1)
            for curve in panel.curves:
                points = _thin(curve.points)
                (line,) = axes.plot(
                    [x for x, _ in points],
                    [y for _, y in points],
                    color=_sentinel(1 + curve.colour % _COLOURS),
                    linestyle=_DASHES[curve.dash % len(_DASHES)],
                    marker="o" if len(points) <= 40 and curve.dash != 1 else None,
                )
                handles.setdefault(curve.label, line)
            if panel.logarithmic:
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:g}"))
                axes.yaxis.set_minor_locator(ticker.NullLocator())
            axes.set_title(panel.title, loc="left")
            axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:,.0f}"))
            axes.xaxis.set_major_locator(ticker.MaxNLocator(4, integer=True))
        # A label that begins with an underscore would be left out, so none does.
        labels = [f"\N{ZERO WIDTH SPACE}{label}" for label in handles]
        if len(labels) > 1:
            fitting = max(1, int(width / (0.6 + 0.062 * max(map(len, labels)))))
            lines = -(-len(labels) // fitting)
            figure.legend(handles.values(), labels, loc="outside lower center", ncols=-(-len(labels) // lines))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' id="(figure|axes|patch|text|line2d|matplotlib\.axis|xtick|ytick|legend)_\d+"', "", svg)
    svg = re.sub(r"((?:fill|stroke): ?)#0000([0-9a-f]{2})", lambda found: found[1] + _COLOUR_NAMES[found[2]], svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


def _sentinel(index: int) -> str:
    """A colour that stands for one of the page's, which differ by day and night."""
    return f"#0000{index:02x}"


_TEXT, _GRID = 0xF0, 0xF1
_COLOUR_NAMES = {f"{1 + index:02x}": f"var(--series-{index + 1})" for index in range(_COLOURS)}
_COLOUR_NAMES |= {f"{_TEXT:02x}": "currentColor", f"{_GRID:02x}": "var(--rule)"}


@functools.cache
def _plotting() -> tuple[Any, Any, Any]:
    """matplotlib, its figures and its ticks."""
    try:
        modules = [importlib.import_module(f"matplotlib{name}") for name in ("", ".figure", ".ticker")]
    except ImportError as error:
        raise ImportError('the report is drawn by matplotlib: pip install "afv-metric[plots]"') from error
    return modules[0], modules[1].Figure, modules[2]


def _settings(salt: str) -> dict[str, Any]:
    text, grid = _sentinel(_TEXT), _sentinel(_GRID)
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "text.parse_math": False,
        "text.color": text,
        "font.size": 9,
        "axes.labelcolor": text,
        "axes.edgecolor": grid,
        "axes.titlesize": 10,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": grid,
        "grid.linewidth": 0.6,
        "xtick.color": grid,
        "ytick.color": grid,
        "xtick.labelcolor": text,
        "ytick.labelcolor": text,
        "lines.linewidth": 1.6,
        "lines.markersize": 3,
        "legend.frameon": False,
    }


_LIGHT = ("#2a78d6", "#d9622b", "#138a63", "#7a5cd0", "#b98200", "#c8457f", "#4b7f8c", "#8a5a3c")
_DARK = ("#5b9df0", "#f0864f", "#35b98b", "#a48cf0", "#dba728", "#ee76a8", "#78b4c3", "#c48f6b")


def _style() -> str:
    def colours(palette: Sequence[str]) -> str:
        return "".join(f"--series-{index}:{colour};" for index, colour in enumerate(palette, 1))

    return _STYLE.replace("LIGHT", colours(_LIGHT)).replace("DARK", colours(_DARK))


_STYLE = """
:root { color-scheme: light dark; --page: #fdfdfc; --ink: #1c1d1f; --soft: #5d6166; --rule: #d7d9dc; --mark: #fff2c9;
  LIGHT }
@media (prefers-color-scheme: dark) {
  :root { --page: #17181a; --ink: #e6e6e3; --soft: #a3a7ad; --rule: #3a3d42; --mark: #453b1c; DARK }
}
body { background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 64rem; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { border-top: 1px solid var(--rule); font-size: 1.15rem; margin: 2.5rem 0 .5rem; padding-top: 1rem; }
h3 { font-size: 1rem; margin: 1rem 0 .25rem; }
p { margin: .25rem 0 .75rem; max-width: 46rem; }
.missing { color: var(--soft); font-style: italic; }
figure { margin: .5rem 0; }
figure > svg { display: block; height: auto; max-width: 100%; }
.grids { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); }
.grid { margin: 0; }
.grid img { display: block; image-rendering: pixelated; width: 100%; }
figcaption { color: var(--soft); font-size: .85rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { border-bottom: 1px solid var(--rule); padding: .25rem .75rem .25rem 0; text-align: right; }
th { font-weight: 600; }
th:first-child { text-align: left; }
tbody th { font-weight: 400; }
.differs tbody tr { background: var(--mark); }
.differs tbody th { font-weight: 600; }
summary { color: var(--soft); cursor: pointer; font-size: .9rem; }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""
