"""Devices: the one that was asked for, or the best that is there, and what to call it."""

from __future__ import annotations

import torch

from .errors import InputError


def resolve_device(name: str | torch.device | None = None) -> torch.device:
    """A device that works.

    Args:
        name: As of `torch.device`; if None, CUDA if it is there, else MPS, else the CPU.

    Raises:
        InputError: If there is no such device.
    """
    if name is None:
        name = _kinds()[0]
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # there and back: the device "meta" makes tensors that hold nothing
    except (RuntimeError, AssertionError) as error:
        why = "" if "device type" in str(error) else f" ({str(error).splitlines()[0]})"  # else torch lists all it knows
        raise InputError(f"there is no device {str(name)!r} here{why}; there is {' and '.join(_kinds())}") from error
    return device


def _kinds() -> list[str]:
    """The kinds of device that are there, the best first."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [kind for kind, is_there in there.items() if is_there]


def describe_device(device: torch.device) -> str:
    """What people call a device: its kind, and of a GPU its name, of the CPU how many threads it uses."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"{device} ({threads} thread{'s' if threads > 1 else ''})" if device.type == "cpu" else str(device)
