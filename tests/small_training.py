"""Small models, sources and recipes for tests of the training loop, and what runs leave."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whitebox_crate.models import Crate, ImageTransformer
from whitebox_crate.training import Batch, Recipe

STEPS, CLASSES = 9, 3


class Colours:
    """Which channel is bright? Noise of a strength that grows with difficulty goes over it."""

    def __init__(self) -> None:
        self.drawn: list[dict[str, Any]] = []

    def draw(self, batch_size: int, *, seed: int, step: int, difficulty: float = 1.0, size: int | None = None) -> Batch:
        self.drawn.append({"seed": seed, "step": step, "difficulty": difficulty, "size": size})
        assert size is not None
        generator = torch.Generator().manual_seed(1000 * seed + step)
        labels = torch.randint(CLASSES, (batch_size,), generator=generator)
        images = torch.rand(batch_size, 3, size, size, generator=generator) * 0.4 * difficulty
        images[torch.arange(batch_size), labels] += 0.5
        return Batch(images, labels, torch.ones(batch_size, size, size, dtype=torch.bool))


class Killed(Colours):
    """Dies for good when this step is drawn."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def draw(self, batch_size: int, *, step: int, **options: Any) -> Batch:  # type: ignore[override]
        if step == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().draw(batch_size, step=step, **options)


class Spoilt(Colours):
    """Not-a-number in the images from this step on."""

    def draw(self, batch_size: int, *, step: int, **options: Any) -> Batch:  # type: ignore[override]
        batch = super().draw(batch_size, step=step, **options)
        return Batch(batch.images * math.nan, batch.labels, batch.masks) if step >= 3 else batch


@dataclass
class Looks:
    """Notes when it is asked, and what of."""

    every: int
    seen: list[float]

    def measure(self, model: ImageTransformer) -> dict[str, float]:
        self.seen.append(float(model.head.bias.detach().sum()))
        return {"top1": len(self.seen) / 10}


def make(kind: Callable[..., ImageTransformer] = Crate, seed: int = 0, **options: Any) -> ImageTransformer:
    torch.manual_seed(seed)
    small = {"img_size": 12, "patch_size": 6, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": CLASSES}
    return kind(**{**small, "dynamic_img_size": True, **options})


def short(**options: Any) -> Recipe:
    """A recipe of a few steps; its numbers are given in full, so that the package's defaults may change."""
    numbers = {"steps": STEPS, "batch_size": 4, "optimizer": "lion", "learning_rate": 4e-4, "weight_decay": 0.05}
    shape = {"warmup": 0.05, "curriculum": 0.45, "sizes": (12,), "size_starts": (0.0,)}
    return Recipe(**{**numbers, **shape, "label_smoothing": 0.1, "clip_norm": 1.0, "seed": 0, **options})


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(first: Any, second: Any) -> bool:
    """Equal to the bit, through dicts and lists."""
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)


def content(folder: Path) -> list[str]:
    """What a user sees there: no hidden files."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def optimizer_state(folder: Path) -> Any:
    return torch.load(max(folder.glob("checkpoint-*")) / "optimizer.bin", weights_only=True)


def records(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds_per_step"} for line in lines]
