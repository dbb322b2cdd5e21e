"""Puts every table that is made of code or of measurements between its markers, <!-- name --> and <!-- /name -->.

python -m benchmarks.pages
"""

import inspect
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import (
    growth,
    installed,
    layers,
    load,
    loading,
    pipeline,
    plan_tables,
    precision,
    rates,
    readers,
    speed_tables,
)
from recipes import measure_masks
from studies.emergence import tables as emergence_tables
from whitebox_crate import create_model, get_pretrained_cfg, list_models, list_pretrained, model_entrypoint
from whitebox_crate._tables import markdown_table
from whitebox_crate.analysis import subspace_report
from whitebox_crate.variants import ALIASES

ROOT = Path(__file__).parents[1]
Table = Callable[[], str]


def models() -> str:
    """A row for each registered architecture, in Markdown."""
    rows = []
    for name in list_models():
        with torch.device("meta"):
            model = create_model(name)
        short = ", ".join(f"`{alias}`" for alias, target in ALIASES.items() if target == name)
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        patch = inspect.signature(model_entrypoint(name)).parameters["patch_size"].default
        weights = ", ".join(f"`{full.partition('.')[2]}`" for full in list_pretrained(f"{name}.*"))
        shape = (model.embed_dim, len(model.blocks), model.num_heads, patch)
        rows.append((f"`{name}`", short, f"{parameters:.2f} M", *shape, weights))
    return markdown_table(("Name", "Short", "Parameters", "Width", "Layers", "Heads", "Patch", "Weights"), rows)


def weights() -> str:
    """A row for each set of weights, in Markdown: three columns, which a phone shows whole."""
    rows = []
    for name in list_pretrained():
        cfg = get_pretrained_cfg(name)
        where = "in the package"
        if cfg.hf_hub_id:
            where = f"[{cfg.hf_hub_id.partition('/')[0]}](https://huggingface.co/{cfg.hf_hub_id})"
        elif cfg.url:
            where = f"[a page]({cfg.url})"
        number = cfg.paper.removeprefix("arXiv ")
        classes = f"{cfg.num_classes:,} classes" if cfg.num_classes else "no head"
        tried = " Loaded and run." if cfg.checked == "file" else ""
        notes = f" {cfg.notes}" if cfg.notes else ""
        what = f"{classes}, [{number}](https://arxiv.org/abs/{number}).{tried}{notes}"
        rows.append((f"`{name}`", f"{where}, {cfg.license}" if cfg.license else where, what))
    return markdown_table(("Name", "Where, licence", "Classes, paper, notes"), rows)


def subspaces() -> str:
    """What is measured of the subspaces of crate_nano, in Markdown."""
    return subspace_report(create_model("crate_nano.tuxpaint_composites", pretrained=True)).table(markdown=True)


def measured(benchmark: Any) -> str:
    """The table that a benchmark makes of its JSON."""
    return str(benchmark.table(results_of(benchmark.__name__.rpartition(".")[2])))


def results_of(name: str) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((ROOT / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))
    return results


def emergence() -> dict[str, Table]:
    """Every table of every kind of data; the page has some of them."""
    results = json.loads((ROOT / "studies" / "emergence" / "results.json").read_text(encoding="utf-8"))
    return {
        f"{name} {data}": partial(table, results, data)
        for name, table in emergence_tables.TABLES.items()
        for data in results["scales"]
    }


def masks() -> dict[str, Table]:
    """The table of each file of `recipes.measure_masks`."""
    found = (ROOT / "recipes" / "results" / "masks").glob("*.json")
    return {path.stem: partial(measure_masks.table, json.loads(path.read_text(encoding="utf-8"))) for path in found}


def of_all(tables: dict[str, Callable[[dict[str, Any]], str]], results: dict[str, Any]) -> dict[str, Table]:
    return {name: partial(table, results) for name, table in tables.items()}


PAGES: dict[str, Callable[[], dict[str, Table]]] = {
    "docs/analysis.md": lambda: {
        "rates": partial(measured, rates),
        "layers": partial(measured, layers),
        "subspaces": subspaces,
    },
    "docs/compare.md": lambda: {"readers": partial(measured, readers), "installed": partial(measured, installed)},
    "docs/data.md": lambda: {"loading": partial(measured, loading)},
    "docs/deploy.md": lambda: {"precision": partial(measured, precision)},
    "docs/emergence.md": emergence,
    "docs/imagenet21k.md": lambda: of_all(plan_tables.TABLES, plan_tables.read()),
    "docs/models.md": lambda: {"models": models},
    "docs/segment.md": lambda: {"pipeline": partial(measured, pipeline)},
    "docs/speed.md": lambda: {
        **of_all(speed_tables.TABLES, speed_tables.read()),
        "growth_of_networks": partial(measured, growth),
    },
    "docs/masks.md": masks,
    "docs/weights.md": lambda: {
        "weights": weights,
        "load": partial(measured, load),
        "start": lambda: load.start_table(results_of("load")),
    },
}


def markers(text: str) -> list[str]:
    """The names of the tables that a page has a place for."""
    return re.findall(r"^<!-- /(.+) -->$", text, flags=re.MULTILINE)


def fill(text: str, tables: dict[str, Table]) -> str:
    """The page with its tables renewed."""
    for name in markers(text):
        between = rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)"
        text = re.sub(between, lambda _, name=name: f"{tables[name]()}\n", text, flags=re.DOTALL)  # type: ignore[misc]
    return text


def pages() -> Iterator[tuple[Path, str]]:
    """Each page that has tables, and its text with them renewed."""
    for page, tables in PAGES.items():
        yield ROOT / page, fill((ROOT / page).read_text(encoding="utf-8"), tables())


if __name__ == "__main__":
    for path, text in pages():
        path.write_text(text, encoding="utf-8")
