"""Scores the masks of a method and edges of `segment` on labelled images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._tables import markdown_table
from ..errors import InputError
from ..preprocess import best_short_side, fit_photo
from ..segmentation.edges import Edges, choose_edges
from ..segmentation.methods import REVISION, Segments, choose_method, settings_of
from ..segmentation.metrics import mask_iou
from .attention import named_labels
from .folders import LabelledImage, LabelledImages
from .runs import Outcome, Run, broken_images, left_out, model_settings, names_digest

# IoU of each class of an image.
MaskRecord = dict[str, float]


def evaluate_masks(
    run: Run,
    model: nn.Module,
    data: LabelledImages,
    *,
    name: str,
    method: str = "multiscale",
    edges: str = "colours",
    size: int | None = None,
    by_class: bool = True,
    **settings: Any,
) -> Outcome | None:
    """Mean IoU of the masks of one method, at the pixels of the photographs.

    Each class of an image is scored by the mask that fits it best. (A method with one mask has no choice.) Scores are
    averaged over the classes of an image, then over images. Writes results.json and results.md.

    Args:
        run: Where results go.
        model: A model that `capture` reads, on its device.
        data: The images; see `read_voc` and `read_folder`.
        name: Name of the model in the results.
        method: A name in `segmentation.METHODS`.
        edges: A name in `segmentation.EDGES`.
        size: Shorter side of the image that the model sees, pixels; `best_short_side` of the model if None.
        by_class: Whether labels mean the same in all images; else they number the objects of an image.
        **settings: Settings of the method.

    Returns:
        The outcome: `miou` over all images with objects; `even` and `odd` over those with even and odd numbers, counted
        from 0; each with `images` and `half_interval`, half of its 95% interval; and `by_class`. None in processes
        other than the main one.

    Raises:
        InputError: If files are missing or broken, a label is not a class, or no image has an object.
        UnknownNameError: If there is no such method, setting or kind of edges.
        WeightsError: If the model's numbers are not finite.
        OutputError: If a record or result cannot be written.
        ProcessError: If another process failed.

    Example:
        >>> from pathlib import Path
        >>> model = create_model("crate_nano", pretrained=True, dynamic_img_size=True).eval()
        >>> run, data = Run(Path("scores")), read_folder("data")
        >>> found = evaluate_masks(run, model, data, name="crate_nano", method="attention")
    """
    find, to_pixels = choose_method(method, **settings), choose_edges(edges)
    run.check_files(data.check_files)
    size = best_short_side(model) if size is None else size
    class_names = data.class_names if by_class else None
    about = {
        "measurement": "masks",
        "void": data.void,
        "classes": class_names,
        "images": names_digest([image for image, _ in data.items]),
        **model_settings(model, name, size),
        "method_revision": REVISION,
        "method": method,
        "method_settings": {**settings_of(method), **{key: of for key, of in settings.items() if of is not None}},
        "edges": edges,
    }
    score = partial(
        score_masks, model, find=find, to_pixels=to_pixels, size=size, void=data.void, class_names=class_names
    )
    records = run.measure(about, data.items, score, LabelledImage.content)
    if not records.is_main:
        return None
    broken = broken_images(records, len(data.items))
    found = summarize_masks(records.items(), by_class)
    title = f"{name}, {method} with edges {edges}, {found['all']['images']} images at {size} pixels"
    results = {"settings": records.settings, **found, "broken": broken}
    return run.write(results, f"{title}{left_out(broken)}\n\n{_tables(found)}\n")


def score_masks(
    model: nn.Module,
    pair: LabelledImage,
    *,
    find: Callable[[nn.Module, Tensor], Segments],
    to_pixels: Edges,
    size: int | None = None,
    void: int | None = None,
    class_names: Mapping[int, str] | None = None,
) -> MaskRecord:
    """IoU of each class of one image with the mask that fits it best; 0 if there is no mask.

    Args:
        model: A model that `capture` reads.
        pair: The image and its labels.
        find: The result of `choose_method`.
        to_pixels: The result of `choose_edges`.
        size: Shorter side of the image that the model sees, pixels; `best_short_side` of the model if None.
        void: The label of pixels to leave out.
        class_names: Name of each label; other labels are refused. If None, labels are named by number.

    Raises:
        InputError: If a file cannot be read, image and mask do not fit, or a label is not a class.
        WeightsError: If the model's numbers are not finite.
    """
    image, labels = pair.read()
    pixels = fit_photo(model, image, size).pixels
    with torch.inference_mode():
        levels = find(model, pixels).levels.cpu()
    masks = to_pixels(levels, torch.from_numpy(np.array(image)).permute(2, 0, 1))
    there = [label for label in labels.unique().tolist() if label not in (0, void)]
    names = named_labels(there, class_names, pair)
    valid = torch.ones_like(labels, dtype=torch.bool) if void is None else labels != void
    return {
        names[label]: float(mask_iou(masks, labels == label, valid=valid).max()) if len(masks) else 0.0
        for label in there
    }


def summarize_masks(records: Iterable[tuple[str, MaskRecord]], by_class: bool = True) -> dict[str, Any]:
    """Means of the records of `score_masks`, as `evaluate_masks` returns them.

    Raises:
        InputError: If no image has an object.
    """
    images: list[float] = []
    classes: dict[str, list[float]] = {}
    for _, record in records:
        if record:
            images.append(float(np.mean(list(record.values()))))
        for name, iou in record.items():
            classes.setdefault(name, []).append(iou)
    if not images:
        raise InputError("no image has an object; check the masks, and the label of void pixels")
    found: dict[str, Any] = {"all": _mean(images), "even": _mean(images[::2]), "odd": _mean(images[1::2])}
    if by_class:
        found["by_class"] = {name: _mean(ious) for name, ious in sorted(classes.items())}
    return found


def _mean(ious: list[float]) -> dict[str, Any]:
    """The mean and half of its 95% interval; the latter is None for fewer than two numbers."""
    if not ious:
        return {"images": 0, "miou": None, "half_interval": None}
    half = 1.96 * float(np.std(ious, ddof=1)) / len(ious) ** 0.5 if len(ious) > 1 else None
    return {"images": len(ious), "miou": float(np.mean(ious)), "half_interval": half}


def _tables(found: Mapping[str, Any]) -> str:
    parts = {"all images": found["all"], "of even number": found["even"], "of odd number": found["odd"]}
    tables = [_table("images", parts)]
    if "by_class" in found:
        tables.append(_table("class", found["by_class"]))
    return "\n\n".join(tables)


def _table(what: str, parts: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [[name, of["images"], _percent(of["miou"]), _percent(of["half_interval"])] for name, of in parts.items()]
    return markdown_table([what, "images", "mIoU, percent", "±, 95%"], rows)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
