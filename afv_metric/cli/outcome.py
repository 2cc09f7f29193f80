"""How every command ends: one table of exit statuses, errors in one line, and what an interrupt leaves."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

from tqdm import tqdm

__all__ = [
    "DONE", "INTERRUPTED", "SOME_FAILED", "WRONG", "Interrupted", "Problems", "describe", "emit", "if_interrupted",
    "run", "say",
]  # fmt: skip

DONE = 0
SOME_FAILED = 1
WRONG = 2  # usage or input
INTERRUPTED = 130

_OURS = ("afv_metric", "bapps_eval", "experiments")
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")


class Interrupted(KeyboardInterrupt):
    """The command was asked to stop, and ends with a status."""

    def __init__(self, message: str = "", status: int = INTERRUPTED) -> None:
        super().__init__(message)
        self.status = status


class Problems:
    """Errors of single items, which are said at once, with ``debug`` where they arose, while the others go on."""

    def __init__(self, debug: bool = False) -> None:
        self.texts: list[str] = []
        self._debug = debug

    def add(self, text: str, error: Exception | None = None) -> None:
        """Say what is the matter with an item, once."""
        if text in self.texts:
            return
        self.texts.append(text)
        if self._debug and error is not None:
            say("".join(traceback.format_exception(error)).rstrip())
        say(f"error: {text}")

    @property
    def status(self) -> int:
        """Exit status of a command whose other items are done."""
        return SOME_FAILED if self.texts else DONE


def run(command: Callable[[], int | None], *, debug: bool = False, quiet: bool = False) -> int:
    """Run a command that returns an exit status, or None for 0; its errors become a line on stderr.

    What is logged becomes one too. With ``debug`` an error shows its traceback; ``quiet`` leaves warnings only.
    """
    with _messages(quiet), _terminations():
        try:
            status = command() or DONE
            emit("", end="")
            return status
        except KeyboardInterrupt as stop:
            say(str(stop) or "interrupted")
            return stop.status if isinstance(stop, Interrupted) else INTERRUPTED
        except Exception as error:
            if debug:
                say(traceback.format_exc().rstrip())
            say(f"error: {describe(error)}")
            return WRONG
        finally:
            _settle(sys.stdout)


def say(text: str) -> None:
    """Write a line to stderr, above the progress bars."""
    tqdm.write(text, file=sys.stderr)


def emit(text: str, end: str = "\n") -> bool:
    """Write to stdout at once, and return whether it is still read; a reader that left, as ``head``, is no error."""
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        _settle(sys.stdout)
        return False
    except OSError as error:
        raise OSError(error.errno, error.strerror, "stdout") from error
    return True


def describe(error: BaseException) -> str:
    """An error for a reader who did not write the program.

    Example:
        >>> describe(FileNotFoundError(2, "No such file or directory", "a.png"))
        'a.png: No such file or directory'
    """
    if isinstance(error, OSError) and error.strerror:
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
        return f"{' to '.join(names)}: {error.strerror}" if names else error.strerror
    text = str(error).strip()
    if isinstance(error, MemoryError) or any(part in text.lower() for part in _NO_MEMORY):
        return "out of memory; a smaller image, batch or number of threads (OMP_NUM_THREADS) needs less"
    ours = type(error).__module__.partition(".")[0] in _OURS
    if ours or isinstance(error, (OSError, ValueError, ImportError)):
        return text or type(error).__name__
    first = (text.splitlines() or [""])[0]
    return f"unexpected {type(error).__name__}: {first}; --debug shows where it arose: please report it"


@contextlib.contextmanager
def if_interrupted(explain: Callable[[], str]) -> Iterator[None]:
    """Let an interrupt in the block say what is kept, and how to go on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.args = (explain(),)
        raise


class _Stderr:
    """Stderr for messages and progress bars, without which the work goes on if nobody reads them any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            _settle(self._stream)
            return len(text)

    def flush(self) -> None:
        _settle(self._stream)


class _Lines(logging.Handler):
    """Says what is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


@contextlib.contextmanager
def _messages(quiet: bool) -> Iterator[None]:
    """Bring what is logged and warned of to stderr, without the places in the code; names print everywhere."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name may hold no text, and a terminal may lack a character
            stream.reconfigure(errors="backslashreplace")
    handler, loggers = _Lines(), [logging.getLogger(name) for name in _OURS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING if quiet else logging.INFO)
    stderr = sys.stderr
    sys.stderr = cast("TextIO", _Stderr(stderr))
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
            warnings.filterwarnings("ignore", module="PIL")  # of files that it can read in spite of them
            yield
    finally:
        sys.stderr = stderr
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


@contextlib.contextmanager
def _terminations() -> Iterator[None]:
    """Let SIGTERM interrupt like Ctrl-C does."""

    def stop(number: int, _: Any) -> None:
        raise Interrupted("terminated", 128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _settle(stream: TextIO) -> None:
    """Flush a stream; one whose reader has left gets none from now on, so that Python does not complain at its end."""
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
