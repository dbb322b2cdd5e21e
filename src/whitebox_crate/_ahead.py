"""Work that threads do ahead: results in the order of the items, as one by one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from .errors import whole_number

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2  # items for each worker that are begun, or done and not yet asked for: memory is finite


def in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int = 1) -> Iterator[Result]:
    """`map(function, items)`, by several threads.

    Pillow and PyTorch leave Python to others while they compute, so that threads use all cores, and share one model.
    Each has its part of PyTorch's threads. What the function raises comes in place of the result, and then the next.

    Args:
        function: Called from any thread, for several items at once.
        items: What to call it with; read as results are asked for, `AHEAD` for each worker before them.
        workers: How many threads; 1 calls the function in the caller's own, when a result is asked for.

    Raises:
        InputError: If there is no worker.
    """
    workers = whole_number("workers", workers)
    return map(Future.result, _begun(function, items, workers)) if workers > 1 else map(function, items)


def _begun(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Future[Result]]:
    """The calls in order; those that nobody asks for any more are not begun."""
    threads = torch.get_num_threads()
    share = max(1, threads // workers)
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,)) as pool:
        try:
            calls: deque[Future[Result]] = deque()
            for item in items:
                calls.append(pool.submit(function, item))
                if len(calls) == AHEAD * workers:
                    yield calls.popleft()
            while calls:
                yield calls.popleft()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # which later threads begin with
