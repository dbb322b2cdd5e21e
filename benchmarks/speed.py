"""How fast CRATE is: against its published formulation, against ViT, and against its matrix products alone.

    python -m benchmarks.speed --again --out benchmarks/speed.json --rounds 9 --threads 2
    python -m benchmarks.speed_tables
    python -m benchmarks.pages

The first command measures, the second draws the picture, the third fills docs/speed.md. Every section is one
run in which the contestants take turns, round by round, each time another one first; ratios are medians of the ratios
within a round. What is much slower than the first contestant takes part in fewer rounds, so that it gets no more time.
A section that the JSON has is kept; `--again` repeats it, `--only` runs one. How time and memory grow is measured in a
process for each size. "products" are the dense products of the folded model, on buffers that are there before, and
nothing else.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import load
from benchmarks.published import published_logits
from whitebox_crate import capture, create_model, faster_dtype, fold_for_inference
from whitebox_crate._files import write_json
from whitebox_crate.layers import _attend
from whitebox_crate.training import Recipe
from whitebox_crate.training.loop import make_optimizer

Run: TypeAlias = Callable[[], Tensor | None]
SLOW = 2.5  # times as long as the first contestant
SIDES = (112, 224, 336, 448, 672, 1024)  # pixels, patches of 8: 196 to 16,384 patches
MOST_PATCHES = {"published": 4_000, "default": 20_000, "folded": 4_000}
REPEATED_TO = 1_000  # patches; above, one pass is long enough to be timed alone
FLAGS = {"avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile"}
GROUPS = {
    "products": ("aten::mm", "aten::addmm", "aten::convolution", "aten::mkldnn_convolution"),
    "attention": ("scaled_dot_product", "aten::bmm", "aten::baddbmm", "aten::_softmax"),
    "LayerNorm": ("aten::native_layer_norm",),
    "sums and thresholds": ("aten::add", "aten::sub", "aten::mul", "aten::clamp_min", "aten::relu"),
}


@dataclass(frozen=True)
class Case:
    """Which model, and how many images at once."""

    size: str
    patch: int
    batch: int
    side: int = 224  # pixels

    @property
    def name(self) -> str:
        size, side = (self.size, f", {self.side} px") if self.size == "nano" else (self.size[0].upper(), "")
        return f"{size}/{self.patch}{side}, batch {self.batch}"

    def model(self, family: str, device: str) -> Any:
        torch.manual_seed(0)
        full = f"{family}_{self.size}_patch{self.patch}_{96 if self.size == 'nano' else 224}"
        return create_model(full, img_size=self.side).to(device).eval()

    def images(self, device: str) -> Tensor:
        shape = self.batch, 3, self.side, self.side
        return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)


@dataclass(frozen=True)
class Setting:
    """How it is measured."""

    device: str
    rounds: int
    threads: int

    @property
    def cases(self) -> tuple[Case, ...]:
        batches = (8, 1) if self.device == "cpu" else (256, 32)
        return Case("base", 16, batches[0]), Case("base", 8, batches[1])

    @property
    def training_cases(self) -> tuple[Case, ...]:
        small = Case("small", 16, 8 if self.device == "cpu" else 256)
        return small, *(Case("nano", 6, 4 * small.batch, side) for side in (48, 72, 96))

    @property
    def half_cases(self) -> tuple[Case, ...]:
        of_base = self.cases[0]
        return of_base, replace(of_base, size="small"), Case("nano", 6, of_base.batch, 96), replace(of_base, batch=1)


def seconds(run: Run, device: str) -> float:
    """How long one call takes."""
    torch.accelerator.synchronize() if device == "cuda" else None
    began = time.perf_counter()
    run()
    torch.accelerator.synchronize() if device == "cuda" else None
    return time.perf_counter() - began


def take_turns(runs: dict[str, Run], setting: Setting) -> dict[str, Any]:
    """Seconds of every contestant in every round, and by how much their results differ from those of the first."""
    results = {name: run() for name, run in runs.items()}  # and all are warm
    names, spent = list(runs), dict.fromkeys(runs, 0.0)
    first, rounds = names[0], list[dict[str, float]]()
    for index in range(setting.rounds):
        slow = {name for name in names if rounds and rounds[0][name] > SLOW * rounds[0][first]}
        takes_part = [n for n in names if n not in slow or spent[n] + rounds[0][n] <= spent[first]]
        rounds.append({})
        for name in takes_part[index % len(takes_part) :] + takes_part[: index % len(takes_part)]:
            rounds[-1][name] = round(seconds(runs[name], setting.device), 6)
            spent[name] += rounds[-1][name]
        say(f"  round {index + 1}: {rounds[-1]}")
    want = results[first]
    differ = {
        n: float(f"{(r - want).abs().max():.1e}") for n, r in results.items() if r is not None and want is not None
    }
    return {"seconds": rounds, "differ_by": differ}


@torch.no_grad()
def forward(setting: Setting) -> dict[str, Any]:
    """Logits of a batch, in all ways."""
    found = {}
    for case in setting.cases:
        say(f"forward, {case.name}")
        torch.compiler.reset()  # or the second case is compiled for any batch, because the first had another
        runs, operations = forward_runs(case, setting.device)
        found[case.name] = take_turns(runs, setting) | {"batch": case.batch, "operations": operations}
    return {"cases": found, "operations_per_second": matmul_rates(setting.device)}


def forward_runs(case: Case, device: str) -> tuple[dict[str, Run], int]:
    """The contestants, and the number of operations of the products."""
    images, model, vit = case.images(device), case.model("crate", device), case.model("vit", device)
    folded = fold_for_inference(model)
    compiled, frozen = torch.compile(folded, fullgraph=True), compile_frozen(folded, images)
    pairs = dense_products(folded, case.batch)
    runs: dict[str, Run] = {
        "published": lambda: published_logits(model, images),
        "default": partial(model, images),
        "folded": partial(folded, images),
        "compiled": partial(compiled, images),
        "compiled, frozen": partial(frozen, images),
        "ViT": partial(without_result, lambda: vit(images)),
        "products": multiply(pairs),
    }
    if case.batch > 1:
        runs |= half_runs(folded, images)
    return runs, sum(2 * left.numel() * right.shape[-1] for left, right in pairs)


def half_runs(folded: nn.Module, images: Tensor) -> dict[str, Run]:
    """The folded model in bf16, in two ways."""
    cast, half = copy.deepcopy(folded).bfloat16(), images.bfloat16()

    def autocast() -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            logits: Tensor = folded(images)
        return logits

    return {"bf16, cast": lambda: cast(half), "bf16, autocast": autocast}


@torch.no_grad()
def half(setting: Setting) -> dict[str, Any]:
    """bf16 against float32, and what `faster_dtype` chooses in how long."""
    found = {}
    for case in setting.half_cases:
        say(f"bf16, {case.name}")
        images, folded = case.images(setting.device), fold_for_inference(case.model("crate", setting.device))
        began = time.perf_counter()
        chosen = {"chosen": str(faster_dtype(folded, case.batch)).removeprefix("torch.")}
        took = {"chosen_in_seconds": round(time.perf_counter() - began, 3)}
        runs: dict[str, Run] = {"folded": partial(folded, images), **half_runs(folded, images)}
        found[case.name] = take_turns(runs, setting) | chosen | took
    return {"cases": found}


def without_result(run: Callable[[], Any]) -> None:
    run()


def compile_frozen(model: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    """The model compiled with its weights as constants, which the compiler may lay out as it likes.

    In float32 on a CPU it takes oneDNN's products in place of MKL's, and only if the batch is left open.
    """
    import torch._inductor.config as inductor

    # The option keeps apart what is compiled here from the code of the same class that is compiled without it.
    options: dict[str, Any] = {"freezing": True}
    compiled: Callable[[Tensor], Tensor] = torch.compile(copy.deepcopy(model), fullgraph=True, options=options)
    example = images.clone()
    if images.device.type == "cpu":
        torch._dynamo.decorators.mark_unbacked(example, 0)  # `dynamic=True` would take a batch of one for fixed
    with inductor.patch(freezing=True):
        compiled(example)
    return compiled


def dense_products(model: Any, batch: int) -> list[tuple[Tensor, Tensor]]:
    """The pairs of matrices that a folded CRATE multiplies for one batch, with random numbers for the tokens."""
    weight = model.head.weight
    random = cache(lambda *shape: torch.randn(shape, device=weight.device, dtype=weight.dtype))
    tokens = 1 + model.patch_embed.num_patches
    pairs = [(random(batch * (tokens - 1), model.patch_embed.proj.in_features), model.patch_embed.proj.weight.T)]
    for block in model.blocks:
        w = random(batch * block.mssa.num_heads, tokens, block.mssa.head_dim)
        pairs += [
            (random(batch * tokens, model.embed_dim), block.mssa.qkv.weight.T),
            (w, w.mT),
            (random(len(w), tokens, tokens), w),
            (random(batch * tokens, block.mssa.proj.in_features), block.mssa.proj.weight.T),
            (random(batch * tokens, model.embed_dim), block.ista.weight.T),
        ]
    return [*pairs, (random(batch, model.embed_dim), weight.T)]


def multiply(pairs: list[tuple[Tensor, Tensor]]) -> Run:
    """All these products, into buffers."""
    buffer = cache(lambda *shape: pairs[0][0].new_empty(shape))
    outs = [buffer(*left.shape[:-1], right.shape[-1]) for left, right in pairs]

    def run() -> None:
        for (left, right), out in zip(pairs, outs, strict=True):
            torch.matmul(left, right, out=out)

    return run


def matmul_rates(device: str) -> dict[str, float]:
    """Operations per second of one large square product, by type: what the machine can do."""
    side, rates = 8192 if device == "cuda" else 2048, {}
    for dtype in (torch.float32, torch.bfloat16) if device == "cuda" else (torch.float32,):
        square = torch.randn(side, side, device=device).to(dtype)
        times = [seconds(lambda square=square: square @ square, device) for _ in range(4)]  # type: ignore[misc]
        rates[str(dtype).removeprefix("torch.")] = float(f"{2 * side**3 / min(times[1:]):.4g}")
    return rates


def training(setting: Setting) -> dict[str, Any]:
    """Forward, backward and a step of SGD, in float32 and in bf16 by autocast."""
    found = {}
    for case in setting.training_cases:
        say(f"training, {case.name}")
        runs = {
            "published": stepping(case, setting.device, published_logits),
            "default": stepping(case, setting.device, default_logits),
            "published, bf16": stepping(case, setting.device, published_logits, bf16=True),
            "bf16, attention fused": stepping(case, setting.device, fused_logits, bf16=True),
            "bf16": stepping(case, setting.device, default_logits, bf16=True),
        }
        operations = {name: operations_of(runs[name]) for name in ("published", "default")}
        found[case.name] = take_turns(runs, setting) | {"batch": case.batch, "operations": operations}
    return {"cases": found}


def operations_of(run: Run) -> int:
    """Of all its products, those of attention as of a kernel that keeps the matrix."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    total: int = counter.get_total_flops()
    return total


def stepping(case: Case, device: str, logits: Callable[[Any, Tensor], Tensor], *, bf16: bool = False) -> Run:
    """A step of training with logits that are computed so."""
    images, target = case.images(device), torch.arange(case.batch, device=device)
    model = case.model("crate", device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(logits(model, images).float(), target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def default_logits(model: Any, images: Tensor) -> Tensor:
    logits: Tensor = model(images)
    return logits


def fused_logits(model: Any, images: Tensor) -> Tensor:
    """By the fused kernel of attention, however long its backward pass takes."""
    with patch.object(_attend, "WRITTEN_OUT", 0):
        return default_logits(model, images)


def optimizers(setting: Setting) -> dict[str, Any]:
    """The step of the optimisers of `train` alone, and of AdamW as it is by default."""
    found = {}
    for case in setting.training_cases[:2]:
        say(f"optimisers, {case.name}")
        runs: dict[str, Run] = {}
        made: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
            "AdamW, by default": lambda model: torch.optim.AdamW(model.parameters()),
            "AdamW": partial(make_optimizer, recipe=Recipe(optimizer="adamw")),
            "Lion": partial(make_optimizer, recipe=Recipe(optimizer="lion")),
        }
        for name, make in made.items():
            model = case.model("crate", setting.device)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            runs[name] = partial(without_result, make(model).step)
        found[case.name] = take_turns(runs, setting)
    return {"cases": found}


@torch.no_grad()
def last_layer(setting: Setting) -> dict[str, Any]:
    """What it would save if the last layer computed [CLS] alone, which the head reads."""
    found = {}
    for case in setting.cases:
        say(f"last layer, {case.name}")
        images, model = case.images(setting.device), case.model("crate", setting.device)
        folded = fold_for_inference(model)
        runs: dict[str, Run] = {
            "default": partial(model, images),
            "default, [CLS] alone": partial(cls_alone, model, images),
            "folded": partial(folded, images),
            "folded, [CLS] alone": partial(cls_alone, folded, images),
        }
        found[case.name] = take_turns(runs, setting)
    return {"cases": found}


def cls_alone(model: Any, images: Tensor) -> Tensor:
    """The logits of a CRATE in evaluation, of whose last layer no other token is computed."""
    tokens = model.embed(images)
    for block in model.blocks[:-1]:
        tokens = block(tokens)
    block = model.blocks[-1]
    w, _, _ = block.mssa.split_heads(block.mssa.qkv(block.norm1(tokens)))
    attended = F.scaled_dot_product_attention(w[:, :, :1], w, w)
    compressed = tokens[:, :1] + block.mssa.proj(attended.transpose(1, 2).flatten(2))
    logits: Tensor = model.forward_head(model.norm(block.ista(block.norm2(compressed))))
    return logits


@torch.no_grad()
def overhead(setting: Setting) -> dict[str, Any]:
    """The [CLS] maps of all layers and heads with the logits, against the logits alone."""
    found = {}
    for case in setting.cases:
        say(f"overhead of capture, {case.name}")
        model, images = case.model("crate", setting.device), case.images(setting.device)
        runs: dict[str, Run] = {"default": partial(model, images), "captured": partial(captured, model, images)}
        found[case.name] = take_turns(runs, setting)
    return {"cases": found}


def captured(model: nn.Module, images: Tensor) -> Tensor:
    with capture(model, "attention", queries="cls"):
        logits: Tensor = model(images)
    return logits


def growth(setting: Setting) -> dict[str, Any]:
    """Seconds and memory from 196 to 16,384 patches, each size in a process of its own."""
    sizes: dict[str, list[dict[str, float]]] = {kind: [] for kind in MOST_PATCHES}
    for side in SIDES:
        for kind, most in MOST_PATCHES.items():
            if (side // 8) ** 2 > most:
                continue
            say(f"growth, {kind}, {side} px")
            command = [
                sys.executable,
                "-m",
                "benchmarks.speed",
                "--device",
                setting.device,
                "--threads",
                str(setting.threads),
            ]
            sizes[kind].append(json.loads(subprocess.check_output([*command, "--one", kind, str(side)])))
            say(f"  {sizes[kind][-1]}")
    return {"sizes": sizes}


@torch.no_grad()
def one_size(kind: str, side: int, device: str) -> dict[str, float]:
    """One image through crate_base in this process: seconds, peak memory, and its growth over that of the model, bytes.

    "default" and "folded" give the [CLS] maps of all layers and heads too.
    """
    model: Any = create_model("crate_base_patch8_224", img_size=side).to(device).eval()
    if kind == "folded":
        fold_for_inference(model, inplace=True)
    images, patches = torch.randn(1, 3, side, side, device=device), model.patch_embed.num_patches
    run: Run = partial(published_logits if kind == "published" else captured, model, images)
    before = reset_peak(device)
    if patches <= REPEATED_TO:
        run()
    spent = statistics.median(seconds(run, device) for _ in range(3 if patches <= REPEATED_TO else 1))
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else load.resident("VmHWM")
    return {"patches": patches, "seconds": round(spent, 4), "peak_bytes": peak, "growth_bytes": peak - before}


def reset_peak(device: str) -> int:
    """Makes the peak start from what is in use now, which is returned, bytes."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    load.reset_peak()
    return load.resident("VmRSS")


@torch.no_grad()
def profile(setting: Setting) -> dict[str, Any]:
    """Which share of the time of a forward pass goes where."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for case in setting.cases:
        say(f"profile, {case.name}")
        images, model = case.images(setting.device), case.model("crate", setting.device)
        runs: dict[str, Run] = {
            "default": partial(model, images),
            "folded": partial(fold_for_inference(model), images),
        }
        found[case.name] = {name: shares(run, setting.device) for name, run in runs.items()}
    return {"cases": found}


def training_profile(setting: Setting) -> dict[str, Any]:
    """Which share of the time of a training step goes where."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for case in setting.training_cases[:2]:
        say(f"profile of a training step, {case.name}")
        found[case.name] = {
            name: shares(stepping(case, setting.device, default_logits, bf16=name == "bf16"), setting.device)
            for name in ("float32", "bf16")
        }
    return {"cases": found}


def shares(run: Run, device: str) -> dict[str, float]:
    """The share of each group of operators."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if device == "cuda" else []
    run()
    with torch.profiler.profile(activities=activities) as profiler:
        run()
    spent = dict.fromkeys([*GROUPS, "copies and the rest"], 0.0)
    for event in profiler.key_averages():
        if event.device_type != DeviceType.CPU:  # a kernel, whose time its operator has too
            continue
        groups = (group for group, operators in GROUPS.items() if any(o in event.key for o in operators))
        own = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        spent[next(groups, "copies and the rest")] += own
    return {group: round(time / sum(spent.values()), 4) for group, time in spent.items()}


SECTIONS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "forward": forward,
    "half": half,
    "training": training,
    "optimizers": optimizers,
    "last layer": last_layer,
    "capture": overhead,
    "growth": growth,
    "profile": profile,
    "training profile": training_profile,
}


def environment(setting: Setting) -> dict[str, Any]:
    """What ran, on what."""
    cpu, path = platform.processor(), Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return {
        "command": shlex.join(["python", *sys.argv]),
        "device": torch.cuda.get_device_name() if setting.device == "cuda" else said.get("model name", cpu),
        "flags": sorted(FLAGS & set(said.get("flags", "").split())),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": setting.threads,
        "dtype": "float32",
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {p: version(p) for p in ("torch", "whitebox-crate")} | {"python": platform.python_version()},
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("speed.json"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", choices=SECTIONS, help="one section")
    parser.add_argument("--again", action="store_true", help="also what the JSON has")
    parser.add_argument("--one", nargs=2, metavar=("KIND", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    setting = Setting(options.device, options.rounds, options.threads)
    torch.set_num_threads(setting.threads)
    if options.one:
        print(json.dumps(one_size(options.one[0], int(options.one[1]), setting.device)))
        return
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in [options.only] if options.only else SECTIONS:
        if name in results and not options.again:
            say(f"{name} is there: --again repeats it")
            continue
        ran_in, began = environment(setting), time.perf_counter()
        results[name] = SECTIONS[name](setting) | {"environment": ran_in}
        results[name]["environment"]["seconds"] = round(time.perf_counter() - began)
        write_json(options.out, results)


if __name__ == "__main__":
    main()
