"""The tables of docs/emergence.md: numbers of a record, and means and intervals over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from studies.emergence.measures import interval
from studies.emergence.plan import COMPARED, EQUAL_COMPUTE, FAMILY, table
from whitebox_crate._tables import markdown_table

NAMES = {
    "crate": "CRATE",
    "crate_sth": "CRATE-sth",
    "crate_mlp": "CRATE-MLP",
    "crate_mhsa": "CRATE-MHSA",
    "vit": "ViT",
    "vit_timm": "ViT, timm's start",
    "crate_tied": "CRATE, tied",
    "crate_attention_only": "CRATE, attention only",
    "crate_cbt": "CRATE, then CBT",
    "cbt": "CBT",
    "tost": "ToST",
    "crate_narrow": "CRATE, width 32",
    "crate_wide": "CRATE, width 128",
}

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
    """The score of the best head of each image, by layer."""
    return lambda record: [mean for mean, _ in layers_of(record, measure)["best_head"]]


def best_head(measure: str) -> Reading:
    """The score of the best head of each image, in the layer where it is best."""
    return lambda record: max(best_by_layer(measure)(record))


def maskcut_by_layer(record: Record) -> list[float]:
    return [mean for mean, _ in record["maskcut_iou_by_layer"]]


def rate_by_layer(record: Record) -> list[float]:
    """Rc of the tokens after attention, on the layer's own subspaces, nats per token."""
    rates: list[float] = record["layerwise"]["subspace_coding_rate"]["compressed"]
    return rates


def nonzero_by_layer(record: Record) -> list[float]:
    """The share of entries that are not zero after coding."""
    shares: list[float] = record["layerwise"]["l0"]["output"]
    return shares


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


HALF, LONGER = "ViT, half the steps", f"CRATE, {EQUAL_COMPUTE:,} steps"
TIMM, SLOW, FAST = NAMES["vit_timm"], "ViT, at 0.0002", "ViT, timm's start, at 0.0008"
OF_GARMENTS = ("CRATE, at 0.0008", "ViT, at 0.0008")  # on photographs, at the rate that was tuned on garments


def groups(results: Record, data: str) -> dict[str, list[Record]]:
    """The existing runs of every network and control by name, with untrained ones."""
    found = {NAMES[variant]: select(results, "main", data, variant) for variant in COMPARED}
    found[LONGER] = select(results, "longer", data, "crate")
    found[HALF] = select(results, "half", data, "vit")
    found[TIMM] = select(results, "start", data, "vit_timm")
    for variant in NAMES:
        for run in select(results, "crossed", data, variant):
            found.setdefault(f"{NAMES[variant]}, at {run['learning_rate']:g}", []).append(run)
    found |= {f"{NAMES[variant]}, untrained": untrained(results, data, variant) for variant in ("crate", "vit")}
    return {name: runs for name, runs in found.items() if runs}


def untrained(results: Record, data: str, variant: str) -> list[Record]:
    """The same networks before training."""
    return [{**run["by_epoch"][0], "seed": run["seed"]} for run in select(results, "main", data, variant)]


# --- tables -------------------------------------------------------------------------------------------------


def cell(values: Sequence[float | None], digits: int = 3, null: float | None = None) -> str:
    """Mean over seeds, and half the width of its 95% interval; bold if the interval excludes `null`."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean, half = interval(known)
    shown = f"{mean:.{digits}f}" if len(known) < 2 else f"{mean:.{digits}f} ± {half:.{digits}f}"
    return f"**{shown}**" if null is not None and abs(mean - null) > half else shown


def main_table(results: Record, data: str, kind: str) -> str:
    """Every variant after training, CRATE and ViT before training, and baselines without a network."""
    readings = READINGS[kind]
    rows = [["", "seeds", *readings]]
    for name, found in groups(results, data).items():
        rows.append([name, str(len(found)), *(cell([read(r) for r in found]) for read in readings.values())])
    for name, found in results["trivial"][data].items():
        rows.append([name, "–", *(f"{found[TRIVIAL[r]][0]:.3f}" if r in TRIVIAL else "–" for r in readings)])
    return markdown_table(rows[0], rows[1:])


COMPARISONS = (
    *(("CRATE", other) for other in ("ViT", HALF, TIMM, SLOW, FAST, "CRATE-sth", "CRATE-MLP", "CRATE-MHSA")),
    *((LONGER, "ViT"), (LONGER, TIMM), (LONGER, "CRATE")),
    *(OF_GARMENTS, *zip(("CRATE", "ViT"), OF_GARMENTS, strict=True)),
    *(("CRATE-MLP", "CRATE-MHSA"), ("CRATE-MHSA", "ViT"), ("CRATE-MLP", "ViT")),
    *((TIMM, "ViT"), (SLOW, "ViT"), (TIMM, SLOW), (TIMM, FAST), (FAST, "ViT")),
    *(("CRATE", "CRATE, untrained"), ("ViT", "ViT, untrained")),
)


def paired_table(results: Record, data: str, kind: str, ratio: bool) -> str:
    """Pairs of runs with the same data, seed by seed: the first minus the second, or divided by it."""
    readings, digits, null = READINGS[kind], 2 if ratio else 3, 1 if ratio else 0
    rows, of = [["", "seeds", *readings]], groups(results, data)
    for first, second in COMPARISONS:
        if pairs := paired(of.get(first, []), of.get(second, [])):
            values = (compared(pairs, read, ratio) for read in readings.values())
            rows.append([f"{first}; {second}", str(len(pairs)), *(cell(column, digits, null) for column in values)])
    return markdown_table(rows[0], rows[1:])


def paired(firsts: Sequence[Record], seconds: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Runs of the same seed, which share their data."""
    others = {record["seed"]: record for record in seconds}
    return [(record, others[record["seed"]]) for record in firsts if record["seed"] in others]


def compared(pairs: Sequence[tuple[Record, Record]], read: Reading, ratio: bool = False) -> list[float]:
    """The first minus the second of each pair, or divided by it unless it is zero, if both have the value."""
    read_pairs = [(read(first), read(second)) for first, second in pairs]
    known = [(a, b) for a, b in read_pairs if a is not None and b is not None]
    return [a / b for a, b in known if b] if ratio else [a - b for a, b in known]


def equal_accuracy_table(results: Record, data: str) -> str:
    """CRATE at the end against each other network at its point of nearest accuracy, on the points' images."""
    readings, of = READINGS["best head"], groups(results, data)
    rows = [["", "seeds", "step of the second", *readings]]
    for first, second in (*(("CRATE", other) for other in ("ViT", "CRATE-MLP", "CRATE-MHSA")), (LONGER, "ViT")):
        runs = [(a["by_epoch"][-1], b) for a, b in paired(of.get(first, []), of.get(second, []))]
        if pairs := [(end, _nearest(run["by_epoch"], end)) for end, run in runs]:
            steps = ", ".join(str(point["step"]) for _, point in pairs)
            values = (cell(compared(pairs, read), 3, 0) for read in readings.values())
            rows.append([f"{first}; {second}", str(len(pairs)), steps, *values])
    return markdown_table(rows[0], rows[1:])


def _nearest(points: Sequence[Record], end: Record) -> Record:
    """The point of a training with the nearest accuracy."""
    return min(points, key=lambda point: abs(point["accuracy"] - end["accuracy"]))


def layer_table(results: Record, data: str) -> str:
    """Means over seeds by layer, and the difference between the last layer and the first."""
    kinds = {
        "best head, AP": best_by_layer("average_precision"),
        **{f"best head, IoU, {rule}": best_by_layer(f"iou_{rule}") for rule in ("mean", "mass", "entries")},
        "best head, IoU, best cut": best_by_layer("iou_best"),
        "MaskCut, IoU": maskcut_by_layer,
        "Rc after attention, nats per token": rate_by_layer,
        "share not zero after coding": nonzero_by_layer,
    }
    depth = results["scales"][data]["model"]["depth"]
    rows = [["", "", *(f"layer {layer}" for layer in range(depth)), "last − first"]]
    for kind, read in kinds.items():
        for variant in COMPARED:
            if found := [read(run) for run in select(results, "main", data, variant)]:
                means = [f"{fmean(column):.3f}" for column in zip(*found, strict=True)]
                rows.append([kind, NAMES[variant], *means, cell([layers[-1] - layers[0] for layers in found], 3, 0)])
    return markdown_table(rows[0], rows[1:])


def budget_table(results: Record, data: str) -> str:
    """The cost of each variant."""
    rows = [["", "seeds", "parameters", "learning rate", "steps", "images seen", "MFLOPs an image", "CPU seconds"]]
    for part, called in (("main", NAMES), ("half", {"vit": HALF}), ("longer", {"crate": LONGER})):
        for variant, name in called.items():
            if found := select(results, part, data, variant):
                run = found[0]
                rows.append(
                    [
                        name,
                        str(len(found)),
                        f"{run['parameters']:,}",
                        f"{run['learning_rate']:g}",
                        f"{run['steps']:,}",
                        f"{run['images_seen']:,}",
                        f"{results['flops'][data][variant] / 1e6:.1f}",
                        f"{fmean(r['cpu_seconds'] for r in found):.0f}",
                    ]
                )
    return markdown_table(rows[0], rows[1:])


def tuning_table(results: Record, data: str, variants: Sequence[str] = (*COMPARED, "vit_timm")) -> str:
    """Accuracy of the short runs by which learning rates were chosen, the chosen one's in bold."""
    runs = [r for r in results["runs"] if (r["part"], r["data"]) == ("tuning", data) and r["variant"] in variants]
    rates = sorted({run["learning_rate"] for run in runs})
    rows = [["learning rate", *(f"{rate:g}" for rate in rates)]]
    for variant in variants:
        if found := {run["learning_rate"]: run["accuracy"] for run in runs if run["variant"] == variant}:
            best = max(found, key=found.__getitem__)
            cells = {rate: f"**{found[rate]:.3f}**" if rate == best else f"{found[rate]:.3f}" for rate in found}
            rows.append([NAMES[variant], *(cells.get(rate, "–") for rate in rates)])
    return markdown_table(rows[0], rows[1:])


def why_table(results: Record, data: str, differences: bool = False) -> str:
    """CRATE with one thing changed, beside unchanged CRATE or minus it, seed by seed."""
    as_it_is, changed = select(results, "main", data, "crate"), select(results, "why", data, "crate")
    readings, kinds = READINGS["best head"], dict.fromkeys(_options_of(run) for run in changed)
    rows = [["CRATE with", "seeds", *([] if differences else ["parameters"]), *readings]]
    for kind in kinds if differences else ("nothing changed", *kinds):
        found = [run for run in changed if _options_of(run) == kind] or as_it_is
        row = [kind, str(len(found)), *([] if differences else [f"{found[0]['parameters']:,}"])]
        if differences:
            row += [cell(compared(paired(found, as_it_is), read), 3, 0) for read in readings.values()]
        else:
            row += [cell([read(run) for run in found]) for read in readings.values()]
        rows.append(row)
    return markdown_table(rows[0], rows[1:])


def _options_of(run: Record) -> str:
    return ", ".join(f"`{key}={value}`" for key, value in run["options"].items())


def family(results: Record, data: str) -> dict[str, list[Record]]:
    """The existing runs of the family, by name."""
    found = {NAMES[variant]: select(results, "family", data, variant) for variant in FAMILY}
    for variant in FAMILY:
        for run in select(results, "halved", data, variant):
            found.setdefault(f"{NAMES[variant]}, at {run['learning_rate']:g}", []).append(run)
    return {name: runs for name, runs in found.items() if runs}


def family_table(results: Record, data: str) -> str:
    """The cost of each network of the family, and the scores of its best head."""
    readings = READINGS["best head"]
    rows = [["", "seeds", "parameters", "learning rate", "MFLOPs an image", "ms a step", *readings]]
    for name, runs in family(results, data).items():
        variant = runs[0]["variant"]
        cost = [f"{runs[0]['parameters']:,}", f"{runs[0]['learning_rate']:g}"]
        cost += [f"{results['flops'][data][variant] / 1e6:.1f}", f"{results['step_ms'][data][variant]:.0f}"]
        rows.append([name, str(len(runs)), *cost, *(cell([read(run) for run in runs]) for read in readings.values())])
    return markdown_table(rows[0], rows[1:])


def family_differences(results: Record, data: str) -> str:
    """Each network of the family minus CRATE, seed by seed."""
    readings, of = READINGS["best head"], family(results, data)
    rows = [["", "seeds", *readings]]
    for name, runs in of.items():
        if name != "CRATE" and (pairs := paired(runs, of.get("CRATE", []))):
            values = (cell(compared(pairs, read), 3, 0) for read in readings.values())
            rows.append([f"{name}; CRATE", str(len(pairs)), *values])
    return markdown_table(rows[0], rows[1:])


def family_layers(results: Record, data: str) -> str:
    """The best head of each image, means over seeds, by layer with [CLS] attention."""
    measures = {"IoU, mean": "iou_mean", "IoU, best cut": "iou_best", "AP": "average_precision"}
    of = family(results, data)
    last = max((max(runs[0]["layers"]) for runs in of.values()), default=0)
    rows = [["", "", *(f"layer {layer}" for layer in range(last + 1))]]
    for measure, key in measures.items():
        for name, runs in of.items():
            columns = zip(*(best_by_layer(key)(run) for run in runs), strict=True)
            means = dict(zip(runs[0]["layers"], map(fmean, columns), strict=True))
            cells = [f"{means[layer]:.3f}" if layer in means else "–" for layer in range(last + 1)]
            rows.append([measure, name, *cells])
    return markdown_table(rows[0], rows[1:])


def state_table(results: Record, data: str) -> str:
    """The number of finished runs, and the versions that made them."""
    seconds = sum(run["cpu_seconds"] for run in results["runs"] if run["data"] == data)
    parts = tuple(dict.fromkeys(run.part for run in table()))
    made = {part: [run for run in results["runs"] if (run["part"], run["data"]) == (part, data)] for part in parts}
    planned = {part: [run for run in table() if (run.part, run.data) == (part, data)] for part in parts}
    rows = [["runs", *parts, "CPU hours of training", *results["versions"]]]
    counts = (f"{len(made[part])} of {len(planned[part])}" for part in parts)
    rows.append([data, *counts, f"{seconds / 3600:.2f}", *results["versions"].values()])
    head, *pairs = zip(*rows, strict=True)  # a line for each: side by side they are wider than a page
    return markdown_table(head, pairs)


TABLES: dict[str, Callable[[Record, str], str]] = {
    "heads": partial(main_table, kind="best head"),
    "heads_differences": partial(paired_table, kind="best head", ratio=False),
    "heads_ratios": partial(paired_table, kind="best head", ratio=True),
    "one_map": partial(main_table, kind="one map"),
    "one_map_differences": partial(paired_table, kind="one map", ratio=False),
    "equal_accuracy": equal_accuracy_table,
    "layers": layer_table,
    "budget": budget_table,
    "tuning": tuning_table,
    "why": why_table,
    "why_differences": partial(why_table, differences=True),
    "family_tuning": partial(tuning_table, variants=FAMILY),
    "family": family_table,
    "family_differences": family_differences,
    "family_layers": family_layers,
    "state": state_table,
}
