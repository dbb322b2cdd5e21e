"""patiently: a download that is given up where nothing comes, whatever its client still waits for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

PATIENCE = 120.0  # seconds in which
AT_LEAST = 4096  # so many bytes come, or the download is given up
_LOOK_EVERY = 0.5  # seconds

T = TypeVar("T")


def patiently(download: Callable[[], T], folder: Path) -> T:
    """What a download gives, as long as bytes arrive.

    Clients wait for a header that is never sent, for each single byte, or for the day that a server told them to come
    back after. The download runs in a thread of its own, which is left behind where it is given up.

    Args:
        download: Gives a result or raises.
        folder: Of the repository in huggingface_hub's cache; how fast its `blobs` grow is how fast bytes arrive.

    Raises:
        TimeoutError: If less than `AT_LEAST` bytes came in `PATIENCE` seconds.
        Exception: What `download` raises.
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
            raise TimeoutError(f"in {PATIENCE:g} seconds less than {AT_LEAST} bytes came")
    if errors:
        raise errors[0]
    return results[0]


def _size(folder: Path) -> int:
    total = 0
    for path in folder.glob("blobs/*"):
        try:
            total += path.stat().st_size
        except OSError:  # gone meanwhile: renamed, for it is whole
            continue
    return total
