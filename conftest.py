"""What every test relies on: one thread per worker, fixed seeds, a registry that is put back."""

import os
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: no test asks the real Hub

import pytest
import torch
from hypothesis import settings

from whitebox_crate import registry

torch.set_num_threads(1)  # pytest-xdist has the cores; more threads would only wait for each other
settings.register_profile("suite", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the test registers is gone after it."""
    monkeypatch.setattr(registry, "_models", dict(registry._models))
    monkeypatch.setattr(registry, "_aliases", dict(registry._aliases))
    yield


@pytest.fixture
def own_threads() -> Iterator[None]:
    """The test may give PyTorch more threads; it has one again after it."""
    yield
    torch.set_num_threads(1)
