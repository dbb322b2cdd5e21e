"""How long the eigenvector of MaskCut takes by iteration, against the dense solver, and whether the masks are the same.

    python -m benchmarks.maskcut --out benchmarks/maskcut.json

Every round of MaskCut is an eigenproblem. Each is solved by `ncut_eigenvector` (its default, and the cosines apart) and
then by the dense solver in the formulation of the papers, eigenvectors 1 and 2 of (D - A) v = lambda D v: that of SciPy
where it is installed, else all eigenvectors of D^-1/2 A D^-1/2 by PyTorch. One thread; both in turn in one process.
Features: the projections of crate_nano, layer -2, on the sample photographs at the size that makes the grid, and three
planted discs, whose features and the background's are Gaussian around a direction each.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from whitebox_crate import create_model
from whitebox_crate._files import write_json
from whitebox_crate.segmentation import (
    affinity,
    bipartition,
    connected_component,
    maskcut_rounds,
    ncut_eigenvector,
    patch_features,
)
from whitebox_crate.segmentation.ncut import EPSILON, degrees

GRIDS, ROUNDS = (28, 40, 60), 3
NOISE = (0.8, 1.2)  # of the planted features, in lengths of their directions


def photographs(side: int) -> Iterator[tuple[str, Tensor]]:
    """Features of the sample photographs, (side * side, dim)."""
    model = create_model("crate_nano", pretrained=True, dynamic_img_size=True).eval()
    patch, cfg = model.patch_embed.patch_size, model.pretrained_cfg
    mean, std = torch.tensor(cfg.mean)[:, None, None], torch.tensor(cfg.std)[:, None, None]
    for path in sorted(Path(str(resources.files("whitebox_crate") / "samples")).glob("*.jpg")):
        photo = Image.open(path).convert("RGB").resize((side * patch[1], side * patch[0]), Image.Resampling.BICUBIC)
        image = (torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 255 - mean) / std
        with torch.no_grad():
            yield path.stem, patch_features(model, image[None])[0][0]


def planted(side: int, noise: float) -> Tensor:
    """Features of three discs on a background, (side * side, 64)."""
    generator = torch.Generator().manual_seed(0)
    label = torch.zeros(side, side, dtype=torch.int64)
    row, column = torch.meshgrid(torch.arange(side) / side, torch.arange(side) / side, indexing="ij")
    for index, (y, x, radius) in enumerate(((0.3, 0.3, 0.12), (0.65, 0.6, 0.15), (0.25, 0.75, 0.1)), start=1):
        label[(row - y) ** 2 + (column - x) ** 2 < radius**2] = index
    directions = torch.randn(4, 64, generator=generator)
    return directions[label.flatten()] + noise * torch.randn(side * side, 64, generator=generator)


def dense(linked: Tensor) -> Tensor:
    """The second eigenvector by the dense solver, its peak positive."""
    vector: Tensor
    matrix, diagonal = torch.full_like(linked, EPSILON, dtype=torch.float64).masked_fill_(linked, 1), degrees(linked)
    try:
        from scipy.linalg import eigh
    except ImportError:
        scale = diagonal.rsqrt()
        vector = scale * torch.linalg.eigh(matrix * scale * scale[:, None])[1][:, -2]
    else:
        laplacian = (torch.diag(diagonal) - matrix).numpy()
        vector = torch.from_numpy(eigh(laplacian, torch.diag(diagonal).numpy(), subset_by_index=[1, 2])[1][:, 0])
    return vector * vector[vector.abs().argmax()].sign()


def timed(solve: Callable[[Tensor], Tensor], linked: Tensor) -> tuple[float, Tensor]:
    """Seconds, and the eigenvector."""
    began = time.perf_counter()
    vector = solve(linked)
    return time.perf_counter() - began, vector


def measure(name: str, features: Tensor, side: int) -> Iterator[dict[str, object]]:
    """One record for each round."""
    grid = (side, side)
    began = time.perf_counter()
    linked = affinity(features)
    cosines = time.perf_counter() - began
    for index, cut in enumerate(maskcut_rounds(features, grid, ROUNDS)):
        if cut.seed is None:
            continue
        kept = ~cut.painted.flatten()
        links = linked & kept & kept[:, None]
        seconds, vector = timed(ncut_eigenvector, links)
        seconds_dense, vector_dense = timed(dense, links)
        component = connected_component(*bipartition(vector_dense, grid))
        record = {
            "grid": f"{side}x{side}",
            "features": name,
            "round": index,
            "seconds": round(seconds, 4),
            "seconds_dense": round(seconds_dense, 4),
            "seconds_cosines": round(cosines, 4),
            "ratio": round(seconds / seconds_dense, 4),
            "eigenvector_differs_by": float((vector - vector_dense).abs().max() / vector_dense.abs().max()),
            "same_mask": torch.equal(component, cut.component),
        }
        print(record, flush=True)
        yield record


def main() -> None:
    """Runs all measurements and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("maskcut.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    records: list[dict[str, object]] = []
    for side in GRIDS:
        for name, features in [*photographs(side), *((f"discs, noise {n}", planted(side, n)) for n in NOISE)]:
            records += measure(name, features, side)
    results = summary(records)
    write_json(options.out, results)
    print(json.dumps(results["by_grid"], indent=1))


def summary(records: list[dict[str, object]]) -> dict[str, object]:
    """Ratios and agreement by grid, and the records."""
    by_grid = {}
    for grid in dict.fromkeys(str(record["grid"]) for record in records):
        of_grid = [record for record in records if record["grid"] == grid]
        ratios = [float(str(record["ratio"])) for record in of_grid]
        by_grid[grid] = {
            "eigenproblems": len(of_grid),
            "median_ratio": round(statistics.median(ratios), 4),
            "largest_ratio": max(ratios),
            "same_masks": sum(bool(record["same_mask"]) for record in of_grid),
        }
    return {"by_grid": by_grid, "versions": versions(), "records": records}


def versions() -> dict[str, str]:
    """What ran."""
    found = {"python": platform.python_version()}
    for package in ("torch", "scipy", "whitebox-crate"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


if __name__ == "__main__":
    main()
