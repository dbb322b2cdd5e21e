"""Scores how well [CLS] attention segments labelled images: every layer and head, by the paper's mIoU.

arXiv 2308.16271, appendix B.3: the map of a head becomes a mask. For each class of an image, the best head of a layer
counts (equation 13). Its IoU is averaged over the classes of the image (equation 14), then over images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from .._plan import layers_with
from ..errors import InputError
from ..preprocess import fit_photo
from ..segmentation.attention import MaskRule, attention_masks, upsample
from ..segmentation.states import all_cls_attention, check_finite, resolve_layer
from .folders import LabelledImage

RULES: tuple[MaskRule, ...] = get_args(MaskRule)
# The record of an image: IoU by class, rule, layer and head.
Record = dict[str, dict[str, list[list[float]]]]


def score_maps(
    maps: Tensor,
    labels: Tensor,
    *,
    rules: Sequence[MaskRule] = RULES,
    keep: float = 0.6,
    void: int | None = None,
) -> dict[int, dict[str, Tensor]]:
    """IoU of each map's mask with each class of an image. The maps may come from any backbone.

    Masks are made on the patch grid (`attention_masks`) and compared at the resolution of the labels: each pixel
    belongs to the patch around its centre (`upsample`, "nearest"). The numbers equal `mask_iou` to the bit. A map that
    is zero everywhere marks nothing.

    Args:
        maps: (..., grid_h, grid_w), float, finite, not negative; for example (layers, heads, grid_h, grid_w).
        labels: (height, width), integer: 0 for background, any other value for a class or an object.
        rules: Rules of `attention_masks`.
        keep: The share that rules "mass" and "entries" keep.
        void: The label of pixels to leave out, in masks and labels.

    Returns:
        IoU, float32 (...), by label (ascending, without 0 and `void`) and by rule. Empty if there is no such label.

    Raises:
        InputError: If the maps or labels are not as above.
        UnknownNameError: If there is no such rule.

    Example:
        >>> maps = torch.rand(6, 4, 16, 16)  # of 6 layers and 4 heads
        >>> labels = torch.zeros(96, 96, dtype=torch.int64)
        >>> labels[32:64, 32:64] = 7  # one object
        >>> score_maps(maps, labels)[7]["mean"].shape  # IoU of each layer and head
        torch.Size([6, 4])
    """
    if labels.ndim != 2 or labels.numel() == 0 or labels.is_floating_point() or labels.is_complex():
        raise InputError(f"expected integer labels (height, width), got {labels.dtype} of {tuple(labels.shape)}")
    if maps.ndim < 2 or maps.numel() == 0:
        raise InputError(f"expected maps of shape (..., grid_h, grid_w), got {tuple(maps.shape)}")
    (height, width), patches = labels.shape, maps.shape[-2] * maps.shape[-1]
    # Masks are constant within a patch, so only the number of pixels of each label in a patch matters.
    patch_of = upsample(torch.arange(patches, device=maps.device).reshape(maps.shape[-2:]), (height, width))
    values, which = labels.to(maps.device, torch.int64).unique(return_inverse=True)
    pixels = (which * patches + patch_of).flatten().bincount(minlength=len(values) * patches)
    pixels = pixels.reshape(len(values), patches).double()  # exact, since all are whole numbers
    if void is not None:
        pixels[values == void] = 0
    present = [(index, value) for index, value in enumerate(values.tolist()) if value not in (0, void)]

    zero = (maps == 0).flatten(-2).all(dim=-1)[..., None, None]
    found: dict[int, dict[str, Tensor]] = {value: {} for _, value in present}
    for rule in rules:
        masks = (attention_masks(maps + zero, keep, rule) & ~zero).flatten(-2).double()
        sizes = masks @ pixels.sum(dim=0)
        for index, value in present:
            intersection = masks @ pixels[index]
            union = sizes + pixels[index].sum() - intersection
            found[value][rule] = intersection.float() / union.float()
    return found


def score_image(
    model: nn.Module,
    pair: LabelledImage,
    *,
    size: int | None = None,
    rules: Sequence[MaskRule] = RULES,
    keep: float = 0.6,
    void: int | None = None,
    class_names: Mapping[int, str] | None = None,
) -> Record:
    """`score_maps` for one image file, with all layers and heads of a model.

    The model sees the whole image (`fit_photo`). The labels keep their size.

    Args:
        model: A model that `capture` reads.
        pair: The image and its mask.
        size: Shorter side of the image that the model sees, pixels; `best_short_side` of the model if None.
        rules: Rules of `attention_masks`.
        keep: The share that rules "mass" and "entries" keep.
        void: The label of pixels to leave out.
        class_names: Name of each label in the record; other labels are refused. If None, labels are named by number.

    Returns:
        IoU by class, rule, layer and head, ready for JSON, for the layers that have attention.

    Raises:
        InputError: If a file cannot be read, or image and mask do not fit; the message names it.
        WeightsError: If the model's attention is not finite.
    """
    image, labels = pair.read()
    pixels = fit_photo(model, image, size).pixels
    with torch.inference_mode():
        maps = all_cls_attention(model, pixels[None])[0].float().cpu()
    check_finite(maps, f"the attention in {pair.image} is")
    scores = score_maps(maps, labels, rules=rules, keep=keep, void=void)
    names = named_labels(list(scores), class_names, pair)
    return {names[label]: {rule: ious.tolist() for rule, ious in by_rule.items()} for label, by_rule in scores.items()}


def row_of(model: nn.Module, layer: int | None = None) -> int:
    """The place of a layer in the records of `score_image`, which hold the layers that have attention.

    Args:
        model: The model of the records.
        layer: The layer, from 0; negative from the end; `default_layer` of the model if None.

    Raises:
        UnknownNameError: If there is no such layer, or it has no attention.
    """
    [shown] = layers_with(model, "attention", layers=[resolve_layer(model, layer)])
    return layers_with(model, "attention").index(shown)


def named_labels(
    labels: Sequence[int], class_names: Mapping[int, str] | None, pair: LabelledImage
) -> Mapping[int, str]:
    """The name of each label of an image: its class, or its number if there are no names.

    Raises:
        InputError: If a label is not a class; the message names the mask.
    """
    names = {label: str(label) for label in labels} if class_names is None else class_names
    strange = [label for label in labels if label not in names]
    if strange:
        raise InputError(f"{pair.mask} has labels that are not classes: {strange[:10]}; known are {sorted(names)}")
    return names
