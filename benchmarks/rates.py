"""How long the subspace coding rate takes, against the published formulation, and whether the values are the same.

    python -m benchmarks.rates --out benchmarks/rates.json

The published formulation is the equation with the Gram matrix of tokens, `1/2 logdet(I + p / (N eps) W W^T)` of N unit
vectors in p dimensions, summed over heads, in float32. Shapes are those of B/8 at 224 pixels: 785 tokens, with 12 heads
of 64 dimensions as released, and 6 heads of 128 as in the public demo. Tokens are Gaussian, or clustered, as those of
deep layers are: around 8 directions. One thread; both in turn in one process, ratios are of medians.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whitebox_crate._files import write_json
from whitebox_crate._tables import markdown_table
from whitebox_crate.analysis import subspace_coding_rate

TOKENS, EPS = 785, 0.01
SHAPES = {"B/8, as released": (12, 64), "B/8, public demo": (6, 128)}


def published(w: Tensor, eps: float) -> Tensor:
    """The equation as published, (batch,)."""
    w = w / w.norm(dim=-1, keepdim=True)
    tokens, dim = w.shape[-2:]
    return torch.logdet(torch.eye(tokens) + dim / (tokens * eps) * w @ w.mT).sum(dim=-1) / 2


def gaussian(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape)


def clustered(shape: tuple[int, ...]) -> Tensor:
    batch, heads, tokens, dim = shape
    of_token = torch.randint(8, (batch, heads, tokens, 1)).expand(shape)
    return torch.randn(batch, heads, 8, dim).gather(2, of_token) + 0.1 * torch.randn(shape)


def seconds(run: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(name: str, make: Callable[[tuple[int, ...]], Tensor], batch: int, rounds: int) -> dict[str, Any]:
    heads, dim = SHAPES[name]
    w = make((batch, heads, TOKENS, dim))
    ours, theirs = partial(subspace_coding_rate, w, EPS, "released"), partial(published, w, EPS)
    differ = ((ours() - theirs()) / theirs()).abs().max()  # and warm both up
    times = [(seconds(theirs), seconds(ours)) for _ in range(rounds)]
    before, after = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "shape": f"{name}: {batch} x {heads} x {TOKENS} x {dim}",
        "tokens": make.__name__,
        "seconds_published": round(before, 4),
        "seconds": round(after, 4),
        "ratio": round(before / after, 1),
        "largest_relative_difference": float(f"{differ:.1e}"),
    }


def table(results: dict[str, Any]) -> str:
    """The runs, in Markdown."""
    head = ("Batch x heads x tokens x dimensions", "Tokens", "Times as fast", "Values differ by")
    keys = ("shape", "tokens", "ratio")
    rows = ([*(run[key] for key in keys), f"{run['largest_relative_difference']:.1e}"] for run in results["runs"])
    return markdown_table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results: dict[str, Any] = {
        "versions": {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()},
        "runs": [
            measure(name, make, options.batch, options.rounds) for name in SHAPES for make in (gaussian, clustered)
        ],
    }
    print(table(results))
    write_json(options.out, results)


if __name__ == "__main__":
    main()
