"""The `whitebox-crate` command: list models, segment photographs, show attention, train."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from . import __version__
from .errors import InputError, OutputError, WhiteboxCrateError, require
from .factory import create_model
from .hub import save_pretrained, write_whole
from .models import ImageTransformer, PretrainedCfg
from .models._base import resolve_index
from .preprocess import image_to_tensor, load_image, resize_to_grid
from .registry import list_models, list_pretrained
from .segmentation import attention_masks, cls_attention
from .segmentation.attention import MaskRule
from .segmentation.draw import draw_map, draw_mask, draw_panels
from .training import Composites, Recipe, garments, noise_backgrounds, photographs, train, wallpapers

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN_SIDE = 320  # shorter side of a panel, pixels


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Words after the command's name; those of the process if None.

    Returns:
        0; 1 after an error, whose message is on stderr.
    """
    options = build_parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        code: int = options.run(options)
    except WhiteboxCrateError as error:
        print(f"whitebox-crate: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("whitebox-crate: interrupted", file=sys.stderr)
        return 130
    return code


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser("whitebox-crate", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = _command(commands, "list", _list, "names of models, weights with --pretrained")
    listing.add_argument("filter", nargs="*", help="wildcards, for example 'crate_*'")
    listing.add_argument("--pretrained", action="store_true", help="only models with weights, with their tags")

    segment = _command(commands, "segment", _segment, "the picture, a head's [CLS] map and its mask, as a PNG")
    _add_picture_options(segment, "segmented")
    segment.add_argument("--head", type=int, help="which head (default: the weights' best, else their mean)")
    segment.add_argument("--rule", choices=get_args(MaskRule), help="what a mask keeps (default: mean)")
    segment.add_argument("--keep", type=float, help="share kept (0.6) by mass, the rule if this is given, or entries")

    attention = _command(commands, "attention", _attention, "the [CLS] maps of all heads of a layer, as a PNG")
    _add_picture_options(attention, "attention")

    training = _command(commands, "train", _train, "train on composites of objects over backgrounds")
    training.add_argument("--model", default="crate_nano", help="architecture (%(default)s)")
    training.add_argument("--set", nargs="+", default=[], metavar="OPTION=VALUE", help="options of the model")
    training.add_argument("--data", choices=("photographs", "garments"), default="photographs")
    training.add_argument("--out", type=Path, required=True, help="folder; one that holds a run is gone on with")
    for field in dataclasses.fields(Recipe):
        _add_recipe_option(training, field)
    return parser


def _command(commands: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary)
    parser.add_argument("--threads", type=_positive, help="processor threads (default: PyTorch's choice)")
    parser.set_defaults(run=run)
    return parser


def _add_picture_options(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument("images", nargs="*", type=Path, help="photographs (default: those of the package)")
    parser.add_argument("--model", default="crate_nano", help="name, name.tag or local-dir:PATH (%(default)s)")
    parser.add_argument("--checkpoint", type=Path, help="safetensors file, in place of the model's own weights")
    parser.add_argument("--layer", type=int, help="which layer (default: the weights' best, else -2)")
    parser.add_argument("--size", type=int, help="shorter side for the model, pixels (default: the weights' best)")
    parser.add_argument("--out", type=Path, default=Path(out), help="folder for the PNGs (%(default)s)")


def _add_recipe_option(parser: argparse.ArgumentParser, field: dataclasses.Field[Any]) -> None:
    flag, default = "--" + field.name.replace("_", "-"), field.default
    if isinstance(default, tuple):
        parser.add_argument(flag, nargs="+", type=type(default[0]), default=default, help=f"({default})")
    else:
        parser.add_argument(flag, type=type(default), default=default, help=f"({default})")


def _list(options: argparse.Namespace) -> int:
    names = list_pretrained(options.filter) if options.pretrained else list_models(options.filter)
    print(
        "\n".join(names) if names else "no name fits; 'whitebox-crate list' shows all",
        file=sys.stdout if names else sys.stderr,
    )
    return 0 if names else 1


def _segment(options: argparse.Namespace) -> int:
    model = _load(options)
    facts = model.pretrained_cfg
    rule: MaskRule = options.rule or ("mean" if options.keep is None else "mass")
    if rule == "mean" and options.keep is not None:
        raise InputError("the rule 'mean' has no share to keep: leave --keep out, or choose --rule mass or entries")
    keep = 0.6 if options.keep is None else options.keep
    head = facts.attention_head if options.head is None else options.head
    if head is not None:
        head = resolve_index("head", head, model.num_heads)

    def draw(photo: Image, maps: Tensor, layer: int) -> tuple[Image, str]:
        shown = maps.mean(0) if head is None else maps[head]
        mask = attention_masks(shown, keep, rule)
        what = f"layer {layer}, " + ("mean of the heads" if head is None else f"head {head}")
        panels = [photo, draw_map(shown, (photo.height, photo.width)), draw_mask(photo, mask)]
        return draw_panels(
            panels,
            [
                "image",
                f"[CLS] attention, {what}",
                "mask: above the mean" if rule == "mean" else f"mask: {keep:.0%} of the {rule}",
            ],
        ), what

    return _draw_all(options, model, draw)


def _attention(options: argparse.Namespace) -> int:
    model = _load(options)

    def draw(photo: Image, maps: Tensor, layer: int) -> tuple[Image, str]:
        panels = [photo] + [draw_map(one, (photo.height, photo.width)) for one in maps]
        captions = [f"image (layer {layer})"] + [f"head {index}" for index in range(len(maps))]
        columns = min(len(panels), 5)
        return draw_panels(panels, captions, columns), f"layer {layer}, {len(maps)} heads"

    return _draw_all(options, model, draw)


def _load(options: argparse.Namespace) -> ImageTransformer:
    """The model, ready to look at photographs of any size."""
    own_weights = options.checkpoint is None
    model = create_model(
        options.model, pretrained=own_weights, checkpoint_path=options.checkpoint, dynamic_img_size=True
    )
    if not isinstance(model, ImageTransformer):
        raise InputError(f"{options.model} makes a {type(model).__name__}, whose attention is not known")
    if model.in_chans != 3:
        raise InputError(f"{options.model} takes {model.in_chans} channels; photographs have 3")
    return model.eval().requires_grad_(False)


def _draw_all(options: argparse.Namespace, model: ImageTransformer, draw: Any) -> int:
    """Draws each image into a PNG of its own; one that fails is reported, and the others are drawn all the same."""
    wanted = model.pretrained_cfg.attention_layer if options.layer is None else options.layer
    layer = resolve_index("layer", wanted, len(model.blocks))
    cfg = model.pretrained_cfg
    short_side = cfg.attention_size or min(model.img_size) if options.size is None else options.size
    failed, taken = 0, set[str]()
    for path in options.images or _samples():
        try:
            photo = load_image(path)
            seen = resize_to_grid(photo, model.patch_embed.patch_size, short_side)
            pixels = image_to_tensor(seen, mean=cfg.mean, std=cfg.std)
            maps = cls_attention(model, pixels[None], layer=layer)[0]
            sheet, what = draw(_shown(photo, seen), maps, layer)
            target = _free_name(options.out, path.stem, taken)
            _make_folder(options.out)
            write_whole(target, partial(sheet.save, format="PNG"))
        except InputError as error:
            print(f"whitebox-crate: error: {error}", file=sys.stderr)
            failed += 1
        else:
            grid = f"{maps.shape[-2]} x {maps.shape[-1]} patches"
            print(f"{target}  ({options.model}, {what}, {grid})")
    return 1 if failed else 0


def _samples() -> list[Path]:
    folder = resources.files("whitebox_crate") / "samples"
    return sorted(Path(str(file)) for file in folder.iterdir() if file.name.endswith(".jpg"))


def _shown(photo: Image, seen: Image) -> Image:
    """The photograph at the size of a panel, in the proportions that the model saw."""
    scale = SHOWN_SIDE / min(seen.size)
    return photo.resize((round(seen.width * scale), round(seen.height * scale)))


def _free_name(folder: Path, stem: str, taken: set[str]) -> Path:
    name, count = stem, 1
    while name in taken:
        count += 1
        name = f"{stem}-{count}"
    taken.add(name)
    return folder / f"{name}.png"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error}; give another with --out") from error


def _train(options: argparse.Namespace) -> int:
    recipe = Recipe(**{field.name: _recipe_value(options, field) for field in dataclasses.fields(Recipe)})
    if options.data == "photographs":
        objects, backgrounds = photographs("train"), wallpapers("train")
    else:
        objects = garments("train")
        backgrounds = noise_backgrounds(2000, max(recipe.sizes), recipe.seed)
    torch.manual_seed(recipe.seed)
    model_options = dict(_option(text) for text in options.set)
    size = max(recipe.sizes)
    defaults = {"num_classes": len(objects.class_names), "img_size": size, "dynamic_img_size": True}
    model = create_model(options.model, **{**defaults, **model_options})
    model.pretrained_cfg = PretrainedCfg(
        input_size=(3, *model.img_size),
        num_classes=model.num_classes,
        label_names=objects.class_names,
        origin=f"whitebox-crate {__version__} train on {options.data}, seed {recipe.seed}",
    )
    if model.num_classes < len(objects.class_names):
        raise InputError(f"{options.data} have {len(objects.class_names)} classes, the model has {model.num_classes}")
    train(model, Composites(objects, backgrounds, size), recipe, options.out)
    if not require("accelerate", "train").PartialState().is_main_process:
        return 0
    folder = save_pretrained(model, options.out / "model")
    print(f"{folder}  (create_model('local-dir:{folder}', pretrained=True) loads it)")
    return 0


def _recipe_value(options: argparse.Namespace, field: dataclasses.Field[Any]) -> Any:
    value = getattr(options, field.name)
    return tuple(value) if isinstance(value, list) else value


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a positive number, not {text!r}")
    return int(text)


def _option(text: str) -> tuple[str, Any]:
    """Reads "name=value", with the value read as JSON where it is JSON, else as text."""
    name, separator, value = text.partition("=")
    if not separator:
        raise InputError(f"--set takes OPTION=VALUE, for example depth=6, not {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


if __name__ == "__main__":
    sys.exit(main())
