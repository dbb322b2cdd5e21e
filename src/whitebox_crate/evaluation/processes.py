"""The processes of a run that torchrun starts: their ranks, their devices, and waiting for each other."""

from __future__ import annotations

import atexit
import os
from datetime import timedelta
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist

from .._devices import resolve_device
from ..errors import InputError, ProcessError

START = timedelta(minutes=5)  # the last process may start this much later than the first
WAIT = timedelta(hours=2)  # and finish this much later


def rank_and_count() -> tuple[int, int]:
    """The rank of this process and the number of processes, from torch.distributed or torchrun's variables.

    Raises:
        InputError: If the variables hold something else.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    rank, count = _whole_number("RANK", 0), _whole_number("WORLD_SIZE", 1)
    if not 0 <= rank < count:
        raise InputError(
            f"RANK must be below WORLD_SIZE, but they are {rank} and {count}; start several processes by torchrun"
        )
    return rank, count


def device_of(name: str | None) -> torch.device:
    """`resolve_device`, but "cuda" gives each process of a machine its own device.

    Raises:
        InputError: If there is no such device.
    """
    device = resolve_device(name)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", _whole_number("LOCAL_RANK", 0) % torch.cuda.device_count())
    return device


def wait_for_all() -> None:
    """Returns when all processes have called it.

    A process that ends, for any reason, closes its connections; the others notice it when they wait.

    Raises:
        ProcessError: If the processes do not find each other, or one failed.
    """
    if rank_and_count()[1] == 1:
        return
    try:
        if not dist.is_initialized():
            # One group for all measurements: a second one would find and take the addresses of the first.
            dist.init_process_group("gloo", timeout=START)
            atexit.register(dist.destroy_process_group)
        group = _patient_group(dist.group.WORLD)
    except (RuntimeError, ValueError) as error:
        raise ProcessError(f"the processes do not find each other: {error}; start them by torchrun") from error
    try:
        dist.barrier(group)
    except RuntimeError as error:
        raise ProcessError(
            "another process failed or did not answer; see its own message. Finished measurements are kept: run the "
            f"same command again ({error})"
        ) from error


@lru_cache(maxsize=1)
def _patient_group(world: Any) -> Any:
    """The group of all processes, with time to finish. There is one, because each group holds connections."""
    return dist.new_group(backend="gloo", timeout=WAIT)


def _whole_number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    try:
        return int(text)
    except ValueError as error:
        raise InputError(
            f"{variable} must be a whole number, not {text!r}; start several processes by torchrun"
        ) from error
