"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["finish_file", "replacing", "replacing_folder", "save_figure"]


def finish_file(path: Path) -> None:
    """Flush a file to the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write; when the block ends well, put it in the place of ``path`` in one step.

    The temporary file stands in the same folder, is flushed to the disk before it is renamed, and is removed if
    the block raises: ``path`` is afterwards either what it was or complete. A link stays one, to the new file; what is
    no file, such as a pipe or ``/dev/null``, is written to directly.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = Path(mkdtemp())
        >>> with replacing(folder / "notes.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> [(file.name, file.read_text()) for file in folder.iterdir()]
        [('notes.txt', 'whole')]
    """
    if os.path.exists(path) and not os.path.isfile(path):
        yield Path(path)
        return
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not by tempfile, whose files nobody else may read.
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(8)}{path.suffix}")
    temporary.touch(exist_ok=False)
    ordinary = temporary.stat().st_mode
    try:
        yield temporary
        temporary.chmod(ordinary)  # what wrote it may have put a private file in its place
        finish_file(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def replacing_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary folder to fill; when the block ends well, put it in the place of ``folder``.

    Its files are flushed to the disk before. What stood at ``folder`` is moved aside first and removed last; if the
    block raises, it is what it was.

    Example:
        >>> from tempfile import mkdtemp
        >>> parent = Path(mkdtemp())
        >>> with replacing_folder(parent / "notes") as temporary:
        ...     _ = (temporary / "first.txt").write_text("whole")
        >>> [str(path.relative_to(parent)) for path in parent.rglob("*.txt")]
        ['notes/first.txt']
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}-{secrets.token_hex(8)}")
    temporary.mkdir()
    ordinary = temporary.stat().st_mode & 0o666
    try:
        yield temporary
        for path in temporary.iterdir():
            path.chmod(ordinary)
            finish_file(path)
        if folder.exists():
            old = temporary.with_name(f"{temporary.name}-old")
            folder.rename(old)
            try:
                temporary.rename(folder)
            except BaseException:
                old.rename(folder)
                raise
            shutil.rmtree(old)
        else:
            temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure of matplotlib as a PNG that is the same whenever it is drawn."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
