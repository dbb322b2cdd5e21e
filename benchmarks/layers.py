"""Whether the layers of crate_nano do what they were derived to do, trained and with fresh weights.

    python -m benchmarks.layers --out benchmarks/layers.json --picture docs/images/layerwise.png

Images are composites of objects and backgrounds that training never saw; docs/training.md names the packages that they
come from. Both models see the same ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipes.backgrounds import wallpapers
from recipes.composites import Composites
from recipes.objects import photographs
from whitebox_crate import create_model
from whitebox_crate._files import write_json
from whitebox_crate._tables import markdown_table
from whitebox_crate.analysis import layerwise_analysis, plot_layerwise, verify_descent
from whitebox_crate.training import normalize

BATCH = 32
CLAIMS = {"compression": "Rc", "sparsity": "share not zero", "coding": "lasso"}


VARIANTS: dict[str, dict[str, Any]] = {"unnormed": {"normed": False}, "released": {"convention": "released"}}


def table(results: dict[str, Any]) -> str:
    """The verdicts on both models, in Markdown."""
    rows = []
    for trained, fresh in zip(*(results[name]["verdicts"] for name in ("trained", "fresh")), strict=True):
        cells = []
        for v in (trained, fresh):
            verdict = v["outcome"] if v["outcome"] == "holds" else f"**{v['outcome']}**"
            cells += [f"{v['before']:.4g} → {v['after']:.4g} ({v['change']:+.3g} ± {v['half_width']:.2g})", verdict]
        rows.append([f"{CLAIMS[trained['claim']]} falls", trained["layer"], *cells])
    return markdown_table(("Claim", "Layer", "Trained", "", "Fresh", ""), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=128, help="a multiple of 32")
    parser.add_argument("--seed", type=int, default=1000, help="of the composites, and of the fresh weights")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path, help="where to draw the curves")
    options = parser.parse_args()
    trained = create_model("crate_nano.tuxpaint_composites", pretrained=True).eval()
    torch.manual_seed(options.seed)
    models = {"trained": trained, "fresh": create_model("crate_nano").eval()}
    source = Composites(photographs("held_out"), wallpapers("held_out"))

    def images() -> Iterator[Tensor]:
        for step in range(options.images // BATCH):
            yield normalize(source.draw(BATCH, seed=options.seed, step=step).images, trained)

    results = {name: verify_descent(model, images()).to_dict() for name, model in models.items()}
    for variant, how in VARIANTS.items():
        reports = {name: verify_descent(model, images(), **how) for name, model in models.items()}
        results[variant] = {
            name: [v for v in report.to_dict()["verdicts"] if v["claim"] == "compression"]
            for name, report in reports.items()
        }
    write_json(options.out, results)
    print(table(results))
    for variant in VARIANTS:
        for name, verdicts in results[variant].items():
            print(f"Rc, {variant}, {name}: {[(round(v['change'], 2), v['outcome']) for v in verdicts]}")
    curves = {name: layerwise_analysis(model, images()) for name, model in models.items()}
    for name, report in curves.items():
        print(f"\n{name}\n\n{report.table(markdown=True)}")
    if options.picture:
        plot_layerwise(curves, options.picture)


if __name__ == "__main__":
    main()
