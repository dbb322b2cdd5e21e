"""Class-agnostic AP50, AP75 and AP of masks on COCO, by its official evaluator (arXiv 2308.16271, table 1)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, UnknownNameError, is_finite, listed, require
from ..segmentation.cuts import mask_boxes
from .coco_shapes import brief, check_box, check_mask

Kind: TypeAlias = Literal["bbox", "segm"]
Document: TypeAlias = dict[str, Any]  # a parsed instances_*.json
Result: TypeAlias = dict[str, Any]  # one detection in a results file

OBJECT = 1  # the one category


def read_annotations(path: str | os.PathLike[str]) -> Document:
    """Reads annotations in COCO's JSON (instances_val2017.json) and checks the fields that the evaluation uses.

    Args:
        path: The file. It is held in memory, as in the evaluator: val2017 takes about 0.2 GB.

    Returns:
        The document: "images" with id, file_name, height and width; "annotations" with image_id and bbox (x, y, width,
        height, pixels) and segmentation (polygons or run lengths).

    Raises:
        InputError: If the file is unreadable or not such JSON, lists no image or an image twice, annotates an image
            that it does not list, has an invalid box or mask (`coco_shapes`), or has only crowds.
    """
    document = _read_json(path)
    if not isinstance(document, dict) or not all(isinstance(document.get(k), list) for k in ("images", "annotations")):
        raise InputError(f"{path} has no lists 'images' and 'annotations'; give a file like instances_val2017.json")
    sizes: dict[int, list[int]] = {}
    for image in document["images"]:
        if not isinstance(image, dict) or not _is_image(image):
            raise InputError(
                f"{path}: an image needs id, file_name, height and width, but one is {brief(image)}; repair the file"
            )
        if image["id"] in sizes:
            raise InputError(f"{path} lists the image {image['id']} twice; repair the file")
        sizes[image["id"]] = [image["height"], image["width"]]
    if not sizes:
        raise InputError(f"{path} lists no images; give a file like instances_val2017.json")
    for number, annotation in enumerate(document["annotations"]):
        if not isinstance(annotation, dict) or not _is_annotation(annotation):
            raise InputError(
                f"{path}: an annotation needs image_id (a whole number), bbox and segmentation, but one is "
                f"{brief(annotation)}; captions and keypoints are in other files: give one like "
                "instances_val2017.json"
            )
        if not _is_whole(annotation.get("iscrowd", 0)) or annotation.get("iscrowd", 0) not in (0, 1):
            raise InputError(
                f"{path}: iscrowd must be 0 or 1, or absent, but one is {annotation['iscrowd']!r}; repair it"
            )
        if annotation["image_id"] not in sizes:
            raise InputError(f"{path} annotates the image {annotation['image_id']}, which it does not list; repair it")
        whose = f"{path}: {_name_of(annotation, number)}"
        check_box(annotation["bbox"], whose)
        check_mask(annotation["segmentation"], sizes[annotation["image_id"]], whose)
    _check_objects(document)
    return document


def read_results(path: str | os.PathLike[str]) -> list[Result]:
    """Reads a results file in COCO's JSON, from any method.

    Raises:
        InputError: If the file is unreadable or is not a list of objects.
    """
    results = _read_json(path)
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise InputError(f"{path} is not a list of results [{{image_id, category_id, segmentation, bbox, score}}, ...]")
    return results


def check_images(annotations: Document, folder: str | os.PathLike[str]) -> None:
    """Checks that all images exist, before hours are spent on the others.

    Raises:
        InputError: If some are missing; the message names the first ones.
    """
    names = [image["file_name"] for image in annotations["images"]]
    missing = [name for name in names if not (Path(folder) / name).is_file()]
    if missing:
        raise InputError(f"{len(missing)} of {len(names)} images are not in {folder}: {listed(missing)}; add them")


def to_results(image_id: int, masks: Tensor, scores: Sequence[float] | None = None) -> list[Result]:
    """Turns the masks found in an image into COCO's results: run lengths, tight boxes, and the one category, 1.

    Args:
        image_id: COCO's number of the image.
        masks: (n, height, width), bool, at the image's own size. Empty masks are skipped, since COCO has no box for
            them.
        scores: n numbers. None for methods such as MaskCut, which find the clearest object first and give no score: the
            scores are then 1, 1/2, 1/3, ..., so that all first masks rank before all second masks.

    Returns:
        [{image_id, category_id, segmentation, bbox, score}]; bbox is [x, y, width, height] in pixels.

    Raises:
        InputError: If masks or scores are not as above, or a score is not finite.
        MissingExtraError: If the evaluator is not installed.
    """
    if masks.ndim != 3 or masks.dtype != torch.bool:
        raise InputError(f"expected masks bool (n, height, width), got {masks.dtype} {tuple(masks.shape)}")
    ranked = [1 / (rank + 1) for rank in range(len(masks))] if scores is None else [float(score) for score in scores]
    if len(ranked) != len(masks) or not all(map(math.isfinite, ranked)):
        raise InputError(f"expected {len(masks)} finite scores, one for each mask, got {ranked}")
    coding = require("faster_coco_eval", "eval").mask
    results = []
    for mask, box, confidence in zip(masks.cpu().numpy(), mask_boxes(masks).tolist(), ranked, strict=True):
        if mask.any():
            counts: bytes = coding.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
            results.append(
                {
                    "image_id": image_id,
                    "category_id": OBJECT,
                    "segmentation": {"size": list(mask.shape), "counts": counts.decode("ascii")},
                    "bbox": box,
                    "score": confidence,
                }
            )
    return results


def average_precision(annotations: Document, results: Sequence[Mapping[str, Any]], kind: Kind) -> dict[str, float]:
    """Average precision of results against all annotated objects, whatever their class.

    These are the paper's columns (arXiv 2308.16271, table 1): one category, up to 100 results per image, objects of all
    areas. Crowds are ignored, as in COCO. An image without a result counts as one in which nothing was found.

    Args:
        annotations: See `read_annotations`.
        results: See `to_results`: image_id and score, and bbox or segmentation.
        kind: "bbox" for detection, "segm" for segmentation.

    Returns:
        {"AP50", "AP75", "AP"}: at IoU 0.5, at 0.75, and the mean from 0.5 to 0.95 in steps of 0.05; each in [0, 1].

    Raises:
        InputError: If a result belongs to an image without annotations, has another size than its image, or lacks a
            field; if there is no object to find; or if a box or a mask is invalid (`coco_shapes`).
        UnknownNameError: If there is no such kind.
        MissingExtraError: If the evaluator is not installed.
    """
    if kind not in get_args(Kind):
        raise UnknownNameError.of("kind", kind, get_args(Kind))
    evaluator = require("faster_coco_eval", "eval")
    sizes = {image["id"]: [image["height"], image["width"]] for image in annotations["images"]}
    objects = [_as_object(each, number, sizes, kind) for number, each in enumerate(annotations["annotations"], start=1)]
    _check_objects(annotations)
    found = _as_found(sizes, results, kind)
    if not found:
        return {"AP50": 0.0, "AP75": 0.0, "AP": 0.0}
    truth = evaluator.COCO()
    truth.dataset = {
        "info": {},
        "images": annotations["images"],
        "annotations": objects,
        "categories": [{"id": OBJECT, "name": "object"}],
    }
    try:
        truth.createIndex()
        evaluation = evaluator.COCOeval_faster(truth, truth.loadRes(found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    except Exception as error:  # the evaluator raises many kinds of errors on damaged polygons or run lengths
        raise InputError(
            f"COCO's evaluator cannot read a {kind} of the annotations or results: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else error!r}; give masks as run lengths or polygons"
        ) from error
    average, at_50, at_75 = (float(value) for value in evaluation.stats[:3])
    return {"AP50": at_50, "AP75": at_75, "AP": average}


def _as_object(
    annotation: Mapping[str, Any], number: int, sizes: Mapping[int, list[int]], kind: Kind
) -> dict[str, Any]:
    """An annotation for the evaluator, numbered from 1, because the evaluator takes 0 as no object."""
    whose = _name_of(annotation, number - 1)
    check_box(annotation["bbox"], whose)
    if kind == "segm":
        check_mask(annotation["segmentation"], sizes[annotation["image_id"]], whose)
    x, y, width, height = annotation["bbox"]
    return {
        "id": number,
        "image_id": annotation["image_id"],
        "category_id": OBJECT,
        "segmentation": annotation["segmentation"],
        "bbox": [x, y, width, height],
        "area": annotation.get("area", width * height),
        "iscrowd": int(annotation.get("iscrowd", 0)),
    }


def _as_found(sizes: Mapping[int, list[int]], results: Sequence[Mapping[str, Any]], kind: Kind) -> list[dict[str, Any]]:
    """The results for the evaluator, with only the fields that it should score."""
    shape = "bbox" if kind == "bbox" else "segmentation"
    found = []
    for number, result in enumerate(results):
        if not isinstance(result, Mapping) or not {"image_id", "score", shape} <= result.keys():
            raise InputError(f"a result needs an image_id, a score and a {shape}, but one is {brief(result)}")
        if not _is_whole(result["image_id"]):
            raise InputError(f"image_id must be a whole number, but in one result it is {brief(result['image_id'])}")
        if result["image_id"] not in sizes:
            raise InputError(
                f"a result is for image {result['image_id']}, which the annotations do not list: give annotations "
                "of the same split"
            )
        whose = f"result {number} of image {result['image_id']}"
        if kind == "bbox":
            check_box(result["bbox"], whose)
        else:
            check_mask(result["segmentation"], sizes[result["image_id"]], whose)
        if not is_finite(result["score"]):
            raise InputError(f"a score must be a finite number, but one is {brief(result['score'])}")
        found.append({"image_id": result["image_id"], "category_id": OBJECT, "score": result["score"]})
        found[-1][shape] = result[shape]
    return found


def _check_objects(annotations: Document) -> None:
    if all(annotation.get("iscrowd", 0) for annotation in annotations["annotations"]):
        raise InputError(f"the {len(annotations['images'])} annotated images have no object to find except crowds")


def _name_of(annotation: Mapping[str, Any], number: int) -> str:
    """The name of an annotation in messages: its id, or its place in the list if it has no id."""
    name = annotation.get("id", f"number {number}")
    return f"annotation {name} of image {annotation['image_id']}"


def _is_image(image: Mapping[str, Any]) -> bool:
    named = _is_whole(image.get("id")) and isinstance(image.get("file_name"), str)
    return named and all(_is_whole(image.get(side)) and image[side] > 0 for side in ("height", "width"))


def _is_annotation(annotation: Mapping[str, Any]) -> bool:
    return _is_whole(annotation.get("image_id")) and {"bbox", "segmentation"} <= annotation.keys()


def _is_whole(value: object) -> bool:
    return type(value) is int  # in Python, true is an int too


def _read_json(path: str | os.PathLike[str]) -> Any:
    try:
        with open(path, "rb") as file:
            return json.load(file)
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error}; check the path") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON, or is cut short: {error}; fetch or write it again") from error
