"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["finish_file", "replacing", "replacing_folder", "save_figure"]


def finish_file(path: Path) -> None:
    """Flush a file to the disk, and give it the permissions of an ordinary new file; temporary ones are private."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write; when the block ends well, put it in the place of ``path`` in one step.

    The temporary file stands in the same folder, is flushed to the disk before it is renamed, and is removed if
    the block raises: ``path`` is afterwards either what it was or complete.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> with replacing(folder / "notes.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> [(file.name, file.read_text()) for file in folder.iterdir()]
        [('notes.txt', 'whole')]
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
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
        >>> parent = Path(tempfile.mkdtemp())
        >>> with replacing_folder(parent / "notes") as temporary:
        ...     _ = (temporary / "first.txt").write_text("whole")
        >>> [str(path.relative_to(parent)) for path in parent.rglob("*.txt")]
        ['notes/first.txt']
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        for path in temporary.iterdir():
            finish_file(path)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            folder.rename(old / folder.name)
            try:
                temporary.rename(folder)
            except BaseException:
                (old / folder.name).rename(folder)
                raise
            finally:
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
