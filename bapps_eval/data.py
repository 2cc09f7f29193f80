"""Human-judged sets of images: folders in the layout of BAPPS, and CSV lists of pairs."""

from __future__ import annotations

import csv
import io
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from afv_metric.files import reason_of
from afv_metric.images import ImageError, Reader
from afv_metric.images.listing import is_image_name
from afv_metric.images.tiles import by_pillow

__all__ = [
    "ARCHIVES", "FAMILIES", "FOLDERS", "KINDS", "PUBLISHED", "SIDE", "SMALLEST_GROUP", "TASKS", "FloatArray",
    "JudgedSet", "default_root", "distinguish", "read_image_source", "read_pairs", "read_root", "refuse_repeated",
    "spread",
]  # fmt: skip

TASKS = ("2afc", "jnd")
FAMILIES = ("traditional", "cnn", "superres", "deblur", "color", "frameinterp", "mix")
# Items of the split val.
PUBLISHED = {
    "2afc": {"traditional": 4720, "cnn": 4720, "superres": 10856, "deblur": 9440, "color": 4720, "frameinterp": 1888},
    "jnd": {"traditional": 4800, "cnn": 4800},
}
ARCHIVES = {"val": {"2afc": "twoafc_val.tar.gz", "jnd": "jnd.tar.gz"}, "train": {"2afc": "twoafc_train.tar.gz"}}
KINDS = {"triplets": "2AFC", "same": "JND mAP", "pairs": "SROCC"}
"""The kinds of judged sets, and the score of each: BAPPS 2AFC, BAPPS JND, and pairs whose distance people gave."""
SIDE = 64
SMALLEST_GROUP = 10
FloatArray = NDArray[np.float64]
_READER = Reader()
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class JudgedSet:
    """Items of two or three images, the first of which is compared with the others, and what people said.

    Attributes:
        kind: One of :data:`KINDS`.
        name: Heading of its column.
        source: Folder or file that it was read from.
        images: Files of the images of every item, ``(N, 2)`` or ``(N, 3)``.
        judged: Judgements, ``(N,)``: of triplets the fraction who preferred the second distortion, of ``same`` the
            fraction who took both images for the same, of pairs how far apart people found them, on any scale.
        groups: Number of the group of every pair, ``(N,)``. Pairs are ranked within groups and the correlations
            averaged; all 0, or None, if the whole set is scored together.
        partial: The part that is here, ``"2,000 of 4,720 items"``; empty if the set is whole, or nobody knows.
        side: Length in pixels to which the shorter side of every image is brought; None leaves images as they are.
        reader: Rules to read the files by: those of the metrics, see :func:`bapps_eval.run.evaluate`.

    Raises:
        ValueError: If pairs, or a group of them, are fewer than two, which have no order.
    """

    kind: str
    name: str
    source: Path
    images: Sequence[tuple[Path, ...]]
    judged: FloatArray
    groups: NDArray[np.intp] | None = None
    partial: str = ""
    side: int | None = None
    reader: Reader = _READER

    def __post_init__(self) -> None:
        if self.kind == "pairs" and min(map(len, self.strata)) < 2:
            raise ValueError(f"{self.source}: a rank correlation takes at least two pairs (of every group)")

    def __len__(self) -> int:
        """Number of items."""
        return len(self.images)

    @property
    def measure(self) -> str:
        """Name of the score that the set is for."""
        return KINDS[self.kind] + (" in groups" if len(self.strata) > 1 else "")

    @property
    def strata(self) -> list[NDArray[np.intp]]:
        """Rows of the items that are scored, and resampled, among themselves; together all rows."""
        groups = np.zeros(len(self)) if self.groups is None else self.groups
        return [np.flatnonzero(groups == group) for group in np.unique(groups)]

    def limited(self, count: int) -> JudgedSet:
        """At most ``count`` items, evenly spread, so that every part of an ordered list is represented."""
        return self if count >= len(self) else self.take(spread(len(self), count))

    def take(self, rows: NDArray[np.intp]) -> JudgedSet:
        """Some of the items, by their rows: a partial set, in groups only if each is still large enough."""
        whole = self.partial.split(" of ")[-1] or f"{len(self):,} items"
        return replace(
            self,
            images=[self.images[row] for row in rows],
            judged=self.judged[rows],
            groups=None if self.groups is None else _number_groups(self.groups[rows]),
            partial=f"{len(rows):,} of {whole}",
        )


def _number_groups(names: ArrayLike) -> NDArray[np.intp]:
    """Numbers for the groups of pairs; all 0 if one has fewer than :data:`SMALLEST_GROUP`."""
    _, numbers, sizes = np.unique(names, return_inverse=True, return_counts=True)
    return numbers if sizes.min() >= SMALLEST_GROUP else np.zeros_like(numbers)


# The folders of a family of each task; the last one holds the judgements.
_LAYOUTS = {"2afc": ("ref", "p0", "p1", "judge"), "jnd": ("p0", "p1", "same")}
FOLDERS = {folder for folders in _LAYOUTS.values() for folder in folders}

_Files = Mapping[str, Mapping[str, Path]]  # of a family: by folder, by stem


def default_root() -> Path:
    """Where BAPPS is looked for, and downloaded to: ``$BAPPS_ROOT``, or ``afv_metric/bapps`` in the user cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    try:
        return Path(os.environ.get("BAPPS_ROOT") or cache / "afv_metric" / "bapps").expanduser()
    except RuntimeError as error:
        raise ValueError("there is no home folder to look for BAPPS in: set BAPPS_ROOT, or give --root") from error


def read_root(
    root: str | os.PathLike[str], split: str = "val", *, tasks: Sequence[str] = TASKS, families: Sequence[str] = ()
) -> list[JudgedSet]:
    """Find the sets of a folder in the layout of BAPPS.

    ``2afc/<split>/<family>/{ref,p0,p1,judge}`` are triplets and ``jnd/<split>/<family>/{p0,p1,same}`` pairs;
    families are whatever folders there are. The images of an item have the stem of its ``.npy`` judgement and
    the suffix of any image format. Foreign files and folders are passed over, and counted in one warning of the log.
    The families of BAPPS come first, in the order of its paper; ``families`` chooses some.

    A family that is called as one of BAPPS's is treated as one: images are brought to :data:`SIDE` pixels, as the
    official scripts do (the published files show patches of 64x64 enlarged to 256x256), and in the split val, a set
    that has not as many items as were published is named as partial.

    Raises:
        FileNotFoundError: If there is no such family, or an item lacks one of its files, which is named.
        ValueError: If a judgement is not a fraction, or two files of a folder have one stem.
    """
    root = Path(root)
    if root.is_file():
        raise FileNotFoundError(
            f"{root} is a file, not a folder: unpack it, for example with tar xf {root}, and give the folder"
        )
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not there")
    foreign: list[Path] = []
    found = {task: _list_task(root / task / split, task, families, foreign) for task in TASKS if task in tasks}
    if foreign:
        _log.warning("%s: %d foreign files or folders passed over, first %s", root, len(foreign), foreign[0])
    there = {folder.name for folders in found.values() for folder in folders}
    lacking = [family for family in families if family not in there]
    if lacking or not there:
        expected = " or ".join(f"{task}/{split}/{family}" for family in lacking or ["<family>"] for task in found)
        packed = [name for name in ARCHIVES.get(split, {}).values() if (root / name).is_file() and not there]
        hint = f"; unpack {' and '.join(packed)} in it first" if packed else ""
        raise FileNotFoundError(f"{root} has no folder {expected}{hint}")
    order = {family: index for index, family in enumerate(FAMILIES)}
    return [
        _make_set(task, split, folder, folders[folder])
        for task, folders in found.items()
        for folder in sorted(folders, key=lambda folder: (order.get(folder.name, len(order)), folder.name))
    ]


def read_pairs(file: str | os.PathLike[str]) -> JudgedSet:
    """Read a CSV list ``reference,distorted,distance[,group]``; paths are relative to the file.

    If there is a column ``group`` and every group has at least :data:`SMALLEST_GROUP` pairs, the rank correlation is
    taken within each group and averaged over groups, also of a part of the set. Otherwise over all, because the order
    of a handful of pairs says little. The set is called after the file, or after its folder if that is ``scores.csv``.

    Raises:
        FileNotFoundError: If the list or an image is missing; the missing images are named.
        ValueError: If a column is missing, a line is incomplete, or a distance is not a number.
    """
    file = Path(file)
    if file.is_dir():
        raise ValueError(f"{file} is a folder, not a CSV list; folders in the layout of BAPPS are given by --root")
    images, judged, groups = [], [], []
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            table = csv.DictReader(lines)
            names = table.fieldnames or ()
            columns = [name for name in ("reference", "distorted", "distance", "group") if name in names]
            if columns[:3] != ["reference", "distorted", "distance"]:
                raise ValueError(f"{file} needs the columns reference, distorted, distance; it has {list(names)}")
            for row in table:
                if any(not row[column] for column in columns):
                    raise ValueError(f"{file}, line {table.line_num}: {' and '.join(columns)} must all be given")
                images.append((file.parent / row["reference"], file.parent / row["distorted"]))
                judged.append(_parse_number(row["distance"], f"{file}, line {table.line_num}"))
                groups.append(row.get("group", ""))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} is no CSV list in UTF-8: {error}") from error
    if not images:
        raise ValueError(f"{file} lists no pairs")
    _require(path for path in dict.fromkeys(path for pair in images for path in pair) if not path.is_file())
    resolved = file.resolve()
    name = resolved.parent.name if file.name == "scores.csv" else file.stem
    return JudgedSet("pairs", name, file, images, np.array(judged), _number_groups(groups))


def distinguish(sets: Sequence[JudgedSet]) -> list[JudgedSet]:
    """Call sets of equal names after where they come from, and refuse a set that is given twice."""
    names = Counter(judged.name for judged in sets)
    named = [judged if names[judged.name] == 1 else replace(judged, name=judged.source.as_posix()) for judged in sets]
    refuse_repeated(judged.name for judged in named)
    return named


def refuse_repeated(names: Iterable[str]) -> None:
    """Raise ValueError if a name is there twice."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"given twice: {', '.join(twice)}")


def read_image_source(source: Path, side: int | None = None, reader: Reader = _READER) -> Tensor:
    """Decode an image: ``(1, C, H, W)`` uint8, in channels-last memory.

    The shorter side is brought to ``side`` pixels, as ``torchvision.transforms.Resize`` does; None keeps the size.
    A file that is no image, or cannot be read, is named in a ValueError.
    """
    try:
        image = reader.read(source)
    except (ImageError, OSError) as error:
        raise ValueError(f"cannot read the image {source}: {getattr(error, 'reason', reason_of(error))}") from error
    height, width = image.shape[2:]
    if side is None or side == min(height, width):
        return image
    size = (side, side * height // width) if width < height else (side * width // height, side)
    bilinear = Image.Resampling.BILINEAR
    pixels = by_pillow(lambda whole: whole.resize(size, bilinear), image[0].permute(1, 2, 0).numpy())
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None]


def _list_task(parent: Path, task: str, families: Sequence[str], foreign: list[Path]) -> dict[Path, _Files]:
    """Files of every family of a task; what is no part of the layout is added to ``foreign``."""
    names = _LAYOUTS[task]
    found: dict[Path, _Files] = {}
    for folder in sorted(parent.iterdir()) if parent.is_dir() else []:
        if folder.name.startswith(".") or not any((folder / name).is_dir() for name in names):
            foreign.append(folder)
        elif not families or folder.name in families:
            foreign += [path for path in folder.iterdir() if path.name not in names]
            found[folder] = {name: _by_stem(folder / name, name == names[-1], foreign) for name in names}
    return found


def _by_stem(folder: Path, judgements: bool, foreign: list[Path]) -> dict[str, Path]:
    """The images or judgements of a folder by their stems."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not is_image_name(path.name) or (judgements and path.suffix.lower() != ".npy") or path.is_dir():
            foreign.append(path)
        elif path.stem in files:
            raise ValueError(f"{files[path.stem]} and {path.name} are two files for one item")
        else:
            files[path.stem] = path
    if not files:
        raise FileNotFoundError(f"there is no folder {folder}, or nothing in it that belongs there")
    return files


def _make_set(task: str, split: str, folder: Path, files: _Files) -> JudgedSet:
    *names, judgement = _LAYOUTS[task]
    stems = sorted(set().union(*files.values()))
    _require(folder / name / f"{stem}.*" for name, there in files.items() for stem in stems if stem not in there)
    judged = np.array([_read_fraction(files[judgement][stem]) for stem in stems])
    images = [tuple(files[name][stem] for name in names) for stem in stems]
    published = PUBLISHED[task].get(folder.name, len(stems)) if split == "val" else len(stems)
    partial = "" if len(stems) == published else f"{len(stems):,} of {published:,} items"
    side = SIDE if folder.name in FAMILIES else None
    kind = "triplets" if task == "2afc" else "same"
    return JudgedSet(kind, f"{task}/{folder.name}", folder, images, judged, partial=partial, side=side)


def _read_fraction(source: Path) -> float:
    try:
        value = float(np.lib.format.read_array(io.BytesIO(source.read_bytes()), allow_pickle=False).item())
    except Exception as error:  # whatever numpy raises at damaged bytes
        reason = reason_of(error) if isinstance(error, OSError) else "it is no .npy file of one number"
        raise ValueError(f"cannot read one number from {source}: {reason}") from error
    if not 0 <= value <= 1:
        raise ValueError(f"{source} should hold a fraction of people in [0, 1], not {value}")
    return value


def _parse_number(text: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{place}: the distance should be a number, not {text!r}")
    return value


def _require(missing: Iterable[Path]) -> None:
    if paths := [str(path) for path in missing]:
        more = f" and {len(paths) - 10} more" if len(paths) > 10 else ""
        raise FileNotFoundError(f"missing: {', '.join(paths[:10])}{more}")


def spread(length: int, count: int) -> NDArray[np.intp]:
    """``count`` of the numbers 0 to length - 1, evenly spread.

    Example:
        >>> spread(10, 4).tolist()
        [0, 2, 5, 7]
    """
    return np.arange(count) * length // count
