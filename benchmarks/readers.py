"""What it takes to read the attention of all layers of a ViT-S/16 at 448 pixels, by several libraries.

    pip install --target elsewhere --no-deps timm transformers tokenizers regex torchvision
    PYTHONPATH=elsewhere python -m benchmarks.readers --out benchmarks/readers.json

One image, random weights, one thread. Each way is a process of its own, and the ways take turns. Seconds are those of
the processor, the median of five passes. Memory is the growth of the resident set over the first pass, to its peak.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.load import reset_peak, resident
from whitebox_crate import capture
from whitebox_crate._files import write_json
from whitebox_crate._tables import markdown_table

SIDE, LAYERS, PASSES = 448, 12, 5
Run = Callable[[Tensor], object]


def of_timm(fused: bool = True) -> nn.Module:
    import timm

    timm.layers.set_fused_attn(fused)
    model: nn.Module = timm.create_model("vit_small_patch16_224", img_size=SIDE)
    return model.eval()


def of_transformers(implementation: str = "sdpa") -> nn.Module:
    from transformers import ViTConfig, ViTModel  # type: ignore[import-not-found, unused-ignore]

    shape = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "num_hidden_layers": LAYERS}
    config = ViTConfig(**shape, image_size=SIDE, attn_implementation=implementation)
    model: nn.Module = ViTModel(config, add_pooling_layer=False)
    return model.eval()


def captured(model: nn.Module, queries: Literal["cls", "all"]) -> Run:
    def run(images: Tensor) -> object:
        with capture(model, "attention", queries=queries) as trace:
            model(images)
        return trace

    return run


def extracted() -> Run:
    from timm.utils import AttentionExtract

    run: Run = AttentionExtract(of_timm(fused=False), method="fx")
    return run


def put_out() -> Run:
    model = of_transformers("eager")
    return lambda images: model(images, output_attentions=True).attentions


# The first of each library is what the others of it are compared with.
WAYS: dict[str, dict[str, Callable[[], Run]]] = {
    "timm": {
        "forward pass alone": of_timm,
        "`capture`, rows of [CLS]": lambda: captured(of_timm(), "cls"),
        "`capture`, all rows": lambda: captured(of_timm(), "all"),
        "timm's `AttentionExtract`, fused attention off": extracted,
    },
    "transformers": {
        "forward pass alone": of_transformers,
        "`capture`, rows of [CLS]": lambda: captured(of_transformers(), "cls"),
        "`capture`, all rows": lambda: captured(of_transformers(), "all"),
        '`output_attentions=True`, `attn_implementation="eager"`': put_out,
    },
}


@torch.inference_mode()
def measured(library: str, way: str) -> dict[str, float]:
    """Seconds of the processor and bytes of one way, in this process."""
    torch.set_num_threads(1)
    run, images = WAYS[library][way](), torch.randn(1, 3, SIDE, SIDE)
    reset_peak()
    before = resident("VmRSS")
    run(images)
    grown, seconds = resident("VmHWM") - before, list[float]()
    for _ in range(PASSES):
        began = time.process_time()
        run(images)
        seconds.append(time.process_time() - began)
    return {"seconds": statistics.median(seconds), "bytes": grown}


def measure(rounds: int) -> dict[str, Any]:
    found: dict[str, dict[str, list[dict[str, float]]]] = {
        name: {way: [] for way in ways} for name, ways in WAYS.items()
    }
    for _ in range(rounds):
        for library, ways in WAYS.items():
            for way in ways:
                line = [sys.executable, "-m", "benchmarks.readers", "--library", library, "--way", way]
                done = subprocess.run(line, check=True, capture_output=True, text=True)
                found[library][way].append(json.loads(done.stdout.splitlines()[-1]))
    versions = {name: version(name) for name in ("timm", "transformers", "torch")}
    return {"found": found, "versions": versions, "python": platform.python_version(), "machine": platform.machine()}


def table(results: dict[str, Any]) -> str:
    """A row for each way, in Markdown; times are over the forward pass alone of the same round."""
    rows = []
    for library, ways in results["found"].items():
        alone = [of["seconds"] for of in next(iter(ways.values()))]
        for way, runs in ways.items():
            ratio = statistics.median(of["seconds"] / base for of, base in zip(runs, alone, strict=True))
            memory = statistics.median(of["bytes"] for of in runs) / 2**20
            rows.append((f"{library} {results['versions'][library]}", way, f"{ratio:.2f}", f"{memory:,.0f} MiB"))
    return markdown_table(("Model of", "Way", "Time", "Memory"), rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--library", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measured(options.library, options.way)))
    else:
        results = measure(options.rounds)
        write_json(options.out, results)
        print(table(results))
