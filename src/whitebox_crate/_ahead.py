"""Work that threads do ahead: results in the order of the items, as one by one."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import Generic, TypeVar

import torch

from .errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2  # items for each worker that are begun, or done and not yet asked for: memory is finite


@contextmanager
def in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int = 1) -> Iterator[Iterator[Result]]:
    """`map(function, items)`, by several threads, for a block.

    Pillow and PyTorch leave Python to others while they compute, so that threads use all cores, and share one model.
    Each has its part of PyTorch's threads. What the function raises comes in place of the result, and then the next.
    At the end of the block nothing is begun any more, and calls in hand are stopped, as Ctrl-C stops the main thread.

    Args:
        function: Called from any thread, for several items at once.
        items: What to call it with; read as results are asked for, `AHEAD` for each worker before them.
        workers: How many threads; 1 calls the function in the caller's own, when a result is asked for.

    Raises:
        InputError: If there is no worker.
    """
    if not isinstance(workers, int) or workers < 1:
        raise InputError(f"workers must be a whole number, at least 1, not {workers!r}")
    if workers == 1:
        yield map(function, items)
        return
    threads = torch.get_num_threads()
    share = max(1, threads // workers)
    in_hand = _InHand(function)
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,)) as pool:
        try:
            yield map(Future.result, _begun(pool, in_hand, items, AHEAD * workers))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            in_hand.stop()
            torch.set_num_threads(threads)  # which later threads begin with


def _begun(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Future[Result]]:
    """The calls in order, `ahead` of them begun before they are asked for."""
    calls: deque[Future[Result]] = deque()
    for item in items:
        calls.append(pool.submit(function, item))
        if len(calls) == ahead:
            yield calls.popleft()
    while calls:
        yield calls.popleft()


class _InHand(Generic[Item, Result]):
    """A function that several threads call, and that can be stopped in all of them."""

    def __init__(self, function: Callable[[Item], Result]) -> None:
        self._function, self._threads, self._lock = function, set[int](), Lock()

    def __call__(self, item: Item) -> Result:
        with self._lock:
            self._threads.add(get_ident())
        try:
            return self._function(item)
        finally:
            with self._lock:  # a stop comes before this or not at all: it never reaches the pool's own code
                self._threads.discard(get_ident())

    def stop(self) -> None:
        """Raises KeyboardInterrupt in each thread that is in the function, as soon as that runs Python again."""
        with self._lock:
            for thread in self._threads:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt))
