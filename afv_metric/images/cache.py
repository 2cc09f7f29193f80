"""Training images: decoded once into a file that is mapped into memory, and split.

Where they may come from is described in :mod:`afv_metric.images.sources`, how they are read in
:mod:`afv_metric.images.reading`, and what becomes of one in :mod:`afv_metric.images.tiles`. Images that cannot be read
are skipped, and named in a report.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import re
import secrets
import shutil
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from afv_metric.files import fsync_file, reason_of
from afv_metric.images.listing import Picture
from afv_metric.images.reading import ImageError, Reader
from afv_metric.images.sources import Source, class_folders
from afv_metric.images.streams import find_sources
from afv_metric.images.tiles import Tiling, resize_and_center_crop

__all__ = ["FEWEST_IMAGES", "ImageSet", "ImageView", "draw_images", "load_images", "split_held_out", "take_images"]

FEWEST_IMAGES = 64
_VERSION = 4  # of the cache and the rules above; another one is built anew
_log = logging.getLogger(__name__)


class ImageView:
    """A view of some images of a tensor, without a copy: the tensor may be far larger than the memory.

    Pixels are uint8 ``(N, height, width, C)``; an index copies ``(n, C, height, width)``, in channels-last memory.

    Example:
        >>> view = ImageView(torch.zeros(5, 8, 8, 3, dtype=torch.uint8), torch.tensor([0, 3]))
        >>> len(view), view[torch.tensor([1, 1, 0])].shape
        (2, torch.Size([3, 3, 8, 8]))
    """

    def __init__(self, pixels: Tensor, rows: Tensor | None = None) -> None:
        self._pixels = pixels.flatten(1)
        self._image_shape = pixels.shape[1:]
        self._rows = torch.arange(len(pixels)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> torch.Size:
        """``(n, C, height, width)``."""
        height, width, channels = self._image_shape
        return torch.Size((len(self), channels, height, width))

    def __getitem__(self, chosen: Tensor | slice) -> Tensor:
        # Whole rows at once; indexing the images as such takes eight times as long.
        copied = self._pixels.index_select(0, self._rows[chosen])
        return copied.view(-1, *self._image_shape).permute(0, 3, 1, 2)

    def take(self, chosen: Tensor) -> ImageView:
        """A view of some of these images, still without a copy."""
        return ImageView(self._pixels.view(-1, *self._image_shape), self._rows[chosen])


class ImageSet(NamedTuple):
    """Decoded images."""

    images: ImageView  # images[chosen] copies a batch, uint8 (n, C, size, size)
    labels: Tensor | None  # class of each, int64 (N,); None unless all sources have classes
    classes: tuple[str, ...]  # their names; those of several sources one after the other, each with its source
    names: Sequence[str]  # of each image: its source, and the path inside it
    fingerprint: str  # hash of the pixels of the whole set, wherever and whenever it was decoded
    pictures: Tensor | None = None  # number of the file that each is cut from, int64 (N,); None if no file gives two
    end: Any = None  # position of a stream behind the last image, for load_images; None if these are all


def load_images(
    sources: str | Path | Sequence[str | Path],
    size: int,
    *,
    reader: Reader | None = None,
    tiling: Tiling | None = None,
    cache: str | Path | None = None,
    quiet: bool = False,
    most: int | None = None,
    position: Any = None,
) -> ImageSet:
    """Decode images, or find them decoded by an earlier call; the notes of this module name those with the rules.

    The decoded images lie in a folder of the cache: ``pixels.bin``, ``index.json`` and, if any image could not be
    read, ``broken.json`` with the reasons. They are used again as long as the names, sizes and modification times of
    the files are the same, and replaced when not. Of a stream they are as many as the cache may hold.

    Args:
        sources: Folders and archives, joined in this order; or a stream, see :mod:`afv_metric.images.streams`.
        size: Side of the decoded squares in pixels; twice what the networks see, for room to crop.
        reader: Rules to read the files by.
        tiling: How large images are cut into squares; None: the middle square of each alone.
        cache: Folder of the cache; default ``$AFV_METRIC_CACHE``, else one below ``$XDG_CACHE_HOME`` or ``~/.cache``.
        quiet: Whether to show no progress bar.
        most: Images of a stream, if not as many as the cache may hold.
        position: Where a stream goes on, endlessly from then on; None: from its beginning to its end.

    Raises:
        FileNotFoundError: If there is nothing at a path.
        ValueError: If a source is of no known kind, damaged, or fewer than :data:`FEWEST_IMAGES` tiles come of it.
        OSError: If the images cannot be kept in the cache; nothing of them is left there.
    """
    paths = [sources] if isinstance(sources, (str, Path)) else sources
    rules = _Rules(size, reader or Reader(), tiling)
    found = find_sources(paths, position)
    if found[0].kind == "stream":
        rules = rules._replace(most=most or (tiling or Tiling()).most_in_cache(rules.tile_bytes))
    key = _cache_key(found, rules)
    folder = Path(cache) if cache is not None else _default_cache()
    try:
        images = _open_entry(folder / key) or _build_entry(folder, key, found, rules, quiet)
    except OSError as error:
        raise OSError(
            f"the decoded images cannot be kept in {folder}: {reason_of(error)}. Make room there, or choose another "
            "folder with AFV_METRIC_CACHE."
        ) from error
    classes = f" in {len(images.classes)} classes" if images.classes else ""
    where = " and ".join(f"{source.where} ({source.kind})" for source in found)
    _log.info("%d images%s from %s", len(images.names), classes, where)
    if tiling and tiling.weighting == "image" and images.pictures is not None:
        return take_images(images, _equal_shares(images.pictures))
    return images


def _equal_shares(pictures: Tensor) -> Tensor:
    """Rows in which every picture has as many tiles; those of small ones come again and again."""
    counts: Tensor = pictures.unique_consecutive(return_counts=True)[1]
    rows: Tensor = (counts.cumsum(0) - counts)[:, None] + torch.arange(int(counts.max())) % counts[:, None]
    return rows.flatten()


def split_held_out(images: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Keep a random share of the images aside, whole files where they are cut into tiles.

    At least one image is held out unless the share is 0. The choice depends on the seed and the number of images alone.
    Given are the images to train on and those held out, both in their former order; none is copied.

    Raises:
        ValueError: If the share is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"held_out is a share of the images in [0, 1), got {share}")
    pictures = torch.arange(len(images.names)) if images.pictures is None else images.pictures
    numbers = pictures.unique()
    count = len(numbers)
    held_out = min(max(1, round(share * count)), count - 1) if share else 0
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    aside = torch.isin(pictures, numbers[order[:held_out]])
    return take_images(images, (~aside).nonzero().flatten()), take_images(images, aside.nonzero().flatten())


def draw_images(images: ImageSet, count: int, seed: int) -> ImageSet:
    """Choose so many of the images at random, or all for 0; with one seed a smaller choice is part of a larger one.

    Raises:
        ValueError: If there are not so many.
    """
    if not 0 <= count <= len(images.names):
        raise ValueError(f"{count} images were asked for, and there are {len(images.names)}")
    if not count:
        return images
    order = torch.randperm(len(images.names), generator=torch.Generator().manual_seed(seed))
    return take_images(images, order[:count].sort().values)


def take_images(images: ImageSet, rows: Tensor) -> ImageSet:
    """Some of the images, by their rows; none is copied."""
    names = [images.names[row] for row in rows.tolist()]
    labels = None if images.labels is None else images.labels[rows]
    pictures = None if images.pictures is None else images.pictures[rows]
    return images._replace(images=images.images.take(rows), labels=labels, names=names, pictures=pictures)


class _Rules(NamedTuple):
    """What becomes of a file."""

    size: int
    reader: Reader
    tiling: Tiling | None
    most: int | None = None  # images of a stream

    @property
    def tile_bytes(self) -> int:
        return self.size**2 * (self.reader.channels or 1)


def _decode(picture: Picture, rules: _Rules) -> tuple[Sequence[NDArray[np.uint8]], int] | str:
    """The squares of a file and the shorter side of what they were cut from; or why there is none."""
    size, reader, tiling, _ = rules
    try:
        if tiling and tiling.most > 1:
            parts = reader.parts(picture.open(), picture.name)
            first = next(parts)
            squares = tiling.cut(chain([first], parts), size)
        else:
            first = reader.levels(picture.open(), name=picture.name, square=size)
            squares = [resize_and_center_crop(first, size)]
    except ImageError as error:
        return error.reason
    except (OSError, ValueError, MemoryError) as error:
        return reason_of(error)
    return squares, min(first.shape[:2])


def _decode_all(pictures: Iterable[Picture], rules: _Rules) -> Iterator[tuple[Picture, Any]]:
    """Decode in threads, in order, and only a few images ahead of the caller."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting: deque[tuple[Picture, Future[Any]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for picture in pictures:
            waiting.append((picture, pool.submit(_decode, picture, rules)))
            if len(waiting) > 4 * workers:
                first, decoded = waiting.popleft()
                yield first, decoded.result()
        for picture, decoded in waiting:
            yield picture, decoded.result()


def _default_cache() -> Path:
    if own := os.environ.get("AFV_METRIC_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "afv_metric" / "images"


def _cache_key(sources: Sequence[Source], rules: _Rules) -> str:
    """Name of the folder: which sources, and after the last dash in which state."""
    readable = re.sub(r"\W+", "_", "+".join(source.name for source in sources))[:40]
    others = [repr(rules[1:])] if rules[1:] != (Reader(), None, None) else []
    which = "\0".join([*(source.where for source in sources), *others])
    state = "\0".join([str(_VERSION), *(source.state() for source in sources)])
    which, state = (hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16] for text in (which, state))
    return f"{readable}-{which}-{rules.size}-{state}"


def _open_entry(entry: Path) -> ImageSet | None:
    """The images of a folder of the cache; None if it does not exist or is damaged."""
    if not entry.exists():
        return None
    try:
        index = json.loads((entry / "index.json").read_text())
        names, numbers = index["names"], index["pictures"]
        shape = (len(names), index["size"], index["size"], index["channels"])
        if (entry / "pixels.bin").stat().st_size != math.prod(shape):
            raise ValueError("pixels.bin has another size than index.json says")
        # "c" maps it for reading; numpy calls such arrays writable, as torch wants them.
        rows = ImageView(torch.from_numpy(np.memmap(entry / "pixels.bin", np.uint8, "c", shape=shape)))
        pictures = torch.tensor(numbers) if numbers[-1] + 1 < len(names) else None
        images = ImageSet(rows, *_classes(names, index["counts"]), names, index["fingerprint"], pictures, index["end"])
    except (OSError, ValueError, TypeError, LookupError) as error:
        _log.warning("the decoded images in %s are damaged (%s) and are built anew", entry, error)
        return None
    if broken := index["broken"]:
        of = broken + numbers[-1] + 1
        _log.warning("skipped %d of %d images that cannot be read; %s names them", broken, of, entry / "broken.json")
    return images


def _classes(names: Sequence[str], counts: Sequence[int]) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels and classes of images, so many of each source; none unless all sources have some."""
    labels: list[int] = []
    classes: list[str] = []
    for count in counts:
        places = [name.partition("/")[::2] for name in names[len(labels) : len(labels) + count]]
        folders = class_folders([inside for _, inside in places])
        if folders is None:
            return None, ()
        number = {folder: place for place, folder in enumerate(sorted(set(folders)), len(classes))}
        labels += [number[folder] for folder in folders]
        classes += [f"{places[0][0]}/{folder}" if len(counts) > 1 else folder for folder in number]
    return (torch.tensor(labels), tuple(classes)) if counts else (None, ())


def _build_entry(folder: Path, key: str, sources: Sequence[Source], rules: _Rules, quiet: bool) -> ImageSet:
    """Decode into a new folder of the cache, unless another process has done so in the meantime."""
    folder.mkdir(parents=True, exist_ok=True)
    which = key.rpartition("-")[0]
    with FileLock(folder / f"{which}.lock"):
        if images := _open_entry(folder / key):
            return images
        # Whoever holds the lock is the only one who builds: these are of another state, or a killed process left them.
        for old in chain(folder.glob(f"{which}-*"), folder.glob(f".{which}-*")):
            shutil.rmtree(old, ignore_errors=True)
        building = folder / f".{key}-{secrets.token_hex(4)}"
        building.mkdir()
        try:
            _write_entry(building, sources, rules, quiet)
            building.rename(folder / key)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        images = _open_entry(folder / key)
        if images is None:
            raise OSError(f"{folder / key} was changed by something else while it was written")
        return images


def _write_entry(entry: Path, sources: Sequence[Source], rules: _Rules, quiet: bool) -> None:
    """Decode all readable images into ``pixels.bin``, one after the other."""
    contents = [source.read() for source in sources]
    known = [number for number, _ in contents if number is not None]  # of a tar it is not known yet
    total = sum(known) if len(known) == len(sources) else None
    _check_room(entry, sum(known) * rules.tile_bytes)
    if rules.tiling and not rules.most:
        number = total or sum(sum(1 for _ in source.read()[1]) for source in sources)  # a tar is read twice
        rules = rules._replace(tiling=rules.tiling.bounded(number, rules.tile_bytes))
    names: list[str] = []
    pictures: list[int] = []  # of each tile the number of its file
    counts: list[int] = []  # tiles of each source
    broken: dict[str, str] = {}
    digest = hashlib.sha256()
    number = channels = small = 0
    end = None
    bar = tqdm(desc="decoding", total=total, disable=quiet, unit="image")
    with bar, (entry / "pixels.bin").open("wb") as file:
        for source, (_, found) in zip(sources, contents, strict=True):
            before = len(names)
            for picture, decoded in _decode_all(found, rules):
                bar.update()
                end, name = picture.position, f"{source.name}/{picture.name}"
                if isinstance(decoded, str):
                    broken[name] = decoded
                    continue
                squares, shorter_side = decoded
                channels = channels or squares[0].shape[2]
                if squares[0].shape[2] != channels:
                    broken[name] = f"has {squares[0].shape[2]} channels, the images before it {channels}"
                    continue
                room = rules.most - len(names) if rules.most else None
                for place, square in enumerate(squares[:room]):
                    pixels = np.ascontiguousarray(square).tobytes()
                    file.write(pixels)
                    digest.update(zlib.crc32(pixels).to_bytes(4, "little"))
                    pictures.append(number)
                    names.append(f"{name}#{place}" if len(squares) > 1 else name)
                number += 1
                small += 2 * shorter_side < rules.size
                if len(names) == rules.most:
                    break
            else:
                end = None
            counts += [len(names) - before] if source.kind != "stream" else []  # a stream has no classes
    if len(names) < FEWEST_IMAGES:
        raise _too_few(sources, len(names), broken)
    if small:
        _log.warning("%d images have a shorter side below %d pixels and are enlarged", small, rules.size // 2)
    index = {
        "size": rules.size, "channels": channels, "names": names, "pictures": pictures, "counts": counts,
        "fingerprint": digest.hexdigest(), "broken": len(broken), "end": end,
    }  # fmt: skip
    (entry / "index.json").write_text(json.dumps(index))
    if broken:
        (entry / "broken.json").write_text(json.dumps(broken, indent=1) + "\n")
    for path in entry.iterdir():
        fsync_file(path)


def _check_room(folder: Path, needed: int) -> None:
    if needed > (free := shutil.disk_usage(folder).free):
        raise OSError(errno.ENOSPC, f"{needed / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are free")


def _too_few(sources: Sequence[Source], count: int, broken: Mapping[str, str]) -> ValueError:
    found = f"{' and '.join(source.where for source in sources)}: {count} tiles of images can be read"
    if broken:
        name, reason = next(iter(broken.items()))
        found += f", {len(broken)} are broken (the first is {name}: {reason})"
    return ValueError(
        f"{found}; at least {FEWEST_IMAGES} tiles are needed, and thousands to train well. A small image is one tile, "
        "a large one many, if it is cut (--tiles 1024)."
    )
