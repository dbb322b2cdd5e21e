"""segment and compare: masks and pictures of the objects that one model, or two, find in photographs."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._ahead import in_order
from .._indices import resolve_indices
from ..backbones import Readable
from ..errors import InputError, printable
from ..evaluation.progress import Progress, to_nobody, to_stderr
from ..evaluation.records import content_of
from ..evaluation.runs import model_settings
from ..images import load_image
from ..models._classes import class_index, class_names
from ..preprocess import best_short_side
from ..preprocess.photographs import check_takes_photos
from ..segmentation.draw import draw_panels
from ..segmentation.methods import REVISION, choose_method, method_with, settings_of
from ..segmentation.metrics import mask_iou
from ..segmentation.states import resolve_layer
from ..segmenting import Segmentation
from ..segmenting import segment as segment_photo
from ._common import free_name, load, load_each, photographs, report_error, save_picture
from ._forecast import Forecast
from ._journal import Entry, Journal
from ._saving import entry_of, files_of, save, save_coco
from .arguments import COMPARED

if TYPE_CHECKING:
    from PIL.Image import Image

SETTINGS = ("n", "layer", "head", "rule", "keep", "tau", "label")  # settings of methods that are options
MOST = 255  # objects that an 8-bit mask can number


def segment(options: argparse.Namespace) -> int:
    """Segments each photograph that is not done yet. Reports one that fails, and goes on with the others."""
    paths, model = photographs(options.images), load(options, tell_of_tokens=False)  # `Forecast` says it of each
    check_takes_photos(model, options.model)
    settings, size = _settings(options, model), options.size or best_short_side(model)
    what, basis = _what(options, model, settings), _digest(options, model, settings, size)

    def find(photo: Image, side: int) -> Segmentation:
        return segment_photo(photo, model, options.method, size=side, edges=options.edges, **settings)

    numbered = {**settings_of(options.method), **settings}.get("n", 1) > 1
    forecast, journal = Forecast(model, find), Journal(options.out / "segmented.jsonl")
    items, done = _named(paths), list[str]()
    progress = Progress(0, len(items), 1, to_nobody if options.quiet or len(items) == 1 else to_stderr)

    def entry(item: str) -> Entry:
        """The journal's entry, with the photograph's path as given now: the working folder may have changed."""
        return {**journal.read(item), "image": str(items[item])}

    def result(item: str) -> tuple[str, Entry | None]:
        """What the files of a photograph depend on, and what was found, if it was not done before."""
        path, files = items[item], files_of(options.out, item, options.save)
        depends = f"{basis} {content_of(path)}"
        if journal.holds(item, depends) and all(file.is_file() for file in files.values()):
            return depends, None
        photo = load_image(path)
        with nullcontext() if options.quiet else forecast.of(photo, path.name, size):
            found = find(photo, size)
        save(found, files, numbered)
        return depends, entry_of(found, model=options.model, method=options.method)

    results = in_order(result, items, options.workers)
    for item, path in items.items():
        try:
            depends, found = next(results)
        except InputError as error:
            report_error(path, error)
            progress.skip()
            continue
        if found is None:
            progress.skip()
        else:
            journal.add(item, depends, found)
            progress.advance()
        done.append(item)
        _tell(options, entry(item), files_of(options.out, item, options.save), what)
    if "coco" in options.save and done:
        target = options.out / "coco.json"
        save_coco(target, map(entry, done), paths, what)
        if not options.quiet and not options.json:
            print(f"{target}  ({what}, {len(done)} photograph{'s' if len(done) > 1 else ''})")
    return 0 if len(done) == len(items) else 1


def compare(options: argparse.Namespace) -> int:
    """Draws each photograph with what two models find in it, side by side."""
    names = options.model or COMPARED
    if len(names) != 2:
        raise InputError(f"compare takes two models, not {len(names)}: give --model A --model B")
    paths = photographs(options.images)
    models = load_each(options, names)
    for name, model in zip(names, models, strict=True):
        check_takes_photos(model, name)
    settings = [_settings(options, model) for model in models]
    failed, taken = 0, set[str]()
    for path in paths:
        try:
            photo = load_image(path)
            found = [
                segment_photo(photo, model, options.method, size=options.size, edges=options.edges, **own)
                for model, own in zip(models, settings, strict=True)
            ]
        except InputError as error:
            report_error(path, error)
            failed += 1
            continue
        target = free_name(options.out, path.stem, taken)
        save_picture(_side_by_side(found[0], found[1], names), target)
        print(f"{target}  ({' and '.join(names)})")
    return 1 if failed else 0


def _settings(options: argparse.Namespace, model: Readable) -> dict[str, Any]:
    """The settings that were given for the method. Layer, head and class are looked up before any photograph."""
    given = {name: value for name in SETTINGS if (value := getattr(options, name)) is not None}
    if options.keep is not None and options.rule == "mean":
        raise InputError("the rule 'mean' has no share to keep: leave --keep out, or choose --rule mass or entries")
    options.method = options.method or method_with(given)
    choose_method(options.method, **given)
    if given.get("head", "all") != "all":
        given["head"] = resolve_indices("head", given["head"], model.num_heads)
    if "label" in given:
        given["label"] = class_index(model, given["label"])
    if given.get("n", 1) > MOST:
        raise InputError(
            f"--n is {given['n']}, but a mask of 8 bits numbers at most {MOST} objects: give --n {MOST} or less"
        )
    if "layer" in settings_of(options.method):
        given["layer"] = resolve_layer(model, options.layer)
    return given


def _what(options: argparse.Namespace, model: Readable, settings: dict[str, Any]) -> str:
    """The model, the method, and the layer and heads that it looks at, in words."""
    parts = [options.model, options.method]
    if "layer" in settings:
        parts.append(f"layer {settings['layer']}")
    if "head" in settings_of(options.method):
        head = settings.get("head", model.pretrained_cfg.attention_head)
        heads = head if isinstance(head, list) else [head]
        parts.append("mean of the heads" if head in (None, "all") else f"head {' and '.join(map(str, heads))}")
    if "label" in settings:
        parts.append(class_names(model)[settings["label"]])
    return printable(", ".join(parts))


def _digest(options: argparse.Namespace, model: Readable, settings: dict[str, Any], size: int) -> str:
    """A digest of everything that changes the files of a run."""
    method = {"method": options.method, "edges": options.edges, **settings_of(options.method), **settings}
    about = {**model_settings(model, options.model, size), "method_revision": REVISION, **method}
    whole = json.dumps(about, sort_keys=True, default=repr)
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """Each file by the name of its results: its own name, unless another file has it."""
    taken: set[str] = set()
    return {free_name(Path(), path.stem, taken).stem: path for path in paths}


def _tell(options: argparse.Namespace, entry: Entry, files: dict[str, Path], what: str) -> None:
    """Prints what was found in a photograph: a line of text, or a line of JSON without masks."""
    if options.json:
        objects = [{key: of[key] for key in ("box", "score", "area")} for of in entry["objects"]]
        shown = {key: entry[key] for key in ("image", "model", "method", "width", "height", "grid")}
        print(json.dumps({**shown, "objects": objects, "files": {kind: str(file) for kind, file in files.items()}}))
    elif not options.quiet:
        target = files.get("panel") or next(iter(files.values()), Path(entry["image"]))
        count = len(entry["objects"])
        print(
            f"{target}  ({what}, {entry['grid'][0]} x {entry['grid'][1]} patches, {count} object"
            f"{'' if count == 1 else 's'})"
        )


def _side_by_side(one: Segmentation, other: Segmentation, names: Sequence[str]) -> Image:
    """A column for the photograph and what both find, and one for each model: its map above, its objects below."""
    pictures = [one.pictures(), other.pictures()]
    photo, caption = pictures[0][0]
    common = replace(one, masks=(one.mask & other.mask)[None]).pictures()[2][0]
    panels = [photo, *(of[1][0] for of in pictures), common, *(of[2][0] for of in pictures)]
    above = [f"{name}: {of[1][1]}" for name, of in zip(names, pictures, strict=True)]
    below = f"what both mark: IoU of the two {mask_iou(one.mask, other.mask):.2f}"
    return draw_panels(panels, [caption, *above, below, *(of[2][1] for of in pictures)], 3)
