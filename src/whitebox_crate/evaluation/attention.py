"""How well [CLS] attention segments a set of labelled images: every layer and head, by the paper's mIoU.

arXiv 2308.16271, appendix B.3: a head's map becomes a mask; of the heads of a layer, the best one for each class of an
image counts (equation 13); its IoU is averaged over the classes of the image (equation 14), then over images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from .._indices import resolve_index
from ..errors import InputError, WeightsError
from ..models import ImageTransformer
from ..preprocess import image_to_tensor, resize_to_grid
from ..segmentation.attention import MaskRule, all_cls_attention, attention_masks, upsample
from .folders import LabelledImage

RULES: tuple[MaskRule, ...] = get_args(MaskRule)
# IoU by class, rule, layer and head: what is recorded of an image.
Record = dict[str, dict[str, list[list[float]]]]


def score_maps(
    maps: Tensor,
    labels: Tensor,
    *,
    rules: Sequence[MaskRule] = RULES,
    keep: float = 0.6,
    void: int | None = None,
) -> dict[int, dict[str, Tensor]]:
    """IoU of the mask of each map with each class of an image, whatever backbone the maps come from.

    Masks are made on the patch grid (`attention_masks`) and compared at the resolution of the labels, each pixel with
    the patch that its centre lies in (`upsample`, "nearest"): the numbers are those of `mask_iou` to the bit. A map
    that is zero everywhere marks nothing.

    Args:
        maps: (..., grid_h, grid_w), float, finite, not negative; for example (layers, heads, grid_h, grid_w).
        labels: (height, width), integer: 0 for background, any other value for a class or an object.
        rules: Rules of `attention_masks`.
        keep: The share that rules "mass" and "entries" keep.
        void: The label of pixels that count for nothing, on either side.

    Returns:
        By label in ascending order, without 0 and `void`, and by rule: IoU, float32 (...). Empty if no such label is
        there.

    Raises:
        InputError: If the maps or labels are not as above.
        UnknownNameError: If there is no such rule.
    """
    if labels.ndim != 2 or labels.numel() == 0 or labels.is_floating_point() or labels.is_complex():
        raise InputError(f"expected integer labels (height, width), got {labels.dtype} of {tuple(labels.shape)}")
    if maps.ndim < 2 or maps.numel() == 0:
        raise InputError(f"expected maps of shape (..., grid_h, grid_w), got {tuple(maps.shape)}")
    (height, width), patches = labels.shape, maps.shape[-2] * maps.shape[-1]
    # Masks do not change within a patch: what counts is how many pixels of each label a patch has.
    patch_of = upsample(torch.arange(patches, device=maps.device).reshape(maps.shape[-2:]), (height, width))
    values, which = labels.to(maps.device, torch.int64).unique(return_inverse=True)
    pixels = (which * patches + patch_of).flatten().bincount(minlength=len(values) * patches)
    pixels = pixels.reshape(len(values), patches).double()  # exact, as all whole numbers here are
    if void is not None:
        pixels[values == void] = 0
    present = [(index, value) for index, value in enumerate(values.tolist()) if value not in (0, void)]

    dark = (maps == 0).flatten(-2).all(dim=-1)[..., None, None]
    found: dict[int, dict[str, Tensor]] = {value: {} for _, value in present}
    for rule in rules:
        masks = (attention_masks(maps + dark, keep, rule) & ~dark).flatten(-2).double()
        sizes = masks @ pixels.sum(dim=0)
        for index, value in present:
            intersection = masks @ pixels[index]
            union = sizes + pixels[index].sum() - intersection
            found[value][rule] = intersection.float() / union.float()
    return found


def score_image(
    model: ImageTransformer,
    pair: LabelledImage,
    *,
    size: int,
    rules: Sequence[MaskRule] = RULES,
    keep: float = 0.6,
    void: int | None = None,
    class_names: Mapping[int, str] | None = None,
) -> Record:
    """`score_maps` of one image on a disk, by all layers and heads of a model.

    The image is scaled so that patches tile it (`resize_to_grid`) and normalised as the model's weights ask for; the
    labels stay as they are.

    Args:
        model: A model of this package that takes images of any size (`dynamic_img_size`).
        pair: The image and its mask.
        size: Shorter side for the model, pixels.
        rules: Rules of `attention_masks`.
        keep: The share that rules "mass" and "entries" keep.
        void: The label of pixels that count for nothing.
        class_names: What to call each label in the record, others being refused; if None, by its number.

    Returns:
        IoU by class, rule, layer and head, as JSON holds it.

    Raises:
        InputError: If a file cannot be read or the two do not fit each other; the message names it.
        WeightsError: If the model's attention is not finite.
    """
    image, labels = pair.read()
    cfg, device = model.pretrained_cfg, model.cls_token.device
    seen = resize_to_grid(image, model.patch_embed.patch_size, size)
    pixels = image_to_tensor(seen, mean=cfg.mean, std=cfg.std).to(device)
    with torch.inference_mode():
        maps = all_cls_attention(model, pixels[None])[0].float().cpu()
    if not maps.isfinite().all():
        raise WeightsError(f"the attention in {pair.image} is not finite; the weights are damaged")
    scores = score_maps(maps, labels, rules=rules, keep=keep, void=void)
    names = {label: str(label) for label in scores} if class_names is None else class_names
    strange = [label for label in scores if label not in names]
    if strange:
        raise InputError(f"{pair.mask} has labels that are no classes: {strange[:10]}; known are {sorted(names)}")
    return {names[label]: {rule: ious.tolist() for rule, ious in by_rule.items()} for label, by_rule in scores.items()}


def summarize(records: Iterable[tuple[str, Record]], *, layer: int, by_class: bool = True) -> dict[str, Any]:
    """The paper's numbers from the records of all images; a record at a time is looked at.

    Args:
        records: (name of the image, its record). An image without classes is counted and left out.
        layer: The layer that the table by class is of, from 0 or negative from the end.
        by_class: Whether labels mean the same in all images, so that there is something to average by class.

    Returns:
        `images`, `images_without_objects`; `layer`; and by rule:

        - `miou_by_layer`: equations 13 and 14 for each layer, averaged over images; `miou` is that of `layer`.
        - `by_class`: for each class the `images` that have it and its `iou`: mean over these of the best head of
          `layer`. `class_mean` is the mean over classes.
        - `one_head`: no best head of each image, but one for all, by the same mean. The images are counted from 0; the
          head that is best on the `even` ones is scored on the `odd` ones, and the other way round: `halves` has both,
          `miou` is the mean over all images. None if there are fewer than two images.

    Raises:
        InputError: If no image has an object, or a record is not like the others (`ious_of`).
        UnknownNameError: If there is no such layer.
    """
    images = without = 0
    # Sums over images, by rule: best head (layers,); fixed heads (halves, layers, heads); best head by class (layers,).
    best: dict[str, Any] = {}
    fixed: dict[str, Any] = {}
    classes: dict[str, dict[str, Any]] = {}
    counts: dict[str, int] = {}
    for names, ious in ious_of(records):
        if not names:
            without += 1
            continue
        for rule, of in ious.items():
            best[rule] = best.get(rule, 0.0) + of.max(axis=2).mean(axis=0)
            halves = fixed.setdefault(rule, np.zeros((2, *of.shape[1:])))
            halves[images % 2] += of.mean(axis=0)
        images += 1
        for index, name in enumerate(names if by_class else ()):
            counts[name] = counts.get(name, 0) + 1
            for rule, of in ious.items():
                sums = classes.setdefault(name, {})
                sums[rule] = sums.get(rule, 0.0) + of[index].max(axis=1)
    if not images:
        raise InputError(
            f"{without} images were scored and none has an object; look at the masks, and at the label of void pixels"
        )
    depth = len(next(iter(best.values())))
    layer = resolve_index("layer", layer, depth)
    result: dict[str, Any] = {"images": images, "images_without_objects": without, "layer": layer, "rules": {}}
    for rule, total in best.items():
        means = {name: float(classes[name][rule][layer] / counts[name]) for name in counts}
        result["rules"][rule] = {
            "miou": float(total[layer] / images),
            "miou_by_layer": (total / images).tolist(),
            "one_head": _one_head(fixed[rule], images),
        }
        if by_class:
            result["rules"][rule]["class_mean"] = sum(means.values()) / len(means)
            result["rules"][rule]["by_class"] = {
                name: {"images": counts[name], "iou": means[name]} for name in sorted(means, key=_numbers_first)
            }
    return result


def ious_of(records: Iterable[tuple[str, Record]]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Of each record, the classes, and by rule the IoUs (classes, layers, heads); a record at a time is looked at.

    Raises:
        InputError: If a record has no rules, or others or other layers and heads than the ones before it.
    """
    known: dict[str, tuple[int, ...]] = {}
    for image, record in records:
        rules = next(iter(record.values()), {})
        try:
            ious = {rule: np.array([by_rule[rule] for by_rule in record.values()], dtype=float) for rule in rules}
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"the record of {image} has not one shape and the same rules for all classes") from error
        if record:
            found = {rule: of.shape[1:] for rule, of in ious.items()}
            if not found or any(len(shape) != 2 or 0 in shape for shape in found.values()):
                raise InputError(f"the record of {image} has no rules, or no layers and heads: it has {found}")
            known = known or found
            if found != known or any(set(by_rule) != set(known) for by_rule in record.values()):
                raise InputError(
                    f"the record of {image} has the rules and (layers, heads) {found}, those before it {known}; put "
                    "together what was measured of one model with the same rules"
                )
        yield list(record), ious


def _numbers_first(name: str) -> tuple[bool, int, str]:
    """Sorts labels as numbers, before names."""
    return (False, int(name), "") if name.isdecimal() else (True, 0, name)


def _one_head(halves: Any, images: int) -> dict[str, Any] | None:
    """The head that is best on one half of the images, scored on the other, both ways."""
    if images < 2:
        return None
    numbers = ((images + 1) // 2, images // 2)
    found, total = [], 0.0
    for choosing, names in enumerate((("even", "odd"), ("odd", "even"))):
        layer, head = divmod(int(halves[choosing].argmax()), halves.shape[2])
        score, number = halves[1 - choosing][layer, head], numbers[1 - choosing]
        total += score
        found.append(
            {"chosen_on": names[0], "scored_on": names[1], "layer": layer, "head": head, "miou": float(score / number)}
        )
    return {"miou": float(total / images), "halves": found}


def tables(summary: Mapping[str, Any]) -> str:
    """The numbers of `summarize` in Markdown, IoU in percent."""
    rules, layer = summary["rules"], summary["layer"]
    depth = len(next(iter(rules.values()))["miou_by_layer"])
    layers = " | ".join(f"layer {index}" for index in range(depth))
    lines = [f"| mIoU, best head of each class and image | {layers} |", "|---" * (depth + 1) + "|"]
    for rule, of in rules.items():
        lines.append(f"| {rule} | {' | '.join(_percent(value) for value in of['miou_by_layer'])} |")
    lines += ["", "| mIoU, one head for all images | both halves | layer, head of each |", "|---|---|---|"]
    for rule, of in rules.items():
        if of["one_head"]:
            heads = "; ".join(
                f"{half['layer']}, {half['head']} (chosen on {half['chosen_on']} images, {_percent(half['miou'])} on "
                f"{half['scored_on']})"
                for half in of["one_head"]["halves"]
            )
            lines.append(f"| {rule} | {_percent(of['one_head']['miou'])} | {heads} |")
    if all("by_class" in of for of in rules.values()):
        lines += ["", f"| Class, layer {layer} | images | {' | '.join(rules)} |", "|---" * (len(rules) + 2) + "|"]
        first = next(iter(rules.values()))
        for name, of in first["by_class"].items():
            values = " | ".join(_percent(rules[rule]["by_class"][name]["iou"]) for rule in rules)
            lines.append(f"| {name} | {of['images']} | {values} |")
        values = " | ".join(_percent(of["class_mean"]) for of in rules.values())
        lines.append(f"| mean of classes | {summary['images']} | {values} |")
    return "\n".join(lines) + "\n"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
