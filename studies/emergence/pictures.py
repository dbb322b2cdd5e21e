"""The pictures of docs/emergence.md: curves from the committed results, and strips from the runs themselves.

python -m studies.emergence.pictures                # the curves
python -m studies.emergence.pictures --runs RUNS    # and strips of pictures, from the weights of those runs
python -m studies.emergence.pictures --runs RUNS --only '*_family'
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

import whitebox_crate
from studies.emergence.measures import above_mean
from studies.emergence.plan import COMPARED, FAMILY, SCALES, Run, make_model, sources, table
from studies.emergence.study import RESULTS, look, masks_of
from studies.emergence.tables import (
    LONGER,
    NAMES,
    Record,
    best_by_layer,
    best_head,
    chosen,
    nonzero_by_layer,
    rate_by_layer,
    select,
)
from whitebox_crate import ImageTransformer
from whitebox_crate._files import write_whole
from whitebox_crate.convert.files import read_checkpoint
from whitebox_crate.images import load_image
from whitebox_crate.preprocess import image_to_tensor
from whitebox_crate.segmentation import cls_attention
from whitebox_crate.segmentation.draw import draw_map, draw_mask, draw_panels
from whitebox_crate.training import Batch

IMAGES = Path(__file__).parents[2] / "docs" / "images"
SAMPLES = Path(whitebox_crate.__file__).parent / "samples"
COLOURS = {"crate": "C0", "crate_sth": "C9", "crate_mlp": "C2", "crate_mhsa": "C1", "vit": "C3"}
PANEL, PATCHES = 128, 16  # side of a picture as it is shown, pixels, and of a photograph as it is seen, in patches


# --- curves -------------------------------------------------------------------------------------------------

ROWS = {"AP, best head": "average_precision", "IoU, mean, best head": "iou_mean"}


def draw_layers(results: Record, data: str) -> Any:
    """Draws quantities by layer: the mean over seeds as a line, their range as a band."""
    from matplotlib.figure import Figure

    panels: dict[str, Callable[[Record], Sequence[float]]] = {
        **{title: best_by_layer(measure) for title, measure in ROWS.items()},
        "Rc after attention, nats per token": rate_by_layer,
        "share not zero after coding": nonzero_by_layer,
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
    """Draws scores during training: by images, by time on one core, and by accuracy. One line per run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    rows = figure.subplots(2, 3, sharey="row", sharex="col")
    for row, (title, measure) in zip(rows, ROWS.items(), strict=True):
        shown = [("main", variant, NAMES[variant], "-") for variant in COMPARED] + [("longer", "crate", LONGER, "--")]
        for part, variant, label, style in shown:
            for run in select(results, part, data, variant):
                points, batch = run["by_epoch"], run["images_seen"] // run["steps"]
                seconds = [sum(p["cpu_seconds"] for p in points[: i + 1]) for i in range(len(points))]
                across = {
                    "thousand images seen": [point["step"] * batch / 1000 for point in points],
                    "CPU seconds of training": seconds,
                    "accuracy": [point["accuracy"] for point in points],
                }
                score = [best_head(measure)(point) for point in points]
                for axes, (xlabel, values) in zip(row, across.items(), strict=True):
                    axes.plot(values, score, style, color=COLOURS[variant], label=label, marker=".", alpha=0.8)
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
    folder = max((runs / run.name).glob("checkpoint-[0-9]*"))
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
            facts, side = model.pretrained_cfg, min(picture.width, PATCHES * model.patch_embed.patch_size[0])
            seen = image_to_tensor(picture.resize((side, side)), mean=facts.mean, std=facts.std)[None]
            attention = cls_attention(model, seen, layer)[0, head]
            masked = (draw_mask(photo, above_mean(scores)) for scores in (attention, attention.log()))
            panels += [draw_map(attention, (PANEL, PANEL)), *masked]
            captions += [f"{NAMES[variant]}, L{layer} H{head}", "mean", "log"]
        if masks:
            panels.append(draw_mask(photo, masks[row]))
            captions.append("exact mask")
    return draw_panels(panels, captions, columns=len(panels) // len(pictures))


@torch.inference_mode()
def family_strip(results: Record, runs: Path, data: str, count: int = 6) -> Any:
    """A row for each composite: itself, the map of each network of the family, and the exact mask.

    Each network, of seed 0, shows the one map that was best on objects of training; at half its rate where it has one.
    """
    from PIL.Image import Resampling

    batch, shown = composites(data, count), {}
    of_seed = {(run.part, run.variant): run for run in table() if (run.data, run.seed) == (data, 0)}
    for variant in FAMILY:
        part = "halved" if ("halved", variant) in of_seed else "family"
        record = select(results, part, data, variant)[0]
        at, head = chosen(record, "average_precision")
        short = NAMES[variant].removeprefix("CRATE, ").replace("attention only", "MSSA alone")
        name = f"{short} L{record['layers'][at]} H{head}"
        shown[name] = look(trained(of_seed[part, variant], runs), [batch])[1][:, at, head]
    panels, captions = [], []
    for row, (name, picture) in enumerate(as_pictures(batch).items()):
        photo = picture.resize((PANEL, PANEL), Resampling.NEAREST)
        panels += [photo, *(draw_map(maps[row], (PANEL, PANEL)) for maps in shown.values())]
        panels.append(draw_mask(photo, masks_of(batch)[row]))
        captions += [name, *shown, "exact mask"]
    return draw_panels(panels, captions, columns=len(panels) // count)


def composites(data: str, count: int = 6) -> Batch:
    """Composites of the scoring split that nothing was measured or chosen on."""
    return sources(data).scoring.draw(count, seed=20_000, step=0, size=SCALES[data].model["img_size"])


def as_pictures(batch: Batch) -> dict[str, Any]:
    """Images of a batch as pictures, by number."""
    from PIL.Image import fromarray

    pixels = (batch.images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return {f"composite {i}": fromarray(image) for i, image in enumerate(pixels)}


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


def composites_strip(results: Record, runs: Path, data: str) -> Any:
    """CRATE and the ViT on six composites, and the exact masks."""
    batch = composites(data)
    return strips(results, runs, data, as_pictures(batch), list(masks_of(batch)))


def photographs_strip(results: Record, runs: Path, data: str) -> Any:
    """CRATE and the ViT on photographs."""
    return strips(results, runs, data, photographs())


SHEETS = {"composites": composites_strip, "photographs": photographs_strip, "family": family_strip}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, help="their folder, to draw strips of pictures from")
    parser.add_argument("--only", default="*", help="names of pictures, with wildcards")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text())
    for data in results["scales"]:
        drawings: dict[str, Callable[[], Callable[[Path], object]]] = {
            name: partial(_curves, draw, results, data) for name, draw in CURVES.items()
        }
        if options.runs:
            drawings |= {name: partial(_sheet, draw, results, options.runs, data) for name, draw in SHEETS.items()}
        for name, drawn in drawings.items():
            path = IMAGES / f"emergence_{data}_{name}.png"
            if fnmatch(path.stem, options.only) and (name != "family" or data == "garments"):
                write_whole(path, drawn())
                print(path)


def _curves(draw: Callable[[Record, str], Any], results: Record, data: str) -> Callable[[Path], object]:
    return partial(draw(results, data).savefig, format="png", dpi=80)


def _sheet(
    draw: Callable[[Record, Path, str], Any], results: Record, runs: Path, data: str
) -> Callable[[Path], object]:
    return partial(draw(results, runs, data).save, format="PNG", optimize=True)


if __name__ == "__main__":
    main()
