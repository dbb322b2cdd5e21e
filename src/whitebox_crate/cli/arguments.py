"""What every command takes, and the function that runs it; without PyTorch, so that help and errors come at once."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .._version import __version__
from ..training.presets import PRESETS
from ..training.recipe import Recipe
from .parser import Parser, command, cosine, group, positive, share

RULES = ("mass", "entries", "mean")  # those of `segmentation.attention_masks`
METHODS = ("multiscale", "attention", "maskcut", "class")  # those of `segmentation.METHODS`
EDGES = ("colours", "guided", "smooth", "patches")  # those of `segmentation.EDGES`
COMPARED = ("crate_nano", "vit_nano")  # taught the same names on the same scenes
SAVED = ("mask", "panel", "overlay", "map", "boxes", "coco")
IMAGES = "photographs, or folders of them (default: those of the package)"
# What --layer is if it is not given; see `segmentation.resolve_layer`.
LAYER = "the weights' best, else -2 of CRATE, -1 of ViT"


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; what it reads has the function to `run`, as "module.function" of `cli`."""
    parser = Parser(
        "whitebox-crate",
        description="The `whitebox-crate` command: list models, classify, segment and analyze photographs, evaluate, "
        "convert, train.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_commands("COMMAND")
    for add in (
        _add_list,
        _add_classify,
        _add_segment,
        _add_compare,
        _add_attention,
        _add_pca,
        _add_heads,
        _add_noise,
        _add_analyze,
        _add_view,
        _add_convert,
        _add_evaluate,
        _add_curves,
        _add_train,
    ):
        add(commands)
    return parser


def _add_list(commands: Any) -> None:
    listing = command(commands, "list", "weights.show_names", "names of models, weights with --pretrained")
    listing.add_argument("filter", nargs="*", help="wildcards, for example 'crate_*'")
    listing.add_argument("--pretrained", action="store_true", help="only models with weights, with their tags")


def _add_convert(commands: Any) -> None:
    converting = command(
        commands, "convert", "weights.convert", "other people's checkpoint to a folder that create_model loads"
    )
    converting.add_argument("file", type=Path, help="safetensors (or .index.json), PyTorch or JAX (npz) file")
    converting.add_argument("out", type=Path, help="folder")
    converting.add_argument(
        "--model", default="", help="architecture, perhaps with a tag (default: what the file shows)"
    )
    converting.add_argument(
        "--weights", default="", metavar="NAME", help="which of several in the file, for example state_dict_ema"
    )
    converting.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="OPTION=VALUE",
        help="what the file does not show, for example num_heads=12 img_size=224x160",
    )


def _add_classify(commands: Any) -> None:
    classify = command(
        commands, "classify", "pictures.classify", "the likeliest classes of photographs, with probabilities"
    )
    _add_images(classify)
    classify.add_argument("--top", type=positive, default=5, help="how many classes (%(default)s)")
    classify.add_argument("--json", action="store_true", help="a line of JSON for each photograph")


def _add_segment(commands: Any) -> None:
    segment = command(commands, "segment", "segmenting.segment", "masks of the objects in photographs, and pictures")
    _add_picture(segment, "segmented")
    _add_method(segment)
    segment.add_argument(
        "--save", type=_kinds, default=("mask", "panel"), metavar="KIND,...", help=f"of {', '.join(SAVED)} (mask,panel)"
    )
    segment.add_argument("--json", action="store_true", help="a line of JSON for each photograph")
    _add_workers(segment)
    segment.add_argument("-q", "--quiet", action="store_true", help="nothing but errors, and --json")


def _add_compare(commands: Any) -> None:
    compare = command(commands, "compare", "segmenting.compare", "what two models find in photographs, side by side")
    compare.add_argument("images", nargs="*", type=Path, help=IMAGES)
    compare.add_argument("--model", action="append", help=f"one of the two, given twice ({' and '.join(COMPARED)})")
    _add_device(compare)
    _add_layer(compare)
    _add_size(compare)
    compare.add_argument("--out", type=Path, default=Path("compared"), help="folder for the PNGs (%(default)s)")
    _add_method(compare)


def _add_method(parser: Parser) -> None:
    """How objects are found; a method takes the settings that it has."""
    add = parser.add_argument_group("method").add_argument
    add("--method", choices=METHODS, help="how objects are found (default: the first that has the settings given)")
    add("--n", type=positive, help="most objects, of maskcut (3)")
    add("--head", type=_heads, help="which head of attention, several as 0,2, or all (the weights' best, else all)")
    add("--rule", choices=RULES, help="what attention keeps (default: mean)")
    add("--keep", type=share, help="share kept (0.6) by mass, the rule if this is given, or entries")
    add("--label", metavar="CLASS", help="what to look for, of class: a name or an index (the likeliest)")
    add("--tau", type=cosine, help="patches of a larger cosine are linked, of maskcut (0.15)")
    add("--edges", choices=EDGES, default="colours", help="from patches to pixels (%(default)s)")


def _add_attention(commands: Any) -> None:
    attention = command(commands, "attention", "pictures.attention", "the [CLS] maps of all heads of a layer, as a PNG")
    _add_picture(attention, "attention")
    attention.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="CLASS",
        help="what speaks for a class in place of heads, by name or index; again for another (by --layer if it is "
        "given, else by all layers)",
    )
    attention.add_argument(
        "--state",
        choices=("attention", "membership"),
        default="attention",
        help="membership: how much each patch belongs to each head, in ToST (%(default)s)",
    )


def _add_picture(parser: Parser, out: str) -> None:
    _add_images(parser)
    _add_layer(parser)
    _add_size(parser)
    parser.add_argument("--out", type=Path, default=Path(out), help="folder for the PNGs (%(default)s)")


def _add_pca(commands: Any) -> None:
    pca = command(
        commands, "pca", "figures.pca", "foreground and parts of one kind of object, by PCA of patch features"
    )
    _add_images(pca)
    pca.add_argument("--layer", type=_layer, help=f"which layer, or all for a strip (default: {LAYER})")
    pca.add_argument(
        "--threshold", type=float, help="foreground from so many standard deviations (default: Otsu's cut)"
    )
    _add_sheet(pca, "pca")


def _add_heads(commands: Any) -> None:
    heads = command(
        commands, "heads", "figures.heads", "the same heads across images, those first that pick the same part"
    )
    _add_images(heads)
    _add_layer(heads)
    heads.add_argument("--masks", type=Path, help="folder of mask PNGs named as the images: ranks by IoU")
    heads.add_argument("--void", type=int, help="label of pixels that count for nothing, for example 255 (none)")
    heads.add_argument("--rule", choices=RULES, help="how a map is cut (default: mean)")
    heads.add_argument("--keep", type=share, help="share kept (0.6) by mass, the rule if this is given, or entries")
    _add_sheet(heads, "heads")


def _add_noise(commands: Any) -> None:
    noise = command(
        commands, "noise", "figures.noise", "the [CLS] maps of all heads of a layer as noise on the pixels grows"
    )
    _add_images(noise)
    _add_layer(noise)
    _add_disturbance(noise, [10, 25, 50, 75])
    _add_sheet(noise, "noise")


def _add_sheet(parser: Parser, out: str) -> None:
    _add_size(parser)
    parser.add_argument("--out", type=Path, default=Path(out), help="folder for what is made (%(default)s)")


def _add_analyze(commands: Any) -> None:
    analyze = command(
        commands,
        "analyze",
        "analyze.write_page",
        "what each layer does to photographs and was derived to do, as HTML",
    )
    _add_images(analyze)
    _add_size(analyze)
    analyze.add_argument("--out", default="report.html", help="the page, or a folder for it (%(default)s)")


def _add_view(commands: Any) -> None:
    view = command(
        commands, "view", "view.write_page", "a page to play with: attention patch by patch, masks, colours of tokens"
    )
    view.add_argument("images", nargs="*", type=Path, help=IMAGES)
    view.add_argument("--model", action="append", help="name, name.tag or local-dir:PATH; again for another beside it")
    _add_device(view)
    _add_size(view)
    view.add_argument("--megabytes", type=float, default=5, help="of the page, for each photograph (%(default)s)")
    view.add_argument("--out", default="page.html", help="the page, or a folder for it (%(default)s)")


def _add_evaluate(commands: Any) -> None:
    kinds = group(
        commands, "evaluate", "DATA", "how well a model finds objects in a data set, measured as in the paper"
    )
    voc = command(kinds, "voc", "evaluate.voc", "mIoU of [CLS] attention on Pascal VOC 2012, by layer, head and class")
    voc.add_argument("--split", default="val", help="list in ImageSets/Segmentation (%(default)s)")
    _add_attention_scores(voc, "folder with JPEGImages, SegmentationClass and ImageSets, or with VOC2012")

    folder = command(kinds, "folder", "evaluate.folder", "the same on any folder of images/ and masks/, PNGs of labels")
    folder.add_argument("--void", type=int, help="label of pixels that count for nothing, for example 255 (none)")
    folder.add_argument(
        "--objects", action="store_true", help="labels number the objects of an image, and are no classes"
    )
    _add_attention_scores(folder, "folder with images/ and masks/")

    coco = command(
        kinds,
        "coco",
        "evaluate.coco",
        "AP of MaskCut's boxes and masks on COCO, whatever the class, by its evaluator",
    )
    coco.add_argument(
        "--split", default="val2017", help="folder of images, and part of the annotations' name (val2017)"
    )
    coco.add_argument("--annotations", type=Path, help="file (default: ROOT/annotations/instances_SPLIT.json)")
    _add_run(coco, "folder with annotations/ and a folder of images, val2017/")
    coco.add_argument("--layer", type=int, help=f"layer of the features (default: {LAYER})")
    coco.add_argument(
        "--state", choices=("projections", "tokens", "output"), default="projections", help="features (%(default)s)"
    )
    coco.add_argument("--tau", type=cosine, default=0.15, help="patches of a larger cosine are linked (%(default)s)")
    coco.add_argument("--n", type=positive, default=3, help="most masks of an image (%(default)s)")


def _add_attention_scores(parser: Parser, root: str) -> None:
    _add_run(parser, root)
    parser.add_argument("--layer", type=int, help=f"layer of the table by class (default: {LAYER})")
    parser.add_argument("--rules", nargs="+", choices=RULES, help="what a mask of a single head keeps (all)")
    parser.add_argument("--keep", type=share, help="share that mass and entries keep (0.6)")
    parser.add_argument(
        "--method", choices=METHODS, help="scores the masks of this method of `segment` in place of single heads"
    )
    parser.add_argument("--edges", choices=EDGES, default="colours", help="how its masks come to pixels (%(default)s)")


def _add_curves(commands: Any) -> None:
    kinds = group(
        commands, "curves", "KIND", "how well attention segments a data set: by layer, by checkpoint, and under noise"
    )
    layers = command(kinds, "layers", "curves.layers", "IoU by layer")
    _add_against(layers)
    _add_curve(layers)

    epochs = command(kinds, "epochs", "curves.epochs", "IoU by checkpoint")
    epochs.add_argument("checkpoints", type=Path, help="folder of checkpoints: files, or folders with weights")
    _add_curve(epochs)
    _add_layer(epochs)

    noise = command(kinds, "noise", "curves.noise", "IoU under noise")
    _add_against(noise)
    _add_disturbance(noise, [0, 10, 25, 50, 75])
    _add_curve(noise)
    _add_layer(noise)


def _add_against(parser: Parser) -> None:
    parser.add_argument("--against", nargs="+", default=[], metavar="MODEL", help="other models, for curves beside it")


def _add_curve(parser: Parser) -> None:
    _add_run(parser, "the data set")
    parser.add_argument(
        "--data", choices=("voc", "folder"), default="voc", help="its layout, as in evaluate (%(default)s)"
    )
    parser.add_argument("--split", default="val", help="list in ImageSets/Segmentation of voc (%(default)s)")
    parser.add_argument("--void", type=int, help="label of pixels that count for nothing, of a folder (none)")
    parser.add_argument("--keep", type=share, default=0.6, help="share that mass and entries keep (%(default)s)")
    parser.add_argument("--rule", choices=RULES, default="mean", help="rule that is drawn; JSON has all (%(default)s)")


def _add_train(commands: Any) -> None:
    training = command(commands, "train", "training.train_model", "train on your own images")
    add = training.add_argument_group("data").add_argument
    add("--data", required=True, help="a folder, file or Hub data set")
    add("--split", default="train", help="of the data set (%(default)s)")
    add("--subset", help="of a Hub data set that has several")
    add("--revision", help="branch, tag or commit of a Hub data set")
    add("--image-column", help="name (default: by its type or the usual names)")
    add("--label-column", help="name (default: by its type or the usual names)")
    add("--label-names", type=Path, metavar="FILE", help="names of all classes in order, a line each")
    add("--streaming", action="store_true", help="read one after the other, for data too large or too far away")
    add("--images", type=positive, help="how many there are, if they are streamed and that is known")
    add_training(training, preset="finetune from weights, else imagenet1k")


def add_training(parser: Parser, preset: str, without: Collection[str] = ()) -> None:
    """What every training takes, whatever its data.

    Args:
        parser: Gets it.
        preset: What --preset is if it is not given, for the help.
        without: Fields of `Recipe` that the data have no use for.
    """
    add = parser.add_argument_group("model").add_argument
    add("--model", help="architecture, to be trained from scratch (crate_nano)")
    add("--pretrained", metavar="NAME", help="weights to start from: name, name.tag, local-dir:PATH or hf-hub:org/name")
    add("--set", nargs="+", action="extend", default=[], metavar="OPTION=VALUE", help="options of the model")
    add = parser.add_argument_group("validation").add_argument
    add(
        "--validation",
        metavar="SHARE|SPLIT|PATH",
        help="what is to be named: a share of each class to hold out (0.2), a split of the data, or a folder or file",
    )
    add("--masks", type=Path, metavar="FOLDER", help="images/ with masks/, or VOC 2012, to be segmented by attention")
    add(
        "--validate-every",
        type=float,
        help="epochs (1, or a hundredth of the run if that is more); steps where no epoch is known",
    )
    add = parser.add_argument_group("run").add_argument
    add("--out", type=Path, required=True, help="folder; one that holds a run is gone on with")
    add("--workers", type=int, default=0, help="processes that make batches ahead of time, for each of the run's (0)")
    add("--checkpoint-every", type=positive, default=250, help="steps (%(default)s)")
    add("--keep", choices=("last", "best"), default="last", help="which weights, best by validation (%(default)s)")
    add("--tracker", nargs="+", default=[], metavar="NAME", help="trackers that accelerate knows, as tensorboard")
    add("--push-to-hub", metavar="ORG/NAME", help="repository for the trained model")
    recipe = parser.add_argument_group("recipe", "a preset, and what shall differ from it")
    recipe.add_argument("--preset", choices=sorted(PRESETS), help=f"({preset}); each has its numbers below")
    meanings = _meanings()
    for field in dataclasses.fields(Recipe):
        if field.name not in without:
            _add_recipe_field(recipe, field, meanings.get(field.name, ""))


def _meanings() -> dict[str, str]:
    """What each field of a recipe means: the first sentence of its docstring, of which python -OO keeps none."""
    attributes = inspect.cleandoc(Recipe.__doc__ or "").partition("Attributes:")[2].partition("Raises:")[0]
    found = re.findall(r"^    (\w+): (.+?)\.(?:\s|$)", attributes, re.MULTILINE | re.DOTALL)
    return {name: " ".join(sentence.split()) for name, sentence in found}


def _add_recipe_field(parser: Any, field: dataclasses.Field[Any], meaning: str) -> None:
    flag, default = "--" + field.name.replace("_", "-"), field.default
    says = f"{meaning} ({_by_preset(field.name)})".strip()
    if isinstance(default, bool):
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=says)
    elif isinstance(default, tuple):
        parser.add_argument(flag, nargs="+", type=type(default[0]), help=says)
    else:
        parser.add_argument(flag, type=type(default), help=says)


def _by_preset(name: str) -> str:
    """What a field of a recipe is in each preset, those of one value together."""
    presets: dict[str, list[str]] = {}
    for preset, made in PRESETS.items():
        value = getattr(made.recipe, name)
        if name == "steps" and made.recipe.epochs:
            shown = "as many as the epochs have"
        elif name == "sizes" and len(value) == 1:
            shown = "the model's"
        else:
            shown = (
                " ".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}" if _is_number(value) else value
            )
        presets.setdefault(str(shown), []).append(preset)
    if len(presets) == 1:
        return next(iter(presets))
    return "; ".join(f"{', '.join(of)}: {value}" for value, of in presets.items())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _add_images(parser: Parser) -> None:
    """Photographs, and the model that looks at them."""
    parser.add_argument("images", nargs="*", type=Path, help=IMAGES)
    _add_model(parser)


def _add_run(parser: Parser, root: str) -> None:
    """What every evaluation takes."""
    _add_model(parser)
    parser.add_argument("--root", type=Path, required=True, help=root)
    _add_size(parser)
    parser.add_argument("--skip-broken", action="store_true", help="report and leave out what cannot be read")
    _add_workers(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of results; one that was begun is gone on with")


def _add_model(parser: Parser) -> None:
    parser.add_argument(
        "--model", default="crate_nano", help="name, name.tag, local-dir:PATH, or timm:NAME of timm's (%(default)s)"
    )
    parser.add_argument(
        "--checkpoint", type=Path, help="file of weights of any known format, in place of the model's own"
    )
    _add_device(parser)


def _add_workers(parser: Parser) -> None:
    parser.add_argument(
        "--workers", type=positive, default=1, help="photographs at once, each by a thread: the cores are best (1)"
    )


def _add_device(parser: Parser) -> None:
    parser.add_argument(
        "--device", help="cuda (each process its own), cuda:N, mps or cpu (default: the first there is)"
    )


def _add_size(parser: Parser) -> None:
    parser.add_argument("--size", type=positive, help="shorter side for the model, pixels (default: the weights' best)")


def _add_layer(parser: Parser) -> None:
    parser.add_argument("--layer", type=int, help=f"which layer (default: {LAYER})")


def _add_disturbance(parser: Parser, strengths: list[float]) -> None:
    """Strengths, shares and seed of noise on pixels."""
    parser.add_argument(
        "--strengths", nargs="+", type=float, default=strengths, help="standard deviations, of 255 (%(default)s)"
    )
    parser.add_argument("--shares", nargs="+", type=float, default=[0.5], help="of the pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    for kind in kinds:
        if kind not in SAVED:
            raise argparse.ArgumentTypeError(f"{', '.join(SAVED)}, separated by commas, not {kind!r}")
    return kinds


def _heads(text: str) -> str | list[int]:
    try:
        return text if text == "all" else [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number, several as 0,2, or all, not {text!r}") from None


def _layer(text: str) -> int | str:
    if text == "all":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a layer's number, or all, not {text!r}") from None
