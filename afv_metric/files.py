"""Writing files and folders so that a kill at any moment leaves the old or the new, and two writers never meet."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "atomic_update", "atomic_write", "finish_update", "fsync_file", "locked", "made_folder", "real_path",
    "reason_of", "save_figure", "sha256_of",
]  # fmt: skip

_TOKEN = "[0-9a-f]{16}"


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Give the sha256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fsync_file(path: Path) -> None:
    """Flush a file to the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def reason_of(error: BaseException) -> str:
    """What is the matter, without a number or a name that a message has said already.

    Example:
        >>> reason_of(FileNotFoundError(2, "No such file or directory", "a.png"))
        'No such file or directory'
    """
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return re.sub(r"^\[Errno -?\d+\] ", "", text)


def real_path(path: str | os.PathLike[str]) -> Path:
    """The place that a path stands for, whatever links lead there; a link back to itself is an OSError."""
    place = Path(os.path.realpath(path))
    if place.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return place


@contextlib.contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make a folder and those above it; of these, what is still empty when the block ends is removed again."""
    made: list[Path] = []
    try:
        for path in (*reversed(folder.parents), folder):
            if not path.is_dir():
                try:
                    path.mkdir()
                    made.append(path)
                except FileExistsError:
                    if not path.is_dir():  # it may be one by now
                        raise NotADirectoryError(f"{path} is no folder to put something in; choose another") from None
        yield
    finally:
        for path in reversed(made):
            with contextlib.suppress(OSError):
                path.rmdir()


@contextlib.contextmanager
def locked(place: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes from writing a file or a folder as long as the block runs.

    The place need not exist. The lock is ``.NAME.lock`` beside it, or ``.lock`` in a folder that is mounted or whose
    parent cannot be written. It is removed at the end; one that a killed process left does no harm. A process may lock
    a place twice.

    Raises:
        BlockingIOError: If another process or thread holds the lock.
    """
    place = real_path(place)
    inside = place.is_dir() and (os.path.ismount(place) or not os.access(place.parent, os.W_OK))
    path = place / ".lock" if inside else place.with_name(f".{place.name}.lock")
    lock = FileLock(path, timeout=0, is_singleton=True)
    with made_folder(place.parent):
        try:
            lock.acquire()
        except Timeout:
            raise BlockingIOError(
                f"{place} is being written by another process; wait until it has ended, or choose another place"
            ) from None
        except OSError as error:  # of the place, not of the lock that nobody asked for
            raise OSError(error.errno, error.strerror, str(place)) from error
        try:
            yield
        finally:
            if lock.lock_counter == 1:
                with contextlib.suppress(OSError):  # Windows removes no open file
                    path.unlink()
            lock.release()


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write; when the block ends well, put it in the place of ``path`` in one step.

    The temporary file stands in the same folder, is flushed to the disk before it is renamed, and is removed if
    the block raises: ``path`` is afterwards either what it was or complete. A link stays one, to the new file; what is
    no file, such as a pipe or ``/dev/null``, is written to directly.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = Path(mkdtemp())
        >>> with atomic_write(folder / "notes.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> [(file.name, file.read_text()) for file in folder.iterdir()]
        [('notes.txt', 'whole')]
    """
    if os.path.exists(path) and not os.path.isfile(path):
        yield Path(path)
        return
    path = real_path(path)
    # Not by tempfile, whose files nobody else may read.
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(8)}{path.suffix}")
    with made_folder(path.parent):
        temporary.touch(exist_ok=False)
        ordinary = temporary.stat().st_mode
        try:
            yield temporary
            temporary.chmod(ordinary)  # what wrote it may have put a private file in its place
            fsync_file(temporary)
            temporary.replace(path)
            _fsync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def atomic_update(folder: str | os.PathLike[str], head: str) -> Iterator[Path]:
    """Give a temporary folder to fill with files; when the block ends well, put them into ``folder`` in one step.

    Files of the same names are replaced, all others stay. A new folder comes by one rename. In one that exists no
    rename replaces several files at once, so the complete new files are staged in a subfolder that is named after the
    hash of their ``head``, and the rename of this one file decides: before it the old files hold; after it the new
    ones, as :func:`finish_update`, by which every reader begins, moves what is still staged under the hash of the head.

    The head is the file that describes the others, and so changes whenever one of them matters. Nobody else writes the
    folder meanwhile, see :func:`locked`.
    """
    folder = real_path(folder)
    finish_update(folder, head)
    is_new = not folder.exists()
    _remove_leftovers(folder.parent, rf"\.{re.escape(folder.name)}-{_TOKEN}")
    _remove_leftovers(folder, rf"\.stag(ing|ed)-{_TOKEN}")
    token = secrets.token_hex(8)
    temporary = folder.with_name(f".{folder.name}-{token}") if is_new else folder / f".staging-{token}"
    with made_folder(folder.parent):
        temporary.mkdir()
        ordinary = temporary.stat().st_mode & 0o666
        try:
            yield temporary
            for path in temporary.iterdir():
                path.chmod(ordinary)
                fsync_file(path)
            _fsync_folder(temporary)
            if is_new:
                temporary.rename(folder)
                _fsync_folder(folder.parent)
                return
            staged = temporary = temporary.rename(_staged(folder, temporary / head))
            _fsync_folder(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    with contextlib.suppress(FileNotFoundError):  # a head that has not changed lets readers finish it before
        (staged / head).replace(folder / head)
    _fsync_folder(folder)
    finish_update(folder, head)


def finish_update(folder: str | os.PathLike[str], head: str) -> None:
    """Move the files into place that a kill has left staged after :func:`atomic_update` had decided for them."""
    folder = Path(folder)
    if not (folder / head).is_file() or not (staged := _staged(folder, folder / head)).is_dir():
        return
    with contextlib.suppress(FileNotFoundError):  # another reader does the same
        for path in sorted(staged.iterdir()):
            path.replace(folder / path.name)
        staged.rmdir()
    _fsync_folder(folder)


def _staged(folder: Path, head: Path) -> Path:
    return folder / f".staged-{sha256_of(head)[:16]}"


def _remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove the temporary folders of killed processes."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if re.fullmatch(pattern, path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _fsync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system can."""
    if os.name == "posix":
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure of matplotlib as a PNG that is the same whenever it is drawn."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
