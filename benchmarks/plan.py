"""What training on ImageNet-21k at the paper's scale takes: operations, memory, hours, data.

    python -m benchmarks.plan --out benchmarks/plan.json
    python -m benchmarks.pages

The first command counts operations, and what autograd keeps of an image, on tensors without values, and compares the
latter with the peak memory of real steps on the CPU; the second fills the tables of docs/imagenet21k.md from the JSON.
No model is trained, and nothing here was timed on a GPU: hours follow from operations, the vendor's peak, and an
efficiency that is assumed.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import load
from whitebox_crate import create_model
from whitebox_crate._files import write_json
from whitebox_crate.training.presets import PRESETS

HERE = Path(__file__).parent
MODELS = (
    "crate_paper_small_patch8_224",
    "crate_base_patch8_224",
    "crate_base_patch16_224",
    "crate_large_patch16_224",
    "vit_base_patch8_224",
    "vit_base_patch16_224",
)
RECIPE = PRESETS["imagenet21k"].recipe
FULL = "fall 2011"
GPUS_PER_NODE, CORES_PER_NODE = 8, 96
EFFICIENCIES = (0.30, 0.45)  # assumed
WAYS = ("whole", "checkpointed")
GIB = 2**30
RESERVED = 2 * GIB  # of a card, for CUDA itself, NCCL and what the allocator cannot use
TIMED = "crate_small_patch16_224"  # whose training step speed.json has
CHECKED = ("crate_paper_small_patch8_224", (2, 6))  # a real step, in processes of its own, at two batches


@dataclass(frozen=True)
class Release:
    """A release of the data: images, classes, bytes of the archive."""

    images: int
    classes: int
    archive: float


@dataclass(frozen=True)
class Card:
    """A card: the peak of dense products in bf16 by its data sheet, operations a second, and its memory, bytes."""

    peak: float
    memory: int


RELEASES = {FULL: Release(14_197_122, 21_841, 1.3e12), "winter 2021": Release(13_153_500, 19_167, 1.1e12)}
CLASSES = RELEASES[FULL].classes
CARDS = {
    "RTX 4090, 24 GB": Card(165.2e12, 24 * GIB),
    "A100, 40 GB": Card(312e12, 40 * GIB),
    "A100, 80 GB": Card(312e12, 80 * GIB),
    "H100 SXM, 80 GB": Card(989e12, 80 * GIB),
}


# What is computed


def loss_of(model: nn.Module, images: Tensor) -> Tensor:
    """Cross-entropy of a batch (batch, 3, side, side), as training has it."""
    target = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    return F.cross_entropy(model(images).float(), target)


def operations(model: nn.Module, images: Tensor) -> tuple[int, int]:
    """Operations of the products in a forward pass, and in forward and backward together.

    Attention is written out, for the counter does not know every fused kernel. A fused kernel forms `w wT` once more in
    the backward pass; like other work that is done twice, that counts for nothing.
    """
    with FlopCounterMode(display=False) as forward, sdpa_kernel(SDPBackend.MATH):
        loss = loss_of(model, images)
    with FlopCounterMode(display=False) as backward, sdpa_kernel(SDPBackend.MATH):
        loss.backward()
    return forward.get_total_flops(), forward.get_total_flops() + backward.get_total_flops()


def counted(name: str, **options: Any) -> tuple[int, int]:
    """`operations` of a registered model, an image."""
    with torch.device("meta"):
        model: Any = create_model(name, **options)
        return operations(model, torch.empty(1, *model.pretrained_cfg.input_size))


def kept_bytes(run: Callable[[], object], model: nn.Module) -> int:
    """What autograd keeps of a forward pass until the backward pass, parameters aside; bytes of distinct storages."""
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is given twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = run()
        total = sum(storage.nbytes() for storage in kept.values())
    del held
    return total


def per_image(run: Callable[[int], object], model: nn.Module) -> tuple[int, int]:
    """Bytes kept of each image, and of a batch whatever its size, by batches of 1 and 2."""
    one, two = (kept_bytes(lambda batch=batch: run(batch), model) for batch in (1, 2))  # type: ignore[misc]
    return two - one, 2 * one - two


def activations(name: str, dtype: torch.dtype) -> dict[str, int]:
    """Bytes kept of an image in float32 or under autocast to `dtype`, with and without checkpointing of the gradients.

    With it, autograd keeps what enters a block, and all of one block while that is done again. Kernels are those of the
    CPU, on tensors that have no values.
    """
    with torch.device("meta"):
        model: Any = create_model(name, num_classes=CLASSES).train()
    with FakeTensorMode(allow_non_fake_inputs=True):  # the parameters, which are on the meta device
        model.to_empty(device="cpu")

        def kept(call: Callable[[Tensor], object], *shape: int) -> tuple[int, int]:
            def run(batch: int) -> object:
                with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                    return call(torch.empty(batch, *shape))

            return per_image(run, model)

        size, tokens = model.pretrained_cfg.input_size, 1 + model.patch_embed.num_patches
        whole, constant = kept(lambda images: loss_of(model, images), *size)
        block, _ = kept(model.blocks[0], tokens, model.embed_dim)
        model.set_grad_checkpointing()
        inputs, _ = kept(lambda images: loss_of(model, images), *size)
    block -= 4 * tokens * model.embed_dim  # its input, which is among the inputs
    return {"whole": whole, "checkpointed": inputs + block, "weights_cast": constant}


def describe(name: str) -> dict[str, Any]:
    """All that the tables need to know of a model."""
    say(name)
    with torch.device("meta"):
        model: Any = create_model(name, num_classes=CLASSES)
    forward, training = counted(name, num_classes=CLASSES)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": 1 + model.patch_embed.num_patches,
        "forward": forward,
        "training": training,
        "float32": activations(name, torch.float32),
        "bfloat16": activations(name, torch.bfloat16),
    }


def one_step(name: str, way: str, batch: int) -> int:
    """Peak memory of a forward and a backward pass beyond that of the model, in this process, bytes."""
    model: Any = create_model(name, num_classes=CLASSES).train()
    model.set_grad_checkpointing(way == "checkpointed")
    images = torch.randn(batch, *model.pretrained_cfg.input_size)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    load.reset_peak()
    before = load.resident("VmRSS")
    loss_of(model, images).backward()
    return load.resident("VmHWM") - before


def checked() -> dict[str, Any]:
    """What an image adds to the peak of a real step in float32, for the check of what autograd was seen to keep of it.

    Memory is given back to the system at once, or the peak would be that of the C library's free lists.
    """
    name, batches = CHECKED
    where = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}

    def peak(way: str, batch: int) -> int:
        say(f"a step of {name}, {way}, batch {batch}")
        command = [sys.executable, "-m", "benchmarks.plan", "--one", name, way, str(batch)]
        return int(subprocess.check_output(command, env=where))

    (few, many) = batches
    added = {way: round((peak(way, many) - peak(way, few)) / (many - few)) for way in WAYS}
    return {"model": name, "batches": batches, "added": added}


# What follows from it


def standing_bytes(model: dict[str, Any], processes: int = GPUS_PER_NODE) -> int:
    """Weights, gradients and Lion's momentum in float32, copies in bf16, and with several processes DDP's buckets."""
    copies = 3 if processes == 1 else 4
    return int(4 * copies * model["parameters"] + model["bfloat16"]["weights_cast"])


def largest_batch(standing: int, kept: int, memory: int) -> int:
    """How many images fit."""
    return max(0, (memory - RESERVED - standing) // kept)


def accumulation(batch: int, gpus: int, largest: int) -> int | None:
    """The least number of equal parts in which each of `gpus` takes its share of `batch`; None if it cannot."""
    share = batch // gpus
    parts = (n for n in range(1, share + 1) if share % n == 0 and share // n <= largest)
    return next(parts, None) if batch % gpus == 0 else None


def images_per_second(training: float, peak: float, efficiency: float) -> float:
    """Of one card."""
    return peak * efficiency / training


def hours(training: float, images: int, epochs: float, peak: float, efficiency: float) -> float:
    """Hours of one card."""
    return images * epochs / images_per_second(training, peak, efficiency) / 3600


def measured_efficiency(results: dict[str, Any]) -> float:
    """Operations a second of the training step that speed.py timed, over those of one large square product there."""
    speed, training = results["speed"], results["timed"]["training"]
    case = speed["training"]["cases"]["S/16, batch 8"]
    spent = statistics.median(r["default"] for r in case["seconds"])
    return float(case["batch"] * training / spent / speed["forward"]["operations_per_second"]["float32"])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "plan.json")
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "WAY", "BATCH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(one_step(options.one[0], options.one[1], int(options.one[2])))
        return
    results = {
        "models": {name: describe(name) for name in MODELS},
        "checked": checked(),
        "timed": {"model": TIMED, "training": counted(TIMED)[1]},
        "versions": {p: version(p) for p in ("torch", "whitebox-crate")} | {"python": platform.python_version()},
    }
    write_json(options.out, results)


if __name__ == "__main__":
    main()
