"""Commands whose work the processes of ``torchrun`` share; the first of them says and writes what all have found."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
from collections.abc import Callable

from afv_metric.distributed import gather, init_distributed, rank_and_world_size
from afv_metric.runtime import find_device

__all__ = ["join_problems", "shared"]

_Command = Callable[[argparse.Namespace], None]


def shared(command: _Command) -> _Command:
    """Let a command run in the processes that ``torchrun`` has started, if any; all but the first are silent."""

    @functools.wraps(command)
    def run(options: argparse.Namespace) -> None:
        with init_distributed(find_device(options.device)) as device, contextlib.ExitStack() as stack:
            options.device = str(device)
            if rank_and_world_size()[0] == 0:
                command(options)
                return
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
            vars(options).update(csv=None, html=None, resume=False)
            command(options)
            options.problems.texts.clear()  # the status is that of the first

    return run


def join_problems(options: argparse.Namespace) -> None:
    """Tell the first process what was the matter in the others."""
    for texts in gather(options.problems.texts)[1:]:
        for text in texts:
            options.problems.add(text)
