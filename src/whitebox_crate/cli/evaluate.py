"""evaluate: the paper's measurements over whole data sets, by any number of processes, resumed after a kill."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .._files import write_whole
from .._version import __version__
from ..errors import InputError, require
from ..evaluation.attention import RULES, Record, score_image, summarize, tables
from ..evaluation.coco import check_images, maskcut_results, read_annotations, score
from ..evaluation.folders import LabelledImage, LabelledImages, read_folder, read_voc
from ..evaluation.records import Records, content_of, whole_number
from ..models import ImageTransformer
from ._common import layer_of, load

# What to do about a broken item; the functions beneath know no options.
ADVICE = "repair this one and run again, or leave out what is broken with --skip-broken"


def load_for_evaluation(
    options: argparse.Namespace, model: ImageTransformer | None = None
) -> tuple[ImageTransformer, int, dict[str, Any]]:
    """The model on its device (that of the options, or a loaded one), the shorter side of its images, and its settings.

    The settings are what of them belongs to those of a run: the weights, and all that makes of them what they compute.
    """
    model = load(options) if model is None else model
    if model.in_chans != 3:
        raise InputError(f"{options.model} takes {model.in_chans} channels; photographs have 3")
    size: int = options.size or model.pretrained_cfg.attention_size or min(model.img_size)
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    settings = {
        "whitebox_crate": __version__,
        "model": options.model,
        "architecture": model.architecture,
        "model_args": json.loads(json.dumps(model.model_args, default=repr)),
        "mean": model.pretrained_cfg.mean,
        "std": model.pretrained_cfg.std,
        "weights": digest.hexdigest()[:16],
        "size": size,
    }
    return model.to(_device(options.device)), size, settings


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        if device.type == "cuda" and device.index is None and torch.cuda.is_available():
            device = torch.device("cuda", whole_number("LOCAL_RANK", 0) % torch.cuda.device_count())
        torch.zeros(1, device=device).cpu()  # there and back: the device "meta" makes tensors that hold nothing
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"there is no device {text!r} here: {error}".splitlines()[0]) from error
    return device


def check_files(options: argparse.Namespace, check: Callable[[], None]) -> None:
    """Looks whether all files are there, unless broken ones are to be skipped anyhow."""
    if not options.skip_broken:
        try:
            check()
        except InputError as error:
            raise InputError(f"{error}, or leave them out with --skip-broken") from error


def names_digest(names: list[str]) -> str:
    """What tells one list of items from another in a run's settings."""
    return f"{len(names)} ({hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]})"


def finish(records: Records, results: Mapping[str, Any], table: str, name: str = "results") -> None:
    """Writes NAME.json and the table, NAME.md, beside the records, prints the table, and says where they are."""
    written = {**results, "versions": {"whitebox_crate": __version__, "torch": torch.__version__}}
    path = records.folder / f"{name}.json"
    write_whole(path, lambda temporary: temporary.write_text(json.dumps(written, indent=1) + "\n"))
    write_whole(path.with_suffix(".md"), lambda temporary: temporary.write_text(table))
    print(table)
    print(path)


def _broken(records: Records, count: int) -> list[dict[str, str]]:
    """What was left out, for the results.

    Raises:
        InputError: If that is all of the `count` images.
    """
    broken = [{"image": name, "why": why} for name, why in records.broken]
    if len(broken) == count:
        raise InputError(f"all {count} images are broken; the first, {broken[0]['image']}: {broken[0]['why']}")
    return broken


def voc(options: argparse.Namespace) -> int:
    about = {"data": "voc", "split": options.split}
    return _attention(options, read_voc(options.root, options.split), about, by_class=True)


def folder(options: argparse.Namespace) -> int:
    about = {"data": "folder", "objects": options.objects}
    return _attention(options, read_folder(options.root, options.void), about, by_class=not options.objects)


def _attention(options: argparse.Namespace, data: LabelledImages, about: Mapping[str, Any], by_class: bool) -> int:
    if not 0 < options.keep <= 1:
        raise InputError(f"--keep is a share in (0, 1], not {options.keep}")
    check_files(options, data.check_files)
    model, size, about_model = load_for_evaluation(options)
    layer = layer_of(model, options.layer)
    class_names = data.class_names if by_class else None
    rules = [rule for rule in RULES if rule in options.rules]
    settings = {
        "measurement": "attention",
        **about,
        "void": data.void,
        "classes": class_names,
        "images": names_digest([name for name, _ in data.items]),
        **about_model,
        "rules": rules,
        "keep": options.keep,
    }
    records = Records(options.out, settings)
    measure: Callable[[LabelledImage], Record] = partial(
        score_image, model, size=size, rules=rules, keep=options.keep, void=data.void, class_names=class_names
    )
    records.measure(data.items, measure, content=LabelledImage.content, skip_broken=options.skip_broken, advice=ADVICE)
    if records.is_main:
        broken = _broken(records, len(data.items))
        found = summarize(records.items(), layer=layer, by_class=by_class)
        table = f"{options.model}, {found['images']} images at {size} pixels"
        if found["images_without_objects"]:
            table += f"; {found['images_without_objects']} more have no object"
        if broken:
            table += f"; {len(broken)} broken ones left out, named in results.json"
        finish(records, {"settings": settings, **found, "broken": broken}, f"{table}\n\n{tables(found)}")
    return 0


def coco(options: argparse.Namespace) -> int:
    require("faster_coco_eval", "eval")  # or its lack would be told after the first image
    if not 0 <= options.tau < 1:
        raise InputError(f"--tau is a cosine in [0, 1), not {options.tau}")
    folder: Path = options.root / options.split
    file: Path = options.annotations or options.root / "annotations" / f"instances_{options.split}.json"
    annotations = read_annotations(file)
    check_files(options, partial(check_images, annotations, folder))
    model, size, about_model = load_for_evaluation(options)
    layer = layer_of(model, options.layer)
    items = [(image["file_name"], image) for image in annotations["images"]]
    settings = {
        "measurement": "maskcut",
        "data": "coco",
        "split": options.split,
        "annotations": content_of(file),
        "images": names_digest([f"{image['id']} {name}" for name, image in items]),
        **about_model,
        "layer": layer,
        "state": options.state,
        "n": options.n,
        "tau": options.tau,
    }
    records = Records(options.out, settings)
    find = partial(
        maskcut_results,
        model,
        folder=folder,
        size=size,
        layer=layer,
        n=options.n,
        tau=options.tau,
        state=options.state,
    )

    def content(image: Mapping[str, Any]) -> str:
        return content_of(folder / image["file_name"])

    records.measure(items, find, content=content, skip_broken=options.skip_broken, advice=ADVICE)
    if records.is_main:
        broken = _broken(records, len(items))
        results = [result for _, found in records.items() for result in found]
        write_whole(records.folder / "results.json", lambda path: path.write_text(json.dumps(results) + "\n"))
        scores = {
            "detection": score(annotations, results, "bbox"),
            "segmentation": score(annotations, results, "segm"),
        }
        what = f"MaskCut on {options.state} of layer {layer}"
        title = f"{options.model}, {what}, {len(items)} images at {size} pixels, {len(results)} masks"
        if broken:
            title += f"; in {len(broken)} broken images, named in scores.json, nothing was found"
        lines = [title, "", "| in percent | AP50 | AP75 | AP |", "|---|---|---|---|"]
        lines += [f"| {kind} | {' | '.join(f'{100 * of[key]:.1f}' for key in of)} |" for kind, of in scores.items()]
        about = {"settings": settings, "images": len(items), "masks": len(results), **scores, "broken": broken}
        finish(records, about, "\n".join(lines) + "\n", "scores")
    return 0
