"""One HTML file that shows what came out: tables, plots, and the items on which metrics and people disagree most.

The page asks for nothing from outside, so it works from ``file://`` and in an e-mail. Its tables are plain HTML; plots
and gallery are drawn by a small script from JSON in the page. What is shown is in the address, behind ``#``:
``family`` and ``metric`` choose, ``x`` and ``y`` are the metrics of the scatter plot, for example
``report.html#family=cnn&metric=l2``.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import stats

from afv_metric.files import atomic_write
from bapps_eval.data import JudgedSet, PairSet, SameSet, TripletSet, read_image_source
from bapps_eval.report import Column, Report, family, format_interval, format_number, format_share, grids
from bapps_eval.scores import agreement, average_precision

__all__ = ["GALLERY", "write_html"]

FloatArray = NDArray[np.float64]

GALLERY = 12
_POINTS = 600  # of each set in the scatter plot
_GALLERY_BYTES = 16 * 2**20
_LARGEST_FILE, _LARGEST_SIDE = 2**16, 256
_KINDS = {"triplets": TripletSet, "same": SameSet, "pairs": PairSet}
_MIME = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}


def write_html(path: str | os.PathLike[str], report: Report, gallery: int = GALLERY) -> None:
    """Write the page.

    Args:
        path: The file.
        report: What to show.
        gallery: How many items to show for each metric and set, of those on which it disagrees most with people;
            fewer if their images are larger than 16 MiB together, and none, which the page says, if they are not
            at hand.
    """
    results = report.results
    of_sets = [[columns[index] for columns in results.distances] for index in range(len(results.sets))]
    items, gallery_note = _make_gallery(results.sets, of_sets, gallery)
    sets: list[dict[str, Any]] = [
        {
            "name": judged.name + ("*" if judged.partial else ""),
            "family": family(judged),
            "kind": next(kind for kind, made in _KINDS.items() if isinstance(judged, made)),
            "points": _points(judged, distances),
            "votes": None if isinstance(judged, PairSet) else _by_unanimity(judged, distances),
        }
        for judged, distances in zip(results.sets, of_sets, strict=True)
    ]
    bars = [_bars(table.title, column) for table in report.tables for column in table.columns]
    data = {"metrics": report.labels, "bars": bars, "sets": sets, "gallery": items}
    page = Template(_PAGE).substitute(
        style=_STYLE,
        script=_SCRIPT,
        lead=escape(f"{', '.join(report.labels)} on {', '.join(item['name'] for item in sets)}"),
        tables="\n".join(_table(title, rows) for title, rows in grids(report, _cell)),
        notes="\n".join(f"<p>{escape(note)}</p>" for note in report.notes),
        gallery_note=escape(gallery_note),
        run=_definitions({**results.settings, **results.versions}),
        # A "<" could end the script.
        data=json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _bars(title: str, column: Column) -> dict[str, Any]:
    return {
        "name": column.name + column.mark,
        "family": None if column.measure == "mean" else column.heading,
        "kind": title.partition(":")[0],
        "chance": 0.5 if title.startswith("2AFC") else 0,
        "ceiling": column.ceiling,
        "scores": [[round(value, 6) for value in (score.value, *score.interval)] for score in column.scores],
    }


def _metric_view(judged: JudgedSet, distances: FloatArray) -> FloatArray:
    """What a metric says of each item, ``(N,)``, on one scale for all metrics.

    Of triplets how much farther the first is than the second, relatively, in [-1, 1]; of pairs the place in the order
    from near to far, in [0, 1].
    """
    if isinstance(judged, TripletSet):
        first, second = distances.T
        total = np.abs(first) + np.abs(second)
        return np.asarray(np.divide(first - second, total, out=np.zeros_like(total), where=total > 0))
    return _places(judged, distances[:, 0])


def _people_view(judged: JudgedSet) -> FloatArray:
    """What people say, on the scale of :func:`_metric_view`."""
    if isinstance(judged, TripletSet):
        return 2 * judged.judged - 1
    return _places(judged, -judged.judged if isinstance(judged, SameSet) else judged.judged)


def _places(judged: JudgedSet, values: FloatArray) -> FloatArray:
    places = np.empty(len(judged))
    for rows in judged.strata:
        places[rows] = (stats.rankdata(values[rows]) - 0.5) / len(rows)
    return places


def _points(judged: JudgedSet, distances: Sequence[FloatArray]) -> dict[str, Any]:
    """Views of at most :data:`_POINTS` items, evenly spread."""
    rows = np.arange(min(_POINTS, len(judged))) * len(judged) // min(_POINTS, len(judged))
    views = [_metric_view(judged, of_metric)[rows] for of_metric in distances]
    return {
        "rows": rows.tolist(),
        "total": len(judged),
        "people": _people_view(judged)[rows].round(3).tolist(),
        "metrics": [view.round(3).tolist() for view in views],
    }


def _by_unanimity(judged: JudgedSet, distances: Sequence[FloatArray]) -> list[dict[str, Any]]:
    """Scores among items on which people were about equally sure, from divided to unanimous."""
    unanimity = np.maximum(judged.judged, 1 - judged.judged).round(6)
    # Divided; 3 of 5 or 2 of 3; 3 of 4 to 5 of 6; unanimous.
    classes = np.digitize(unanimity, (0.55, 0.7, 0.9))
    told = []
    for index in np.unique(classes):
        rows = np.flatnonzero(classes == index)
        people = judged.judged[rows]
        if isinstance(judged, TripletSet):
            scores = [agreement(of_metric[rows, 0], of_metric[rows, 1], people).mean() for of_metric in distances]
        else:
            scores = [average_precision(of_metric[rows, 0], people) for of_metric in distances]
        told.append(
            {
                "unanimity": round(float(unanimity[rows].mean()), 3),
                "items": len(rows),
                "scores": [round(float(score), 4) for score in scores],
            }
        )
    return told


class _Shown(NamedTuple):
    """An item of the gallery: which, and its rank by disagreement for the metrics for which it is among the worst."""

    which_set: int
    row: int
    ranks: dict[int, int]


def _make_gallery(
    sets: Sequence[JudgedSet], of_sets: Sequence[Sequence[FloatArray]], count: int
) -> tuple[dict[str, Any] | None, str]:
    """The worst ``count`` items of every metric and set, with their images, and a sentence on them."""
    if not count:
        return None, "The gallery was left out."
    people = list(map(_people_view, sets))
    views = [[_metric_view(judged, of) for of in of_set] for judged, of_set in zip(sets, of_sets, strict=True)]
    worst = [
        [_worst(judged, view, said, count) for view in of_set]
        for judged, of_set, said in zip(sets, views, people, strict=True)
    ]
    shown: dict[tuple[int, int], _Shown] = {}
    # The worst of every metric and set come first, so that what does not fit into the file was less bad.
    for rank in range(count):
        for index, of_set in enumerate(worst):
            for metric, rows in enumerate(of_set):
                if rank < len(rows):
                    item = shown.setdefault((index, rows[rank]), _Shown(index, rows[rank], {}))
                    item.ranks[metric] = rank
    try:
        images, items = _embed_images(sets, list(shown.values()))
    except (OSError, ValueError) as error:
        return None, f"There is no gallery, because the images are not at hand: {error}"
    described = [
        {
            "set": index,
            "name": sets[index].images[row][-1].stem,
            "images": pictures,
            "ranks": ranks,
            "judged": round(float(sets[index].judged[row]), 4),
            "people": round(float(people[index][row]), 3),
            "views": [round(float(view[row]), 3) for view in views[index]],
            "distances": [[float(f"{value:.4g}") for value in of[row]] for of in of_sets[index]],
        }
        for (index, row, ranks), pictures in items
    ]
    note = f"At most {count} items for each metric and set, those on which it disagrees most with people."
    if len(items) < len(shown):
        note += f" To keep the file small, {len(items):,} are in it, of {len(shown):,}."
    return {"images": images, "items": described}, note


def _worst(judged: JudgedSet, view: FloatArray, people: FloatArray, count: int) -> list[int]:
    """Rows on which a metric disagrees most with people, the worst first; none on which it sides with them."""
    disagreement = -view * people if isinstance(judged, TripletSet) else np.abs(view - people)
    order = np.argsort(-disagreement, kind="stable")[:count]
    return [int(row) for row in order if disagreement[row] > 0]


def _embed_images(
    sets: Sequence[JudgedSet], shown: Sequence[_Shown]
) -> tuple[list[dict[str, Any]], list[tuple[_Shown, list[int]]]]:
    """Images as data URIs, each once, and items with the numbers of their images, as many as there is room for."""
    numbers: dict[str, int] = {}
    images: list[dict[str, Any]] = []
    items: list[tuple[_Shown, list[int]]] = []
    room = _GALLERY_BYTES
    for item in shown:
        if room <= 0:
            break
        judged, pictures = sets[item.which_set], []
        for source in judged.images[item.row]:
            uri, width, height = _data_uri(source, judged.side)
            if uri not in numbers:
                numbers[uri] = len(images)
                images.append({"uri": uri, "width": width, "height": height})
                room -= len(uri)
            pictures.append(numbers[uri])
        items.append((item, pictures))
    return images, items


def _data_uri(source: Path, side: int | None) -> tuple[str, int, int]:
    """An image for the page, with its width and height: the file itself if it is small, or else a smaller PNG."""
    content = source.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        mime, size = _MIME.get(image.format or ""), image.size
    if not mime or max(size) > (side or _LARGEST_SIDE) or len(content) > _LARGEST_FILE:
        smaller = Image.fromarray(read_image_source(source, side)[0].permute(1, 2, 0).numpy())
        smaller.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
        buffer = io.BytesIO()
        smaller.save(buffer, "PNG", optimize=True)
        content, mime, size = buffer.getvalue(), "image/png", smaller.size
    return f"data:{mime};base64,{base64.b64encode(content).decode()}", *size


def _table(title: str, rows: Sequence[Sequence[str]]) -> str:
    (corner, *headings), *body = rows
    cells = "".join(f'<th scope="col">{escape(text)}</th>' for text in headings)
    head = f"<thead><tr><td>{escape(corner)}</td>{cells}</tr></thead>"
    lines = [f"<h3>{escape(title)}</h3>", f'<table aria-label="{escape(title)}">', head, "<tbody>"]
    for name, *texts in body:
        cells = "".join(f"<td>{_markup(text)}</td>" for text in texts)
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    return "\n".join([*lines, "</tbody></table>"])


def _cell(value: float, interval: tuple[float, float] | None, share: float | None) -> str:
    return "\n".join([format_number(value), format_share(share), format_interval(interval) if interval else ""])


def _markup(text: str) -> str:
    """What :func:`_cell` wrote, or a single line, as HTML."""
    first, share, interval = (*map(escape, text.split("\n")), "", "")[:3]
    return (
        first + (f" <small>{share}</small>" if share else "") + (f"<br><small>{interval}</small>" if interval else "")
    )


def _definitions(terms: Mapping[str, Any]) -> str:
    lines = []
    for name, value in terms.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        if value is not None and text:
            lines.append(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>")
    return "\n".join(lines)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Agreement with people</title>
<style>
$style
</style>
</head>
<body>
<header>
<h1>Agreement with people</h1>
<p>$lead</p>
</header>
<main>
<section aria-labelledby="scores">
<h2 id="scores">Scores</h2>
<div class="tables">
$tables
</div>
<div class="notes">
$notes
</div>
</section>
<form class="choice" aria-label="What the plots and the gallery show">
<label>Family <select id="family"></select></label>
<label>Metric <select id="metric"></select></label>
</form>
<noscript><p>Plots and gallery need JavaScript; the tables above are complete without it.</p></noscript>
<section aria-labelledby="bars-title">
<h2 id="bars-title">Scores and their intervals</h2>
<p>Bars start at chance. The thin line is the 95 % bootstrap interval, the dashed one the ceiling: one human.</p>
<div class="panels" id="bars"></div>
</section>
<section aria-labelledby="unanimity-title">
<h2 id="unanimity-title">By how unanimous people were</h2>
<p>Score among the items on which people agreed to this extent, from divided (.5) to unanimous (1).
For 2AFC no metric can be above the dashed line, the side of the majority; those that toss coins are at .5.</p>
<p class="legend" id="legend"></p>
<div class="panels" id="unanimity"></div>
</section>
<section aria-labelledby="scatter-title">
<h2 id="scatter-title">One metric against another</h2>
<p><label>Across <select id="x"></select></label> <label>Up <select id="y"></select></label></p>
<div id="scatter"></div>
</section>
<section aria-labelledby="gallery-title">
<h2 id="gallery-title">Where metric and people disagree most</h2>
<p>$gallery_note</p>
<div id="gallery"></div>
</section>
<section aria-labelledby="run-title">
<h2 id="run-title">This run</h2>
<dl>
$run
</dl>
</section>
</main>
<script type="application/json" id="data">$data</script>
<script>
$script
</script>
</body>
</html>
"""

_STYLE = """
:root {
  --ink: #1d2126; --soft: #5c6670; --line: #d5dadf; --paper: #ffffff; --panel: #f6f7f8;
  --metric0: #0072b2; --metric1: #d55e00; --metric2: #009e73; --metric3: #b5508c; --metric4: #c28a00;
  --metric5: #3a9bdc; --metric6: #7a5cc4; --metric7: #7b848c;
  font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e4e7ea; --soft: #a0a9b2; --line: #3a4149; --paper: #15181b; --panel: #1e2226;
    --metric0: #3f9bd8; --metric1: #f0853d; --metric2: #2fbf94; --metric3: #dd86ba; --metric4: #e6b43c;
    --metric5: #7cc4f2; --metric6: #a78fe6; --metric7: #a3acb4;
  }
}
body { max-width: 1360px; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.7rem; margin: 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; }
p { margin: .3rem 0; max-width: 75ch; }
header p, section > p, .notes, small, figcaption, dt { color: var(--soft); }
.tables { overflow-x: auto; }
.tables h3 { font-weight: normal; }
table { border-collapse: collapse; margin: 0 0 1.4rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; vertical-align: top; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { border-bottom: 1px solid var(--ink); }
tbody tr + tr > * { border-top: 1px solid var(--line); }
th { font-weight: 600; }
small { font-size: .8rem; }
.notes { font-size: .87rem; }
.choice {
  position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: 1.2rem;
  margin: 1.5rem 0 0; padding: .6rem 0; background: var(--paper); border-bottom: 1px solid var(--line);
}
select { font: inherit; color: inherit; background: var(--panel); border: 1px solid var(--line); border-radius: 4px;
  padding: .15rem .4rem; max-width: 22rem; }
select:focus-visible { outline: 2px solid #0072b2; outline-offset: 1px; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(350px, 1fr)); gap: 1rem; margin-top: .8rem; }
.panels > p { grid-column: 1 / -1; }
.panels figure { margin: 0; padding: .6rem .8rem; background: var(--panel); border-radius: 6px; }
.panels figcaption { color: var(--ink); font-weight: 600; }
.panels figcaption small { font-weight: normal; }
svg { display: block; max-width: 100%; height: auto; }
svg text { fill: var(--ink); font-size: 11px; }
svg .soft { fill: var(--soft); }
svg .grid { stroke: var(--line); }
svg .ink { stroke: var(--ink); }
svg polyline { fill: none; stroke-width: 2; }
svg .point { fill-opacity: .75; }
svg .ceiling { stroke: var(--ink); stroke-dasharray: 4 3; }
.legend span { display: inline-block; margin-right: 1.1rem; color: var(--ink); }
.legend i { display: inline-block; width: 1.4rem; margin-right: .35rem; vertical-align: .25em; border-top: 3px solid; }
.legend .again { border-top-style: dashed; }
svg .again { stroke-dasharray: 7 4; }
.items { display: flex; flex-wrap: wrap; gap: 1rem; }
.item { margin: 0; width: min-content; max-width: 100%; padding: .7rem; background: var(--panel); border-radius: 6px; }
.pictures { display: flex; gap: .6rem; overflow-x: auto; }
.pictures div { font-size: .8rem; line-height: 1.35; }
.pictures img { display: block; image-rendering: pixelated; }
.item figcaption { margin-top: .4rem; font-size: .87rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .87rem; }
dd { margin: 0; overflow-wrap: anywhere; }
@media print { .choice { position: static; } }
"""

_SCRIPT = r"""
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const colour = (metric) => `var(--metric${metric % 8})`;
const again = (metric) => (metric < 8 ? "" : "again");  // there are eight colours
const choices = Object.fromEntries(["family", "metric", "x", "y"].map((id) => [id, document.getElementById(id)]));
const DRAWN = ["svg", "line", "rect", "circle", "polyline", "text", "title"];

// An element; children are nodes or text.
function make(name, attributes = {}, ...children) {
  const drawn = DRAWN.includes(name);
  const element = drawn ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const drawing = (width, height, told) =>
  make("svg", {viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": told});
const line = (x1, y1, x2, y2, kind) => make("line", {x1, y1, x2, y2, class: kind});
const label = (x, y, text, anchor = "start", kind = "") =>
  make("text", {x, y, "text-anchor": anchor, class: kind}, text);
const panel = (title, detail, image) =>
  make("figure", {}, make("figcaption", {}, title + " ", make("small", {}, detail)), image);

const short = (value, digits = 3) => value.toFixed(digits).replace(/^(-?)0\./, "$1.");
const percent = (value) => Math.round(100 * value) + " %";
const scale = (low, high, from, to) => (value) => from + ((value - low) / (high - low)) * (to - from);

function ticks(low, high) {
  const step = high - low > 0.55 ? 0.25 : high - low > 0.25 ? 0.1 : 0.05;
  const first = Math.ceil(low / step - 1e-6);
  return Array.from({length: Math.floor(high / step + 1e-6) - first + 1}, (_, index) => (first + index) * step);
}

function drawBars(family) {
  const left = Math.min(190, 12 + 6.3 * Math.max(...data.metrics.map((name) => name.length)));
  return data.bars.filter((bars) => !family || bars.family === family).map((bars) => {
    // Panels of one kind have one axis.
    const alike = data.bars.filter((other) => other.kind === bars.kind);
    const values = alike.flatMap((other) => [other.chance, other.ceiling ?? other.chance, ...other.scores.flat()]);
    const low = Math.floor(Math.min(...values) * 10) / 10, high = Math.ceil(Math.max(...values) * 10) / 10;
    const width = 360, top = 8, row = 20, bottom = top + row * bars.scores.length;
    const x = scale(low, high, left, width - 44);
    const told = bars.scores.map(([value, from, to], metric) =>
      `${data.metrics[metric]} ${short(value)} (${short(from)} to ${short(to)})`);
    const image = drawing(width, bottom + 20, `${bars.name}: ${told.join(", ")}`);
    for (const tick of ticks(low, high)) {
      image.append(line(x(tick), top, x(tick), bottom, "grid"));
      image.append(label(x(tick), bottom + 14, short(tick, 2), "middle", "soft"));
    }
    bars.scores.forEach(([value, from, to], metric) => {
      const y = top + row * (metric + 0.5), end = Math.min(x(bars.chance), x(value));
      const box = {x: end, y: y - 6, width: Math.abs(x(value) - x(bars.chance)), height: 12};
      image.append(
        label(left - 8, y + 4, data.metrics[metric], "end"),
        make("rect", {...box, style: `fill: ${colour(metric)}`}, make("title", {}, told[metric])),
        line(x(from), y, x(to), y, "ink"),
        line(x(from), y - 3, x(from), y + 3, "ink"),
        line(x(to), y - 3, x(to), y + 3, "ink"),
        label(width, y + 4, short(value), "end"),
      );
    });
    image.append(line(x(bars.chance), top, x(bars.chance), bottom, "ink"));
    const ceiling = bars.ceiling === null ? "" : `, ceiling ${short(bars.ceiling)}`;
    if (ceiling) image.append(line(x(bars.ceiling), top - 4, x(bars.ceiling), bottom, "ceiling"));
    return panel(bars.name, bars.kind + ceiling, image);
  });
}

function drawUnanimity(sets) {
  const shown = sets.filter((set) => set.votes);
  if (!shown.length) return [make("p", {}, "Judged pairs carry one number each, no votes: there is nothing to show.")];
  return shown.map((set) => {
    const width = 360, height = 230, left = 52, right = width - 14;
    const x = scale(0.5, 1, left, right), y = scale(0, 1, height - 40, 10);
    const told = data.metrics.map((name, metric) =>
      `${name} ${set.votes.map((votes) => short(votes.scores[metric])).join(" ")}`);
    const image = drawing(width, height, `${set.name}, from divided to unanimous: ${told.join("; ")}`);
    for (const tick of ticks(0, 1)) {
      image.append(line(left, y(tick), right, y(tick), "grid"));
      image.append(label(left - 8, y(tick) + 4, short(tick, 2), "end", "soft"));
    }
    for (const votes of set.votes) {
      image.append(label(x(votes.unanimity), height - 24, short(votes.unanimity, 2), "middle", "soft"));
      image.append(label(x(votes.unanimity), height - 10, votes.items, "middle", "soft"));
    }
    image.append(label(0, height - 10, "items", "start", "soft"));
    if (set.kind === "triplets") image.append(line(x(0.5), y(0.5), x(1), y(1), "ceiling"));
    data.metrics.forEach((name, metric) => {
      const points = set.votes.map((votes) => [x(votes.unanimity), y(votes.scores[metric])]);
      const line = {points: points.join(" "), class: again(metric), style: `stroke: ${colour(metric)}`};
      image.append(make("polyline", line));
      points.forEach(([cx, cy], index) => {
        const title = `${name}: ${short(set.votes[index].scores[metric])} on ${set.votes[index].items} items`;
        image.append(make("circle", {cx, cy, r: 3.5, style: `fill: ${colour(metric)}`}, make("title", {}, title)));
      });
    });
    return panel(set.name, set.kind === "same" ? "average precision" : "agreement", image);
  });
}

function drawScatter(sets, across, up) {
  // Triplets and pairs have different axes: if both are chosen, the kind of the first is shown.
  const shown = sets.filter((set) => set.kind === sets[0].kind), triplets = sets[0].kind === "triplets";
  const low = triplets ? -1 : 0, size = 460, x = scale(low, 1, 40, size - 10), y = scale(low, 1, size - 40, 10);
  const names = [data.metrics[across], data.metrics[up]], places = shown.map((set) => set.name).join(", ");
  const image = drawing(size, size, `${names[1]} against ${names[0]} on ${places}`);
  for (const part of [0, 0.25, 0.5, 0.75, 1]) {
    const tick = low + part * (1 - low);
    image.append(line(x(tick), y(low), x(tick), y(1), "grid"), line(x(low), y(tick), x(1), y(tick), "grid"));
    image.append(label(x(tick), size - 24, String(tick), "middle", "soft"));
    image.append(label(34, y(tick) + 4, String(tick), "end", "soft"));
  }
  if (triplets) image.append(line(x(0), y(-1), x(0), y(1), "ink"), line(x(-1), y(0), x(1), y(0), "ink"));
  const upwards = {transform: `translate(10 ${y(1)}) rotate(-90)`, "text-anchor": "end"};
  image.append(label(x(1), size - 8, names[0] + " \u2192", "end"), make("text", upwards, names[1] + " \u2192"));
  let count = 0, together = 0, total = 0;
  for (const {name, points} of shown) {
    total += points.total;
    points.rows.forEach((row, index) => {
      const [a, b, people] = [points.metrics[across][index], points.metrics[up][index], points.people[index]];
      const share = 100 * (triplets ? (people + 1) / 2 : people);
      const title = `${name}, item ${row + 1}: ${names[0]} ${a}, ${names[1]} ${b}, people ${people}`;
      const style = `fill: color-mix(in srgb, var(--metric1) ${share}%, var(--metric5))`;
      image.append(make("circle", {cx: x(a), cy: y(b), r: 3, class: "point", style}, make("title", {}, title)));
      count += 1;
      together += Math.sign(a) === Math.sign(b);
    });
  }
  const told = triplets
    ? "By how much a metric finds the first distortion farther than the second, as a share of both distances. " +
      `The two take one side on ${percent(together / count)}. ` +
      "Colour: people find the first nearer (blue) or the second (orange)."
    : "Place of each distance in the order of its set, or group, from near (0) to far (1). " +
      "Colour: people find the pair near (blue) or far (orange).";
  return [image, make("p", {}, `${count} of ${total} items of ${places}. ${told}`)];
}

function drawItem(item, metric) {
  const set = data.sets[item.set], name = data.metrics[metric], distances = item.distances[metric];
  const picture = (index, alt, ...lines) => {
    const {uri, width, height} = data.gallery.images[item.images[index]];
    const times = Math.max(1, Math.floor(140 / Math.max(width, height)));
    const attributes = {src: uri, alt, title: alt, width: width * times, height: height * times};
    return make("div", {}, make("img", attributes), ...lines.flatMap((text) => [text, make("br")]));
  };
  let pictures, told;
  if (set.kind === "triplets") {
    const [nearer, other] = item.judged > 0.5 ? ["right", "left"] : ["left", "right"];
    pictures = [
      picture(1, "first distortion", `${percent(1 - item.judged)} of people`, `${name} ${distances[0]}`),
      picture(0, "reference", "reference"),
      picture(2, "second distortion", `${percent(item.judged)} of people`, `${name} ${distances[1]}`),
    ];
    told = `people find the ${nearer} one nearer, ${name} the ${other} one.`;
  } else {
    pictures = [picture(0, "first image"), picture(1, "second image")];
    const people = set.kind === "same"
      ? `${percent(item.judged)} of people saw no difference`
      : `people put it farther than ${percent(item.people)} of the pairs (${item.judged})`;
    told = `${people}; ${name} puts it farther than ${percent(item.views[metric])} of the pairs (${distances[0]}).`;
  }
  const caption = make("figcaption", {}, `${item.name}: ${told}`);
  return make("figure", {class: "item"}, make("div", {class: "pictures"}, ...pictures), caption);
}

function drawGallery(sets, metric) {
  if (!data.gallery) return [];
  return sets.flatMap((set) => {
    const items = data.gallery.items.filter((item) => data.sets[item.set] === set && metric in item.ranks);
    items.sort((one, other) => one.ranks[metric] - other.ranks[metric]);
    const count = items.length === 1 ? "1 item" : `${items.length} items`;
    const title = make("h3", {}, `${set.name}: ${count}, ${data.metrics[metric]}`);
    return items.length ? [title, make("div", {class: "items"}, ...items.map((item) => drawItem(item, metric)))] : [];
  });
}

function readChoice() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const metric = (key, otherwise) => {
    const index = data.metrics.indexOf(asked.get(key));
    return index < 0 ? Math.min(otherwise, data.metrics.length - 1) : index;
  };
  const family = data.sets.some((set) => set.family === asked.get("family")) ? asked.get("family") : "";
  return {family, metric: metric("metric", 0), x: metric("x", 1), y: metric("y", 0)};
}

function draw() {
  const choice = readChoice();
  for (const [key, select] of Object.entries(choices)) select.value = choice[key];
  const sets = data.sets.filter((set) => !choice.family || set.family === choice.family);
  const fill = (id, elements) => document.getElementById(id).replaceChildren(...elements);
  fill("bars", drawBars(choice.family));
  fill("unanimity", drawUnanimity(sets));
  fill("scatter", drawScatter(sets, choice.x, choice.y));
  fill("gallery", drawGallery(sets, choice.metric));
}

const offer = (select, names) => select.append(...names.map(([name, value]) => make("option", {value}, name)));
for (const key of ["metric", "x", "y"]) offer(choices[key], data.metrics.map((name, index) => [name, index]));
const families = [...new Set(data.sets.map((set) => set.family))];
offer(choices.family, [["all", ""], ...families.map((name) => [name, name])]);
for (const select of Object.values(choices)) {
  select.addEventListener("change", () => {
    const asked = {family: choices.family.value};
    for (const key of ["metric", "x", "y"]) asked[key] = data.metrics[choices[key].value];
    location.hash = new URLSearchParams(asked).toString();
  });
}
data.metrics.forEach((name, metric) => {
  const box = make("i", {class: again(metric), style: `color: ${colour(metric)}`});
  document.getElementById("legend").append(make("span", {}, box, name));
});
window.addEventListener("hashchange", draw);
draw();
"""
