"""Human-judged sets of images: BAPPS folders and CSV lists of pairs."""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from afv_metric.images import read_image

__all__ = [
    "SMALLEST_GROUP",
    "JudgedSet",
    "PairSet",
    "SameSet",
    "TripletSet",
    "batches",
    "distinguish",
    "read_pairs",
    "read_root",
]

SMALLEST_GROUP = 10
_BROKEN_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True, eq=False)
class JudgedSet:
    """Items of two or three images, the first of which is compared with the others, and what people said.

    Attributes:
        name: Heading of its column.
        source: Where it was read from.
        images: Paths of the images of every item, ``(N, 2)`` or ``(N, 3)``.
        judged: What people said, ``(N,)``; the subclasses say what it means.
    """

    name: str
    source: Path
    images: Sequence[tuple[Path, ...]]
    judged: NDArray[np.float64]

    def __len__(self) -> int:
        """Number of items."""
        return len(self.images)

    @property
    def measure(self) -> str:
        """Name of the score that the set is for."""
        raise NotImplementedError

    @property
    def strata(self) -> list[NDArray[np.intp]]:
        """Rows of the items that are scored, and resampled, among themselves; together all rows."""
        return [np.arange(len(self))]

    def limited(self, count: int) -> JudgedSet:
        """At most ``count`` items, evenly spread, so that every part of an ordered list is represented."""
        return self if count >= len(self) else self._take(_spread(len(self), count))

    def _take(self, rows: NDArray[np.intp]) -> JudgedSet:
        return replace(self, images=[self.images[row] for row in rows], judged=self.judged[rows])


@dataclass(frozen=True, eq=False)
class TripletSet(JudgedSet):
    """BAPPS 2AFC: a reference and two distortions; ``judged`` is the fraction who preferred the second."""

    @property
    def measure(self) -> str:
        """Name of the score."""
        return "2AFC"


@dataclass(frozen=True, eq=False)
class SameSet(JudgedSet):
    """BAPPS JND: two images; ``judged`` is the fraction of people who took them for the same."""

    @property
    def measure(self) -> str:
        """Name of the score."""
        return "JND mAP"


@dataclass(frozen=True, eq=False)
class PairSet(JudgedSet):
    """A reference and a distorted image; ``judged`` is how far apart people found them, on any scale.

    Attributes:
        groups: Number of the group of every pair, ``(N,)``. Pairs are ranked within groups and the
            correlations averaged; all 0 if the whole set is ranked together.

    Raises:
        ValueError: If a group has fewer than two pairs, which have no order.
    """

    groups: NDArray[np.intp]

    def __post_init__(self) -> None:
        """Check that every group has an order."""
        if min(len(rows) for rows in self.strata) < 2:
            raise ValueError(f"{self.source}: a rank correlation takes at least two pairs (of every group)")

    @property
    def measure(self) -> str:
        """Name of the score."""
        return "SROCC" if len(self.strata) == 1 else "SROCC in groups"

    @property
    def strata(self) -> list[NDArray[np.intp]]:
        """Rows of each group."""
        return [np.flatnonzero(self.groups == group) for group in np.unique(self.groups)]

    def _take(self, rows: NDArray[np.intp]) -> JudgedSet:
        images = [self.images[row] for row in rows]
        return replace(self, images=images, judged=self.judged[rows], groups=self.groups[rows])


class _Layout(NamedTuple):
    """Folders of one kind of BAPPS set."""

    kind: str
    images: tuple[str, ...]
    judgement: str
    made: type[JudgedSet]


_LAYOUTS = (
    _Layout("2afc", ("ref", "p0", "p1"), "judge", TripletSet),
    _Layout("jnd", ("p0", "p1"), "same", SameSet),
)


def read_root(root: str | os.PathLike[str], split: str = "val") -> list[JudgedSet]:
    """Find the sets of a folder in the layout of BAPPS.

    ``2afc/<split>/<family>/{ref,p0,p1,judge}`` are triplets and ``jnd/<split>/<family>/{p0,p1,same}`` pairs;
    families are whatever folders there are. The images of an item have the stem of its ``.npy`` judgement and
    any suffix. Hidden files are no items.

    Args:
        root: The folder.
        split: ``"val"`` or ``"train"``.

    Returns:
        A set for every family, called ``2afc/<family>`` or ``jnd/<family>``; items in order of their names.

    Raises:
        FileNotFoundError: If there is no family, or an item lacks one of its files, which is named.
        ValueError: If a judgement is not a fraction, or two files of a folder have one stem.
    """
    root = Path(root)
    sets = [
        _read_family(folder, layout)
        for layout in _LAYOUTS
        for folder in sorted((root / layout.kind / split).glob("[!.]*"))
        if folder.is_dir()
    ]
    if not sets:
        expected = " or ".join(f"{layout.kind}/{split}/<family>" for layout in _LAYOUTS)
        raise FileNotFoundError(f"{root} has no folder {expected}")
    return sets


def read_pairs(file: str | os.PathLike[str]) -> PairSet:
    """Read a CSV list ``reference,distorted,distance[,group]``; paths are relative to the file.

    If there is a column ``group`` and every group has at least :data:`SMALLEST_GROUP` pairs, the rank
    correlation is taken within each group and averaged over groups. Otherwise it is taken over all pairs,
    because the order of a handful of pairs says little. So HECD (32 or 33 recolourings of each of 6 scenes)
    is scored within scenes, LIVE blur and SRIJ (2-5 distortions of each of many images) overall. On the
    tuning parts of SRIJ, HECD and LIVE this gives the figures that came with the data: .409, .245, .784 for
    ``l2``, .449, .160, .918 for ``ssim`` and .635, .444, .950 for ``lpips-alex``.

    Args:
        file: The list. The set is called after it, or after its folder if it is called ``scores.csv``.

    Raises:
        FileNotFoundError: If the list or an image is missing; the missing images are named.
        ValueError: If a column is missing, a line is incomplete, or a distance is not a number.
    """
    file = Path(file)
    with file.open(newline="", encoding="utf-8-sig") as lines:
        table = csv.DictReader(lines)
        columns = [name for name in ("reference", "distorted", "distance", "group") if name in (table.fieldnames or ())]
        if columns[:3] != ["reference", "distorted", "distance"]:
            raise ValueError(f"{file} needs the columns reference, distorted, distance; it has {table.fieldnames}")
        images, judged, groups = [], [], []
        for row in table:
            if any(not row[column] for column in columns):
                raise ValueError(f"{file}, line {table.line_num}: {' and '.join(columns)} must all be given")
            images.append((file.parent / row["reference"], file.parent / row["distorted"]))
            judged.append(_parse_number(row["distance"], f"{file}, line {table.line_num}"))
            groups.append(row.get("group", ""))
    if not images:
        raise ValueError(f"{file} lists no pairs")
    _require(path for path in dict.fromkeys(path for pair in images for path in pair) if not path.is_file())
    if min(Counter(groups).values()) < SMALLEST_GROUP:
        groups = [""] * len(groups)
    numbers = np.unique(groups, return_inverse=True)[1]
    resolved = file.resolve()
    name = resolved.parent.name if file.name == "scores.csv" else file.stem
    return PairSet(name, file, images, np.array(judged), numbers)


def distinguish(sets: Sequence[JudgedSet]) -> list[JudgedSet]:
    """Call sets of equal names after where they come from.

    Raises:
        ValueError: If a set is given twice.
    """
    names = Counter(judged.name for judged in sets)
    told = [judged if names[judged.name] == 1 else replace(judged, name=judged.source.as_posix()) for judged in sets]
    twice = [name for name, count in Counter(judged.name for judged in told).items() if count > 1]
    if twice:
        raise ValueError(f"given twice: {', '.join(twice)}")
    return told


def batches(judged: JudgedSet, batch_size: int) -> Iterator[tuple[NDArray[np.intp], list[Tensor]]]:
    """Decode the images of a set in batches; those of one batch have one size.

    Args:
        judged: The set.
        batch_size: Most items in a batch.

    Yields:
        Rows of the items ``(n,)``, and for each image of an item a tensor ``(n, 3, H, W)`` in [-1, 1].

    Raises:
        ValueError: If a file is not an image, or the images of an item differ in size; the file is named.
    """
    # Lists of pairs often repeat a reference on neighbouring lines.
    read, read_size = lru_cache(maxsize=8)(_read_image), lru_cache(maxsize=None)(_read_size)
    rows_of_size: dict[tuple[int, int], list[int]] = {}
    for row, paths in enumerate(judged.images):
        rows_of_size.setdefault(read_size(paths[0]), []).append(row)
    for size, rows in rows_of_size.items():
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            items = [[read(path) for path in judged.images[row]] for row in batch]
            for row, images in zip(batch, items, strict=True):
                if any(image.shape[2:] != size for image in images):
                    listed = ", ".join(map(str, judged.images[row]))
                    raise ValueError(f"these images should have one size: {listed}")
            columns = [torch.cat(column) for column in zip(*items, strict=True)]
            yield np.array(batch), [column.float().div_(127.5).sub_(1) for column in columns]


def _read_family(folder: Path, layout: _Layout) -> JudgedSet:
    names = (*layout.images, layout.judgement)
    found = {name: _files_by_stem(folder / name) for name in names}
    stems = sorted(set().union(*found.values()))
    if not stems:
        raise FileNotFoundError(f"{folder} has no items")
    _require(folder / name / f"{stem}.*" for name in names for stem in stems if stem not in found[name])
    judged = np.array([_read_fraction(found[layout.judgement][stem]) for stem in stems])
    images = [tuple(found[name][stem] for name in layout.images) for stem in stems]
    return layout.made(f"{layout.kind}/{folder.name}", folder, images, judged)


def _files_by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("[!.]*")):
        if path.stem in files:
            raise ValueError(f"{files[path.stem]} and {path.name} are two files for one item")
        files[path.stem] = path
    return files


def _read_fraction(path: Path) -> float:
    try:
        value = float(np.load(path, allow_pickle=False).item())
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise ValueError(f"cannot read one number from {path}: {error}") from error
    if not 0 <= value <= 1:
        raise ValueError(f"{path} should hold a fraction of people in [0, 1], not {value}")
    return value


def _parse_number(text: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{place}: the distance should be a number, not {text!r}")
    return value


def _read_image(path: Path) -> Tensor:
    try:
        return read_image(path)
    except _BROKEN_IMAGE as error:
        raise ValueError(f"cannot read the image {path}: {error}") from error


def _read_size(path: Path) -> tuple[int, int]:
    """Height and width, from the head of the file."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except _BROKEN_IMAGE as error:
        raise ValueError(f"cannot read the image {path}: {error}") from error


def _require(missing: Iterator[Path]) -> None:
    paths = [str(path) for path in missing]
    if paths:
        more = f" and {len(paths) - 10} more" if len(paths) > 10 else ""
        raise FileNotFoundError(f"missing: {', '.join(paths[:10])}{more}")


def _spread(length: int, count: int) -> NDArray[np.intp]:
    """``count`` of the numbers 0 to length - 1, evenly spread.

    Example:
        >>> _spread(10, 4).tolist()
        [0, 2, 5, 7]
    """
    return np.arange(count) * length // count
