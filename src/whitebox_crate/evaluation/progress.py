"""Progress: how much of a share is done, how fast, and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import timedelta

REPORT_EVERY = 10.0  # seconds


class Progress:
    """Reports how much of a share is done, how fast, and the time left."""

    def __init__(self, before: int, share: int, processes: int, report: Callable[[str], object]) -> None:
        self._share, self._report, self._done = share, report, 0
        self._started = self._said = time.monotonic()
        self._of = f" of the share of one of {processes} processes" if processes > 1 else ""
        if before:
            self._report(f"{before:,} measured before")

    def advance(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._said >= REPORT_EVERY:
            self._said = now
            rate = self._done / (now - self._started)
            left = timedelta(seconds=round((self._share - self._done) / rate))
            self._report(
                f"{self._done:,} of {self._share:,}{self._of} ({self._done / self._share:.0%}), {rate:.3g} a second, "
                f"{left} left"
            )

    def skip(self) -> None:
        """Notes that an item of the share is not measured now: it was before, or it is broken."""
        self._share -= 1

    def finish(self) -> None:
        seconds = timedelta(seconds=round(time.monotonic() - self._started))
        self._report(f"{self._done:,}{self._of} measured in {seconds}")


def to_stderr(text: str) -> None:
    """Prints a line on progress to stderr, without delay."""
    print(text, file=sys.stderr, flush=True)


def to_nobody(text: str) -> None:
    """Takes a line on progress, and prints nothing."""
