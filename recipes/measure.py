"""Measures the numbers of a model card: accuracy, and how well [CLS] attention finds objects.

The objects and backgrounds for maps were never trained on. Masks are used only here.

    python -m recipes.measure --out recipes/results/crate_nano_96.json --control RUN/model
    python -m recipes.measure --data garments --model crate_pico --size 32 --out recipes/results/crate_pico.json

With `--validation FOLDER` it measures numbers to choose weights by: training objects over pictures of that folder,
which no training has seen.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import whitebox_crate
from recipes.backgrounds import noise_backgrounds, wallpapers
from recipes.composites import Composites, masks_of
from recipes.objects import garments, photographs
from whitebox_crate import ImageTransformer, capture, create_model
from whitebox_crate._files import write_json
from whitebox_crate.segmentation import attention_masks, mask_iou, upsample
from whitebox_crate.segmentation.attention import MaskRule
from whitebox_crate.training import Batch, normalize

RULES: tuple[MaskRule, ...] = ("mean", "mass", "entries")
NAMES = {"crate": "CRATE", "vit": "ViT, the control", "crate_untrained": "CRATE, untrained"}


def batches(source: Composites, images: int, seed: int, size: int) -> list[Batch]:
    """`images` composites at full difficulty, in batches of 64."""
    return [source.draw(64, seed=seed, step=step, size=size) for step in range(images // 64)]


@torch.inference_mode()
def accuracy(model: ImageTransformer, drawn: list[Batch]) -> float:
    """Share of the composites whose object is named correctly."""
    hits = [model(normalize(batch.images, model)).argmax(-1) == batch.labels for batch in drawn]
    return float(torch.cat(hits).float().mean())


@torch.inference_mode()
def head_ious(model: ImageTransformer, drawn: list[Batch]) -> dict[str, Tensor]:
    """By rule: IoU of every head's mask with the object's, (images, layers, heads)."""
    found: dict[str, list[Tensor]] = {rule: [] for rule in RULES}
    for batch in drawn:
        with capture(model, "attention") as trace:
            model(normalize(batch.images, model))
        maps = torch.stack([trace["attention", layer][:, :, 0, 1:] for layer in trace.layers], dim=1)
        exact = masks_of(batch)
        maps = maps.unflatten(-1, model.grid_of(batch.images))
        for rule in RULES:
            masks = upsample(attention_masks(maps, 0.6, rule), (exact.shape[-2], exact.shape[-1]))
            found[rule].append(mask_iou(masks, exact[:, None, None]))
    return {rule: torch.cat(ious) for rule, ious in found.items()}


def interval(values: Tensor, labels: Tensor) -> list[float]:
    """Mean over objects of their mean, and half the width of its 95% interval over objects (images share objects)."""
    means = torch.stack([values[labels == label].mean() for label in labels.unique()])
    return [round(float(means.mean()), 4), round(1.96 * float(means.std() / len(means) ** 0.5), 4)]


def units_of(drawn: list[Batch], data: str) -> Tensor:
    """The units of intervals: the object of each image; for garments, which are all different, the image."""
    labels = torch.cat([batch.labels for batch in drawn])
    return torch.arange(len(labels)) if data == "garments" else labels


def localisation(
    model: ImageTransformer, choosing: list[Batch], scoring: list[Batch], labels: Tensor
) -> dict[str, Any]:
    """By rule and layer: the best head of each image, and one head chosen on the training objects."""
    result: dict[str, Any] = {}
    by_training, by_held_out = head_ious(model, choosing), head_ious(model, scoring)
    for rule in RULES:
        chosen, ious = by_training[rule].mean(0), by_held_out[rule]
        layer, head = divmod(int(chosen.flatten().argmax()), chosen.shape[1])
        result[rule] = {
            "best_head_by_layer": [interval(ious[:, index].amax(-1), labels) for index in range(ious.shape[1])],
            "chosen_head_by_layer": [
                interval(ious[:, index, int(chosen[index].argmax())], labels) for index in range(ious.shape[1])
            ],
            "chosen": {"layer": layer, "head": head, "iou": interval(ious[:, layer, head], labels)},
        }
    return result


def trivial(scoring: list[Batch], labels: Tensor, patch: int) -> dict[str, list[float]]:
    """Baselines without a model: everything, a centred box, and the best of four random maps, cut at their mean."""
    masks = torch.cat([masks_of(batch) for batch in scoring])
    side = masks.shape[-1]
    result = {"all_ones": interval(mask_iou(torch.ones_like(masks), masks), labels)}
    for share in (0.4, 0.5, 0.6, 0.7):
        box = torch.zeros(side, side, dtype=torch.bool)
        margin = round(side * (1 - share) / 2)
        box[margin : side - margin, margin : side - margin] = True
        result[f"centred_box_{share}"] = interval(mask_iou(box, masks), labels)
    scores = torch.rand(len(masks), 4, side // patch, side // patch, generator=torch.Generator().manual_seed(0))
    noise = upsample(attention_masks(scores, rule="mean"), (side, side))
    result["best_of_4_random_maps"] = interval(mask_iou(noise, masks[:, None]).amax(-1), labels)
    return result


def table(results: dict[str, Any]) -> str:
    """The card's tables, in Markdown."""
    depth = len(results["crate"]["mean"]["best_head_by_layer"])
    layers = " | ".join(f"layer {index}" for index in range(depth))
    lines = [f"| Best head of each image, IoU | Rule | {layers} |", "|---" * (depth + 2) + "|"]
    for key, name in NAMES.items():
        for rule in RULES if key in results else ():
            by_layer = [f"{mean:.3f}" for mean, _ in results[key][rule]["best_head_by_layer"]]
            lines.append(f"| {name} | {rule} | {' | '.join(by_layer)} |")
    lines += [
        "",
        "| One head, chosen on training objects | Rule | Layer, head | IoU, 95% interval |",
        "|---|---|---|---|",
    ]
    for key, name in NAMES.items():
        for rule in RULES if key in results else ():
            chosen = results[key][rule]["chosen"]
            mean, half = chosen["iou"]
            lines.append(f"| {name} | {rule} | {chosen['layer']}, {chosen['head']} | {mean:.3f} ± {half:.3f} |")
    lines += [
        f"| {name.replace('_', ' ')} | | | {mean:.3f} ± {half:.3f} |"
        for name, (mean, half) in results["trivial"].items()
    ]
    lines += [
        "",
        "| Training objects named | Parameters | Training backgrounds | New backgrounds |",
        "|---|---|---|---|",
    ]
    for key, name in NAMES.items():
        if key in results:
            of = results[key]
            accuracies = f"{of['accuracy_training_backgrounds']:.1%} | {of['accuracy_held_out_backgrounds']:.1%}"
            lines.append(f"| {name} | {of['parameters']:,} | {accuracies} |")
    return "\n".join(lines)


def sources_of(data: str, validation: Path | None) -> tuple[Composites, Composites, Composites]:
    """Composites to choose a head on, to name objects of, and to score maps on."""
    if data == "garments":
        learnt, new = garments("train"), Composites(garments("test"), noise_backgrounds(500, 64, seed=1))
        return Composites(learnt, noise_backgrounds(2000, 64, seed=0)), new, new
    learnt, new_pictures = photographs("train"), wallpapers("held_out")
    if validation:
        unseen = Composites(learnt, wallpapers("held_out", roots=[validation]))
        return Composites(learnt, wallpapers("train")), unseen, unseen
    return (
        Composites(learnt, wallpapers("train")),
        Composites(learnt, new_pictures),
        Composites(photographs("held_out"), new_pictures),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="crate_nano.tuxpaint_composites", help="name or local-dir:PATH")
    parser.add_argument("--control", help="folder of a ViT trained by the same recipe")
    parser.add_argument("--data", choices=("photographs", "garments"), default="photographs")
    parser.add_argument("--validation", type=Path, help="folder of backgrounds: measure on the validation split")
    parser.add_argument("--size", type=int, default=96, help="side of the composites, pixels")
    parser.add_argument("--images", type=int, default=1024, help="composites of each kind, a multiple of 64")
    parser.add_argument("--seed", type=int, default=1000, help="seed of the composites; training used others")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    names = {"crate": options.model} | ({"vit": f"local-dir:{options.control}"} if options.control else {})
    models = {k: create_model(name, pretrained=True, dynamic_img_size=True).eval() for k, name in names.items()}
    torch.manual_seed(options.seed)
    shape = {"num_classes": models["crate"].num_classes}
    models["crate_untrained"] = create_model(models["crate"].architecture, **shape).eval()

    sources = sources_of(options.data, options.validation)
    choosing, naming, scoring = (
        batches(source, options.images, options.seed + later, options.size)
        for source, later in zip(sources, (0, 0, 1), strict=True)
    )
    units = units_of(scoring, options.data)
    results: dict[str, Any] = {
        "images": len(scoring) * 64,
        "size": options.size,
        "seed": options.seed,
        "versions": {"whitebox_crate": whitebox_crate.__version__, "torch": torch.__version__},
        "trivial": trivial(scoring, units, models["crate"].patch_embed.patch_size[0]),
    }
    for key, model in models.items():
        print(f"measuring {key}", flush=True)
        results[key] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "accuracy_training_backgrounds": round(accuracy(model, choosing), 4),
            "accuracy_held_out_backgrounds": round(accuracy(model, naming), 4),
            **localisation(model, choosing, scoring, units),
        }
    write_json(options.out, results)
    print(table(results))
    print(options.out)


if __name__ == "__main__":
    main()
