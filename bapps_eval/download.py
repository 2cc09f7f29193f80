"""Getting BAPPS: resumed when the line breaks, checked, and unpacked safely or not at all."""

from __future__ import annotations

import gzip
import http.client
import json
import logging
import os
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import IO, Any, NoReturn, cast
from urllib.parse import urlsplit

from filelock import FileLock
from tqdm import tqdm

from afv_metric.files import atomic_write, sha256_of
from bapps_eval.data import ARCHIVES, FOLDERS, TASKS

__all__ = ["RECORD", "URL", "download"]

# The authors moved the data here in 2023, when the server named in older scripts began to refuse.
URL = "https://perceptual-similarity.s3.us-west-2.amazonaws.com/dataset"
RECORD = "downloads.json"

_ATTEMPTS = 6
_PAUSE = 1.0
_TIMEOUT = 60.0
_BLOCK = 1 << 18
# Small files fill whole blocks of a disk: the images of BAPPS take 1.35 times the size of their archive.
_UNPACKED_SHARE = 1.5
_PASSING = (408, 429, 500, 502, 503, 504)
# Images hardly compress: what unpacks to twenty times its size is meant to fill disks.
_BOMB_SHARE, _LEAST_BOMB = 20, 1 << 30
_log = logging.getLogger(__name__)


def download(
    root: str | os.PathLike[str],
    *,
    split: str = "val",
    tasks: Sequence[str] = TASKS,
    url: str = URL,
    quiet: bool = False,
) -> list[Path]:
    """Fetch the published archives and unpack them, unless they are there.

    An archive is fetched into ``<name>.part``, from where an interrupted call goes on if the server still has the same;
    its sha256 is compared with the one that :data:`RECORD` has of an earlier download, or recorded. A process that
    finds another at it waits. The folders ``<task>/<split>`` are returned; each appears whole, or not at all.

    Raises:
        ConnectionError: If an archive cannot be fetched; what there is of it stays for the next call.
        OSError: If the disk is too small, before anything is fetched.
        ValueError: If there is no such archive, or it is damaged, hostile, or not the one expected; it is removed.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"the address of the archives should begin with https:// or http://, not {url!r}")
    names = {task: name for task, name in ARCHIVES.get(split, {}).items() if task in tasks}
    if not names:
        raise ValueError(f"there is no archive of the split {split!r} of {' and '.join(tasks)}")
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".downloads.lock"):  # another process that fetches the same is waited for
        for task, name in names.items():
            if (root / task / split).exists():
                _log.info("%s is there", root / task / split)
            else:
                _fetch_and_unpack(f"{url.rstrip('/')}/{name}", root / task / split, root, quiet)
    return [root / task / split for task in names]


def _fetch_and_unpack(address: str, folder: Path, root: Path, quiet: bool) -> None:
    name, record = address.rpartition("/")[2], _read_record(root / RECORD)
    part = root / f"{name}.part"
    with tqdm(desc=name, unit="B", unit_scale=True, unit_divisor=1024, disable=quiet) as bar:
        _fetch(address, part, bar)
    try:
        digest = sha256_of(part)
        expected = record.get(name, {}).get("sha256", digest)
        if digest != expected:
            raise ValueError(f"{name} has the sha256 {digest}, and not {expected}, as {root / RECORD} has it")
        with tqdm(desc=f"unpacking {name}", unit="file", disable=quiet) as bar:
            _unpack(part, folder, bar)
    except ValueError:
        _remove(part)
        raise
    record[name] = {"url": address, "bytes": _size(part), "sha256": digest}
    with atomic_write(root / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    _remove(part)


def _tag_of(part: Path) -> Path:
    """File with the tag of the version on the server that a part is of."""
    return part.with_suffix(".tag")


def _remove(part: Path) -> None:
    part.unlink()
    _tag_of(part).unlink(missing_ok=True)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


class _BrokenOffError(Exception):
    """The line is down for now."""


def _fetch(url: str, part: Path, bar: tqdm[NoReturn]) -> None:
    """Fetch a file, from where an earlier attempt or call ended; try again while the line is down."""
    failures = 0
    while True:
        have = _size(part)
        try:
            total = _fetch_rest(url, part, have, bar)
            if total in (None, _size(part)):
                return
            raise _BrokenOffError(f"the connection ended at {_size(part):,} of {total:,} bytes")
        except _BrokenOffError as error:
            failures = failures + 1 if _size(part) <= have else 0
            if failures == _ATTEMPTS:
                raise ConnectionError(
                    f"cannot fetch {url}: {error}; to go on from there, run the command again"
                ) from error
            _log.warning("%s: %s; trying again", url, error)
            time.sleep(_PAUSE * 2**failures)


def _fetch_rest(url: str, part: Path, have: int, bar: tqdm[NoReturn]) -> int | None:
    """Add to a part what it lacks, or begin anew if it is of another version; returns the length of the whole file."""
    headers = {"User-Agent": "afv_metric"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if _tag_of(part).exists() and (tag := _tag_of(part).read_text()):
            headers["If-Range"] = tag
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        _, total = _parse_range(error.headers)
        if error.code == 416 and total == have:
            return total
        if error.code == 416:  # what is there is longer than the file, and so of another one
            return _fetch_rest(url, part, 0, bar)
        if error.code in _PASSING:
            raise _BrokenOffError(f"{error.code} {error.reason}") from error
        raise ConnectionError(f"cannot fetch {url}: the server says {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOffError(str(error)) from error
    with response:
        tag, length = response.headers["ETag"] or "", response.headers["Content-Length"]
        start, total = 0, int(length) if length else None
        if response.status == 206:
            start, total = _parse_range(response.headers)
            if start != have:
                raise ConnectionError(f"cannot fetch {url}: asked for byte {have:,}, the server sends byte {start}")
        _require_space(part.parent, start, total or 0)
        bar.initial = start
        bar.reset(total)
        bar.update(start)
        with part.open("r+b" if start else "wb") as file:
            _tag_of(part).write_text("" if tag.startswith("W/") else tag)  # once nothing is left of another version
            file.seek(start)
            while block := _read_block(response):
                file.write(block)
                bar.update(len(block))
    return total


def _read_block(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOffError(str(error)) from error


def _parse_range(headers: Message) -> tuple[int, int | None]:
    """First byte (0 if unknown) and length of the whole file in ``Content-Range``, such as ``bytes 100-199/1000``."""
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(?:(\d+)|\*)", headers["Content-Range"] or "")
    start, total = found.groups() if found else (None, None)
    return int(start or 0), int(total) if total else None


def _require_space(folder: Path, start: int, total: int) -> None:
    """See that there is room for the rest of an archive and for what is in it."""
    needed = total - start + int(_UNPACKED_SHARE * total)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(
            f"{folder} has {free / 1e9:.1f} GB free, but the archive and what is in it take {needed / 1e9:.1f} GB; "
            "make room, or choose another folder"
        )


def _read_record(record: Path) -> dict[str, dict[str, Any]]:
    """What :func:`download` wrote about each archive."""
    if not record.exists():
        return {}
    try:
        entries = dict(json.loads(record.read_text(encoding="utf-8")))
        return {name: {**entry, "sha256": str(entry["sha256"])} for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{record} is damaged: {error}; remove it") from error


def _unpack(archive: Path, folder: Path, bar: tqdm[NoReturn]) -> None:
    """Unpack the files of ``<task>/<split>``; the folder appears whole, or not at all.

    An archive is refused if it holds links, devices, names that lead outside, a file twice, or more than it should.
    """
    task, split = folder.parts[-2:]
    hidden = folder.parent.parent / f".{task}-{split}-unpacking"
    strange: list[str] = []
    written, most = 0, max(_LEAST_BOMB, _BOMB_SHARE * archive.stat().st_size)
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                if not (member.isdir() or member.isreg()):
                    raise ValueError(f"{archive} is refused: {member.name!r} is a link or special file")
                # Whatever folders stand above <split>/<family>/<folder>/<file>; hidden files belong nowhere.
                name = PurePosixPath(tarfile.data_filter(member, str(hidden)).name)
                above, found, family, kind, file = ("", "", "", "", *name.parts)[-5:]
                if member.isdir() or file.startswith("."):
                    continue
                other = found != split or kind not in FOLDERS or above in set(TASKS) - {task}
                if other or family.startswith("."):
                    strange.append(member.name)
                    continue
                target = hidden / family / kind / file
                written += member.size
                if target.exists():
                    raise ValueError(f"{archive} is refused: {member.name} is there twice")
                if written > most:
                    raise ValueError(f"{archive} is refused: it unpacks to over {most:,} bytes")
                target.parent.mkdir(parents=True, exist_ok=True)
                with cast("IO[bytes]", tar.extractfile(member)) as content, target.open("wb") as out:
                    shutil.copyfileobj(content, out)
                bar.update()
            while stream.read(_BLOCK):  # to the end, so that a truncated archive never passes
                pass
        if not hidden.exists():
            raise ValueError(f"{archive} has no files {task}/{split}/<family>/<folder>/<file>")
        if strange:
            _log.warning("%s: %d files that belong nowhere are left out, first %s", archive, len(strange), strange[0])
        folder.parent.mkdir(exist_ok=True)
        hidden.rename(folder)
    except tarfile.FilterError as error:
        raise ValueError(f"{archive} is refused: {error}") from error
    except (EOFError, gzip.BadGzipFile, tarfile.TarError, zlib.error) as error:
        raise ValueError(f"{archive} is truncated, damaged or no archive: {error}; get it again") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
