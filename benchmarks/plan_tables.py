"""What plan.json says, with what follows from it: the tables of docs/imagenet21k.md."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from benchmarks.plan import (
    CARDS,
    CORES_PER_NODE,
    EFFICIENCIES,
    FULL,
    GIB,
    GPUS_PER_NODE,
    HERE,
    RECIPE,
    RELEASES,
    WAYS,
    accumulation,
    hours,
    images_per_second,
    largest_batch,
    measured_efficiency,
    standing_bytes,
)
from whitebox_crate._tables import markdown_table


def millions(number: float) -> str:
    return f"{number / 1e6:.1f}"


def needs(results: dict[str, Any]) -> str:
    """Operations and memory of each model."""
    lines = [
        [
            f"`{name}`",
            millions(m["parameters"]),
            f"{m['tokens']:,}",
            f"{m['forward'] / 1e9:.1f}",
            f"{m['training'] / 1e9:.1f}",
            f"{standing_bytes(m) / GIB:.2f}",
            millions(m["float32"]["whole"]),
            millions(m["bfloat16"]["whole"]),
            millions(m["bfloat16"]["checkpointed"]),
        ]
        for name, m in results["models"].items()
    ]
    header = (
        "Model | parameters, millions | tokens | forward, GFLOPs | training, GFLOPs | standing, GiB | "
        "kept of an image, MB: float32 | bf16 | bf16, checkpointing"
    )
    return markdown_table(header.split(" | "), lines)


def batches(results: dict[str, Any]) -> str:
    """What fits, and in how many parts each GPU takes its share of the paper's batch."""
    sizes = sorted({card.memory for card in CARDS.values()})
    lines = []
    for name, m in results["models"].items():
        for way in WAYS:
            line = [f"`{name}`", "yes" if way == "checkpointed" else "no"]
            for memory in sizes:
                fits = largest_batch(standing_bytes(m), m["bfloat16"][way], memory)
                line += [f"{fits:,}", *(str(accumulation(RECIPE.batch_size, n, fits) or "none") for n in (8, 64))]
            lines.append(line)
    columns = " | ".join(f"{size // GIB} GB: images | parts, 8 GPUs | 64 GPUs" for size in sizes)
    return markdown_table(f"Model | checkpointing | {columns}".split(" | "), lines)


def time(results: dict[str, Any]) -> str:
    """Hours of one card for the whole training."""
    images, lines = RELEASES[FULL].images, []
    peaks = {card.peak: name.partition(",")[0] for name, card in CARDS.items()}
    for name, m in results["models"].items():
        line = [f"`{name}`", f"{m['training'] * images * RECIPE.epochs:.2g}".replace("e+", "e")]
        for peak in peaks:
            slow, fast = (hours(m["training"], images, RECIPE.epochs, peak, e) for e in EFFICIENCIES)
            line += [f"{slow:,.0f} to {fast:,.0f}", f"{slow / 24 / 8:.1f} to {fast / 24 / 8:.1f}"]
        lines.append(line)
    columns = " | ".join(f"{name}: hours of one | days of 8" for name in peaks.values())
    return markdown_table(f"Computed, not measured | operations in all | {columns}".split(" | "), lines)


def data(results: dict[str, Any]) -> str:
    """The releases, and what one epoch and all of them read."""
    full, node = RELEASES[FULL].images, CORES_PER_NODE * decoded(results)
    lines = [
        [
            name,
            f"{r.images:,}",
            f"{r.classes:,}",
            f"{r.archive / 1e12:.1f} TB",
            f"{r.archive / r.images / 1e3:.0f} kB",
            f"{RECIPE.resolved(r.images).steps:,}",
            f"{r.images / full:.2f}",
            f"{r.images * RECIPE.epochs / node / 86400:.1f}",
        ]
        for name, r in RELEASES.items()
    ]
    header = (
        "Release | images | classes | archive | an image | steps | hours, of those above | days to decode on a node"
    )
    return markdown_table(header.split(" | "), lines)


def decoded(results: dict[str, Any]) -> float:
    """JPEGs that one core decodes and crops in a second."""
    return float(results["loading"]["cases"]["centre, 0"]["images_per_core_second"])


def feeding(results: dict[str, Any]) -> str:
    """What a GPU asks of the processor, of the storage and of the network at the higher efficiency."""
    full, card, lines = RELEASES[FULL], CARDS["H100 SXM, 80 GB"], []
    for name, m in results["models"].items():
        wanted = images_per_second(m["training"], card.peak, EFFICIENCIES[-1])
        lines.append(
            [
                f"`{name}`",
                f"{wanted:,.0f}",
                f"{wanted / decoded(results):.0f}",
                f"{GPUS_PER_NODE * wanted * full.archive / full.images / 1e6:,.0f}",
                f"{RECIPE.batch_size / (GPUS_PER_NODE * wanted):.2f}",
                f"{4 * m['parameters'] / 1e6:,.0f}",
                f"{8 * m['parameters'] / 1e9:.2f}",
            ]
        )
    header = (
        "Model | images/s of an H100 | cores to decode them | node of 8 reads, MB/s | a step of a node, s | "
        "gradients of a step, MB | a checkpoint, GB"
    )
    return markdown_table(header.split(" | "), lines)


def measured(results: dict[str, Any]) -> str:
    """What was measured, and by what."""
    check, versions = results["checked"], results["versions"]
    lines = []
    for way, said in zip(WAYS, ("without", "with"), strict=True):
        of_kept = check["added"][way] / results["models"][check["model"]]["float32"][way]
        lines.append(
            [f"peak memory of a real step, each image adds, over *kept*, {said} checkpointing", f"{of_kept:.2f}"]
        )
    lines += [
        ["JPEGs that one core decodes and crops in a second", f"{decoded(results):.0f}"],
        [
            "the training step of CRATE-S/16 on a CPU, of the rate of one large product",
            f"{measured_efficiency(results):.0%}",
        ],
        ["versions", ", ".join(f"{package} {number}" for package, number in versions.items())],
    ]
    return markdown_table(("Measured", ""), lines)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "needs": needs,
    "batches": batches,
    "time": time,
    "data": data,
    "feeding": feeding,
    "measured": measured,
}


def read() -> dict[str, Any]:
    """What was counted and measured here, and the measurements of others that the tables rest on."""
    results: dict[str, Any] = json.loads((HERE / "plan.json").read_text())
    return results | {name: json.loads((HERE / f"{name}.json").read_text()) for name in ("speed", "loading")}
