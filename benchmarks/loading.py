"""How long a training step waits for its pictures: real JPEGs, crate_tiny at 224 px, one thread.

    OMP_NUM_THREADS=1 python -m benchmarks.loading --out benchmarks/loading.json

The pictures are cuts of photographs that come with scikit-image and scikit-learn (they are needed here), 500 x 375
pixels like most of ImageNet, saved as JPEGs of quality 85. In each round every kind of loading is measured in turn:
batches alone, and batches between training steps, where the share is the time spent waiting over that and the step's.
With a worker, a second process makes batches ahead of time. Figures are medians over rounds.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from whitebox_crate import create_model
from whitebox_crate._files import write_json
from whitebox_crate._tables import markdown_table
from whitebox_crate.training import Batch, Recipe, normalize
from whitebox_crate.training.batches import Share, batches_of
from whitebox_crate.training.datasets import open_images
from whitebox_crate.training.loop import make_optimizer

MODEL, SIZE, THREADS = "crate_tiny", 224, 1
WIDTH, HEIGHT, QUALITY = 500, 375, 85
CASES = [(crop, workers) for crop in ("centre", "random") for workers in (0, 1)]
AHEAD = 2  # batches that a worker has ready, which do not count when its rate is measured


def photographs() -> list[Image.Image]:
    """Photographs that come with scikit-image (those that it need not download) and scikit-learn."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    arrays = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket(), *load_sample_images().images]
    return [Image.fromarray(array) for array in arrays]


def make_folder(root: Path, count: int) -> None:
    """Cuts of the photographs at random places, in two classes by turns."""
    generator, sources = np.random.default_rng(0), photographs()
    for index in range(count):
        source = sources[index % len(sources)]
        scale = max(WIDTH / source.width, HEIGHT / source.height) * generator.uniform(1, 1.3)
        large = source.resize((round(source.width * scale) + 1, round(source.height * scale) + 1))
        left = int(generator.integers(large.width - WIDTH + 1))
        top = int(generator.integers(large.height - HEIGHT + 1))
        path = root / ("even", "odd")[index % 2] / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        large.crop((left, top, left + WIDTH, top + HEIGHT)).save(path, quality=QUALITY)


def batches(root: Path, recipe: Recipe, crop: Any, workers: int) -> Iterator[Batch]:
    """Batches as a training gets them."""
    images = open_images(root, crop=crop, flip=True, size=SIZE)
    return batches_of(images, recipe, Share(0, recipe.steps, 0, 1), workers)


class Step:
    """A training step of the recipe, without what accelerate adds."""

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(0)
        self.model = create_model(MODEL, num_classes=1000).train()
        self.optimizer, self.recipe = make_optimizer(self.model, recipe), recipe

    def __call__(self, batch: Batch) -> float:
        """Seconds."""
        begun = time.perf_counter()
        logits = self.model(normalize(batch.images, self.model))
        nn.functional.cross_entropy(logits, batch.labels, label_smoothing=self.recipe.label_smoothing).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - begun


def timed_next(source: Iterator[Batch], clock: Callable[[], float] = time.perf_counter) -> tuple[Batch, float]:
    """The next batch, and the seconds that it took by a clock."""
    begun = clock()
    batch = next(source)
    return batch, clock() - begun


def measure(root: Path, batch_size: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Seconds of every round, for every kind of loading."""
    recipe = Recipe(steps=10_000, batch_size=batch_size, sizes=(SIZE,), size_starts=(0.0,), curriculum=0.0)
    step = Step(recipe)
    seconds: dict[str, list[dict[str, float]]] = {f"{crop}, {workers}": [] for crop, workers in CASES}
    for number in range(rounds + 1):  # the first warms up
        for crop, workers in CASES:
            source = batches(root, recipe, crop, workers)
            for _ in range(1 + AHEAD * workers):
                next(source)
            alone = [timed_next(source)[1] for _ in range(4)]
            core = [timed_next(source, time.process_time)[1] for _ in range(4)]  # of this process, whatever else runs
            waits, steps = [], []
            for _ in range(2):
                batch, wait = timed_next(source)
                waits.append(wait)
                steps.append(step(batch))
            del source
            if number:
                means = {"batch": alone, "core": core, "wait": waits, "step": steps}
                seconds[f"{crop}, {workers}"].append({name: statistics.mean(of) for name, of in means.items()})
        print(f"round {number} of {rounds}{'' if number else ' (warming up)'}", file=sys.stderr, flush=True)
    return seconds


def summary(seconds: dict[str, list[dict[str, float]]], batch_size: int, pictures: int) -> dict[str, Any]:
    """Medians over rounds: images per second of batches alone, and what waiting for them is of a step."""
    cases = {}
    for name, rounds in seconds.items():
        cases[name] = {
            "images_per_second": round(statistics.median(batch_size / r["batch"] for r in rounds), 1),
            "step_seconds": round(statistics.median(r["step"] for r in rounds), 4),
            "wait_seconds": round(statistics.median(r["wait"] for r in rounds), 4),
            **(
                {}
                if name.endswith("1")  # a worker's time is not this process's
                else {"images_per_core_second": round(statistics.median(batch_size / r["core"] for r in rounds), 1)}
            ),
            "share": round(statistics.median(r["wait"] / (r["wait"] + r["step"]) for r in rounds), 4),
        }
    return {
        "model": MODEL,
        "size": SIZE,
        "batch_size": batch_size,
        "threads": THREADS,
        "optimizer": "lion",
        "pictures": f"{pictures} JPEGs of {WIDTH} x {HEIGHT}, quality {QUALITY}",
        "rounds": len(next(iter(seconds.values()))),
        "cases": cases,
        "versions": {p: version(p) for p in ("torch", "pillow", "datasets", "whitebox-crate")}
        | {"python": platform.python_version()},
    }


def table(results: dict[str, Any]) -> str:
    """The measurements in Markdown."""
    rows = [
        (
            *name.split(", "),
            f"{case['images_per_second']:.0f} images/s",
            case.get("images_per_core_second", "–"),
            f"{case['step_seconds']:.2f} s",
            f"{1000 * case['wait_seconds']:.0f} ms",
            f"{case['share']:.1%}",
        )
        for name, case in results["cases"].items()
    ]
    head = "Crop", "Workers", "Batches alone", "of a core", "Training step", "Waiting for a batch", "Share of the whole"
    return markdown_table(head, rows)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("loading.json"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as name:
        make_folder(Path(name), options.pictures)
        seconds = measure(Path(name), options.batch_size, options.rounds)
    results = summary(seconds, options.batch_size, options.pictures)
    write_json(options.out, results)
    print(table(results))


if __name__ == "__main__":
    main()
