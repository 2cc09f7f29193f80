"""``--html``: what ``compare``, ``dirs``, ``check``, ``matrix`` and ``sets`` found, as one page to look at."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import interpolate

from afv_metric import __version__
from afv_metric.cli.items import load_metric
from afv_metric.cli.pairs import Files, map_of_pair, mean_interval
from afv_metric.heat_map import RAMP, colour_map
from afv_metric.page import png_uri, write_page

__all__ = ["matrix_page", "pairs_page", "sets_page", "thumbnail"]

_CARDS = 24
_SIDE = 256
_MATRIX = 60


def _write(options: argparse.Namespace, title: str, lead: str, **content: Any) -> None:
    page: dict[str, Any] = {name: {} for name in ("cards", "rows", "numbers", "samples", "matrix")} | content
    form = getattr(options, "form", None) or "the bundle's"
    page["run"] = {"afv_metric": __version__, "bundle": options.weights, "form": form}
    page["ramp"] = ", ".join(f"rgb{colour}" for colour in RAMP)
    page["errors"] = options.problems.texts
    write_page(options.html, "distances.html.j2", title=title, lead=lead, **page)


def thumbnail(image: Tensor, side: int = _SIDE) -> Tensor:
    """An image ``(1, C, H, W)`` no larger than a side, as ``(C, h, w)``."""
    scale = side / max(image.shape[2:])
    if scale >= 1:
        return image[0]
    size = [max(1, round(length * scale)) for length in image.shape[2:]]
    return interpolate(image.float(), size, mode="area").to(image.dtype)[0]


def picture(image: Tensor, side: int = _SIDE) -> str:
    """The address of its thumbnail; of images of other numbers of channels than three, the first is shown as grey."""
    small = thumbnail(image, side)
    return png_uri((small if len(small) == 3 else small[:1].expand(3, -1, -1)).permute(1, 2, 0).contiguous().numpy())


def pairs_page(
    options: argparse.Namespace,
    files: Files,
    values: Mapping[str, Mapping[str, float]],
    phrase: Callable[[float], str] | None = None,
) -> None:
    """Write the page of pairs by metric and name, the farthest by the first metric with images, map and slider.

    ``phrase`` puts a distance into words.
    """
    deciding, *_ = values.values()
    names = sorted(deciding, key=lambda name: -deciding[name])
    metric = load_metric(options, spatial=True)
    shown = []
    for name in names[:_CARDS]:
        if found := map_of_pair(metric, files[name], options):
            images, map_of = found
            shown.append((name, images, thumbnail(map_of)[0]))
    texts = {name: [f"{column[name]:.6g}" for column in values.values()] for name in names}
    largest = max((float(map_of.max()) for *_, map_of in shown), default=0.0)
    cards = [
        {
            "name": name,
            "distances": texts[name],
            "phrase": phrase(deciding[name]) if phrase else "",
            "first": picture(first),
            "second": picture(second),
            "map": png_uri(colour_map(map_of, thumbnail(second), largest)),
            "width": map_of.shape[1] * (times := max(1, _SIDE // max(map_of.shape))),
            "height": map_of.shape[0] * times,
        }
        for name, (first, second), map_of in shown
    ]
    means = [", mean {} {:.6g} [{:.6g}, {:.6g}]".format(m, *mean_interval(c)) for m, c in values.items() if c]
    content = {"cards": cards, "heads": list(values), "rows": texts, "largest": f"{largest:.4g}"}
    _write(options, "Distances of images", f"{len(names)} pairs{''.join(means)}", **content)


def matrix_page(options: argparse.Namespace, images: Mapping[str, Tensor], text: Callable[[str, str], str]) -> None:
    """Write the page of a matrix; ``text`` is the distance of two images as it is printed, nothing if there is none."""
    names = list(images)[:_MATRIX]
    table = [[text(one, other) for other in names] for one in names]
    largest = max((float(cell) for row in table for cell in row if cell), default=0) or 1.0
    matrix = [
        (
            name,
            picture(images[name], 48),
            [(f"{float(c):.3g}" if c else "", round(100 * float(c or 0) / largest)) for c in row],
        )
        for name, row in zip(names, table, strict=True)
    ]
    note = f"The first {_MATRIX} of {len(images)} images." if len(images) > _MATRIX else ""
    _write(options, "Distances of all pairs", str(options.folder), matrix=matrix, matrix_note=note)


def sets_page(
    options: argparse.Namespace,
    numbers: Sequence[Sequence[str]],
    notes: Sequence[str],
    samples: Mapping[str, Sequence[Tensor]],
) -> None:
    """Write the page of two sets, whose ``numbers`` are rows: name, plain, corrected, interval."""
    pictures = {name: [picture(image, 96) for image in images] for name, images in samples.items()}
    lead = f"{options.folder0} and {options.folder1}"
    _write(options, "Two sets of images", lead, numbers=numbers, notes=notes, samples=pictures)
