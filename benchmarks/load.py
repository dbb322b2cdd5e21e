"""How long create_model takes to load crate_large, and how much memory, against reading the same file into a dict.

    python -m benchmarks.load --out benchmarks/load.json

Every measurement is a process of its own, the three kinds in turn; ratios are of medians. "dict" is
safetensors.torch.load_file, which maps the file; "bytes" is safetensors.torch.load on the file's bytes, which holds it
in memory, as create_model does with files of one's own; "model" is create_model with mmap=True. "mapped" ends when the
call returns, "read" when every value has been read once, and "cold" is "read" after the file was dropped from the page
cache. Memory is the growth of the resident set from before the call to its peak, after every value was read, over the
size of the file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, load_file
from torch import Tensor

from whitebox_crate import create_model, save_pretrained
from whitebox_crate._tables import markdown_table

NAME, KINDS, STATES = "crate_large", ("dict", "bytes", "model"), ("mapped", "read", "cold")


def read_dict(folder: Path) -> Iterable[Tensor]:
    """The file by safetensors alone, mapped."""
    return load_file(folder / "model.safetensors").values()


def read_bytes(folder: Path) -> Iterable[Tensor]:
    """The file by safetensors alone, in memory."""
    return load((folder / "model.safetensors").read_bytes()).values()


def read_model(folder: Path) -> Iterable[Tensor]:
    """The file as a model, mapped."""
    model: torch.nn.Module = create_model(f"local-dir:{folder}", pretrained=True, mmap=True)
    return model.parameters()


def measure(kind: str, state: str, folder: Path) -> dict[str, float]:
    """Seconds and growth of memory in bytes, in this process."""
    read: Callable[[Path], Iterable[Tensor]] = {"dict": read_dict, "bytes": read_bytes, "model": read_model}[kind]
    torch.set_num_threads(1)
    drop_from_cache(folder) if state == "cold" else (folder / "model.safetensors").read_bytes()
    reset_peak()
    before, began = resident("VmRSS"), time.perf_counter()
    tensors = read(folder)
    if state != "mapped":
        sum(float(tensor.detach().sum()) for tensor in tensors)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "bytes": resident("VmHWM") - before}


def drop_from_cache(folder: Path) -> None:
    """Asks the kernel to forget the file's pages."""
    with (folder / "model.safetensors").open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def reset_peak() -> None:
    """Makes the peak of the resident set start from what it is now."""
    Path("/proc/self/clear_refs").write_text("5")


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, bytes."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


def main() -> None:
    """Runs all measurements and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("load.json"))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--one", nargs=3, metavar=("KIND", "STATE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], options.one[1], Path(options.one[2]))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = save_pretrained(create_model(NAME), name)
        size = (folder / "model.safetensors").stat().st_size
        runs: dict[str, dict[str, list[dict[str, float]]]] = {s: {k: [] for k in KINDS} for s in STATES}
        for repeat in range(options.repeats):
            for state in STATES:
                for kind in KINDS:
                    command = [sys.executable, "-m", "benchmarks.load", "--one", kind, state, str(folder)]
                    runs[state][kind].append(json.loads(subprocess.check_output(command)))
            print(f"{repeat + 1} of {options.repeats} done", flush=True)
    options.out.write_text(json.dumps(summary(runs, size), indent=1) + "\n")
    print(options.out.read_text(), end="")


def summary(runs: dict[str, dict[str, list[dict[str, float]]]], size: int) -> dict[str, object]:
    """Medians and ratios."""

    def median(state: str, kind: str, what: str) -> float:
        return statistics.median(run[what] for run in runs[state][kind])

    return {
        "model": NAME,
        "file_bytes": size,
        "repeats": len(runs["read"]["dict"]),
        "seconds": {s: {k: round(median(s, k, "seconds"), 4) for k in KINDS} for s in STATES},
        "time_of_model_over": {
            kind: {s: round(median(s, "model", "seconds") / median(s, kind, "seconds"), 2) for s in STATES}
            for kind in ("dict", "bytes")
        },
        "peak_memory_over_file": {k: round(median("read", k, "bytes") / size, 3) for k in KINDS},
        "versions": {p: version(p) for p in ("torch", "safetensors", "whitebox-crate")}
        | {"python": platform.python_version()},
    }


def table(results: dict[str, Any]) -> str:
    """The measurements in Markdown."""
    names = {"dict": "safetensors, mapped", "bytes": "safetensors, in memory", "model": "`create_model`, mapped"}
    rows = [[name, *(f"{results['seconds'][s][kind]:.3f} s" for s in STATES)] for kind, name in names.items()]
    for kind in ("dict", "bytes"):
        ratios = (f"{results['time_of_model_over'][kind][s]:.2f}" for s in STATES)
        rows.append([f"{names['model']}, over {names[kind]}", *ratios])
    return markdown_table(("", "mapped", "values read", "values read, from disk"), rows)


if __name__ == "__main__":
    main()
