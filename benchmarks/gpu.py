"""How fast the networks are on a GPU, section by section; each result is in the JSON as soon as it is there.

    python -m benchmarks.gpu forward --out gpu/forward.json --seconds 130

benchmarks/gpu.sh runs all sections, and the tests. After --seconds nothing new is begun. What a GPU refuses, for lack
of memory or of a type, is noted as an error, and the rest goes on. The share of the peak is that of a form's own
operations of products and attention a second, over those of one large product of the same type, measured first.
`--device cpu --size tiny --most 2` tries it without a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.growth import NETWORKS, SIDES
from benchmarks.speed import Setting as SpeedSetting
from benchmarks.speed import environment, operations_of, reset_peak, say, seconds
from whitebox_crate import capture, create_model, fold_for_inference
from whitebox_crate._files import write_json
from whitebox_crate.training import Recipe
from whitebox_crate.training.batches import Share, batches_of, moved
from whitebox_crate.training.datasets import open_images

Result = dict[str, Any]
Run = Callable[[], object]
BATCHES = (1, 8, 64, 256, 512)
# Type, and whether products in float32 may round to TF32.
PRECISIONS = {
    "float32": (torch.float32, False),
    "TF32": (torch.float32, True),
    "bf16": (torch.bfloat16, False),
    "fp16": (torch.float16, False),
}
FORMS = ("default", "folded", "ViT", "compiled")
# Of reading attention: what `capture` is asked for.
WAYS: dict[str, dict[str, Any] | None] = {
    "logits alone": None,
    "[CLS] rows": {"queries": "cls"},
    "all rows, streamed": {"queries": "all", "chunk": 256, "reduce": partial(torch.amax, dim=-1)},
}
ROUNDS = 5
WORKERS = (0, 4, 12)  # of the loader


@dataclass(frozen=True)
class Setting:
    """Where it is measured, which size of network, how many images or patches at most, and until when."""

    device: str
    size: str
    most: int
    deadline: float

    def model(self, family: str, patch: int) -> Any:
        torch.manual_seed(0)
        return create_model(f"{family}_{self.size}_patch{patch}_224").to(self.device).eval()

    def images(self, batch: int, side: int = 224, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(batch, 3, side, side, device=self.device, dtype=dtype)


@contextmanager
def products(tf32: bool) -> Iterator[None]:
    """Within it, products in float32 round to TF32 or do not."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def timed(prepare: Callable[[], Run], setting: Setting) -> Result:
    """Seconds of what is prepared, the median of rounds after one that warms up, and its memory; or the error."""
    try:
        run = prepare()
        run()
        before = reset_peak(setting.device)
        took = [seconds(run, setting.device) for _ in range(ROUNDS)]  # type: ignore[arg-type]
    except RuntimeError as error:  # out of memory, or a type that it does not multiply
        return {"error": str(error).splitlines()[0][:200]}
    peak = torch.cuda.max_memory_allocated() - before if setting.device == "cuda" else None
    return {"seconds": statistics.median(took), "rounds": took, "growth_bytes": peak}


def peak_rates(setting: Setting) -> dict[str, float]:
    """Operations a second of one large product, by precision, of those that the device multiplies in."""
    side, rates = 8192 if setting.device == "cuda" else 512, {}

    def product(dtype: torch.dtype) -> Run:
        square = torch.randn(side, side, device=setting.device).to(dtype)
        return lambda: square @ square

    for name, (dtype, tf32) in PRECISIONS.items():
        with products(tf32):
            found = timed(partial(product, dtype), setting)
        if "seconds" in found:
            rates[name] = 2 * side**3 / found["seconds"]
    return rates


def forms_of(setting: Setting, patch: int, dtype: torch.dtype) -> dict[str, tuple[Any, int]]:
    """By form: the network, and its operations with an image, which are counted before it is compiled."""
    plain = setting.model("crate", patch)
    forms = {"default": plain, "folded": fold_for_inference(plain), "ViT": setting.model("vit", patch)}
    counts = {form: operations_of(partial(model, setting.images(1))) for form, model in forms.items()}
    forms = {form: model.to(dtype) for form, model in forms.items()}
    return {
        **{form: (model, counts[form]) for form, model in forms.items()},
        "compiled": (torch.compile(forms["folded"]), counts["folded"]),
    }


@torch.no_grad()
def forward(setting: Setting) -> Iterator[Result]:
    """Logits, by patch, precision, form and batch: the largest batches first, for these say most."""

    def prepare(forms: Callable[[], Any], form: str, batch: int, dtype: torch.dtype) -> Run:
        return partial(forms()[form][0], setting.images(batch, dtype=dtype))

    peaks = peak_rates(setting)
    yield {"peaks": peaks}
    for patch, (name, (dtype, tf32)) in itertools.product((16, 8), PRECISIONS.items()):
        forms = cache(partial(forms_of, setting, patch, dtype))  # made where an error is noted
        for batch, form in itertools.product(sorted(BATCHES, reverse=True), FORMS):
            compiles = name in ("TF32", "bf16") and batch == min(256, setting.most)
            if batch > setting.most or (form == "compiled" and not compiles):
                continue
            with products(tf32):
                found = timed(partial(prepare, forms, form, batch, dtype), setting)
            about = {"patch": patch, "precision": name, "form": form, "batch": batch, **found}
            if "seconds" in found:
                about["images_per_second"] = batch / found["seconds"]
                if name in peaks:
                    about["share_of_peak"] = batch * forms()[form][1] / found["seconds"] / peaks[name]
            yield about


@torch.no_grad()
def reading(setting: Setting) -> Iterator[Result]:
    """[CLS] attention of all layers, and all rows streamed and reduced, against the logits alone."""

    def prepare(patch: int, batch: int, options: dict[str, Any] | None) -> Run:
        model, images = setting.model("crate", patch), setting.images(batch)

        def run() -> None:
            with nullcontext() if options is None else capture(model, "attention", **options):
                model(images)

        return run

    sizes = ((16, min(64, setting.most)), (8, min(8, setting.most)))
    for (patch, batch), (way, options) in itertools.product(sizes, WAYS.items()):
        found = timed(partial(prepare, patch, batch, options), setting)
        yield {"patch": patch, "batch": batch, "way": way, **found}


@torch.no_grad()
def growth(setting: Setting) -> Iterator[Result]:
    """One image through one layer, from 196 to 16,384 patches."""

    def prepare(name: str, side: int) -> Run:
        model = create_model(name, img_size=8 * side, depth=1).to(setting.device).eval()
        return partial(model, setting.images(1, 8 * side))

    for side, (network, name) in itertools.product(SIDES, NETWORKS.items()):
        if side**2 <= 32 * setting.most:
            yield {"network": network, "patches": side**2, **timed(partial(prepare, name, side), setting)}


def training(setting: Setting) -> Iterator[Result]:
    """Forward, backward and a step of AdamW, in float32 and in bf16, compiled or not."""
    batch = min(256, setting.most)

    def prepare(precision: torch.dtype, compiled: bool) -> Run:
        model = setting.model("crate", 16).train()
        optimizer = torch.optim.AdamW(model.parameters(), fused=setting.device == "cuda")
        runs = torch.compile(model) if compiled else model
        images, labels = setting.images(batch), torch.zeros(batch, dtype=torch.int64, device=setting.device)

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast(setting.device, precision, enabled=precision != torch.float32):
                loss = F.cross_entropy(runs(images).float(), labels)
            loss.backward()
            optimizer.step()

        return step

    for precision, compiled in itertools.product((torch.float32, torch.bfloat16), (False, True)):
        about = {"batch": batch, "precision": str(precision).removeprefix("torch."), "compiled": compiled}
        yield about | timed(partial(prepare, precision, compiled), setting)


def loader(setting: Setting) -> Iterator[Result]:
    """Images a second out of JPEGs of 500 x 375 pixels onto the device, by workers."""
    batch = min(64, setting.most)
    with tempfile.TemporaryDirectory() as folder:
        for index in range(4 * batch):
            place = Path(folder) / "ab"[index % 2]
            place.mkdir(exist_ok=True)
            noise = Image.effect_noise((25, 19), 60).convert("RGB").resize((500, 375))
            noise.save(place / f"{index}.jpg", quality=85)
        recipe = Recipe(steps=24, batch_size=batch, sizes=(224,), size_starts=(0.0,))
        pictures = open_images(Path(folder), crop="random", flip=True, size=224)
        for workers in WORKERS:
            batches = batches_of(pictures, recipe, Share(0, recipe.steps, 0, 1), workers)
            next(batches)  # which starts the workers
            began, count = time.perf_counter(), 0
            for one in itertools.islice(batches, 2 if setting.device == "cpu" else 20):
                moved(one.images, torch.device(setting.device))
                count += len(one.images)
            yield {"workers": workers, "images_per_second": count / (time.perf_counter() - began)}


SECTIONS: dict[str, Callable[[Setting], Iterator[Result]]] = {
    "forward": forward,
    "reading": reading,
    "growth": growth,
    "training": training,
    "loader": loader,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--size", choices=("tiny", "small", "base"), default="base")
    parser.add_argument("--most", type=int, default=512, help="images at once (%(default)s)")
    parser.add_argument("--seconds", type=float, default=100.0, help="after which nothing new is begun (%(default)s)")
    options = parser.parse_args()
    setting = Setting(options.device, options.size, options.most, time.monotonic() + options.seconds)
    about = environment(SpeedSetting(options.device, ROUNDS, torch.get_num_threads()))
    about["command"] = shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]])
    results: dict[str, Any] = {"environment": about, "complete": False, "results": []}

    def write() -> None:
        write_json(options.out, results)

    options.out.parent.mkdir(parents=True, exist_ok=True)
    for found in SECTIONS[options.section](setting):
        results["results"].append(found)
        write()
        say(f"{options.section}: {found}")
        if time.monotonic() > setting.deadline:
            return
    results["complete"] = True
    write()


if __name__ == "__main__":
    main()
