"""What each of two processes does in a test: new processes import it, as they cannot import a test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from small_models import small_model

from whitebox_crate.evaluation.folders import read_folder
from whitebox_crate.models import ImageTransformer
from whitebox_crate.training import Batch
from whitebox_crate.training.validation import Validation

COUNT, SIDE = 11, 12


class Numbered:
    """Noise whose labels go round the classes; in order, it makes batches that do not divide evenly."""

    def __init__(self, count: int = COUNT, classes: int = 5) -> None:
        generator = torch.Generator().manual_seed(3)
        self.images = torch.rand(count, 3, SIDE, SIDE, generator=generator)
        self.labels = torch.arange(count) % classes

    def in_order(self, batch_size: int, size: int, *, rank: int, world: int) -> Iterator[Batch]:
        assert size == SIDE
        for start in range(rank * batch_size, len(self.images), world * batch_size):
            part = slice(start, start + batch_size)
            yield Batch(self.images[part], self.labels[part])


def model_of(classes: int = 5) -> ImageTransformer:
    return small_model("crate_nano_patch6_96", num_classes=classes, img_size=SIDE, dynamic_img_size=True)


def share(rank: int, folder: str) -> None:
    """Measures together with the other process; batches of 4 are two for the one and one for the other."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    validation = Validation(Numbered(), 1, batch_size=4, masks=read_folder(f"{folder}/data"))
    model, calls = model_of(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    found = validation.measure(model)
    Path(folder, f"{rank}.json").write_text(json.dumps({**found, "calls": len(calls)}))
    torch.distributed.destroy_process_group()
