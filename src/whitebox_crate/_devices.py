"""Devices: the one that was asked for, or the best available, and its name in words."""

from __future__ import annotations

import torch

from .errors import InputError


def resolve_device(name: str | torch.device | None = None) -> torch.device:
    """A device that works.

    Args:
        name: See `torch.device`; if None, CUDA if available, else MPS, else the CPU.

    Raises:
        InputError: If there is no such device.
    """
    if name is None:
        name = _kinds()[0]
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # there and back: the device "meta" makes tensors that hold nothing
    except (RuntimeError, AssertionError) as error:
        # Of a kind that it does not know, torch lists all that it knows.
        why = "" if "device type" in str(error) else f" ({str(error).splitlines()[0]})"
        raise InputError(f"there is no device {str(name)!r} here{why}; choose {' or '.join(_kinds())}") from error
    return device


def _kinds() -> list[str]:
    """The available kinds of device, the best first."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [kind for kind, is_there in there.items() if is_there]


def describe_device(device: torch.device) -> str:
    """A device in words: its kind, with the name of a GPU or the number of threads of a CPU."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"{device} ({threads} thread{'s' if threads > 1 else ''})" if device.type == "cpu" else str(device)
