"""Stops a run at SIGINT or SIGTERM: it finishes its step, writes a checkpoint and says how to resume."""

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
AGAIN = 2.0  # seconds; a second signal in this time is the same request, passed on by a launcher


class StopRequest:
    """Notes SIGINT and SIGTERM inside the block. A second, later signal has its usual effect.

    Only the main thread notes signals, because Python sets handlers only there.

    Args:
        accelerator: The accelerator of the run; all its processes stop after the same step.
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
        """The signal that a process of the run has noted; 0 if none. All processes call it."""
        if self._accelerator.num_processes == 1:
            return self._noted
        mine = torch.tensor([self._noted], device=self._accelerator.device)
        return int(self._accelerator.gather(mine).max())

    def leave(self, number: int, folder: Path, step: int) -> NoReturn:
        """Ends the call as the signal would have, after a checkpoint.

        Raises:
            KeyboardInterrupt: After SIGINT.
            SystemExit: After SIGTERM, with 128 + 15.
        """
        if self._accelerator.is_main_process:
            print(
                f"stopped after step {step}, kept in {folder}: the same call or command resumes there",
                file=sys.stderr,
            )
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    def _note(self, number: int, frame: object) -> None:
        if os.getpid() != self._process:  # a forked worker: the run's own process ends it
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
        elif not self._noted:
            self._noted, self._at = number, time.monotonic()
            if self._accelerator.is_main_process:  # not print, which a signal must not enter twice
                os.write(2, b"\nstopping when this step is done and kept; once more to stop at once\n")
        elif time.monotonic() - self._at > AGAIN:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}
