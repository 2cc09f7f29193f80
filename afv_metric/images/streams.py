"""Images that fit no disk: shards behind URLs, and data sets of the Hugging Face hub, read from front to back.

- ``https://host/train-0000.tar``, or any other URL that fsspec opens (``s3://``, ``hf://``, ``file://``): tar files, as
  WebDataset writes them, one after the other in the order given.
- ``datasets:NAME[@REVISION][:SPLIT]``: a data set as ``datasets.load_dataset`` streams it, by its name on the hub or
  the path of its folder; its first column of images, of the split ``train`` if none is named.

Every image has a position, from which the stream goes on behind it.
"""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import IO, Any

from afv_metric.images.listing import Picture
from afv_metric.images.sources import Source, find_source, pictures_in_tar

__all__ = ["find_sources"]

_DATASETS = "datasets:"
_TRIES = 4
_log = logging.getLogger(__name__)


def find_sources(paths: Sequence[str | Path], position: Any = None) -> list[Source]:
    """The sources at these paths, or the one stream that they are.

    From a position a stream goes on endlessly; without one it runs from its beginning to its end.

    Raises:
        FileNotFoundError: If nothing is at a path.
        ValueError: If a file is no archive, or what is streamed does not go together.
    """
    streamed = [path for path in map(str, paths) if "://" in path or path.startswith(_DATASETS)]
    if not streamed:
        return [find_source(Path(path).expanduser()) for path in paths]
    known = [path for path in streamed if path.startswith(_DATASETS)]
    if len(streamed) < len(paths) or (known and len(streamed) > 1):
        raise ValueError(f"{streamed[0]} is streamed: give it alone, or shards with other shards only")
    read = partial(_read_dataset, known[0]) if known else partial(_read_shards, streamed)

    def pictures() -> Iterator[Picture]:
        passes = [None] if position is None else chain([position], repeat(None))
        return chain.from_iterable(map(read, passes))

    # What comes first is kept beside what comes later: the monitors of a training measure on it.
    where = " ".join(streamed) + " later" * (position is not None)
    name = streamed[0].rpartition("/")[2]
    return [Source(name, where, "stream", {}, lambda: (None, pictures()), json.dumps(position))]


def _read_shards(urls: Sequence[str], position: Sequence[int] | None) -> Iterator[Picture]:
    """Positions are the number of the shard, and how many of its images are behind."""
    first, behind = position or (0, 0)
    for number in range(first, len(urls)):
        tries = 0
        while True:
            try:
                for picture in pictures_in_tar(partial(_open_url, urls[number]), urls[number], behind):
                    behind, tries = behind + 1, 0
                    name = f"{urls[number].rpartition('/')[2]}/{picture.name}"
                    yield picture._replace(name=name, position=(number, behind))
                break
            except Exception as error:  # whatever the protocol's library raises
                reason = error.__cause__ or error
                tries += 1
                if tries == _TRIES or isinstance(reason, FileNotFoundError | ImportError):
                    raise ValueError(f"{urls[number]} cannot be read behind image {behind}: {reason}") from error
                _log.warning("%s: %s; trying again", urls[number], reason)
                time.sleep(tries)
        behind = 0


def _open_url(url: str) -> IO[bytes]:
    import fsspec  # of huggingface_hub

    opened: IO[bytes] = fsspec.open(url, "rb").open()
    return opened


def _read_dataset(given: str, position: Any) -> Iterator[Picture]:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{given} needs datasets to be read: pip install 'afv-metric[datasets]'") from error
    name, _, split = given.removeprefix(_DATASETS).partition(":")
    name, _, revision = name.partition("@")
    rows = datasets.load_dataset(name, split=split or "train", revision=revision or None, streaming=True)
    columns = [column for column, kind in (rows.features or {}).items() if isinstance(kind, datasets.Image)]
    if not columns:
        raise ValueError(f"{given} has no column of images, only {', '.join(rows.features or ['unknown ones'])}")
    rows = rows.select_columns(columns[:1]).cast_column(columns[0], datasets.Image(decode=False))
    count, state = position or (0, None)
    if state is not None:
        rows.load_state_dict(state)
    for number, row in enumerate(rows, count):
        image = row[columns[0]]
        position = (number + 1, rows.state_dict())
        yield Picture(f"{number:08d}", partial(_content, image["bytes"], image["path"]), position)


def _content(data: bytes | None, path: str) -> IO[bytes]:
    if data is not None:
        return io.BytesIO(data)
    with _open_url(path) as file:
        return io.BytesIO(file.read())
