"""Batches computed in threads: cores of a processor get on better with a batch each than all with one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["compute_batches"]

_MOST_AT_ONCE = 8  # each holds the maps of its batch

_Batch = TypeVar("_Batch")
_Result = TypeVar("_Result")


def compute_batches(
    function: Callable[[_Batch], _Result], batches: Iterable[_Batch], device: str | torch.device, *, alone: bool = False
) -> Iterator[tuple[_Batch, _Result]]:
    """Apply a function to batches; on the CPU to one batch a core, with the threads of torch shared out among them.

    An accelerator is given its next batch before the results of the last one are waited for.

    Args:
        function: What to compute; called in other threads, where gradients and autocast are as they are by default.
        batches: The batches; a few are taken ahead.
        device: Where the function computes.
        alone: Whether the function must not run twice at the same time.

    Yields:
        Every batch with its result, in order.

    Example:
        >>> [total for _, total in compute_batches(sum, [[1, 2], [3]], "cpu")]
        [3, 3]
    """
    threads = torch.get_num_threads()
    at_once = 1 if alone or torch.device(device).type != "cpu" else min(threads, _MOST_AT_ONCE)
    pending: deque[tuple[_Batch, Future[_Result]]] = deque()
    with ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(threads // at_once,)) as pool:
        try:
            for batch in batches:
                pending.append((batch, pool.submit(function, batch)))
                if len(pending) > at_once:
                    done, result = pending.popleft()
                    yield done, result.result()
            for done, result in pending:
                yield done, result.result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
