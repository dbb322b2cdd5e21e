"""What was measured of speed on two processors: the tables of docs/speed.md, and its picture.

    python -m benchmarks.speed_tables

speed.json is of a processor that multiplies in bf16, speed_avx2.json, by older code, of one that does not.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from whitebox_crate._tables import markdown_table

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
WITH, WITHOUT = PROCESSORS = {"with bf16": "speed", "without": "speed_avx2"}
Results: TypeAlias = dict[str, Any]
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


def ratios(case: dict[str, Any], slow: str, fast: str) -> list[float]:
    """The time of `slow` over that of `fast` in each round that has both, sorted."""
    return sorted(r[slow] / r[fast] for r in case["seconds"] if slow in r and fast in r)


def times_as_long(case: dict[str, Any], slow: str, fast: str) -> float:
    """The median over rounds of the time of `slow` over that of `fast`."""
    return statistics.median(ratios(case, slow, fast))


def with_interval(case: dict[str, Any], slow: str, fast: str) -> str:
    """The median over rounds, and the two rounds between which that of all possible rounds lies with at least 95%.

    Each round lies below that with a chance of one half, whatever the distribution. Below six rounds all of them are
    not enough, and there is no interval; no ratio either if there was no round.
    """
    found = ratios(case, slow, fast)
    n, left_out = len(found), 0  # on each side
    if n < 6:
        return f"{statistics.median(found):.2f}" if found else ""
    while 2 * sum(math.comb(n, k) for k in range(left_out + 2)) <= 0.05 * 2**n:
        left_out += 1
    return f"{statistics.median(found):.2f} ({found[left_out]:.2f} to {found[n - 1 - left_out]:.2f})"


def median(case: dict[str, Any], name: str) -> float:
    """Seconds."""
    rounds: list[dict[str, float]] = case["seconds"]
    return statistics.median(r[name] for r in rounds if name in r)


def exponent(sizes: list[dict[str, float]], what: str, low: float, high: float) -> float:
    """b of `what` = a patches^b, by least squares of the logarithms, over the sizes from `low` to `high` patches."""
    within = [(math.log(s["patches"]), math.log(s[what])) for s in sizes if low <= s["patches"] <= high]
    return statistics.linear_regression([x for x, _ in within], [y for _, y in within]).slope


def forward(by: Results) -> str:
    """Every contestant against the published formulation, on the processor with bf16."""
    section = by[WITH]["forward"]
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
            needs_more = name in ("ViT", "published", "default")  # than the folded model's products
            of_float32 = not needs_more and not name.startswith("bf16")
            share = f"{case['operations'] / spent / rate['float32']:.0%}" if of_float32 else ""
            ratio = "1" if name == "published" else with_interval(case, "published", name)
            line += [ratio, f"{case['batch'] / spent:.3g}", share]
        lines.append(line)
    return markdown_table(["Forward pass", *heads], lines)


def processors(by: Results) -> str:
    """Times as fast as published, on both processors."""
    cases = {name: [by[p]["forward"]["cases"][name] for p in PROCESSORS] for name in by[WITH]["forward"]["cases"]}
    heads = [f"{name}, {processor}" for name in cases for processor in PROCESSORS]
    lines = []
    for name, said in NAMES.items():
        if name != "published":
            of = [case for pair in cases.values() for case in pair]
            lines.append([said, *(with_interval(case, "published", name) for case in of)])
    return markdown_table(["Times as fast as published", *heads], lines)


def asked(by: Results) -> str:
    """What was asked for of a CPU, beside what was measured on both."""
    lines: dict[str, list[str]] = {}

    def line(processor: str, what: str, measured: float, limit: float, *, at_most: bool = False) -> None:
        met = measured <= limit if at_most else measured >= limit
        said = lines.setdefault(what, [what, f"{'at most' if at_most else 'at least'} {limit:.2f}", "", ""])
        said[2 + list(PROCESSORS).index(processor)] = f"{measured:.2f}" if met else f"**{measured:.2f}**"

    for p, results in by.items():
        b16, b8 = (results["forward"]["cases"][name] for name in ("B/16, batch 8", "B/8, batch 1"))
        for case, name, default, folded in ((b16, "B/16, batch 8", 1.25, 1.6), (b8, "B/8, batch 1", 1.45, 1.8)):
            line(p, f"published / default, {name}", times_as_long(case, "published", "default"), default)
            line(p, f"published / folded, {name}", times_as_long(case, "published", "folded"), folded)
            best = max(times_as_long(case, "folded", way) for way in ("compiled", "compiled, frozen"))
            line(p, f"folded / folded and compiled, {name}", best, 1.0)
        line(p, "ViT / folded, B/16, batch 8", times_as_long(b16, "ViT", "folded"), 3.2)
        in_bf16 = max(times_as_long(b16, "folded", way) for way in ("bf16, cast", "bf16, autocast"))
        line(p, "folded float32 / folded bf16, B/16, batch 8", in_bf16, 2.0)
        for name, case in results["training"]["cases"].items():
            line(p, f"training step, published / default, {name}", times_as_long(case, "published", "default"), 1.5)
        for name, case in results["capture"]["cases"].items():
            longer = times_as_long(case, "captured", "default")
            line(p, f"with [CLS] maps / without, {name}", longer, 1.05, at_most=True)
        largest = results["growth"]["sizes"]["default"][-1]
        what = f"GiB at {largest['patches'] + 1:,} tokens, with [CLS] maps"
        line(p, what, largest["peak_bytes"] / 2**30, 3.0, at_most=True)
    return markdown_table(("What", "Asked", *(f"Measured, {p}" for p in PROCESSORS)), list(lines.values()))


def half(by: Results) -> str:
    """bf16 against float32, folded."""
    cases = by[WITH]["half"]["cases"]
    lines = [
        [
            name,
            *(with_interval(case, "folded", way) for way in ("bf16, cast", "bf16, autocast")),
            case["chosen"],
            f"{case['chosen_in_seconds']:.2f} s",
        ]
        for name, case in cases.items()
    ]
    heads = ("Float32 / bf16, folded", "cast", "autocast", "`faster_dtype` chooses", "in")
    return markdown_table(heads, lines)


def training(by: Results) -> str:
    """A training step, in float32 and in bf16."""
    lines = [
        [
            name,
            f"{1000 * median(case, 'default'):,.0f} ms",
            with_interval(case, "published", "default"),
            f"{case['operations']['published'] / case['operations']['default']:.2f}",
            f"{1000 * median(case, 'bf16'):,.0f} ms",
            with_interval(case, "default", "bf16"),
            with_interval(case, "published, bf16", "bf16"),
            with_interval(case, "bf16, attention fused", "bf16"),
        ]
        for name, case in by[WITH]["training"]["cases"].items()
    ]
    bf16 = ("bf16", "float32 / bf16", "published / default, both bf16", "attention fused / written out, both bf16")
    return markdown_table(
        ("Training step", "float32", "published / default", "operations, published / default", *bf16), lines
    )


def optimizers(by: Results) -> str:
    """The step of an optimiser alone."""
    cases = by[WITH]["optimizers"]["cases"]
    names = list(next(iter(cases.values()))["seconds"][0])
    lines = [[case, *(f"{1000 * median(of, name):.2f} ms" for name in names)] for case, of in cases.items()]
    return markdown_table(("Step of the optimiser", *names), lines)


def last_layer(by: Results) -> str:
    """How much longer all tokens of the last layer take than [CLS] alone."""
    lines = [
        [name, *(with_interval(case, way, f"{way}, [CLS] alone") for way in ("default", "folded"))]
        for name, case in by[WITH]["last layer"]["cases"].items()
    ]
    return markdown_table(("All tokens / [CLS] alone", "default", "folded"), lines)


def ceiling(by: Results) -> str:
    """Which share of the time the products alone take."""
    ways = ("folded", "compiled", "compiled, frozen")
    cases = {f"{n}, {p}": c for p in PROCESSORS for n, c in by[p]["forward"]["cases"].items()}
    lines = [[NAMES[way], *(f"{times_as_long(c, 'products', way):.0%}" for c in cases.values())] for way in ways]
    return markdown_table(["Time of the products alone over that of", *cases], lines)


def growth(by: Results) -> str:
    """Seconds and memory by size, and how fast they grow."""
    sizes: dict[str, list[dict[str, float]]] = by[WITH]["growth"]["sizes"]
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


def profile(by: Results, section: str = "profile") -> str:
    """Where the time goes."""
    columns = {f"{name}, {way}": s for name, case in by[WITH][section]["cases"].items() for way, s in case.items()}
    groups = next(iter(columns.values()))
    lines = [[group, *(f"{shares[group]:.1%}" for shares in columns.values())] for group in groups]
    return markdown_table(["Share of the time", *columns], lines)


def ran_on(by: Results) -> str:
    """What all this ran on, by section."""
    lines = []
    for name, section in ((name, section) for results in by.values() for name, section in results.items()):
        where = section["environment"]
        versions = ", ".join(f"{package} {version}" for package, version in where["versions"].items())
        machine = f"{where['device']} ({', '.join(where['flags'])}), threads: {where['threads']}"
        lines.append([name, machine, versions, f"{where['seconds']} s", f"{where['load_before']}"])
    return markdown_table(("Section", "Machine", "Versions", "Took", "Load before"), lines)


TABLES: dict[str, Callable[[Results], str]] = {
    "asked": asked,
    "forward": forward,
    "processors": processors,
    "half": half,
    "training": training,
    "optimizers": optimizers,
    "last-layer": last_layer,
    "ceiling": ceiling,
    "growth": growth,
    "profile": profile,
    "training-profile": partial(profile, section="training profile"),
    "ran-on": ran_on,
}


def read() -> Results:
    """What was measured, by processor."""
    return {said: json.loads((HERE / f"{name}.json").read_text()) for said, name in PROCESSORS.items()}


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
    plot(read()[WITH], DOCS / "images" / "speed.png")


if __name__ == "__main__":
    main()
