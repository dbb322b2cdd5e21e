"""Recipe: every number that a training depends on, and what they are at each step."""

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
    """Every number that a run depends on; the defaults are those that `crate_nano` was trained with.

    Attributes:
        steps: Optimiser steps.
        epochs: How often each image is seen; steps follow from it (`resolved`). 0 where `steps` counts.
        batch_size: Images of a step, over all processes.
        accumulation: Parts in which each process takes its share of a step, one after the other, for less memory.
        optimizer: "lion" (as in the paper) or "adamw".
        learning_rate: At its peak.
        weight_decay: On matrices; biases, norms, [CLS] and positions have none.
        warmup: Share of the steps in which the learning rate rises.
        label_smoothing: Of the cross-entropy.
        clip_norm: Largest norm of the gradient.
        curriculum: Share of the steps in which the difficulty of composites rises from 0 to 1.
        sizes: Side of the images in pixels, one after the other.
        size_starts: Share of the steps after which each of `sizes` begins.
        crop: Of photographs: "centre", or "random" in place, area and aspect.
        flip: Whether half of the photographs are mirrored.
        objective: "supervised" (all weights, for the labels), "linear_probe" (the head alone, for the labels), or "mae"
            (all weights, for the pixels of masked patches, without labels).
        mask_ratio: Share of the patches that are masked for "mae".
        precision: "no" for float32, or "bf16" or "fp16" autocast.
        checkpointing: Whether inner states are computed again in the backward pass, for less memory.
        seed: Of the data, and of the weights where the command line makes them.

    Raises:
        InputError: If a number means nothing.
        UnknownNameError: If a name is not one of those above.
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
                f"steps, batch_size, accumulation and sizes are at least 1, not {self.steps}, {self.batch_size}, "
                f"{self.accumulation} and {self.sizes}"
            )
        for name in (*_AMOUNTS, *_SHARES):
            value, amount = getattr(self, name), name in _AMOUNTS
            if not (0 <= value < math.inf if amount else 0 <= value <= 1):  # NaN is neither
                raise InputError(f"{name} is {'finite and at least 0' if amount else 'from 0 to 1'}, not {value}")
        if self.optimizer == "lion" and not self.learning_rate:
            raise InputError("learning_rate of lion is more than 0, not 0; adamw takes it")
        if not self.clip_norm > 0:
            raise InputError(f"clip_norm is more than 0, not {self.clip_norm}; inf does not clip")
        starts = self.size_starts
        if len(self.sizes) != len(starts) or not starts or starts[0] != 0 or list(starts) != sorted(starts):
            raise InputError(f"sizes {self.sizes} need one start each, from 0 upwards; size_starts is {starts}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise UnknownNameError.of(name, getattr(self, name), get_args(choices))

    def resolved(self, images: int) -> Recipe:
        """The recipe with `steps` for its epochs over so many images; the last batch of a run is a whole one."""
        return replace(self, steps=max(1, math.ceil(self.epochs * images / self.batch_size)))

    def summary(self) -> str:
        """What it comes to, in a line: how long, by what, of which images."""
        long = f" ({self.epochs:g} epochs)" if self.epochs else ""
        sides = ", then ".join(map(str, self.sizes))
        return (
            f"{self.steps:,} steps{long} of {self.batch_size} images, {self.optimizer} at {self.learning_rate:g}, "
            f"weight decay {self.weight_decay:g}, {sides} px, {self.objective}, seed {self.seed}"
        )

    def part_size(self, processes: int) -> int:
        """Images of one part of a step.

        Raises:
            InputError: If a batch cannot be divided so.
        """
        size, rest = divmod(self.batch_size, processes * self.accumulation)
        if rest:
            raise InputError(
                f"a batch of {self.batch_size} images cannot be divided among {processes} processes x "
                f"{self.accumulation} parts; choose a batch_size that {processes * self.accumulation} divides"
            )
        return size

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero; a function of the step alone, so that nothing is to be resumed."""
        done, warmup = (step + 1) / self.steps, max(self.warmup, 1 / self.steps)
        if done <= warmup:
            return self.learning_rate * done / warmup
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - warmup) / max(1 - warmup, 1e-9)))

    def difficulty_at(self, step: int) -> float:
        """Rises from 0 to 1 over the first `curriculum` of the steps."""
        return min(1.0, step / max(1.0, self.curriculum * self.steps))

    def size_at(self, step: int) -> int:
        """Side of the images at this step, in pixels."""
        begun = sum(step >= start * self.steps for start in self.size_starts)
        return self.sizes[begun - 1]
