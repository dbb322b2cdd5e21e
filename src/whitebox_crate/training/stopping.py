"""A run that is asked to stop, by SIGINT or SIGTERM, ends its step, keeps a checkpoint and says how to go on."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import torch

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN = 2.0  # seconds within which a second signal is the same request: a launcher passes on what all have heard


class StopRequest:
    """Notes SIGINT and SIGTERM while the block runs; a second one, later, acts as if nobody had waited for it.

    In a thread that is not the main one nothing is noted, for Python sets handlers in that alone.

    Args:
        accelerator: Of the run; all its processes stop after the same step.
    """

    def __init__(self, accelerator: Any) -> None:
        self._accelerator, self._process = accelerator, os.getpid()
        self._noted, self._at = 0, 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        self._restore()

    def noted(self) -> int:
        """The signal that any process of the run has noted; 0 if none. To be called by all of them."""
        if self._accelerator.num_processes == 1:
            return self._noted
        mine = torch.tensor([self._noted], device=self._accelerator.device)
        return int(self._accelerator.gather(mine).max())

    def leave(self, number: int, folder: Path, step: int) -> NoReturn:
        """Ends the call as the signal would have, once a checkpoint is written.

        Raises:
            KeyboardInterrupt: After SIGINT.
            SystemExit: After SIGTERM, with 128 + 15.
        """
        if self._accelerator.is_main_process:
            print(
                f"stopped after step {step}, which {folder} keeps: the same call or command goes on from there",
                file=sys.stderr,
            )
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    def _note(self, number: int, frame: object) -> None:
        if os.getpid() != self._process:  # a worker that was forked: the run's own process ends it
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
        elif not self._noted:
            self._noted, self._at = number, time.monotonic()
            if self._accelerator.is_main_process:  # not by print, which a signal must not enter twice
                os.write(2, b"\nstopping when this step is done and kept; once more to stop at once\n")
        elif time.monotonic() - self._at > AGAIN:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}
