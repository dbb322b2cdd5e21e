"""The emergence study: trains each variant on labels alone, measures its attention, and keeps one record.

    python -m studies.emergence.study list
    python -m studies.emergence.study run --out RUNS --only 'garments-*'
    python -m studies.emergence.study collect --out RUNS

A finished run is skipped; a killed one goes on from its last checkpoint and ends with the same record. Several
processes may share a folder: each takes runs that no other is at.
"""

from __future__ import annotations

import argparse
import fcntl
import fnmatch
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import whitebox_crate
from recipes.composites import Composites
from studies.emergence.measures import RULES, all_measures, interval, shares_of, trivial_maps
from studies.emergence.plan import COMPARED, FAMILY, SCALES, STEPS, Run, Scale, Sources, make_model, sources, table
from whitebox_crate import ImageTransformer, capture
from whitebox_crate._files import write_whole
from whitebox_crate.analysis import layerwise_analysis
from whitebox_crate.segmentation import best_head_iou, mask_iou, maskcut_of
from whitebox_crate.training import Batch, Recipe, normalize, train

RESULTS = Path(__file__).with_name("results.json")
# --- one run ------------------------------------------------------------------------------------------------


def execute(run: Run, source: Sources, folder: Path, workers: int = 0) -> dict[str, Any]:
    """Trains and measures a run, resuming an earlier call. Returns its record, which is written whole."""
    record = folder / "record.json"
    if record.exists():
        return _read(record)
    scale, model = SCALES[run.data], make_model(run)
    rate = {} if run.learning_rate is None else {"learning_rate": run.learning_rate}
    recipe = Recipe(**{"steps": run.steps, "seed": run.seed, **rate, **scale.recipe})
    size, every = scale.model["img_size"], -(-run.steps // run.points)
    see = measure if run.maps else accuracy
    points = []
    for stop in (*range(0, run.steps, every), run.steps):
        point = folder / "points" / f"{stop:06d}.json"
        if not point.exists():
            begun = time.process_time()
            if stop:
                train(model, source.training, recipe, folder, workers=workers, checkpoint_every=every, stop_at=stop)
            spent = round(time.process_time() - begun, 2)
            _write(point, {"step": stop, "cpu_seconds": spent, **see(model, source, size, scale.images // 4)})
        points.append(_read(point))
    # Now for the weights, if all points were read.
    train(model, source.training, recipe, folder, workers=workers, checkpoint_every=every)
    done = {
        **asdict(run),
        "parameters": sum(p.numel() for p in model.parameters()),
        "images_seen": run.steps * recipe.batch_size,
        "cpu_seconds": round(sum(point["cpu_seconds"] for point in points), 1),
        **see(model, source, size, scale.images),
        **(inner(model, source, size, scale.images // 16) if run.maps and run.part not in ("family", "halved") else {}),
        "by_epoch": points,
    }
    _write(record, done)
    return done


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _write(path: Path, record: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda partial: partial.write_text(json.dumps(record) + "\n"))


# --- measuring ----------------------------------------------------------------------------------------------


def draw(source: Composites, images: int, size: int, seed: int) -> list[Batch]:
    """`images` composites at full difficulty, of a seed that no training has."""
    per_batch = min(images, 64)
    return [source.draw(per_batch, seed=seed, step=step, size=size) for step in range(images // per_batch)]


@torch.inference_mode()
def look(model: ImageTransformer, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """Images named correctly, bool (images,), and [CLS] attention, (images, layers, heads + 1, rows, columns).

    The layers are those in which [CLS] looks; the last of the heads is the mean of the others.
    """
    hits, maps = [], []
    for batch in batches:
        with capture(model, "attention") as trace:
            logits = model(_seen(batch, model)).cpu()
        # CBSA's entries are of either sign: what counts is how much of a patch [CLS] takes, added or taken away.
        rows = [trace["attention", layer][:, :, 0, 1:].abs().cpu() for layer in trace.layers]
        of_layers = torch.stack(rows, dim=1)
        # [CLS] may look at itself alone, to the last bit: then no patch is before another.
        of_layers = of_layers.masked_fill((of_layers == 0).all(-1, keepdim=True), 1 / of_layers.shape[-1])
        of_layers = of_layers.unflatten(-1, model.grid_of(batch.images))
        hits.append(logits.argmax(-1) == batch.labels)
        maps.append(torch.cat([of_layers, of_layers.mean(2, keepdim=True)], dim=2))
    return torch.cat(hits), torch.cat(maps)


def _seen(batch: Batch, model: ImageTransformer) -> Tensor:
    """The input of the network, on its device. (Training leaves it on the GPU if there is one.)"""
    return normalize(batch.images, model).to(model.cls_token.device)


def masks_of(batch: Batch) -> Tensor:
    """The masks of the objects, bool (batch, height, width), from the composites."""
    assert batch.masks is not None
    return batch.masks


def accuracy(model: ImageTransformer, source: Sources, size: int, images: int) -> dict[str, Any]:
    """The share of images whose object is named correctly."""
    model.eval()
    hits, _ = look(model, draw(source.naming, images, size, seed=10_001))
    model.train()
    return {"accuracy": round(float(hits.float().mean()), 4)}


def measure(model: ImageTransformer, source: Sources, size: int, images: int) -> dict[str, Any]:
    """Accuracy, and every measure of the maps by layer: mean and half the width of its 95% interval over objects.

    Of the heads: the best of each image, as the paper measures; one chosen for each layer on objects of training and
    scored on others; and the mean of all maps. `chosen` are those heads, `chosen_by` what they scored when chosen,
    by which a layer can be chosen too.
    """
    named = accuracy(model, source, size, images)
    model.eval()
    choosing = draw(source.choosing, images // 2, size, seed=10_002)
    scoring = draw(source.scoring, images, size, seed=10_003)
    chosen_by, scored = (_scores(look(model, drawn)[1], drawn) for drawn in (choosing, scoring))
    units, marked = _units(source, scoring), scored.pop("marked")
    by_layer: dict[str, Any] = {}
    for name, values in scored.items():
        promised, heads = chosen_by[name].mean(0)[:, :-1].max(-1)
        picked = values.gather(-1, heads.expand(len(values), -1)[..., None]).squeeze(-1)
        by_layer[name] = {
            "best_head": _by_layer(values[..., :-1].amax(-1), units),
            "chosen_head": _by_layer(picked, units),
            "mean_head": _by_layer(values[..., -1], units),
            "chosen": heads.tolist(),
            "chosen_by": [round(score, 4) for score in promised.tolist()],
        }
    model.train()
    with capture(model, "attention") as trace:
        layers = list(trace.layers)
    return {
        **named,
        "layers": layers,
        "iou_by_layer": {rule: by_layer[f"iou_{rule}"] for rule in RULES},
        "map_average_precision_by_layer": by_layer["average_precision"],
        "pointing_by_layer": by_layer["pointing"],
        "marked_by_layer": _by_layer(marked[..., :-1].mean(-1), units),
    }


def inner(model: ImageTransformer, source: Sources, size: int, images: int) -> dict[str, Any]:
    """The states behind the maps, by layer: MaskCut on the features, coding rate and sparsity."""
    model.eval()
    scoring = draw(source.scoring, images, size, seed=10_003)
    inputs = [_seen(batch, model) for batch in scoring]
    cut = [
        torch.cat(
            [
                best_head_iou(maskcut_of(model, seen, layer).masks.cpu(), masks_of(batch))[0]
                for seen, batch in zip(inputs, scoring, strict=True)
            ]
        )
        for layer in range(len(model.blocks))
    ]
    found = layerwise_analysis(
        model, inputs, quantities=("subspace_coding_rate", "coding_rate", "l0"), report=lambda _: None
    )
    model.train()
    return {
        "maskcut_iou_by_layer": _by_layer(torch.stack(cut, dim=1), _units(source, scoring)),
        "layerwise": {
            quantity: {state: [round(value, 4) for value in series.mean] for state, series in states.items()}
            for quantity, states in found.series.items()
        },
    }


def _scores(maps: Tensor, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Every measure of (images, layers, heads, rows, columns): (images, layers, heads)."""
    masks = torch.cat([masks_of(batch) for batch in batches])
    return all_measures(maps, masks[:, None, None])


def _units(source: Sources, batches: Sequence[Batch]) -> Tensor:
    """The units of an interval: the object of each image, or the image."""
    labels = torch.cat([batch.labels for batch in batches])
    return labels if source.group_by_object else torch.arange(len(labels))


def _by_layer(values: Tensor, units: Tensor) -> list[list[float]]:
    """For each layer of (images, layers): the mean over units of their means, and half the width of its interval."""
    kinds, which = units.unique(return_inverse=True)
    sums = torch.zeros(len(kinds), values.shape[1], dtype=torch.float64).index_add_(0, which, values.double())
    means = sums / which.bincount()[:, None]
    return [[round(number, 4) for number in interval(column.tolist())] for column in means.T]


def trivial(source: Sources, scale: Scale) -> dict[str, Any]:
    """Every measure of baselines without a network, and of the exact mask on the same grid, the best possible map."""
    size, patch = scale.model["img_size"], scale.model["patch_size"]
    scoring = draw(source.scoring, scale.images, size, seed=10_003)
    images, masks = torch.cat([b.images for b in scoring]), torch.cat([masks_of(b) for b in scoring])
    units = _units(source, scoring)
    grid, result = (size // patch, size // patch), {}
    for name, maps in {**trivial_maps(images, grid), "exact mask": shares_of(masks, grid)}.items():
        found = all_measures(maps, masks)
        if name == "all ones":  # of a constant map no rule marks everything
            found |= {f"iou_{rule}": mask_iou(torch.ones_like(masks), masks) for rule in RULES}
        result[name] = {measure: _by_layer(values[:, None], units)[0] for measure, values in found.items()}
    return result


# --- the study ----------------------------------------------------------------------------------------------


def tuned(run: Run, out: Path) -> Run | None:
    """The run with its learning rate; None until the tuning of its variant on its data is done."""
    if run.learning_rate is not None:
        return run
    asked = ("tuning", run.data, run.variant)
    paths = [out / r.name / "record.json" for r in table() if (r.part, r.data, r.variant) == asked]
    if not all(path.exists() for path in paths):
        return None
    best = max((_read(path) for path in paths), key=lambda record: record["accuracy"])
    return replace(run, learning_rate=best["learning_rate"])


def run_all(runs: Sequence[Run], out: Path, workers: int = 0) -> None:
    """Every run that is neither done nor at work in another process."""
    for run in runs:
        folder = out / run.name
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends, however it ends
            except BlockingIOError:
                continue
            if (ready := tuned(run, out)) is None:
                print(f"{run.name}: not before the tuning of {run.variant} on {run.data} is done", flush=True)
                continue
            done = execute(ready, sources(run.data), folder, workers)
        print(f"{run.name}: accuracy {done['accuracy']:.3f}, {done['cpu_seconds']:.0f} s", flush=True)


@torch.inference_mode()
def flops(data: str, variant: str) -> int:
    """Floating-point operations of a variant's forward pass of one image: two for each multiply-add of a product."""
    model = make_model(Run("", data, variant, 0, None, 0))
    image = torch.zeros(1, 3, *model.img_size)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the fused ones are not counted
        model(image)
    return int(counter.get_total_flops())


def step_ms(data: str, rounds: int = 25) -> dict[str, float]:
    """CPU time of one thread for a step of each network of the family, forward and backward, in milliseconds.

    The median of rounds in which all take turns: whatever else the machine does befalls all of them.
    """
    models = {variant: make_model(Run("", data, variant, 0, None, 0)) for variant in FAMILY}
    size, batch = SCALES[data].model["img_size"], SCALES[data].recipe["batch_size"]
    images, labels = torch.rand(batch, 3, size, size), torch.zeros(batch, dtype=torch.long)
    spent: dict[str, list[float]] = {variant: [] for variant in models}
    for _ in range(rounds):
        for variant, model in models.items():
            begun = time.process_time()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            spent[variant].append(1000 * (time.process_time() - begun))
    return {variant: round(median(times), 2) for variant, times in spent.items()}


def collect(out: Path) -> dict[str, Any]:
    """All existing records, in the order of the table, and their common facts."""
    records = [_read(path) for run in table() if (path := out / run.name / "record.json").exists()]
    kinds = dict.fromkeys(record["data"] for record in records)
    return {
        "versions": {
            "whitebox_crate": whitebox_crate.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
        "scales": {data: {**asdict(SCALES[data]), "steps": STEPS[data]} for data in kinds},
        "flops": {data: {variant: flops(data, variant) for variant in _of(data)} for data in kinds},
        "step_ms": {data: step_ms(data) for data in kinds if data == "garments"},
        "trivial": {data: trivial(sources(data), SCALES[data]) for data in kinds},
        "runs": records,
    }


def _of(data: str) -> tuple[str, ...]:
    """The networks that are trained on a kind of data."""
    return tuple(dict.fromkeys((*COMPARED, *FAMILY))) if data == "garments" else COMPARED


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("list", "run", "collect"))
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--only", default="*", help="names of runs, with wildcards")
    parser.add_argument("--results", type=Path, default=RESULTS, help="what collect writes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="processes that draw composites ahead of time")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    runs = [run for run in table() if fnmatch.fnmatch(run.name, options.only)]
    if not runs:
        parser.error(f"no run is called {options.only!r}; `study.py list` names them all")
    if options.what == "list":
        for run in runs:
            print("done " if (options.out / run.name / "record.json").exists() else "to do", run.name)
    elif options.what == "run":
        run_all(runs, options.out, options.workers)
    else:
        results = collect(options.out)
        if not results["runs"]:
            parser.error(f"no finished run is in {options.out}; give the --out of `study.py run`")
        lines = json.dumps(results).replace('{"part"', '\n{"part"')  # a line each run, to be told apart in a diff
        write_whole(options.results, lambda path: path.write_text(lines + "\n"))
        print(f"{len(results['runs'])} runs: {options.results}")


if __name__ == "__main__":
    main()
