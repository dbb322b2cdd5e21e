"""Work that threads do ahead: results in the order of the items, as one by one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from .errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2  # items for each worker that are begun, or done and not yet asked for: memory is finite


def in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int = 1) -> Iterator[Result]:
    """`map(function, items)`, by several threads.

    Pillow and PyTorch leave Python to others while they compute, so that threads use all cores, and share one model.
    Each has its part of PyTorch's threads. What the function raises comes in place of the result, and then the next.
    What reading `items` raises comes after the results before it, and is the last.

    Args:
        function: Called from any thread, for several items at once.
        items: What to call it with; read as results are asked for, `AHEAD` for each worker before them.
        workers: How many threads; 1 calls the function in the caller's own, when a result is asked for.

    Raises:
        InputError: If there is no worker.
    """
    if workers < 1:
        raise InputError(f"workers is at least 1, not {workers!r}")
    return map(Future.result, _begun(function, items, workers)) if workers > 1 else map(function, items)


def _begun(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Future[Result]]:
    """The calls in order; those that nobody asks for any more are not begun."""
    threads = torch.get_num_threads()
    share = max(1, threads // workers)
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,)) as pool:
        try:
            calls: deque[Future[Result]] = deque()
            for call in _submitted(pool, function, items):
                calls.append(call)
                if len(calls) == AHEAD * workers:
                    yield calls.popleft()
            while calls:
                yield calls.popleft()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # which later threads begin with


def _submitted(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Future[Result]]:
    """A call for each item; in place of an item that cannot be read, the error, and nothing after it."""
    try:
        for item in items:
            yield pool.submit(function, item)
    except Exception as error:
        failed = Future[Result]()
        failed.set_exception(error)
        yield failed
