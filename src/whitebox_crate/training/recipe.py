"""Recipe: every number that a training depends on, and its value at each step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from ..errors import InputError, UnknownNameError

Optimizer = Literal["lion", "adamw"]
Crop = Literal["centre", "random"]
Objective = Literal["supervised", "linear_probe", "mae"]
Precision = Literal["no", "bf16", "fp16"]
_CHOICES = {"optimizer": Optimizer, "crop": Crop, "objective": Objective, "precision": Precision}
_AMOUNTS = ("epochs", "learning_rate", "weight_decay")
_SHARES = ("warmup", "label_smoothing", "curriculum", "mask_ratio")


@dataclass(frozen=True)
class Recipe:
    """Every number that a run depends on. `crate_nano` was trained with the defaults.

    Attributes:
        steps: Optimiser steps.
        epochs: Passes over the images; the number of steps follows from it. See `resolved`. 0 if `steps` counts.
        batch_size: Images per step, over all processes.
        accumulation: Parts of a step that each process computes one after the other, for less memory.
        optimizer: "lion" (as in the paper) or "adamw".
        learning_rate: Peak learning rate.
        weight_decay: Weight decay of matrices; biases, norms, [CLS] and positions have none.
        warmup: Share of the steps in which the learning rate rises.
        label_smoothing: Label smoothing of the cross-entropy.
        clip_norm: Largest norm of the gradient; larger gradients are clipped.
        curriculum: Share of the steps in which the difficulty of composites rises from 0 to 1.
        sizes: Sides of the images in pixels, used one after the other.
        size_starts: Share of the steps after which each of `sizes` begins.
        crop: Crop of photographs: "centre", or "random" (place, area and aspect).
        flip: Whether half of the photographs are mirrored.
        objective: What is trained, and for what: "supervised" (all weights, for the labels), "linear_probe" (the head
            alone, for the labels), or "mae" (all weights, for the pixels of masked patches, without labels).
        mask_ratio: Share of the patches that "mae" masks.
        precision: "no" for float32; "bf16" or "fp16" for autocast.
        checkpointing: Whether the backward pass computes inner states again, for less memory.
        seed: Seed of the data, and of the weights if the command line makes them.

    Raises:
        InputError: If a number is out of its range.
        UnknownNameError: If a name is not one of the above.
    """

    steps: int = 6000
    epochs: float = 0.0
    batch_size: int = 32
    accumulation: int = 1
    optimizer: Optimizer = "lion"
    learning_rate: float = 2.8e-4
    weight_decay: float = 0.05
    warmup: float = 0.05
    label_smoothing: float = 0.1
    clip_norm: float = 1.0
    curriculum: float = 0.45
    sizes: tuple[int, ...] = (48, 72, 96)
    size_starts: tuple[float, ...] = (0.0, 0.55, 0.8)
    crop: Crop = "centre"
    flip: bool = False
    objective: Objective = "supervised"
    mask_ratio: float = 0.75
    precision: Precision = "no"
    checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.accumulation, *self.sizes) < 1:
            raise InputError(
                f"steps, batch_size, accumulation and sizes must be at least 1, not {self.steps}, {self.batch_size}, "
                f"{self.accumulation} and {self.sizes}"
            )
        for name in (*_AMOUNTS, *_SHARES):
            value, amount = getattr(self, name), name in _AMOUNTS
            if not (0 <= value < math.inf if amount else 0 <= value <= 1):  # NaN is neither
                raise InputError(f"{name} must be {'finite and at least 0' if amount else 'from 0 to 1'}, not {value}")
        if self.optimizer == "lion" and not self.learning_rate:
            raise InputError("lion needs a learning_rate above 0, not 0; adamw takes 0")
        if not self.clip_norm > 0:
            raise InputError(f"clip_norm must be above 0, not {self.clip_norm}; inf turns clipping off")
        starts = self.size_starts
        if len(self.sizes) != len(starts) or not starts or starts[0] != 0 or list(starts) != sorted(starts):
            raise InputError(
                f"each of sizes {self.sizes} needs a start; the starts begin at 0 and do not fall, but size_starts is "
                f"{starts}"
            )
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise UnknownNameError.of(name, getattr(self, name), get_args(choices))

    def resolved(self, images: int) -> Recipe:
        """The recipe with the `steps` of its epochs over so many images. The last batch of a run is a whole batch."""
        return replace(self, steps=max(1, math.ceil(self.epochs * images / self.batch_size)))

    def summary(self) -> str:
        """The recipe in one line: steps, batch, optimiser, size of the images, objective, seed."""
        long = f" ({self.epochs:g} epochs)" if self.epochs else ""
        sides = ", then ".join(map(str, self.sizes))
        return (
            f"{self.steps:,} steps{long} of {self.batch_size} images, {self.optimizer} at {self.learning_rate:g}, "
            f"weight decay {self.weight_decay:g}, {sides} px, {self.objective}, seed {self.seed}"
        )

    def part_size(self, processes: int) -> int:
        """Number of images in one part of a step.

        Raises:
            InputError: If the batch cannot be divided evenly.
        """
        size, rest = divmod(self.batch_size, processes * self.accumulation)
        if rest:
            raise InputError(
                f"a batch of {self.batch_size} images cannot be divided among {processes} processes x "
                f"{self.accumulation} parts; choose a batch_size that {processes * self.accumulation} divides"
            )
        return size

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero. It depends on the step alone, so a resumed run needs no state."""
        done, warmup = (step + 1) / self.steps, max(self.warmup, 1 / self.steps)
        if done <= warmup:
            return self.learning_rate * done / warmup
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - warmup) / max(1 - warmup, 1e-9)))

    def difficulty_at(self, step: int) -> float:
        """Difficulty of composites: it rises from 0 to 1 over the first `curriculum` of the steps."""
        return min(1.0, step / max(1.0, self.curriculum * self.steps))

    def size_at(self, step: int) -> int:
        """Side of the images at this step, in pixels."""
        begun = sum(step >= start * self.steps for start in self.size_starts)
        return self.sizes[begun - 1]
