"""Compares the trainings on photographs alone, over their seeds: what CRATE and the ViT name, and what they show.

    python -m recipes.natural keep runs/natural/crate_1 recipes/results/natural/crate_nano_1_curve.json
    python -m recipes.natural table recipes/results/natural

`keep` copies the measurements that a run of `whitebox-crate train` made on its way. `table` takes these, and those of
`recipes.measure_photographs`: crate_nano_SEED.json and vit_nano_SEED.json, and the same with `_curve`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, TypeAlias

from recipes.ablate import SEEDS, difference
from whitebox_crate._files import write_json
from whitebox_crate._tables import markdown_table
from whitebox_crate.errors import InputError
from whitebox_crate.training.metrics_log import METRICS, read_metrics
from whitebox_crate.training.model_folder import RECIPE

Point: TypeAlias = dict[str, float]  # what was measured at a step
Curve: TypeAlias = list[Point]


def kept(run: Path) -> dict[str, Any]:
    """The recipe of a run, and its validations by step.

    Raises:
        InputError: If the folder holds no run.
    """
    try:
        recipe = json.loads((run / RECIPE).read_text())["recipe"]
        curve = [record for record in read_metrics(run / METRICS) if "validation_top1" in record]
    except OSError as error:
        raise InputError(f"{run} holds no run: {error}; give the folder of `whitebox-crate train --out`") from error
    return {"recipe": recipe, "curve": curve}


def at_the_end(crate: Curve, vit: Curve) -> Point:
    return crate[-1]


def at_its_steps(crate: Curve, vit: Curve) -> Point:
    """The first measurement after as many steps as the ViT took."""
    return next(point for point in crate if point["step"] >= vit[-1]["step"])


def at_its_naming(crate: Curve, vit: Curve) -> Point:
    """The measurement whose share of named photographs is nearest to the ViT's at its end."""
    return min(crate, key=lambda point: abs(point["validation_top1"] - vit[-1]["validation_top1"]))


NETWORKS = ("crate_nano", "vit_nano")
AT: dict[str, Callable[[Curve, Curve], Point]] = {
    "equal processor time": at_the_end,
    "equal steps": at_its_steps,
    "equal naming": at_its_naming,
}


def table(folder: Path) -> str:
    """Means over seeds, and the difference of IoU ± half of its 95% interval (Student's t)."""
    crates, vits = ([_read(folder, f"{name}_{seed}_curve")["curve"] for seed in SEEDS] for name in NETWORKS)
    ends = [vit[-1] for vit in vits]
    rows = []
    for what, at in AT.items():
        points = [at(crate, vit) for crate, vit in zip(crates, vits, strict=True)]
        named = [f"{mean(point['validation_top1'] for point in of):.1%}" for of in (points, ends)]
        ious = [[point["validation_mask_iou"] for point in of] for of in (points, ends)]
        rows.append([what, *named, *_means(ious), difference(*ious)])
    for what in ("one_map", "best_head_of_each_image"):
        ious = [[_read(folder, f"{name}_{seed}")["report"][what][0] for seed in SEEDS] for name in NETWORKS]
        rows.append([f"the end: {what.replace('_', ' ')}", "", "", *_means(ious), difference(*ious)])
    return markdown_table(["compared at", "CRATE named", "ViT named", "CRATE IoU", "ViT IoU", "difference"], rows)


def _means(ious: Sequence[Sequence[float]]) -> list[str]:
    return [f"{mean(of):.3f}" for of in ious]


def _read(folder: Path, name: str) -> Any:
    file = folder / f"{name}.json"
    if not file.exists():
        raise InputError(f"{file} does not exist; `keep` makes a curve, recipes.measure_photographs the other files")
    return json.loads(file.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    keep = commands.add_parser("keep", help="copies the measurements of a run")
    keep.add_argument("run", type=Path, help="folder that `whitebox-crate train --out` wrote")
    keep.add_argument("out", type=Path, help="file to write")
    commands.add_parser("table", help="prints the comparison").add_argument("folder", type=Path, help="the JSON files")
    options = parser.parse_args()
    if options.command == "keep":
        write_json(options.out, kept(options.run))
        print(options.out)
    else:
        print(table(options.folder))


if __name__ == "__main__":
    main()
