"""How time and memory of a network grow with the number of tokens: CBT and ToST beside CRATE and ViT.

    python -m benchmarks.growth --out benchmarks/growth.json
    python -m benchmarks.pages

The first command measures, the second fills docs/speed.md. Networks of one width, cut to an embedding and one layer,
see one image in evaluation mode, without gradients. Time is that of the processor on one thread, which other work on
the machine lengthens less than that of a clock; the median of rounds counts. Memory is the growth of the resident set
during a pass over what it was before. Each network and size is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import load
from benchmarks.speed import Setting, environment, say
from benchmarks.speed_tables import exponent
from whitebox_crate import create_model
from whitebox_crate._files import write_json
from whitebox_crate._tables import markdown_table

NETWORKS = {
    "CRATE": "crate_paper_tiny_patch8_224",
    "CBT": "cbt_tiny_patch8_224",
    "ToST": "tost_tiny_12_patch8_224",
    "ViT": "vit_tiny_patch8_224",
}
SIDES = (14, 28, 56, 90, 128)  # patches: 196 to 16,384
RANGES = ((196, 16384), (3136, 16384))


@torch.no_grad()
def one_size(name: str, side: int, depth: int, rounds: int) -> dict[str, Any]:
    """Seconds of each round, and the most memory that a pass takes beyond what is there before, bytes."""
    model = create_model(name, img_size=8 * side, depth=depth).eval()
    images = torch.randn(1, 3, 8 * side, 8 * side)
    load.reset_peak()
    before, found = load.resident("VmRSS"), list[float]()
    for _ in range(rounds):
        began = time.process_time()
        model(images)
        found.append(round(time.process_time() - began, 5))
    return {"patches": side * side, "rounds": found, "growth_bytes": load.resident("VmHWM") - before}


def measure(depth: int, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Every network at every size, each in a process of its own."""
    sizes: dict[str, list[dict[str, Any]]] = {network: [] for network in NETWORKS}
    for side in SIDES:
        for network, name in NETWORKS.items():
            command = [sys.executable, "-m", "benchmarks.growth", "--depth", str(depth), "--rounds", str(rounds)]
            found = json.loads(subprocess.check_output([*command, "--one", name, str(side)]))
            sizes[network].append({**found, "seconds": statistics.median(found["rounds"])})
            say(f"{network}, {side} x {side} patches: {sizes[network][-1]}")
    return sizes


def table(results: dict[str, Any]) -> str:
    """Seconds and memory of each network by size, and the powers of the patches with which they grow."""
    sizes: dict[str, list[dict[str, Any]]] = results["sizes"]
    lines = []
    for number, patches in enumerate(size["patches"] for size in next(iter(sizes.values()))):
        line = [f"{patches:,}"]
        for found in sizes.values():
            line += [f"{found[number]['seconds']:.3g} s", f"{found[number]['growth_bytes'] / 2**20:.0f} MiB"]
        lines.append(line)
    for low, high in RANGES:
        fitted = (
            f"{exponent(found, what, low, high):.2f}"
            for found in sizes.values()
            for what in ("seconds", "growth_bytes")
        )
        lines.append([f"power of the patches, {low:,} to {high:,}", *fitted])
    return markdown_table(["Patches", *(head for network in sizes for head in (network, "memory"))], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("growth.json"))
    parser.add_argument("--depth", type=int, default=1, help="layers (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("NAME", "SIDE"), help="one network at one size, in this process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        print(json.dumps(one_size(options.one[0], int(options.one[1]), options.depth, options.rounds)))
        return
    about = environment(Setting("cpu", options.rounds, 1))
    about["command"] = shlex.join(["python", "-m", "benchmarks.growth", *sys.argv[1:]])
    results = {"networks": NETWORKS, "depth": options.depth, "environment": about}
    results["sizes"] = measure(options.depth, options.rounds)
    write_json(options.out, results)
    print(table(results))


if __name__ == "__main__":
    main()
