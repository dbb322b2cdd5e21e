"""Ablations: which property of the scenes lets a network find objects in photographs. One change, three seeds.

    python -m recipes.ablate --data DATA --photographs ECSSD --out runs/ablation --steps 2000

DATA holds cutouts.tar and backgrounds.tar, as for `recipes.train_nano`. ECSSD holds images/ and masks/. Each run trains
`crate_nano.tuxpaint_composites` further, on scenes that differ in one thing. The same command continues what was
interrupted. In the end it prints the table and writes OUT/results.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from recipes.measure_photographs import interval, score
from recipes.objects import Objects
from recipes.provenance import provenance
from recipes.scenes import Scenes
from recipes.train_nano import data_of, make_model, style_of
from whitebox_crate import ImageTransformer
from whitebox_crate._files import write_json, write_whole
from whitebox_crate._tables import markdown_table
from whitebox_crate.analysis.moments import student_t
from whitebox_crate.errors import InputError
from whitebox_crate.evaluation.folders import read_folder
from whitebox_crate.training import Recipe, last_metrics, train

START = "crate_nano.tuxpaint_composites"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Arm:
    """One change to the scenes.

    Attributes:
        objects: One in so many objects is kept.
        backgrounds: One in so many backgrounds is kept.
        style: Fields of `Style` that differ.
    """

    objects: int = 1
    backgrounds: int = 1
    style: Mapping[str, Any] = field(default_factory=dict)


ARMS = {
    "as they are": Arm(),
    "a quarter of the objects": Arm(objects=4),
    "a sixteenth of the backgrounds": Arm(backgrounds=16),
    "no other objects": Arm(style={"others": 0, "twin": 0.0}),
    "no decoys": Arm(style={"decoys": 0, "front": 0.0}),
}


def thinned(objects: Objects, every: int) -> Objects:
    """One in so many objects, with the classes that are left."""
    labels = objects.labels[::every].contiguous()
    left = labels.unique()  # sorted
    names = tuple(objects.class_names[label] for label in left.tolist())
    return Objects(objects.images[::every], torch.searchsorted(left, labels), names)


def check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Writes what all runs of a folder share, or compares it with what is there.

    Raises:
        InputError: If the folder holds runs of other settings.
    """
    text = json.dumps(settings, indent=1) + "\n"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda whole: whole.write_text(text))
    elif path.read_text() != text:
        raise InputError(f"{path} holds other settings than this call; choose another --out")


def run(arm: Arm, recipe: Recipe, objects: Objects, backgrounds: Tensor, photographs: Path, out: Path) -> None:
    """Trains one network, measures it on photographs, and writes OUT.json."""
    if out.with_suffix(".json").exists():
        return
    kept = thinned(objects, arm.objects)
    source = Scenes(kept, backgrounds[:: arm.backgrounds].contiguous(), max(recipe.sizes), style_of(dict(arm.style)))
    model = make_model("", START, kept.class_names, recipe)
    clock = time.process_time()
    train(model, source, recipe, out, checkpoint_every=500)
    seconds = round(time.process_time() - clock)
    found = {
        "arm": asdict(arm),
        "seed": recipe.seed,
        "objects": len(kept.labels),
        "classes": len(kept.class_names),
        "backgrounds": len(source._backgrounds[0]),
        "cpu_seconds_of_the_last_call": seconds,
        "named_in_training": last_metrics(out)["training_accuracy"],
        **measured(model, photographs, recipe),
    }
    write_json(out.with_suffix(".json"), found)


def measured(model: ImageTransformer, photographs: Path, recipe: Recipe) -> dict[str, Any]:
    """IoU on photographs, at twice the side of the scenes."""
    pairs = [pair for _, pair in read_folder(photographs).items]
    scores = score(model.eval(), pairs, 2 * max(recipe.sizes))
    return {
        "mean_of_layers": interval(scores.average),
        "best_head_of_each_image": interval(scores.heads.flatten(1).amax(-1)),
        "mean_by_layer": [round(x, 4) for x in scores.layers.mean(0).tolist()],
        "centred_box": interval(scores.box),
    }


def table(runs: Mapping[str, list[dict[str, Any]]]) -> str:
    """A row for each arm: means over seeds, ± half of the 95% interval of the difference from the first arm."""
    first = next(iter(runs))
    rows = []
    for name, of_seeds in runs.items():
        cells = []
        for what in ("mean_of_layers", "best_head_of_each_image"):
            values, base = ([found[what][0] for found in of] for of in (of_seeds, runs[first]))
            cells += [f"{mean(values):.3f}", "" if name == first else difference(values, base)]
        one = of_seeds[0]
        named = mean(found["named_in_training"] for found in of_seeds)
        rows.append([name, one["objects"], one["backgrounds"], f"{named:.0%}", *cells])
    head = ["scenes", "objects", "backgrounds", "named"]
    return markdown_table([*head, "mean of layers", "difference", "best head", "difference"], rows)


def difference(values: Sequence[float], base: Sequence[float]) -> str:
    """The mean difference, seed by seed, ± half of its 95% interval (Student's t)."""
    gaps = [value - other for value, other in zip(values, base, strict=True)]
    half = student_t(0.95, len(gaps) - 1) * stdev(gaps) / len(gaps) ** 0.5
    return f"{mean(gaps):+.3f} ± {half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of cutouts.tar and backgrounds.tar")
    add("--cache", type=Path, help="file for what was decoded (OUT/data.pt)")
    add("--photographs", type=Path, required=True, help="folder with images/ and masks/")
    add("--out", type=Path, required=True)
    add("--steps", type=int, default=2000)
    add("--size", type=int, default=48, help="side of the scenes, pixels; photographs are measured at twice that")
    options = parser.parse_args()
    torch.set_num_threads(1)
    objects, _, backgrounds, _ = data_of(options.data, options.cache or options.out / "data.pt")
    base = Recipe(steps=options.steps, learning_rate=2.5e-4, curriculum=0.1, sizes=(options.size,), size_starts=(0.0,))
    names = [name for name, _ in read_folder(options.photographs).items]
    check_settings(options.out / "settings.json", {"start": START, "recipe": asdict(base), "photographs": names})
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
    for seed in SEEDS:  # seed by seed, so that a call that is cut short leaves whole rows of fewer seeds
        recipe = replace(base, seed=seed)
        for name, arm in ARMS.items():
            out = options.out / f"{name.replace(' ', '_')}_{seed}"
            run(arm, recipe, objects, backgrounds, options.photographs, out)
            runs[name].append(json.loads(out.with_suffix(".json").read_text()))
    facts = {
        **provenance("recipes.ablate"),
        "recipe": asdict(recipe) | {"seed": list(SEEDS)},
        "before": measured(make_model("", START, objects.class_names, recipe), options.photographs, recipe),
        "runs": runs,
    }
    results = options.out / "results.json"
    write_json(results, facts)
    print(f"before: mean of layers {facts['before']['mean_of_layers']}")
    print(table(runs))
    print(results)


if __name__ == "__main__":
    main()
