"""Downloads that take long: what is waited for is said, and given up if no bytes arrive."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

SOON = 5.0  # seconds until a user is told
PATIENCE = 120.0  # seconds
AT_LEAST = 4096  # bytes that must come in that time
_LOOK_EVERY = 0.5  # seconds

T = TypeVar("T")


@contextmanager
def told(what: str) -> Iterator[None]:
    """Says what a block waits for, if that takes longer than `SOON`: for a large file, or for a Hub that is silent."""
    message = "still waiting for %s; to use only what is in the cache, set HF_HUB_OFFLINE=1"
    timer = threading.Timer(SOON, logging.getLogger(__name__).warning, (message, what))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def patiently(download: Callable[[], T], folder: Path) -> T:
    """Runs a download and returns its result, as long as bytes arrive.

    Some clients wait without end: for a header that is never sent, for single bytes, or until a time that the server
    named. The download runs in its own thread. If it is given up, the thread is left behind.

    Args:
        download: Gives a result or raises.
        folder: Folder of the repository in huggingface_hub's cache; its `blobs` grow as bytes arrive.

    Raises:
        TimeoutError: If fewer than `AT_LEAST` bytes came in `PATIENCE` seconds.
        Exception: Whatever `download` raises.
    """
    results, errors, done = list[T](), list[Exception](), threading.Event()

    def work() -> None:
        try:
            results.append(download())
        except Exception as error:
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=work, name="whitebox-crate download", daemon=True).start()
    size, since = _size(folder), time.monotonic()
    while not done.wait(_LOOK_EVERY):
        now = _size(folder)
        if abs(now - size) >= AT_LEAST:
            size, since = now, time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            raise TimeoutError(f"fewer than {AT_LEAST} bytes came in {PATIENCE:g} seconds")
    if errors:
        raise errors[0]
    return results[0]


def _size(folder: Path) -> int:
    total = 0
    for path in folder.glob("blobs/*"):
        try:
            total += path.stat().st_size
        except OSError:  # gone meanwhile: it is whole and was renamed
            continue
    return total
