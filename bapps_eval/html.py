"""One HTML file: tables, plots, and the items on which metrics and people disagree most.

The page asks for nothing from outside, so it works from ``file://`` and in an e-mail. Its tables are plain HTML; plots
and gallery are drawn by a small script (``templates/``) from JSON in the page. The address chooses, behind ``#``:
``family`` and ``metric`` choose, ``x`` and ``y`` are the metrics of the scatter plot, for example
``report.html#family=cnn&metric=l2``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import stats

from afv_metric.cli.outcome import describe
from afv_metric.page import png_uri, write_page
from bapps_eval.data import FloatArray, JudgedSet, read_image_source, spread
from bapps_eval.formats import finite, grids
from bapps_eval.report import Column, Report, family
from bapps_eval.results import Results
from bapps_eval.scores import score

__all__ = ["write_html"]

_POINTS = 600  # of each set in the scatter plot
_GALLERY_BYTES = 16 * 2**20
_LARGEST_SIDE = 256


def write_html(path: str | os.PathLike[str], report: Report, gallery: int = 12) -> None:
    """Write the page.

    The gallery has so many items per metric and set, those on which it disagrees most with people; fewer if their
    images are larger than 16 MiB together, and none, which the page says, if they are not at hand.
    """
    results = report.results
    items, gallery_note = _make_gallery(results, gallery)
    sets: list[dict[str, Any]] = [
        {
            "name": judged.name + ("*" if judged.partial else ""),
            "family": family(judged),
            "kind": judged.kind,
            "points": _points(judged, distances),
            "votes": None if judged.kind == "pairs" else _by_unanimity(judged, distances),
        }
        for judged, distances in zip(results.sets, results.distances, strict=True)
    ]
    bars = [_bars(table.kind, column) for table in report.tables for column in table.columns]
    data = {"metrics": report.labels, "bars": bars, "sets": sets, "gallery": items}
    run = {**results.settings, **results.versions}
    run = {name: ", ".join(map(str, value)) if isinstance(value, list) else value for name, value in run.items()}
    write_page(
        path,
        "page.html.j2",
        "bapps_eval",
        title="Agreement with people",
        lead=f"{', '.join(report.labels)} on {', '.join(item['name'] for item in sets)}",
        tables=grids(report),
        notes=report.notes,
        gallery_note=gallery_note,
        run={name: value for name, value in run.items() if value not in (None, "")},
        # A "<" could end the script.
        data=json.dumps(finite(data), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    )


def _bars(kind: str, column: Column) -> dict[str, Any]:
    return {
        "name": column.name + "*" * bool(column.partial),
        "family": None if column.measure == "mean" else column.heading.rstrip("*"),
        "kind": kind,
        "chance": 0.5 if kind == "2AFC" else 0,
        "ceiling": column.ceiling,
        "scores": [[round(value, 6) for value in (of.value, *of.interval)] for of in column.scores],
    }


def _metric_view(judged: JudgedSet, distances: FloatArray) -> FloatArray:
    """The verdict of a metric on each item, ``(N,)``, on one scale for all metrics.

    Of triplets how much farther the first is than the second, relatively, in [-1, 1]; of pairs the place in the order
    from near to far, in [0, 1].
    """
    if judged.kind == "triplets":
        first, second = distances.T
        total = np.abs(first) + np.abs(second)
        return np.asarray(np.divide(first - second, total, out=np.zeros_like(total), where=total > 0))
    return _places(judged, distances[:, 0])


def _people_view(judged: JudgedSet) -> FloatArray:
    """The verdict of people, on the scale of :func:`_metric_view`."""
    if judged.kind == "triplets":
        return 2 * judged.judged - 1
    return _places(judged, -judged.judged if judged.kind == "same" else judged.judged)


def _places(judged: JudgedSet, values: FloatArray) -> FloatArray:
    places = np.empty(len(judged))
    for rows in judged.strata:
        places[rows] = (stats.rankdata(values[rows]) - 0.5) / len(rows)
    return places


def _points(judged: JudgedSet, distances: FloatArray) -> dict[str, Any]:
    """Views of at most :data:`_POINTS` items, evenly spread."""
    rows = spread(len(judged), min(_POINTS, len(judged)))
    views = [_metric_view(judged, of_metric)[rows] for of_metric in distances]
    return {
        "rows": rows.tolist(),
        "total": len(judged),
        "people": _people_view(judged)[rows].round(3).tolist(),
        "metrics": [view.round(3).tolist() for view in views],
    }


def _by_unanimity(judged: JudgedSet, distances: FloatArray) -> list[dict[str, Any]]:
    """Scores among items on which people were about equally sure, from divided to unanimous."""
    unanimity = np.maximum(judged.judged, 1 - judged.judged).round(6)
    # Divided; 3 of 5 or 2 of 3; 3 of 4 to 5 of 6; unanimous.
    classes = np.digitize(unanimity, (0.55, 0.7, 0.9))
    alike = [np.flatnonzero(classes == index) for index in np.unique(classes)]
    return [
        {
            "unanimity": round(float(unanimity[rows].mean()), 3),
            "items": len(rows),
            "scores": [round(float(score(judged.take(rows), of_metric[rows])), 4) for of_metric in distances],
        }
        for rows in alike
    ]


def _make_gallery(results: Results, count: int) -> tuple[dict[str, Any] | None, str]:
    """The worst ``count`` items of every metric and set, with their images, and a sentence on them."""
    if not count:
        return None, "The gallery was left out."
    sets, of_sets = results.sets, results.distances
    people = list(map(_people_view, sets))
    views = [[_metric_view(judged, of) for of in of_set] for judged, of_set in zip(sets, of_sets, strict=True)]
    worst = [
        (rank, index, metric, row)
        for index, judged in enumerate(sets)
        for metric, view in enumerate(views[index])
        for rank, row in enumerate(_worst(judged, view, people[index], count))
    ]
    # By set and row, the ranks for the metrics for which the item is among the worst. The worst of every metric and
    # set come first, so that what does not fit into the file was less bad.
    ranks: dict[tuple[int, int], dict[int, int]] = {}
    for rank, index, metric, row in sorted(worst):
        ranks.setdefault((index, row), {})[metric] = rank
    images: dict[str, dict[str, Any]] = {}
    items: list[dict[str, Any]] = []
    for (index, row), of_metrics in ranks.items():
        if sum(map(len, images)) >= _GALLERY_BYTES:
            break
        judged = sets[index]
        try:
            pictures = [_picture(source, judged) for source in judged.images[row]]
        except (OSError, ValueError) as error:
            return None, f"There is no gallery, because the images are not at hand: {describe(error)}"
        images |= {picture["uri"]: picture for picture in pictures}
        items.append(
            {
                "set": index,
                "name": judged.images[row][-1].stem,
                "images": [list(images).index(picture["uri"]) for picture in pictures],
                "ranks": of_metrics,
                "judged": round(float(judged.judged[row]), 4),
                "people": round(float(people[index][row]), 3),
                "views": [round(float(view[row]), 3) for view in views[index]],
                "distances": [[float(f"{value:.4g}") for value in of[row]] for of in of_sets[index]],
            }
        )
    note = f"At most {count} items for each metric and set, those on which it disagrees most with people."
    if len(items) < len(ranks):
        note += f" To keep the file small, {len(items):,} are in it, of {len(ranks):,}."
    return {"images": list(images.values()), "items": items}, note


def _worst(judged: JudgedSet, view: FloatArray, people: FloatArray, count: int) -> list[int]:
    """Rows on which a metric disagrees most with people, the worst first; none on which it sides with them."""
    disagreement = -view * people if judged.kind == "triplets" else np.abs(view - people)
    order = np.argsort(-disagreement, kind="stable")[:count]
    return [int(row) for row in order if disagreement[row] > 0]


def _picture(source: Path, judged: JudgedSet) -> dict[str, Any]:
    """An image for the page, made smaller if it is large: three channels, or the first."""
    pixels = read_image_source(source, judged.side, judged.reader)[0].permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., 0])
    image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    return {"uri": png_uri(np.asarray(image)), "width": image.width, "height": image.height}
