"""Files that a command writes: tried before the work, and rows of a CSV written as they come."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

from afv_metric.cli.outcome import emit
from afv_metric.files import locked, made_folder, real_path, reason_of

__all__ = ["CSVRows", "kept_rows", "try_output", "try_outputs"]


def try_output(path: Path | None, option: str, others: Iterable[Path] = ()) -> None:
    """See that the file of an option, if any, can be written, and leave all as it was.

    Raises:
        OSError: If it cannot be written.
        ValueError: If it is one of the others, which the command reads or writes as well.
    """
    if path is None or (path.exists() and not path.is_file() and not path.is_dir()):  # a pipe, a device
        return
    if path.is_dir():
        raise IsADirectoryError(f"{option} {path} is a folder; give the name of a file in it")
    if os.path.realpath(path) in map(os.path.realpath, others):
        raise ValueError(f"{option} {path} would replace what is read or written as well; give another file")
    try:
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(13, "Permission denied")
        place = real_path(path)
        # A name as long as that of what will be written.
        trial = place.with_name(f".{place.stem}-{secrets.token_hex(8)}{place.suffix}")
        with made_folder(place.parent):
            trial.touch(exist_ok=False)
            trial.unlink()
    except OSError as error:
        raise OSError(f"{option} {path} cannot be written: {reason_of(error)}") from error


def try_outputs(options: argparse.Namespace, *names: str, others: Iterable[Path | None]) -> None:
    """Try the outputs of a command, by the names of their options: each is none of the others."""
    taken = [path for path in others if path]
    for name in names:
        if path := getattr(options, name, None):
            try_output(path, f"--{name}", taken)
            taken.append(path)


class CSVRows:
    """A CSV in a file, or on stdout, that is complete up to its last line at any moment.

    Args:
        path: The file; None for stdout. It is opened at the first row, and locked while it is open.
        header: Names of the columns.
        keep: Bytes of the file to go on after; without any it is written anew.
    """

    def __init__(self, path: Path | None, header: Sequence[str], keep: int = 0) -> None:
        self._path, self._header, self._keep = path, header, keep
        self._begun = False
        self._file: IO[str] | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> CSVRows:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def write(self, rows: Iterable[Sequence[str]]) -> bool:
        """Write rows at once, the header before the first.

        Returns:
            Whether somebody still reads them.
        """
        if not self._begun:
            self._begin()
            rows = rows if self._keep else [self._header, *rows]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        if self._file is None:
            return emit(text.getvalue(), end="")
        self._file.write(text.getvalue())
        self._file.flush()
        return True

    def _begin(self) -> None:
        self._begun = True
        if self._path is None:
            return
        if self._path.exists() and not self._path.is_file():
            self._keep = 0
        else:
            self._stack.enter_context(locked(self._path))
        mode = "r+" if self._keep else "w"
        # Names may hold bytes that are no text.
        self._file = self._stack.enter_context(
            self._path.open(mode, newline="", encoding="utf-8", errors="backslashreplace")
        )
        if self._keep:
            self._file.seek(self._keep)
            self._file.truncate()


def kept_rows(path: Path, header: Sequence[str]) -> tuple[list[list[str]], int]:
    """Read the whole rows, a name and numbers, that an interrupted command has left; and the bytes that they take.

    Raises:
        ValueError: If the file holds something else.
    """
    if not path.exists():
        return [], 0
    rows: list[list[str]] = []
    size, record = 0, b""
    for line in path.read_bytes().splitlines(keepends=True):
        record += line
        if record.endswith(b"\n") and record.count(b'"') % 2 == 0:  # the line break is not within a name
            rows += csv.reader([record.decode("utf-8", "backslashreplace")])
            size += len(record)
            record = b""
    if rows and (
        rows[0] != list(header) or any(len(row) != len(header) or not all(map(_is_number, row[1:])) for row in rows[1:])
    ):
        raise ValueError(f"{path} is not a table that this command has begun: leave out --resume to replace it")
    return rows[1:], size


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
