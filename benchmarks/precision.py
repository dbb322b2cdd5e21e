"""What half precision costs: logits, classes and masks of the shipped checkpoint in bf16 and fp16, against float32.

    python -m benchmarks.precision --out benchmarks/precision.json

Each dtype by autocast (the weights stay float32) and by cast (`model.to(dtype)`), of the model as it is and folded.
Images are composites that were never trained on: known objects on new backgrounds for the logits, new objects on new
backgrounds for the masks. Logits are compared with those of the float32 model as it is: the error is relative to their
standard deviation over all images and classes. Masks are what `whitebox-crate segment` draws: one head, above the mean
of the map. What a device cannot do stands in the results as the text of the error.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from recipes.backgrounds import wallpapers
from recipes.composites import Composites
from recipes.objects import photographs
from whitebox_crate import ImageTransformer, __version__, capture, create_model, fold_for_inference
from whitebox_crate._files import write_json
from whitebox_crate._tables import markdown_table
from whitebox_crate.segmentation import attention_masks, mask_iou, upsample
from whitebox_crate.training import normalize

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
WAYS = ("autocast", "cast")
FORMS: dict[str, Callable[[ImageTransformer], ImageTransformer]] = {
    "as it is": lambda model: model,
    "folded": fold_for_inference,
}


@dataclass(frozen=True)
class Images:
    """Normalised images (n, 3, size, size), float32, with the class of each and where its object is."""

    pixels: Tensor
    labels: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Seen:
    """What a model made of images: logits (n, classes), float64; masks (n, size, size), bool."""

    logits: Tensor
    masks: Tensor


def draw(objects: Literal["train", "held_out"], model: ImageTransformer, count: int, seed: int, size: int) -> Images:
    """Composites of these photographs on held-out backgrounds."""
    batch = Composites(photographs(objects), wallpapers("held_out")).draw(count, seed=seed, step=0, size=size)
    assert batch.masks is not None  # composites have them
    return Images(normalize(batch.images, model), batch.labels, batch.masks)


@torch.inference_mode()
def see(model: ImageTransformer, pixels: Tensor, dtype: torch.dtype, autocast: bool, batch: int = 32) -> Seen:
    """Runs the model on all images; cast before, or by autocast."""
    facts = model.pretrained_cfg
    layer, head = facts.attention_layer, facts.attention_head
    assert layer is not None and head is not None, "the config names a layer and a head to look at"
    logits, masks = [], []
    for part in pixels.to(model.cls_token.device, model.cls_token.dtype).split(batch):
        context = torch.autocast(part.device.type, dtype) if autocast else nullcontext()
        with context, capture(model, "attention", layers=[layer], heads=[head]) as trace:
            logits.append(model(part).double().cpu())
        maps = trace["attention", layer][:, 0, 0, 1:].unflatten(-1, model.grid_of(part))
        masks.append(upsample(attention_masks(maps, rule="mean"), part.shape[-2:]).cpu())
    return Seen(torch.cat(logits), torch.cat(masks))


def compare(
    naming: Seen, scoring: Seen, exact_naming: Seen, exact_scoring: Seen, known: Images, new: Images
) -> dict[str, Any]:
    """The numbers of one run."""
    errors = (naming.logits - exact_naming.logits) / exact_naming.logits.std()
    named, by_exact = naming.logits.argmax(-1), exact_naming.logits.argmax(-1)
    between = mask_iou(scoring.masks, exact_scoring.masks)
    return {
        "logits_rms": float(f"{errors.square().mean().sqrt():.2e}"),
        "logits_max": float(f"{errors.abs().max():.2e}"),
        "same_class": round(float((named == by_exact).double().mean()), 4),
        "named": round(float((named == known.labels).double().mean()), 4),
        "iou_with_float32": round(float(between.mean()), 4),
        "iou_with_float32_least": round(float(between.min()), 4),
        "iou_with_object": round(float(mask_iou(scoring.masks, new.masks).mean()), 4),
    }


def measure(make: Callable[[], ImageTransformer], known: Images, new: Images, device: str) -> list[dict[str, Any]]:
    """All runs, the float32 ones first."""
    runs: list[dict[str, Any]] = []
    exact: tuple[Seen, Seen] | None = None
    for name, way in [("float32", "-"), *((name, way) for name in DTYPES for way in WAYS)]:
        dtype = DTYPES.get(name, torch.float32)
        for form, formed in FORMS.items():
            model = formed(make().eval()).to(device)
            model = model.to(dtype) if way == "cast" else model
            run: dict[str, Any] = {"dtype": name, "way": way, "model": form}
            try:
                naming, scoring = (see(model, images.pixels, dtype, way == "autocast") for images in (known, new))
            except (RuntimeError, ValueError, TypeError) as error:
                run["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
            else:
                exact = exact or (naming, scoring)
                run |= compare(naming, scoring, *exact, known, new)
            runs.append(run)
            print(json.dumps(run), flush=True)
    return runs


def table(results: dict[str, Any]) -> str:
    """The runs, in Markdown."""
    rows = []
    for run in results["runs"]:
        precision = run["dtype"] if run["way"] == "-" else f"{run['dtype']}, {run['way']}"
        if "error" in run:
            rows.append([precision, run["model"], f"not on this device: `{run['error']}`", *[""] * 6])
            continue
        numbers = [f"{run['logits_rms']:.1e}", f"{run['logits_max']:.1e}"]
        numbers += [f"{run[key]:.1%}" for key in ("same_class", "named")]
        numbers += [f"{run[key]:.3f}" for key in ("iou_with_float32", "iou_with_float32_least", "iou_with_object")]
        rows.append([precision, run["model"], *numbers])
    of_logits, of_masks = ("Logits, rms error", "largest"), ("IoU, float32's", "least", "object's")
    return markdown_table(("Precision", "Model", *of_logits, "Same class", "Named", *of_masks), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model",
        default="crate_nano.tuxpaint_composites",
        help="name or local-dir:PATH; its config names layer and head",
    )
    parser.add_argument("--images", type=int, default=256, help="of each kind")
    parser.add_argument("--size", type=int, default=96, help="side of the images, pixels")
    parser.add_argument("--seed", type=int, default=2000, help="of the composites; training used others")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    def make() -> ImageTransformer:
        model: ImageTransformer = create_model(options.model, pretrained=True, dynamic_img_size=True)
        return model

    model = make()
    facts = model.pretrained_cfg
    known = draw("train", model, options.images, options.seed, options.size)
    new = draw("held_out", model, options.images, options.seed + 1, options.size)
    results: dict[str, Any] = {
        "model": options.model,
        "images": options.images,
        "size": options.size,
        "seed": options.seed,
        "layer": facts.attention_layer,
        "head": facts.attention_head,
        "device": options.device if options.device == "cpu" else torch.cuda.get_device_name(options.device),
        "versions": {"whitebox_crate": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "runs": measure(make, known, new, options.device),
    }
    write_json(options.out, results)
    print(table(results))


if __name__ == "__main__":
    main()
