"""The device refuses what a GPU refuses, be it a real or a pretended one: else the other tests would show nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

pytestmark = pytest.mark.cuda

MISTAKES: dict[str, Callable[[torch.Tensor], object]] = {
    "added": lambda there: there + torch.ones(2, 3),
    "multiplied": lambda there: there @ torch.ones(3, 2),
    "filled in place": lambda there: there.add_(torch.ones(2, 3)),
    "put together": lambda there: torch.cat([there, torch.ones(2, 3)]),
    "a processor's tensor indexed": lambda there: torch.ones(2, 3)[there.long()[0]],
    "numpy": lambda there: there.numpy(),
    "generator": lambda there: torch.rand(2, generator=torch.Generator(), device=there.device),
    "norm of here": lambda there: torch.nn.LayerNorm(3)(there),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_mixes_devices_is_refused(mistake: str, device: torch.device) -> None:
    if device.type == "cpu":
        pytest.skip("there is one device")
    with pytest.raises((RuntimeError, TypeError)):
        MISTAKES[mistake](torch.zeros(2, 3, device=device))


def test_what_a_gpu_takes_is_taken(device: torch.device) -> None:
    there = torch.ones(2, 3, device=device)
    assert (there + torch.tensor(1.0)).sum().item() == 12  # a number may come from anywhere
    assert there[torch.tensor([0, 1])].device == there.device
    there[0] = torch.zeros(3)
    assert there.cpu().numpy().sum() == 3
    assert (there.to("cpu") + torch.ones(2, 3)).device.type == "cpu"
    assert torch.tensor([1.0], device=device).device == torch.empty_like(there).device == there.device
