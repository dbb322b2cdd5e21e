"""The options of every command, and the function that runs it. No PyTorch here: help and errors come at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .._version import __version__
from .parser import Parser, command, cosine, group, positive, share
from .training_arguments import add_training

RULES = ("mass", "entries", "mean")  # see `segmentation.attention_masks`
METHODS = ("multiscale", "attention", "maskcut", "class")  # see `segmentation.METHODS`
EDGES = ("colours", "guided", "smooth", "patches")  # see `segmentation.EDGES`
COMPARED = ("crate_nano", "vit_nano")  # trained on the same scenes for the same names
SAVED = ("mask", "panel", "overlay", "map", "boxes", "coco")
IMAGES = "photographs, or folders of photographs (default: three in the package)"
# The layer without --layer; see `segmentation.resolve_layer`.
LAYER = "the one the weights name; else -2 for CRATE, -1 for ViT"


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands. Its result names the function to `run` as "module.function" of `cli`."""
    parser = Parser(
        "whitebox-crate",
        description="White-box vision transformers: see what they attend to, segment photographs, evaluate, train. "
        "COMMAND --help shows the options of a command.",
        epilog="example: whitebox-crate segment photo.jpg",
    )
    parser.add_argument("--version", action="version", version=__version__, help="show the version and exit")
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
    listing = command(
        commands, "list", "weights.show_names", "list models and weights", "whitebox-crate list 'crate_*' --pretrained"
    )
    listing.add_argument("filter", nargs="*", help="wildcards, for example 'crate_*' (default: all names)")
    listing.add_argument("--pretrained", action="store_true", help="only models that have weights, with their tags")


def _add_convert(commands: Any) -> None:
    converting = command(
        commands,
        "convert",
        "weights.convert",
        "turn another project's checkpoint into a folder that create_model loads",
        "whitebox-crate convert crate_small.pth crate_small",
    )
    converting.add_argument("file", type=Path, help="checkpoint: safetensors (or .index.json), PyTorch, or JAX (.npz)")
    converting.add_argument("out", type=Path, help="folder to write")
    converting.add_argument(
        "--model", default="", help="architecture, with or without a tag (default: inferred from the file)"
    )
    converting.add_argument(
        "--weights",
        default="",
        metavar="NAME",
        help="which weights to take, if the file has several, for example state_dict_ema",
    )
    converting.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="OPTION=VALUE",
        help="model options that the file does not show, for example num_heads=12 img_size=224x160",
    )


def _add_classify(commands: Any) -> None:
    classify = command(
        commands,
        "classify",
        "pictures.classify",
        "name the most likely classes of photographs",
        "whitebox-crate classify dog.png --top 3",
    )
    _add_images(classify)
    out = classify.section("output")
    out.add_argument("--top", type=positive, metavar="N", default=5, help="number of classes (default: %(default)s)")
    _add_json(classify)


def _add_segment(commands: Any) -> None:
    segment = command(
        commands,
        "segment",
        "segmenting.segment",
        "find the objects in photographs and write masks and pictures",
        "whitebox-crate segment photo.jpg --save mask,overlay --out masks",
    )
    _add_picture(segment, "segmented")
    _add_method(segment)
    out = segment.section("output")
    out.add_argument(
        "--save",
        type=_kinds,
        default=("mask", "panel"),
        metavar="KIND,...",
        help=f"what to write: any of {', '.join(SAVED)} (default: mask,panel)",
    )
    _add_json(segment)
    _add_workers(segment)
    out.add_argument("-q", "--quiet", action="store_true", help="print errors only (and the lines of --json)")


def _add_json(parser: Parser) -> None:
    parser.section("output").add_argument("--json", action="store_true", help="print one line of JSON per photograph")


def _add_compare(commands: Any) -> None:
    compare = command(
        commands,
        "compare",
        "segmenting.compare",
        "show what two models find in photographs, side by side",
        "whitebox-crate compare photo.jpg --model crate_nano --model vit_nano",
    )
    compare.add_argument("images", nargs="*", type=Path, help=IMAGES)
    compare.section("model").add_argument(
        "--model", action="append", help=f"a model; give this twice (default: {' and '.join(COMPARED)})"
    )
    _add_device(compare)
    _add_layer(compare)
    _add_size(compare)
    _add_out(compare, "compared")
    _add_method(compare)


def _add_method(parser: Parser) -> None:
    """How objects are found. Each method takes the settings that it has."""
    add = parser.section("method").add_argument
    add(
        "--method",
        choices=METHODS,
        help="multiscale: [CLS] attention at two sizes; attention: [CLS] attention of one layer; maskcut: cuts between "
        "unlike patches; class: evidence for a class (default: the first that has the settings you give)",
    )
    add("--n", type=positive, help="maskcut: find at most N objects (default: 3)")
    add(
        "--head",
        type=_heads,
        help="attention: a head, several as 0,2, or all (default: the one the weights name; else all)",
    )
    add(
        "--rule",
        choices=RULES,
        help="attention: which patches are inside. mean: above the map's mean; mass: the fewest that hold the share "
        "--keep of the attention; entries: that share of the patches (default: mean; mass if --keep is given)",
    )
    add("--keep", type=share, metavar="SHARE", help="attention: share for --rule mass and entries (default: 0.6)")
    add("--label", metavar="CLASS", help="class: the class to look for, by name or index (default: the most likely)")
    add("--tau", type=cosine, metavar="COSINE", help="maskcut: link patches of a larger cosine (default: 0.15)")
    add("--edges", choices=EDGES, default="colours", help="how patches become pixels (default: %(default)s)")


def _add_attention(commands: Any) -> None:
    attention = command(
        commands,
        "attention",
        "pictures.attention",
        "draw the [CLS] attention maps of all heads of a layer",
        "whitebox-crate attention photo.jpg --layer 3",
    )
    _add_picture(attention, "attention")
    maps = attention.section("maps")
    maps.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="CLASS",
        help="draw the evidence for this class, by name or index, instead of heads; repeat for more classes. It comes "
        "from all layers, or from --layer",
    )
    maps.add_argument(
        "--state",
        choices=("attention", "membership"),
        default="attention",
        help="membership (ToST only): how much each patch belongs to each head (default: %(default)s)",
    )


def _add_picture(parser: Parser, out: str) -> None:
    _add_images(parser)
    _add_layer(parser)
    _add_size(parser)
    _add_out(parser, out)


def _add_pca(commands: Any) -> None:
    pca = command(
        commands,
        "pca",
        "figures.pca",
        "colour the foreground and the parts of one kind of object, by PCA of patch features",
        "whitebox-crate pca cow.png goat.png sheep.png",
    )
    _add_images(pca)
    pca.section("model").add_argument(
        "--layer", type=_layer, help=f"a layer, or all for a strip of all layers (default: {LAYER})"
    )
    _add_sheet(pca, "pca")
    pca.section("output").add_argument(
        "--threshold",
        type=float,
        help="where the foreground begins, in standard deviations of the first component (default: Otsu's cut)",
    )


def _add_heads(commands: Any) -> None:
    heads = command(
        commands,
        "heads",
        "figures.heads",
        "compare heads across photographs; heads that pick the same part come first",
        "whitebox-crate heads cow.png goat.png sheep.png --masks masks",
    )
    _add_images(heads)
    _add_layer(heads)
    _add_sheet(heads, "heads")
    scores = heads.section("ranking")
    scores.add_argument(
        "--masks", type=Path, metavar="FOLDER", help="mask PNGs, named like the images; heads are then ranked by IoU"
    )
    _add_void(scores)
    scores.add_argument(
        "--rule", choices=RULES, help="how a map becomes a mask (default: mean; mass if --keep is given)"
    )
    _add_keep(scores)


def _add_noise(commands: Any) -> None:
    noise = command(
        commands,
        "noise",
        "figures.noise",
        "draw the [CLS] attention maps of a layer as noise on the pixels grows",
        "whitebox-crate noise cow.png --strengths 25 75 --shares 0.1 0.5",
    )
    _add_images(noise)
    _add_layer(noise)
    _add_disturbance(noise, [10, 25, 50, 75])
    _add_sheet(noise, "noise")


def _add_sheet(parser: Parser, out: str) -> None:
    _add_size(parser)
    _add_out(parser, out)


def _add_out(parser: Parser, default: str) -> None:
    parser.section("output").add_argument(
        "--out", type=Path, metavar="FOLDER", default=Path(default), help="where to write (default: %(default)s)"
    )


def _add_page(parser: Parser, default: str) -> None:
    parser.section("output").add_argument(
        "--out", metavar="FILE", default=default, help="HTML file to write, or a folder for it (default: %(default)s)"
    )


def _add_analyze(commands: Any) -> None:
    analyze = command(
        commands,
        "analyze",
        "analyze.write_page",
        "measure whether each layer does what it was derived to do; write a page of HTML",
        "whitebox-crate analyze photo.jpg --out report.html",
    )
    _add_images(analyze)
    _add_size(analyze)
    _add_page(analyze, "report.html")


def _add_view(commands: Any) -> None:
    view = command(
        commands,
        "view",
        "view.write_page",
        "write an interactive page: attention of each patch, masks, colours of tokens",
        "whitebox-crate view photo.jpg --out page.html",
    )
    view.add_argument("images", nargs="*", type=Path, help=IMAGES)
    view.section("model").add_argument(
        "--model",
        action="append",
        help="name, name.tag, or local-dir:PATH; repeat for more models (default: crate_nano)",
    )
    _add_device(view)
    _add_size(view)
    _add_page(view, "page.html")
    view.section("output").add_argument(
        "--megabytes", type=float, default=5, help="most megabytes per photograph in the page (default: %(default)s)"
    )


def _add_evaluate(commands: Any) -> None:
    kinds = group(
        commands,
        "evaluate",
        "DATA",
        "score how well a model finds the objects of a data set, as the papers do",
        "whitebox-crate evaluate folder --root photographs --out results",
    )
    voc = command(
        kinds,
        "voc",
        "evaluate.voc",
        "mean IoU of [CLS] attention on Pascal VOC 2012, by layer, head and class",
        "whitebox-crate evaluate voc --root VOCdevkit --out voc",
    )
    _add_attention_scores(voc, "folder that has JPEGImages, SegmentationClass and ImageSets, or has VOC2012")
    voc.section("data").add_argument(
        "--split", default="val", help="list in ImageSets/Segmentation (default: %(default)s)"
    )

    folder = command(
        kinds,
        "folder",
        "evaluate.folder",
        "mean IoU of [CLS] attention on your own folder of images and masks",
        "whitebox-crate evaluate folder --root photographs --out results",
    )
    _add_attention_scores(folder, "folder that has images/ and masks/ (PNGs whose pixels are labels)")
    _add_void(folder.section("data"))
    folder.section("data").add_argument(
        "--objects", action="store_true", help="labels number the objects of an image; they are not classes"
    )

    coco = command(
        kinds,
        "coco",
        "evaluate.coco",
        "class-agnostic AP of MaskCut's boxes and masks on COCO",
        "whitebox-crate evaluate coco --root coco --out coco_results",
    )
    _add_run(coco, "folder that has annotations/ and a folder of images, val2017/")
    coco.section("data").add_argument(
        "--split", default="val2017", help="name of the folder of images and of the annotations (default: %(default)s)"
    )
    coco.section("data").add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="annotations (default: ROOT/annotations/instances_SPLIT.json)",
    )
    _add_layer(coco)
    add = coco.section("method").add_argument
    add(
        "--state",
        choices=("projections", "tokens", "output"),
        default="projections",
        help="features of the patches (default: %(default)s)",
    )
    add(
        "--tau",
        type=cosine,
        metavar="COSINE",
        default=0.15,
        help="link patches of a larger cosine (default: %(default)s)",
    )
    add("--n", type=positive, default=3, help="find at most N masks in an image (default: %(default)s)")


def _add_attention_scores(parser: Parser, root: str) -> None:
    _add_run(parser, root)
    parser.section("model").add_argument("--layer", type=int, help=f"layer for the table of classes (default: {LAYER})")
    scores = parser.section("method")
    scores.add_argument(
        "--rules", nargs="+", choices=RULES, help="how the map of a single head becomes a mask (default: all rules)"
    )
    _add_keep(scores)
    scores.add_argument("--method", choices=METHODS, help="score the masks of `segment --method`, not single heads")
    scores.add_argument(
        "--edges",
        choices=EDGES,
        default="colours",
        help="for --method: how patches become pixels (default: %(default)s)",
    )


def _add_keep(parser: Any, default: float | None = None) -> None:
    parser.add_argument(
        "--keep", type=share, metavar="SHARE", default=default, help="share that mass and entries keep (default: 0.6)"
    )


def _add_void(parser: Any) -> None:
    parser.add_argument(
        "--void", type=int, metavar="LABEL", help="leave out mask pixels of this label, for example 255 (default: none)"
    )


def _add_curves(commands: Any) -> None:
    kinds = group(
        commands,
        "curves",
        "KIND",
        "plot how well attention segments a data set: by layer, by checkpoint, under noise",
        "whitebox-crate curves layers --root VOCdevkit --out layers",
    )
    layers = command(
        kinds,
        "layers",
        "curves.layers",
        "plot IoU by layer",
        "whitebox-crate curves layers --root VOCdevkit --out layers",
    )
    _add_curve(layers)
    _add_against(layers)

    epochs = command(
        kinds,
        "epochs",
        "curves.epochs",
        "plot IoU by checkpoint",
        "whitebox-crate curves epochs snapshots --root VOCdevkit --out epochs",
    )
    epochs.add_argument(
        "checkpoints", type=Path, help="folder whose entries are checkpoints: files, or folders that have weights"
    )
    _add_curve(epochs)
    _add_layer(epochs)

    noise = command(
        kinds,
        "noise",
        "curves.noise",
        "plot IoU by the strength of noise",
        "whitebox-crate curves noise --root VOCdevkit --out noise",
    )
    _add_curve(noise)
    _add_against(noise)
    _add_layer(noise)
    _add_disturbance(noise, [0, 10, 25, 50, 75])


def _add_against(parser: Parser) -> None:
    parser.section("model").add_argument(
        "--against", nargs="+", default=[], metavar="MODEL", help="other models, drawn beside it (default: none)"
    )


def _add_curve(parser: Parser) -> None:
    _add_run(parser, "folder of the data set")
    data = parser.section("data")
    data.add_argument(
        "--data", choices=("voc", "folder"), default="voc", help="its layout, as for evaluate (default: %(default)s)"
    )
    data.add_argument("--split", default="val", help="voc: list in ImageSets/Segmentation (default: %(default)s)")
    data.add_argument(
        "--void", type=int, metavar="LABEL", help="folder: leave out mask pixels of this label (default: none)"
    )
    method = parser.section("method")
    method.add_argument(
        "--rule", choices=RULES, default="mean", help="rule to plot; the JSON has all rules (default: %(default)s)"
    )
    _add_keep(method, 0.6)


def _add_train(commands: Any) -> None:
    training = command(
        commands,
        "train",
        "training.train_model",
        "train a model on your own images",
        "whitebox-crate train --data photos --pretrained crate_nano --out run",
    )
    training.usage = "%(prog)s --data DATA --out FOLDER [options]"
    add = training.section("data").add_argument
    add("--data", required=True, help="a folder with one folder per class, a file, or a data set of the Hub")
    add("--split", default="train", help="split to train on (default: %(default)s)")
    add("--subset", help="which subset, if the data set has several")
    add("--revision", help="branch, tag or commit of a data set of the Hub (default: its main branch)")
    add("--image-column", metavar="NAME", help="column of the images (default: found by type or usual name)")
    add("--label-column", metavar="NAME", help="column of the labels (default: found by type or usual name)")
    add("--label-names", type=Path, metavar="FILE", help="text file with the class names in order, one per line")
    add(
        "--streaming",
        action="store_true",
        help="read the images in order, for data too large or too far away to copy first",
    )
    add("--images", type=positive, metavar="N", help="with --streaming: number of images, if you know it")
    add_training(training, preset="finetune with --pretrained; else imagenet1k")


def _add_images(parser: Parser) -> None:
    """Photographs, and the model that looks at them."""
    parser.add_argument("images", nargs="*", type=Path, help=IMAGES)
    _add_model(parser)


def _add_run(parser: Parser, root: str) -> None:
    """What every evaluation takes."""
    parser.section("data").add_argument("--root", type=Path, metavar="FOLDER", required=True, help=root)
    parser.section("data").add_argument(
        "--skip-broken", action="store_true", help="report and leave out files that cannot be read"
    )
    _add_model(parser)
    _add_size(parser)
    _add_workers(parser)
    parser.section("output").add_argument(
        "--out", type=Path, metavar="FOLDER", required=True, help="folder for results; a stopped run resumes"
    )


def _add_model(parser: Parser) -> None:
    add = parser.section("model").add_argument
    add(
        "--model",
        default="crate_nano",
        help="name, name.tag, local-dir:PATH, or timm:NAME for a model of timm (default: %(default)s)",
    )
    add(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="load these weights, of any known format, in place of the model's own",
    )
    _add_device(parser)


def _add_workers(parser: Parser) -> None:
    parser.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        default=1,
        help="photographs to process at once, each in a thread; the number of cores is best (default: %(default)s)",
    )


def _add_device(parser: Parser) -> None:
    parser.section("model").add_argument(
        "--device",
        help="cuda (with several processes, each takes its own), cuda:N, mps, or cpu (default: the first available)",
    )


def _add_size(parser: Parser) -> None:
    parser.section("model").add_argument(
        "--size",
        type=positive,
        metavar="PIXELS",
        help="shorter side of the image that the model sees (default: best for the weights)",
    )


def _add_layer(parser: Parser) -> None:
    parser.section("model").add_argument("--layer", type=int, help=f"a layer (default: {LAYER})")


def _add_disturbance(parser: Parser, strengths: list[float]) -> None:
    """Strengths, shares and seed of noise on pixels."""
    add = parser.section("noise").add_argument
    shown = " ".join(f"{strength:g}" for strength in strengths)
    add(
        "--strengths",
        nargs="+",
        type=float,
        default=strengths,
        metavar="STRENGTH",
        help=f"standard deviations of the noise; pixels go from 0 to 255 (default: {shown})",
    )
    add(
        "--shares",
        nargs="+",
        type=float,
        default=[0.5],
        metavar="SHARE",
        help="shares of the pixels that get noise (default: 0.5)",
    )
    add("--seed", type=int, default=0, help="seed of the noise (default: %(default)s)")


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    for kind in kinds:
        if kind not in SAVED:
            raise argparse.ArgumentTypeError(f"any of {', '.join(SAVED)}, separated by commas, not {kind!r}")
    return kinds


def _heads(text: str) -> str | list[int]:
    try:
        return text if text == "all" else [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"a head's number, several as 0,2, or all, not {text!r}") from None


def _layer(text: str) -> int | str:
    if text == "all":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a layer's number, or all, not {text!r}") from None
