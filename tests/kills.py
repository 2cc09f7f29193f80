"""Commands in processes of their own that are killed: before one of their calls, or at a random moment."""

from __future__ import annotations

import math
import multiprocessing
import os
import pkgutil
import random
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

from afv_metric.cli import main

_server = multiprocessing.get_context("forkserver")
# Imported once, not by every process anew.
_server.set_forkserver_preload(
    ["afv_metric.cli.score", "afv_metric.metric", "afv_metric.train.adapt", "afv_metric.train.card",
     "afv_metric.train.export", "bapps_eval.html", "bapps_eval.run"]
)  # fmt: skip


def run(arguments: Sequence[object], *, before: tuple[str, int] | None = None, after: float | None = None) -> int:
    """Run ``afv-metric``.

    Args:
        arguments: Its arguments.
        before: A function, as ``"module:Class.method"``, and which of its calls, from 1 on, is the end.
        after: Seconds after which it is killed.

    Returns:
        Exit status, or -9 if it was killed.
    """
    process = _server.Process(target=_run, args=([str(argument) for argument in arguments], before))
    process.start()
    process.join(after)
    if after is not None:
        process.kill()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def kill_before_each(call: str, arguments: Sequence[object]) -> Iterator[int]:
    """Run a command time and again, killed before the first call of a function, the second, and so on.

    Yields:
        The exit status, at last that of the command, which came to its end.
    """
    status, number = -signal.SIGKILL, 0
    while status == -signal.SIGKILL:
        number += 1
        status = run(arguments, before=(call, number))
        yield status


def kill_at_random(arguments: Sequence[object]) -> Iterator[int]:
    """Run a command as it is, and once or ``AFV_METRIC_KILLS`` times killed at moments from its beginning to its end.

    Yields:
        The exit status.
    """
    seconds, chance = math.inf, random.Random(0)
    for _ in range(2):  # the first imports more
        began = time.monotonic()
        yield run(arguments)
        seconds = min(seconds, time.monotonic() - began)
    for _ in range(int(os.environ.get("AFV_METRIC_KILLS", "1"))):
        yield run(arguments, after=chance.random() * seconds)


def _run(arguments: list[str], before: tuple[str, int] | None) -> None:
    if before:
        _die_before(*before)
    raise SystemExit(main(arguments))


def _die_before(call: str, number: int) -> None:
    place, _, name = call.rpartition(".")
    owner = pkgutil.resolve_name(place)
    function, calls = getattr(owner, name), []

    def counted(*arguments: Any, **settings: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **settings)

    setattr(owner, name, counted)
