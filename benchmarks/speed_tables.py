"""What speed.json says: the tables of docs/speed.md, and its picture: python -m benchmarks.speed_tables"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from whitebox_crate._tables import markdown_table

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
RANGES = ((784, 3136), (3136, 16384))  # patches, over which growth is fitted
NAMES = {
    "published": "as published",
    "default": "default",
    "folded": "folded",
    "compiled": "folded, compiled",
    "compiled, frozen": "folded, compiled, weights frozen",
    "bf16, cast": "folded, bf16 (cast)",
    "bf16, autocast": "folded, bf16 (autocast)",
    "ViT": "ViT of the same size",
    "products": "matrix products alone",
}


def times_as_long(case: dict[str, Any], slow: str, fast: str) -> float:
    """The median over rounds of the time of `slow` over that of `fast`."""
    rounds: list[dict[str, float]] = case["seconds"]
    return statistics.median(r[slow] / r[fast] for r in rounds if slow in r and fast in r)


def median(case: dict[str, Any], name: str) -> float:
    """Seconds."""
    rounds: list[dict[str, float]] = case["seconds"]
    return statistics.median(r[name] for r in rounds if name in r)


def exponent(sizes: list[dict[str, float]], what: str, low: float, high: float) -> float:
    """b of `what` = a patches^b, by least squares of the logarithms, over the sizes from `low` to `high` patches."""
    within = [(math.log(s["patches"]), math.log(s[what])) for s in sizes if low <= s["patches"] <= high]
    return statistics.linear_regression([x for x, _ in within], [y for _, y in within]).slope


def forward(results: dict[str, Any]) -> str:
    """Every contestant against the published formulation."""
    section = results["forward"]
    cases, rate = section["cases"], section["operations_per_second"]
    heads = [head for name in cases for head in (f"{name}: times as fast", "images/s", "of peak")]
    lines = []
    for name, said in NAMES.items():
        line = [said]
        for case in cases.values():
            if not any(name in r for r in case["seconds"]):
                line += [""] * 3
                continue
            spent = median(case, name)
            of_type = rate.get("bfloat16" if name.startswith("bf16") else "float32")
            needs_more = of_type is None or name in ("ViT", "published", "default")  # than the folded model's products
            share = "" if needs_more else f"{case['operations'] / spent / of_type:.0%}"
            line += [f"{times_as_long(case, 'published', name):.2f}", f"{case['batch'] / spent:.3g}", share]
        lines.append(line)
    return markdown_table(["Forward pass", *heads], lines)


def asked(results: dict[str, Any]) -> str:
    """What was asked for of a CPU, beside what was measured."""
    b16, b8 = (results["forward"]["cases"][name] for name in ("B/16, batch 8", "B/8, batch 1"))
    [training] = results["training"]["cases"].values()
    largest = results["growth"]["sizes"]["default"][-1]
    lines: list[list[str]] = []

    def line(what: str, measured: float, limit: float, *, at_most: bool = False) -> None:
        met = measured <= limit if at_most else measured >= limit
        said = f"{'at most' if at_most else 'at least'} {limit:.2f}"
        lines.append([what, said, f"{measured:.2f}", "yes" if met else "**no**"])

    for case, name, default, folded in ((b16, "B/16, batch 8", 1.25, 1.6), (b8, "B/8, batch 1", 1.45, 1.8)):
        line(f"published / default, {name}", times_as_long(case, "published", "default"), default)
        line(f"published / folded, {name}", times_as_long(case, "published", "folded"), folded)
        best = max(times_as_long(case, "folded", way) for way in ("compiled", "compiled, frozen"))
        line(f"folded / folded and compiled, {name}", best, 1.0)
    line("ViT / folded, B/16, batch 8", times_as_long(b16, "ViT", "folded"), 3.2)
    half = max(times_as_long(b16, "folded", way) for way in ("bf16, cast", "bf16, autocast"))
    line("folded float32 / folded bf16, B/16, batch 8", half, 2.0)
    line("training step, published / default", times_as_long(training, "published", "default"), 1.25)
    for name, case in results["capture"]["cases"].items():
        line(f"with [CLS] maps / without, {name}", times_as_long(case, "captured", "default"), 1.05, at_most=True)
    gib = largest["peak_bytes"] / 2**30
    line(f"GiB at {largest['patches'] + 1:,} tokens, with [CLS] maps", gib, 3.0, at_most=True)
    return markdown_table(("What", "Asked", "Measured", "Met"), lines)


def ceiling(results: dict[str, Any]) -> str:
    """Which share of the time the products alone take."""
    cases = results["forward"]["cases"]
    ways = ("folded", "compiled", "compiled, frozen")
    lines = [[NAMES[way], *(f"{times_as_long(c, 'products', way):.0%}" for c in cases.values())] for way in ways]
    return markdown_table(["Time of the products alone over that of", *cases], lines)


def growth(results: dict[str, Any]) -> str:
    """Seconds and memory by size, and how fast they grow."""
    sizes: dict[str, list[dict[str, float]]] = results["growth"]["sizes"]
    by_patches = {kind: {size["patches"]: size for size in found} for kind, found in sizes.items()}
    lines = []
    for patches in by_patches["default"]:
        line = [f"{math.isqrt(int(patches)) * 8} px, {patches:,}"]
        for of_kind in by_patches.values():
            size = of_kind.get(patches)
            line += [f"{size['seconds']:.2f} s", f"{size['peak_bytes'] / 2**30:.2f} GiB"] if size else ["", ""]
        lines.append(line)
    for low, high in RANGES:
        fitted = [f"power of the patches, {low:,} to {high:,}"]
        for found in sizes.values():
            reaches = found[-1]["patches"] >= high
            fitted += [
                f"{exponent(found, what, low, high):.2f}" if reaches else "" for what in ("seconds", "growth_bytes")
            ]
        lines.append(fitted)
    return markdown_table(["Image, patches", *(head for kind in sizes for head in (NAMES[kind], "peak"))], lines)


def profile(results: dict[str, Any]) -> str:
    """Where the time goes."""
    columns = {f"{name}, {way}": s for name, case in results["profile"]["cases"].items() for way, s in case.items()}
    groups = next(iter(columns.values()))
    lines = [[group, *(f"{shares[group]:.1%}" for shares in columns.values())] for group in groups]
    return markdown_table(["Share of the time", *columns], lines)


def ran_on(results: dict[str, Any]) -> str:
    """What all this ran on, by section."""
    lines = []
    for name, section in results.items():
        where = section["environment"]
        versions = ", ".join(f"{package} {version}" for package, version in where["versions"].items())
        machine = f"{where['device']} ({', '.join(where['flags'])}), threads: {where['threads']}"
        lines.append([name, machine, versions, f"{where['seconds']} s", f"{where['load_before']}"])
    return markdown_table(("Section", "Machine", "Versions", "Took", "Load before"), lines)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "asked": asked,
    "forward": forward,
    "ceiling": ceiling,
    "growth": growth,
    "profile": profile,
    "ran-on": ran_on,
}


def plot(results: dict[str, Any], path: Path) -> None:
    """Ratios, and how time and memory grow."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (bars, seconds, memory) = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    cases = results["forward"]["cases"]
    names = [name for name in NAMES if all(name in case["seconds"][0] for case in cases.values())]
    for index, (said, case) in enumerate(cases.items()):
        places = [place + 0.4 * index for place in range(len(names))]
        bars.barh(places, [times_as_long(case, "published", name) for name in names], 0.38, label=said)
    bars.set_yticks([place + 0.2 for place in range(len(names))], [NAMES[name] for name in names])
    bars.invert_yaxis()
    bars.set_xlabel("times as fast as published")
    bars.legend()
    for kind, sizes in results["growth"]["sizes"].items():
        patches = [size["patches"] for size in sizes]
        seconds.loglog(patches, [size["seconds"] for size in sizes], "o-", label=NAMES[kind])
        memory.loglog(patches, [size["growth_bytes"] / 2**20 for size in sizes], "o-", label=NAMES[kind])
    seconds.set(xlabel="patches", ylabel="seconds, one image")
    memory.set(xlabel="patches", ylabel="memory beyond the model, MiB")
    seconds.legend()
    memory.legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    plot(json.loads((HERE / "speed.json").read_text()), DOCS / "images" / "speed.png")


if __name__ == "__main__":
    main()
