"""Commands whose work the processes of ``torchrun`` share; the first of them says and writes what all have found."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
from collections.abc import Callable

from afv_metric.cli.outcome import DONE, Problems
from afv_metric.distributed import gather, init_distributed, rank_and_world_size
from afv_metric.runtime import find_device

__all__ = ["join_problems", "shared"]

_Command = Callable[[argparse.Namespace], int]


def shared(command: _Command) -> _Command:
    """Let a command run in the processes that ``torchrun`` has started, if any; all but the first are silent."""

    @functools.wraps(command)
    def run(options: argparse.Namespace) -> int:
        with init_distributed(find_device(options.device)) as device, contextlib.ExitStack() as stack:
            options.device = str(device)
            if rank_and_world_size()[0] == 0:
                return command(options)
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
            vars(options).update(csv=None, html=None, resume=False)
            command(options)
            return DONE  # the status is that of the first

    return run


def join_problems(problems: Problems) -> None:
    """Tell the first process what was the matter in the others."""
    for texts in gather(problems.texts)[1:]:
        for text in texts:
            if text not in problems.texts:
                problems.add(text)
