"""Files that a command writes: tried before the work, and rows of a CSV written as they come."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from afv_metric.cli.outcome import emit
from afv_metric.files import locked, made_folder, real_path, reason_of

__all__ = ["csv_rows", "kept_rows", "try_output", "try_outputs"]


def try_output(path: Path | None, option: str, others: Iterable[Path] = ()) -> None:
    """See that the file of an option, if any, can be written and is none of the others, and leave all as it was."""
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


def try_outputs(options: argparse.Namespace, *names: str, others: Iterable[Path | None] = ()) -> None:
    """Try the outputs of a command, by the names of their options: each is none of the others."""
    taken = [path for path in others if path]
    for name in names:
        if path := getattr(options, name, None):
            try_output(path, f"--{name}", taken)
            taken.append(path)


@contextlib.contextmanager
def csv_rows(
    path: Path | None, header: Sequence[str], keep: int = 0
) -> Iterator[Callable[[Iterable[Sequence[str]]], bool]]:
    """Begin a CSV in a file, or on stdout if None, that is complete up to its last line at any moment.

    The file is locked while the block runs; with ``keep`` it goes on after so many bytes. What is yielded writes rows
    at once, and returns whether somebody still reads them.
    """
    with contextlib.ExitStack() as stack:
        file: IO[str] | None = None
        if path is not None:
            if path.exists() and not path.is_file():  # a pipe, a device
                keep = 0
            else:
                stack.enter_context(locked(path))
            # Names may hold bytes that are no text.
            file = path.open("r+" if keep else "w", newline="", encoding="utf-8", errors="backslashreplace")
            stack.enter_context(file)
            if keep:
                file.seek(keep)
                file.truncate()
        is_read = True

        def write(rows: Iterable[Sequence[str]]) -> bool:
            nonlocal is_read
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(rows)
            if file is None:
                is_read = is_read and emit(text.getvalue(), end="")
            else:
                file.write(text.getvalue())
                file.flush()
            return is_read

        if not keep:
            write([header])
        yield write


def kept_rows(path: Path, header: Sequence[str]) -> tuple[dict[str, list[float]], int]:
    """Read the whole rows that an interrupted command has left, numbers by name, and the bytes that they take.

    Raises:
        ValueError: If the file holds something else.
    """
    rows: list[list[str]] = []
    size, record = 0, b""
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        record += line
        if record.endswith(b"\n") and record.count(b'"') % 2 == 0:  # the line break is not within a name
            rows += csv.reader([record.decode("utf-8", "backslashreplace")])
            size += len(record)
            record = b""
    try:
        if rows[:1] not in ([], [list(header)]) or any(len(row) != len(header) for row in rows):
            raise ValueError("other columns")
        return {name: list(map(float, numbers)) for name, *numbers in rows[1:]}, size
    except ValueError as error:
        raise ValueError(
            f"{path} is not a table that this command has begun: leave out --resume to replace it"
        ) from error
