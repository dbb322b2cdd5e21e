"""The device: a GPU, or what TEST_DEVICE names in its place: cpu, or pretended, which shows faults without one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from pretended import pretended_device

NAME = os.environ.get("TEST_DEVICE", "cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "cuda" not in item.keywords:
            continue
        if NAME == "cuda" and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="there is no GPU"))
        if NAME == "pretended" and "real" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="a pretended device cannot run it"))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Where what is tested runs; convolutions on a GPU are exact to float32, as products are by themselves."""
    if NAME == "pretended":
        # Tensors of inference mode cannot hold others.
        monkeypatch.setattr(torch, "inference_mode", lambda mode=True: torch.no_grad() if mode else nullcontext())
        with pretended_device() as pretended:
            yield pretended
        return
    if NAME == "cuda":
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    yield torch.device(NAME)
