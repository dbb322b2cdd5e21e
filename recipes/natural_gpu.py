"""Photographs by their names alone, in minutes of a GPU: they lie there as bytes, and are cropped there.

    python -m recipes.natural_gpu --data natural64 --model crate_tiny --minutes 5 --out runs/gpu/crate_tiny
    python -m recipes.natural_gpu --data natural64 --model vit_tiny_patch16_224 --minutes 5 --out runs/gpu/vit_tiny

DATA is what `whitebox-crate train --data` takes, with the splits train and validation. A few steps are timed, and the
rest of the minutes decide how many there are. A checkpoint is written at least every two minutes, and a call that was
interrupted goes on when it is repeated.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from whitebox_crate import ImageTransformer, create_model
from whitebox_crate._devices import describe_device, resolve_device
from whitebox_crate._files import write_whole
from whitebox_crate._random import torch_generator
from whitebox_crate.errors import InputError
from whitebox_crate.training import Batch, ImageDataset, Recipe, Validation, finish, last_metrics, open_images, train

SMALLEST = 0.6  # side of a crop / side of the picture
WARM, TIMED = 5, 15  # steps; the first ones choose kernels
BETWEEN_CHECKPOINTS = 120  # seconds, at most


class Resident:
    """Square pictures that lie on a device as bytes, a `Source` of `whitebox_crate.training.train`.

    Args:
        pixels: uint8 (count, 3, side, side), on the device.
        labels: int64 (count,), on the CPU.
        class_names: What the labels mean.
        smallest: Side of a crop / side of the picture, at least.
    """

    crop, flip = "random", True  # facts for recipe and card

    def __init__(
        self, pixels: Tensor, labels: Tensor, class_names: tuple[str, ...], smallest: float = SMALLEST
    ) -> None:
        self.pixels, self.labels, self.class_names, self.smallest = pixels, labels, class_names, smallest
        self.images = len(pixels)

    @classmethod
    def of(cls, data: ImageDataset, side: int, device: torch.device) -> Resident:
        """All pictures of a data set, their middle squares at this side."""
        batches = list(data.in_order(1000, side))
        pixels = torch.cat([(255 * batch.images).round().byte().to(device) for batch in batches])
        return cls(pixels, torch.cat([batch.labels for batch in batches]), tuple(data.class_names))

    def draw(self, batch_size: int, *, seed: int, step: int, difficulty: float = 1.0, size: int | None = None) -> Batch:
        """Random square crops, half of them mirrored, on the device; a pure function of the arguments."""
        generator = torch_generator(seed, step)
        which = torch.randint(len(self.labels), (batch_size,), generator=generator)
        share, left, top = torch.rand(3, batch_size, generator=generator)
        share = self.smallest + (1 - self.smallest) * share
        mirror = torch.where(torch.rand(batch_size, generator=generator) < 0.5, -1.0, 1.0)
        matrix = torch.zeros(batch_size, 2, 3)  # from the crop's coordinates, -1 to 1, to the picture's
        matrix[:, 0, 0], matrix[:, 1, 1] = mirror * share, share
        matrix[:, 0, 2], matrix[:, 1, 2] = (2 * left - 1) * (1 - share), (2 * top - 1) * (1 - share)
        device, side = self.pixels.device, self.pixels.shape[-1] if size is None else size
        grid = F.affine_grid(matrix.to(device), [batch_size, 3, side, side], align_corners=False)
        pixels = self.pixels[which.to(device)].float() / 255
        return Batch(F.grid_sample(pixels, grid, align_corners=False, padding_mode="border"), self.labels[which])


def step_seconds(model: ImageTransformer, source: Resident, recipe: Recipe) -> float:
    """How long a step takes, by a trial with a copy of the model."""
    model, recipe = deepcopy(model), replace(recipe, steps=WARM + TIMED)
    with tempfile.TemporaryDirectory() as folder:
        train(model, source, recipe, Path(folder), stop_at=WARM, checkpoint_every=WARM + TIMED)
        began = time.perf_counter()
        train(model, source, recipe, Path(folder), checkpoint_every=WARM + TIMED)
        return (time.perf_counter() - began) / TIMED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", required=True)
    add("--model", default="crate_tiny", help="architecture, made for 64 pixels and patches of 4")
    add("--side", type=int, default=64)
    add("--patch-size", type=int, default=4)
    add("--minutes", type=float, default=5.0, help="of training and its trial, once the pictures lie on the device")
    add("--batch-size", type=int, default=1024)
    add("--learning-rate", type=float, default=1e-3, help="AdamW's")
    add("--seed", type=int, default=0)
    add("--out", type=Path, required=True)
    options = parser.parse_args()
    device = resolve_device()
    data, others = (open_images(options.data, split=split, size=options.side) for split in ("train", "validation"))
    if not isinstance(data, ImageDataset):
        raise InputError(f"{options.data} cannot be drawn from by number")
    source = Resident.of(data, options.side, device)
    torch.manual_seed(options.seed)
    model = create_model(
        options.model,
        num_classes=len(source.class_names),
        img_size=options.side,
        patch_size=options.patch_size,
        dynamic_img_size=True,
    )
    assert isinstance(model, ImageTransformer)
    recipe = Recipe(
        batch_size=options.batch_size,
        optimizer="adamw",
        learning_rate=options.learning_rate,
        weight_decay=0.05,
        curriculum=0.0,
        sizes=(options.side,),
        size_starts=(0.0,),
        precision="bf16",
        seed=options.seed,
    )
    planned = options.out / "steps.json"
    if planned.exists():  # a run goes on with the steps that it began with
        seconds, steps = json.loads(planned.read_text())
    else:
        began = time.perf_counter()
        seconds = step_seconds(model, source, recipe)
        steps = max(1, int((60 * options.minutes - (time.perf_counter() - began)) / seconds))
        options.out.mkdir(parents=True, exist_ok=True)
        write_whole(planned, lambda path: path.write_text(json.dumps([round(seconds, 4), steps]) + "\n"))
    recipe = replace(recipe, steps=steps)
    print(
        f"{describe_device(device)}: {seconds:.4f} s a step of {recipe.batch_size} images; {steps:,} steps", flush=True
    )
    validation = Validation(others, every=max(1, steps // 8), batch_size=500, size=options.side)
    every = max(1, int(BETWEEN_CHECKPOINTS / seconds))
    train(model, source, recipe, options.out, validation=validation, checkpoint_every=every)
    metrics = last_metrics(options.out)
    finish(model, options.out / "model", recipe, data=source, metrics=metrics, measured_on=validation.description)


if __name__ == "__main__":
    main()
