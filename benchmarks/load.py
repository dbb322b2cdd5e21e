"""How long create_model takes: for crate_large, against reading the same file into a dict, and for small models.

    python -m benchmarks.load --out benchmarks/load.json

Every measurement is a process of its own, the kinds in turn; ratios are of medians. "dict" is
safetensors.torch.load_file, which maps the file; "bytes" is safetensors.torch.load on the file's bytes, which holds it
in memory; "model" is create_model with mmap=True, and "copied" create_model as it treats files of one's own. "mapped"
ends when the call returns, "read" when every value has been read once, and "cold" is "read" after the file was dropped
from the page cache. Memory is the growth of the resident set from before the call to its peak, after every value was
read, over the size of the file. "start" is what a process spends on the imports, then on the first create_model of a
small model and on the second.
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
from whitebox_crate._files import write_json
from whitebox_crate._tables import markdown_table

NAME, KINDS, STATES = "crate_large", ("dict", "bytes", "model", "copied"), ("mapped", "read", "cold")
OVER = {"dict": "model", "bytes": "copied"}  # what each way of reading is compared with
SMALL: dict[str, dict[str, Any]] = {"crate_nano": {}, "crate_nano, pretrained": {"pretrained": True}, "crate_tiny": {}}


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


def read_copied(folder: Path) -> Iterable[Tensor]:
    """The file as a model, in memory."""
    model: torch.nn.Module = create_model(f"local-dir:{folder}", pretrained=True)
    return model.parameters()


def start(name: str) -> dict[str, float]:
    """Seconds of imports, and of making a small model twice, of a process without torch."""
    code = f"""
import json, time
times = [time.perf_counter()]
import torch
torch.set_num_threads(1)
times.append(time.perf_counter())
from whitebox_crate import create_model
times.append(time.perf_counter())
for _ in range(2):
    create_model({name.partition(",")[0]!r}, **{SMALL[name]!r})
    times.append(time.perf_counter())
names = "torch", "package", "first", "second"
print(json.dumps({{n: b - a for n, a, b in zip(names, times, times[1:])}}))
"""
    found: dict[str, float] = json.loads(subprocess.check_output([sys.executable, "-c", code]))
    return found


def measure(kind: str, state: str, folder: Path) -> dict[str, float]:
    """Seconds and growth of memory in bytes, in this process."""
    reading: dict[str, Callable[[Path], Iterable[Tensor]]]
    reading = {"dict": read_dict, "bytes": read_bytes, "model": read_model, "copied": read_copied}
    torch.set_num_threads(1)
    drop_from_cache(folder) if state == "cold" else (folder / "model.safetensors").read_bytes()
    reset_peak()
    before, began = resident("VmRSS"), time.perf_counter()
    tensors = reading[kind](folder)
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
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--one", nargs=3, metavar=("KIND", "STATE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], options.one[1], Path(options.one[2]))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = save_pretrained(create_model(NAME), name)
        size = (folder / "model.safetensors").stat().st_size
        runs: dict[str, dict[str, list[dict[str, float]]]] = {s: {k: [] for k in KINDS} for s in STATES}
        starts: dict[str, list[dict[str, float]]] = {name: [] for name in SMALL}
        for repeat in range(options.repeats):
            for small in SMALL:
                starts[small].append(start(small))
            for state in STATES:
                for kind in KINDS:
                    command = [sys.executable, "-m", "benchmarks.load", "--one", kind, state, str(folder)]
                    runs[state][kind].append(json.loads(subprocess.check_output(command)))
            print(f"{repeat + 1} of {options.repeats} done", flush=True)
    write_json(options.out, summary(runs, starts, size))
    print(options.out.read_text(), end="")


def summary(
    runs: dict[str, dict[str, list[dict[str, float]]]], starts: dict[str, list[dict[str, float]]], size: int
) -> dict[str, object]:
    """Medians and ratios."""

    def median(state: str, kind: str, what: str) -> float:
        return statistics.median(run[what] for run in runs[state][kind])

    return {
        "model": NAME,
        "file_bytes": size,
        "repeats": len(runs["read"]["dict"]),
        "seconds": {s: {k: round(median(s, k, "seconds"), 4) for k in KINDS} for s in STATES},
        "time_of_model_over": {
            kind: {s: round(median(s, model, "seconds") / median(s, kind, "seconds"), 2) for s in STATES}
            for kind, model in OVER.items()
        },
        "peak_memory_over_file": {k: round(median("read", k, "bytes") / size, 3) for k in KINDS},
        "start_seconds": {
            name: {what: round(statistics.median(run[what] for run in of), 4) for what in of[0]}
            for name, of in starts.items()
        },
        "versions": {p: version(p) for p in ("torch", "safetensors", "whitebox-crate")}
        | {"python": platform.python_version()},
    }


def table(results: dict[str, Any]) -> str:
    """The measurements in Markdown."""
    names = {"dict": "safetensors, mapped", "bytes": "safetensors, in memory"}
    names |= {"model": "`create_model`, mapped", "copied": "`create_model`, in memory"}
    rows = [[name, *(f"{results['seconds'][s][kind]:.3f} s" for s in STATES)] for kind, name in names.items()]
    for kind, model in OVER.items():
        ratios = (f"{results['time_of_model_over'][kind][s]:.2f}" for s in STATES)
        rows.append([f"{names[model]}, over {names[kind]}", *ratios])
    return markdown_table(("", "call returns", "values read", "values read, from disk"), rows)


def start_table(results: dict[str, Any]) -> str:
    """What a process spends before it has a small model, in Markdown."""
    rows = [
        [name, *(f"{1000 * found[what]:,.0f} ms" for what in ("torch", "package", "first", "second"))]
        for name, found in results["start_seconds"].items()
    ]
    return markdown_table(("", "`import torch`", "`create_model` imported", "first call", "second call"), rows)


if __name__ == "__main__":
    main()
