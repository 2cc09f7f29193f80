"""Reading a compressed tar from front to back, without unpacking it and without trusting it."""

from __future__ import annotations

import gzip
import lzma
import os
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, cast

__all__ = ["ArchiveMember", "contents_of", "iterate_files", "read_archive"]

# Only compressed tars: a plain one that is cut off between two files looks whole.
_OPENERS: dict[str, Callable[..., Any]] = {".tar.gz": gzip.open, ".tgz": gzip.open, ".tar.xz": lzma.open}
_BLOCK = 1 << 20
_LARGEST_FILE = 1 << 28


@dataclass(frozen=True)
class ArchiveMember:
    """A file inside a compressed tar.

    Attributes:
        archive: The tar.
        name: Name of the file in it.
        content: What the file holds, if it is in memory; members are equal without it.
    """

    archive: Path
    name: str
    content: bytes | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.archive}:{self.name}"


def read_archive(path: str | os.PathLike[str], wanted: Callable[[PurePosixPath], bool]) -> dict[str, ArchiveMember]:
    """Take files of an archive into memory, in one pass from front to back.

    Compressed tars cannot be entered in the middle, so the files stay in memory as they are encoded. The images of
    BAPPS are PNG, which do not compress further, so that memory is about the size of the archive: 1.1 GB for 2AFC
    val, 0.2 GB for JND, 5.3 GB for 2AFC train.

    Args:
        path: The archive: ``.tar.gz``, ``.tgz`` or ``.tar.xz``.
        wanted: Told the name of each regular file; whether to keep it.

    Returns:
        The files kept, by name, in the order of the archive.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: As :func:`iterate_files`.
    """
    path = Path(path)
    return {str(name): ArchiveMember(path, str(name), content) for name, content in iterate_files(path, wanted)}


def contents_of(members: Collection[ArchiveMember]) -> dict[ArchiveMember, bytes]:
    """What the members hold; those that are not in memory are read in one pass over each archive.

    Raises:
        FileNotFoundError: If an archive, or a file in it, is not there.
        ValueError: As :func:`iterate_files`.
    """
    contents = {member: member.content for member in members if member.content is not None}
    absent: dict[Path, set[PurePosixPath]] = defaultdict(set)
    for member in members:
        if member not in contents:
            absent[member.archive].add(PurePosixPath(member.name))
    for archive, names in absent.items():
        found = read_archive(archive, names.__contains__)
        if lost := {str(name) for name in names} - set(found):
            raise FileNotFoundError(f"{archive} has no {', '.join(sorted(lost))}")
        contents |= {member: cast("bytes", member.content) for member in found.values()}
    return contents


def iterate_files(
    path: str | os.PathLike[str], wanted: Callable[[PurePosixPath], bool]
) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Walk over regular files of a compressed tar.

    An archive is refused if it holds anything but folders and regular files inside it: absolute names, ``..``,
    links, devices, holes, giants. After the last file the rest is read too, so that a truncated archive never passes.

    Args:
        path: The archive.
        wanted: Told the name of each regular file; whether to read it.

    Yields:
        Name, without a leading ``./``, and content.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such archive, is truncated or damaged, or holds what is refused; the archive is named.
    """
    called = os.fspath(path).lower().removesuffix(".part")
    suffix = next((suffix for suffix in _OPENERS if called.endswith(suffix)), None)
    if suffix is None:
        raise ValueError(f"{path} should be an archive called {' or '.join(f'*{known}' for known in _OPENERS)}")
    seen: set[PurePosixPath] = set()
    try:
        with _OPENERS[suffix](path) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                name = _checked_name(path, member)
                if member.isdir() or not wanted(name):
                    continue
                if name in seen:
                    raise ValueError(f"{path} is refused: it holds {name} twice")
                seen.add(name)
                yield name, cast("IO[bytes]", tar.extractfile(member)).read()
            while stream.read(_BLOCK):
                pass
    except (EOFError, gzip.BadGzipFile, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{path} is truncated, damaged or no archive: {error}; get it again") from error


def _checked_name(path: str | os.PathLike[str], member: tarfile.TarInfo) -> PurePosixPath:
    """Name of a member that stays inside, and is a folder or a regular file."""
    # The rules of Windows contain those of POSIX: drives, roots, and both separators.
    name = PureWindowsPath(member.name)
    if name.anchor or ".." in name.parts:
        raise ValueError(f"{path} is refused: the name {member.name!r} leads outside")
    if not (member.isdir() or member.isreg()) or member.issparse():
        kind = "link" if member.issym() or member.islnk() else "device or other special file"
        raise ValueError(f"{path} is refused: {member.name!r} is a {kind}")
    if member.size > _LARGEST_FILE:
        raise ValueError(f"{path} is refused: {member.name!r} unpacks to {member.size:,} bytes")
    return PurePosixPath(member.name)
