"""What docs/emergence.md shows, from the committed results: tables, curves, and pictures from the runs themselves.

python docs/studies/emergence/page.py                    # tables between their markers, and the curves
python docs/studies/emergence/page.py --pictures RUNS    # picture strips too, from the weights of those runs
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from measures import above_mean, interval
from study import COMPARED, RESULTS, SCALES, Run, make_model, sources, table
from torch import Tensor

import whitebox_crate
from whitebox_crate import ImageTransformer
from whitebox_crate.checkpoints import read_checkpoint
from whitebox_crate.hub import write_whole
from whitebox_crate.preprocess import image_to_tensor, load_image
from whitebox_crate.segmentation import cls_attention
from whitebox_crate.segmentation.draw import draw_map, draw_mask, draw_panels

DOCS = Path(__file__).parents[2]
PAGE, IMAGES = DOCS / "emergence.md", DOCS / "images"
SAMPLES = Path(whitebox_crate.__file__).parent / "samples"
NAMES = {
    "crate": "CRATE",
    "crate_sth": "CRATE-sth",
    "crate_mlp": "CRATE-MLP",
    "crate_mhsa": "CRATE-MHSA",
    "vit": "ViT",
    "vit_timm": "ViT, timm's start",
}
COLOURS = {"crate": "C0", "crate_sth": "C9", "crate_mlp": "C2", "crate_mhsa": "C1", "vit": "C3"}
PANEL, PHOTOGRAPH = 128, 64  # sides of a picture as it is shown, and of a photograph as it is seen; pixels

Record = dict[str, Any]
Reading = Callable[[Record], float | None]


# --- what is read from a record -----------------------------------------------------------------------------


def layers_of(record: Record, measure: str) -> Any:
    """The values by layer of "average_precision", "pointing" or "iou_RULE"."""
    if measure.startswith("iou_"):
        return record["iou_by_layer"][measure.removeprefix("iou_")]
    return record["map_average_precision_by_layer" if measure == "average_precision" else "pointing_by_layer"]


def chosen(record: Record, measure: str) -> tuple[int, int]:
    """The layer and the head whose map was best on objects of training."""
    found = layers_of(record, measure)
    layer = max(range(len(found["chosen_by"])), key=found["chosen_by"].__getitem__)
    return layer, found["chosen"][layer]


def one_map(measure: str) -> Reading:
    """That one map, scored on other objects."""
    return lambda record: layers_of(record, measure)["chosen_head"][chosen(record, measure)[0]][0]


def best_by_layer(measure: str) -> Callable[[Record], list[float]]:
    """By layer, the best head of each image."""
    return lambda record: [mean for mean, _ in layers_of(record, measure)["best_head"]]


def best_head(measure: str) -> Reading:
    """The best head of each image, in the layer where that is best."""
    return lambda record: max(best_by_layer(measure)(record))


def maskcut_by_layer(record: Record) -> list[float]:
    return [mean for mean, _ in record["maskcut_iou_by_layer"]]


def marked_by_layer(record: Record) -> list[float]:
    return [mean for mean, _ in record["marked_by_layer"]]


READINGS: dict[str, dict[str, Reading]] = {
    "best head": {
        "accuracy": lambda record: record["accuracy"],
        "IoU, mean": best_head("iou_mean"),
        "IoU, log": best_head("iou_log"),
        "IoU, best cut": best_head("iou_best"),
        "AP": best_head("average_precision"),
        "marked": lambda record: fmean(marked_by_layer(record)),
    },
    "one map": {
        "IoU, mean": one_map("iou_mean"),
        "IoU, log": one_map("iou_log"),
        "IoU, best cut": one_map("iou_best"),
        "AP": one_map("average_precision"),
        "pointing": one_map("pointing"),
        "MaskCut, IoU": lambda record: max(maskcut_by_layer(record)) if "maskcut_iou_by_layer" in record else None,
    },
}
TRIVIAL = {
    "IoU, mean": "iou_mean",
    "IoU, log": "iou_log",
    "IoU, best cut": "iou_best",
    "AP": "average_precision",
    "pointing": "pointing",
    "marked": "marked",
}


def select(results: Record, part: str, data: str, variant: str) -> list[Record]:
    """The runs of a part, in the order of their seeds."""
    found = [r for r in results["runs"] if (r["part"], r["data"], r["variant"]) == (part, data, variant)]
    return sorted(found, key=lambda run: run["seed"])


def untrained(results: Record, data: str, variant: str) -> list[Record]:
    """The same networks before training."""
    return [{**run["by_epoch"][0], "seed": run["seed"]} for run in select(results, "main", data, variant)]


# --- tables -------------------------------------------------------------------------------------------------


def cell(values: Sequence[float | None], digits: int = 3, null: float | None = None) -> str:
    """Mean over seeds, and half the width of its 95% interval; bold where that excludes `null`."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean, half = interval(known)
    shown = f"{mean:.{digits}f}" if len(known) < 2 else f"{mean:.{digits}f} ± {half:.{digits}f}"
    return f"**{shown}**" if null is not None and abs(mean - null) > half else shown


def markdown(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]))


def main_table(results: Record, data: str, kind: str) -> str:
    """Every variant after training, the two ends before it, and what takes no network."""
    readings = READINGS[kind]
    groups = {NAMES[variant]: select(results, "main", data, variant) for variant in COMPARED}
    groups["ViT, half the steps"] = select(results, "half", data, "vit")
    groups["ViT, timm's start"] = select(results, "start", data, "vit_timm")
    groups |= {f"{NAMES[variant]}, untrained": untrained(results, data, variant) for variant in ("crate", "vit")}
    rows = [["", "seeds", *readings]]
    for name, found in groups.items():
        if found:
            rows.append([name, str(len(found)), *(cell([read(r) for r in found]) for read in readings.values())])
    for name, found in results["trivial"][data].items():
        rows.append([name, "–", *(f"{found[TRIVIAL[r]][0]:.3f}" if r in TRIVIAL else "–" for r in readings)])
    return markdown(rows)


def comparisons(results: Record, data: str) -> Iterator[tuple[str, list[Record], list[Record]]]:
    """What is set against what."""
    of = {variant: select(results, "main", data, variant) for variant in COMPARED}
    yield "CRATE, ViT", of["crate"], of["vit"]
    yield "CRATE, ViT of half the steps", of["crate"], select(results, "half", data, "vit")
    yield "CRATE, ViT of timm's start", of["crate"], select(results, "start", data, "vit_timm")
    for first, second in (
        ("crate", "crate_sth"),
        ("crate", "crate_mlp"),
        ("crate_mlp", "crate_mhsa"),
        ("crate_mhsa", "vit"),
        ("crate", "crate_mhsa"),
        ("crate_mlp", "vit"),
    ):
        yield f"{NAMES[first]}, {NAMES[second]}", of[first], of[second]
    for variant in ("crate", "vit"):
        yield f"{NAMES[variant]}, untrained", of[variant], untrained(results, data, variant)


def paired_table(results: Record, data: str, kind: str, ratio: bool) -> str:
    """Two at a time, seed by seed, which share their data: the first minus the second, or over it."""
    readings, digits, null = READINGS[kind], 2 if ratio else 3, 1 if ratio else 0
    rows = [["", "seeds", *readings]]
    for name, firsts, seconds in comparisons(results, data):
        others = {record["seed"]: record for record in seconds}
        pairs = [(record, others[record["seed"]]) for record in firsts if record["seed"] in others]
        if pairs:
            read_pairs = ([(read(a), read(b)) for a, b in pairs] for read in readings.values())
            known = [[(a, b) for a, b in column if a is not None and b is not None] for column in read_pairs]
            values = [[a / b if ratio else a - b for a, b in column] for column in known]
            rows.append([name, str(len(pairs)), *(cell(column, digits, null) for column in values)])
    return markdown(rows)


def layer_table(results: Record, data: str) -> str:
    """By layer: means over seeds; and how much more there is in the last layer than in the first."""
    kinds = {
        "best head, AP": best_by_layer("average_precision"),
        **{f"best head, IoU, {rule}": best_by_layer(f"iou_{rule}") for rule in ("mean", "mass", "entries")},
        "best head, IoU, best cut": best_by_layer("iou_best"),
        "MaskCut, IoU": maskcut_by_layer,
    }
    depth = results["scales"][data]["model"]["depth"]
    rows = [["", "", *(f"layer {layer}" for layer in range(depth)), "last − first"]]
    for kind, read in kinds.items():
        for variant in COMPARED:
            if found := [read(run) for run in select(results, "main", data, variant)]:
                means = [f"{fmean(column):.3f}" for column in zip(*found, strict=True)]
                rows.append([kind, NAMES[variant], *means, cell([layers[-1] - layers[0] for layers in found], 3, 0)])
    return markdown(rows)


def budget_table(results: Record, data: str) -> str:
    """What each variant cost."""
    rows = [["", "seeds", "parameters", "learning rate", "steps", "images seen", "MFLOPs an image", "CPU seconds"]]
    for part, suffix in (("main", ""), ("half", ", half the steps")):
        for variant in COMPARED:
            if found := select(results, part, data, variant):
                run = found[0]
                rows.append(
                    [
                        NAMES[variant] + suffix,
                        str(len(found)),
                        f"{run['parameters']:,}",
                        f"{run['learning_rate']:g}",
                        f"{run['steps']:,}",
                        f"{run['images_seen']:,}",
                        f"{results['flops'][data][variant] / 1e6:.1f}",
                        f"{fmean(r['cpu_seconds'] for r in found):.0f}",
                    ]
                )
    return markdown(rows)


def tuning_table(results: Record, data: str) -> str:
    """Accuracy of the short runs by which learning rates were chosen, the chosen one's in bold."""
    runs = [r for r in results["runs"] if (r["part"], r["data"]) == ("tuning", data)]
    rates = sorted({run["learning_rate"] for run in runs})
    rows = [["learning rate", *(f"{rate:g}" for rate in rates)]]
    for variant, name in NAMES.items():
        if found := {run["learning_rate"]: run["accuracy"] for run in runs if run["variant"] == variant}:
            best = max(found, key=found.__getitem__)
            cells = {rate: f"**{found[rate]:.3f}**" if rate == best else f"{found[rate]:.3f}" for rate in found}
            rows.append([name, *(cells.get(rate, "–") for rate in rates)])
    return markdown(rows)


def why_table(results: Record, data: str) -> str:
    """CRATE with one thing changed, beside CRATE as it is, of the same seed."""
    runs = [run for run in select(results, "main", data, "crate") if run["seed"] == 0]
    readings = READINGS["best head"]
    rows = [["CRATE with", "parameters", *readings]]
    for run in runs + select(results, "why", data, "crate"):
        changed = ", ".join(f"`{key}={value}`" for key, value in run["options"].items()) or "nothing changed"
        rows.append([changed, f"{run['parameters']:,}", *(cell([read(run)]) for read in readings.values())])
    return markdown(rows)


def state_table(results: Record, data: str) -> str:
    """How much of the study there is, and what it was made with."""
    seconds = sum(run["cpu_seconds"] for run in results["runs"] if run["data"] == data)
    parts = ("tuning", "main", "half", "start", "why")
    made = {part: [run for run in results["runs"] if (run["part"], run["data"]) == (part, data)] for part in parts}
    planned = {part: [run for run in table() if (run.part, run.data) == (part, data)] for part in parts}
    rows = [["runs", *parts, "CPU hours of training", *results["versions"]]]
    counts = (f"{len(made[part])} of {len(planned[part])}" for part in parts)
    rows.append([data, *counts, f"{seconds / 3600:.2f}", *results["versions"].values()])
    return markdown(rows)


TABLES: dict[str, Callable[[Record, str], str]] = {
    "heads": partial(main_table, kind="best head"),
    "heads_differences": partial(paired_table, kind="best head", ratio=False),
    "heads_ratios": partial(paired_table, kind="best head", ratio=True),
    "one_map": partial(main_table, kind="one map"),
    "one_map_differences": partial(paired_table, kind="one map", ratio=False),
    "layers": layer_table,
    "budget": budget_table,
    "tuning": tuning_table,
    "why": why_table,
    "state": state_table,
}


def fill(text: str, results: Record) -> str:
    """The page with every table renewed: `<!-- table: NAME DATA -->` to `<!-- /table -->`."""

    def renewed(found: re.Match[str]) -> str:
        return f"{found[1]}\n\n{TABLES[found[2]](results, found[3])}\n\n{found[4]}"

    marked = re.compile(r"(<!-- table: (\w+) (\w+) -->)\n.*?(<!-- /table -->)", re.DOTALL)
    return marked.sub(renewed, text)


# --- curves -------------------------------------------------------------------------------------------------

ROWS = {"AP, best head": "average_precision", "IoU, mean, best head": "iou_mean"}


def draw_layers(results: Record, data: str) -> Any:
    """What grows or falls with depth: the mean over seeds as a line, their range as a band."""
    from matplotlib.figure import Figure

    panels: dict[str, Callable[[Record], Sequence[float]]] = {
        **{title: best_by_layer(measure) for title, measure in ROWS.items()},
        "Rc after attention, nats per token": lambda run: run["layerwise"]["subspace_coding_rate"]["compressed"],
        "share not zero after coding": lambda run: run["layerwise"]["l0"]["output"],
    }
    figure = Figure(figsize=(10, 7), layout="constrained")
    for axes, (title, read) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        for variant in COMPARED:
            if columns := list(zip(*(read(run) for run in select(results, "main", data, variant)), strict=True)):
                layers, colour = range(len(columns)), COLOURS[variant]
                axes.plot(layers, [fmean(c) for c in columns], color=colour, label=NAMES[variant], marker=".")
                low, high = [min(c) for c in columns], [max(c) for c in columns]
                axes.fill_between(layers, low, high, color=colour, alpha=0.15)
        axes.set(title=title, xlabel="layer")
    _legend(figure)
    return figure


def draw_training(results: Record, data: str) -> Any:
    """Maps as training goes on: by images, by time on one core, and against accuracy. A line each run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    rows = figure.subplots(2, 3, sharey="row", sharex="col")
    for row, (title, measure) in zip(rows, ROWS.items(), strict=True):
        for variant in COMPARED:
            for run in select(results, "main", data, variant):
                points, batch = run["by_epoch"], run["images_seen"] // run["steps"]
                seconds = [sum(p["cpu_seconds"] for p in points[: i + 1]) for i in range(len(points))]
                across = {
                    "images seen": [point["step"] * batch for point in points],
                    "CPU seconds of training": seconds,
                    "accuracy": [point["accuracy"] for point in points],
                }
                score = [best_head(measure)(point) for point in points]
                for axes, (xlabel, values) in zip(row, across.items(), strict=True):
                    axes.plot(values, score, color=COLOURS[variant], label=NAMES[variant], marker=".", alpha=0.8)
                    axes.set(xlabel=xlabel if measure == "iou_mean" else "")
        row[0].set(ylabel=title)
    _legend(figure)
    return figure


def _legend(figure: Any) -> None:
    """One of each label, under all panels."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once.keys(), loc="outside lower center", ncols=len(once))


CURVES = {"layers": draw_layers, "training": draw_training}


# --- pictures -----------------------------------------------------------------------------------------------


def trained(run: Run, runs: Path) -> ImageTransformer:
    """The network of a run with its last weights."""
    (folder,) = (runs / run.name).glob("checkpoint-[0-9]*")
    model = make_model(run)
    model.load_state_dict(read_checkpoint(folder / "model.safetensors"))
    return model.eval()


@torch.inference_mode()
def strips(results: Record, runs: Path, data: str, pictures: dict[str, Any], masks: Sequence[Tensor] = ()) -> Any:
    """A row for each square picture: itself, CRATE's map, the ViT's, and the exact mask where there is one.

    Each network, of seed 0, shows the one map that was best on objects of training, and the masks that the rules "mean"
    and "log" make of it.
    """
    from PIL.Image import Resampling

    panels, captions = [], []
    pair = [run for run in table() if (run.part, run.data, run.seed) == ("main", data, 0)]
    models = {run.variant: trained(run, runs) for run in pair if run.variant in ("crate", "vit")}
    for row, (name, picture) in enumerate(pictures.items()):
        photo = picture.resize((PANEL, PANEL), Resampling.BICUBIC if picture.width > PANEL else Resampling.NEAREST)
        panels.append(photo)
        captions.append(name)
        for variant, model in models.items():
            layer, head = chosen(select(results, "main", data, variant)[0], "average_precision")
            facts, side = model.pretrained_cfg, min(picture.width, PHOTOGRAPH)
            seen = image_to_tensor(picture.resize((side, side)), mean=facts.mean, std=facts.std)[None]
            attention = cls_attention(model, seen, layer)[0, head]
            masked = (draw_mask(photo, above_mean(scores)) for scores in (attention, attention.log()))
            panels += [draw_map(attention, (PANEL, PANEL)), *masked]
            captions += [f"{NAMES[variant]}, L{layer} H{head}", "mean", "log"]
        if masks:
            panels.append(draw_mask(photo, masks[row]))
            captions.append("exact mask")
    return draw_panels(panels, captions, columns=len(panels) // len(pictures))


def composites(data: str, count: int = 6) -> tuple[dict[str, Any], Sequence[Tensor]]:
    """Composites of the scoring split that nothing was measured or chosen on, and their masks."""
    from PIL.Image import fromarray

    batch = sources(data).scoring.draw(count, seed=20_000, step=0, size=SCALES[data].model["img_size"])
    pixels = (batch.images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return {f"composite {i}": fromarray(image) for i, image in enumerate(pixels)}, list(batch.masks)


def photographs() -> dict[str, Any]:
    """The middles of photographs that no training has: the package's own, scikit-image's and scikit-learn's."""
    from PIL.Image import fromarray
    from PIL.ImageOps import fit
    from skimage.data import astronaut, camera
    from sklearn.datasets import load_sample_image

    found = {path.stem: load_image(path) for path in sorted(SAMPLES.glob("*.jpg"))}
    found |= {"astronaut": fromarray(astronaut()), "camera": fromarray(camera()).convert("RGB")}
    found |= {name: fromarray(load_sample_image(f"{name}.jpg")) for name in ("china", "flower")}
    return {name: fit(photo, (400, 400)) for name, photo in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, help="folder of the runs, to draw picture strips from")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text())
    for data in results["scales"]:
        images = {name: partial(draw(results, data).savefig, format="png", dpi=80) for name, draw in CURVES.items()}
        if options.pictures:
            for name, shown in {"composites": composites(data), "photographs": (photographs(),)}.items():
                sheet = strips(results, options.pictures, data, *shown)
                images[name] = partial(sheet.save, format="PNG", optimize=True)
        for name, save in images.items():
            path = IMAGES / f"emergence_{data}_{name}.png"
            write_whole(path, save)
            print(path)
    text = fill(PAGE.read_text(), results)
    write_whole(PAGE, lambda path: path.write_text(text))
    print(PAGE)


if __name__ == "__main__":
    main()
