"""curves: segmentation by attention over a data set, by layer, by checkpoint, and under noise."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from .._files import read_json, write_whole
from .._random import torch_generator
from ..convert.files import read_checkpoint
from ..convert.infer import infer_model
from ..errors import InputError, WeightsError, require
from ..evaluation.attention import score_image
from ..evaluation.curves import LayerMeans, check_noise, layer_means, noisy
from ..evaluation.folders import LabelledImage, LabelledImages, read_folder, read_voc
from ..evaluation.records import Records
from ..factory import create_model
from ..hub import CONFIG, WEIGHTS
from ..models import ImageTransformer
from ._common import layer_of, load
from .evaluate import ADVICE, check_files, load_for_evaluation, names_digest

RUN = "run.json"  # beside the weights in the checkpoints of `train`
WEIGHT_SUFFIXES = frozenset({".safetensors", ".pth", ".pt", ".bin", ".npz", ".ckpt"})
# A label, and the numbers of each rule by x: {"x", "images", "best_head", "mean_head"}.
Curve = dict[str, Any]


def layers(options: argparse.Namespace) -> int:
    return _curves(_by_layer, "layer", options)


def epochs(options: argparse.Namespace) -> int:
    return _curves(_by_checkpoint, "epoch or step", options)


def noise(options: argparse.Namespace) -> int:
    return _curves(_by_noise, "standard deviation of the noise", options)


def _curves(measure: Any, x_label: str, options: argparse.Namespace) -> int:
    if not 0 < options.keep <= 1:
        raise InputError(f"--keep is a share in (0, 1], not {options.keep}")
    figure_class = require("matplotlib.figure", extra="plots").Figure  # missing it is better known before
    voc = options.data == "voc"
    data = read_voc(options.root, options.split) if voc else read_folder(options.root, options.void)
    check_files(options, data.check_files)
    run = _Run(options, data)
    curves: list[Curve] = measure(run, options)
    if run.is_main:
        about = {"x": x_label, "data": options.data, "keep": options.keep, "curves": curves, "broken": run.broken}
        target = options.out / "curves.json"
        write_whole(target, lambda path: path.write_text(json.dumps(about, indent=1) + "\n"))
        figure = _plot(figure_class(figsize=(6, 4), layout="constrained"), curves, x_label, options.rule)
        write_whole(target.with_suffix(".png"), partial(figure.savefig, dpi=120))
        print(_table(curves, x_label, options.rule))
        print(f"{target}  {target.with_suffix('.png')}")
    return 0


class _Run:
    """Measures one model after the other on one data set, each into records of its own, so that a run can go on."""

    def __init__(self, options: argparse.Namespace, data: LabelledImages) -> None:
        self.options, self.data = options, data
        self.broken: dict[str, str] = {}
        self.is_main = True

    def measure(
        self, model: ImageTransformer, name: str, folder: str, noise: tuple[float, float, int] | None = None
    ) -> LayerMeans:
        """All layers and heads of a model; under noise of (strength, share, seed)."""
        options = argparse.Namespace(**{**vars(self.options), "model": name})
        model, size, about = load_for_evaluation(options, model)
        settings = {
            "measurement": "curves",
            "data": options.data,
            "void": self.data.void,
            "images": names_digest([item for item, _ in self.data.items]),
            **about,
            "keep": options.keep,
            "noise": noise,
        }

        def content(item: tuple[str, LabelledImage]) -> str:
            return item[1].content()

        def score(item: tuple[str, LabelledImage]) -> Any:
            name, pair = item
            disturbed = noisy(model, *noise[:2], torch_generator(noise[2], name)) if noise else nullcontext()
            with disturbed:
                return score_image(model, pair, size=size, keep=options.keep, void=self.data.void)

        records = Records(options.out / "records" / folder, settings)
        named = [(image, (image, pair)) for image, pair in self.data.items]
        records.measure(
            named,
            score,
            content=content,
            skip_broken=options.skip_broken,
            advice=ADVICE,
            report=partial(_report, folder),
        )
        self.is_main = records.is_main
        self.broken.update(records.broken)
        return layer_means(records.items())


def _by_layer(run: _Run, options: argparse.Namespace) -> list[Curve]:
    curves = []
    for word, name, model in _models(options):
        means = run.measure(model, name, word)
        curves.append({"label": name, "points": [_point(layer, means, layer) for layer in range(len(model.blocks))]})
    return curves


def _by_checkpoint(run: _Run, options: argparse.Namespace) -> list[Curve]:
    points, layer = [], 0
    for number, path in find_checkpoints(options.checkpoints):
        model = load_checkpoint(path, options.model)
        layer = layer_of(model, options.layer)
        means = run.measure(model, str(path), _as_name(path.name))
        points.append(_point(number, means, layer))
    return [{"label": options.checkpoints.name, "layer": layer, "points": points}]


def _by_noise(run: _Run, options: argparse.Namespace) -> list[Curve]:
    for strength in options.strengths:
        for share in options.shares:
            check_noise(strength, share)
    curves = []
    for word, name, model in _models(options):
        layer = layer_of(model, options.layer)
        for share in options.shares:
            points = []
            for strength in options.strengths:
                noise = (strength, share, options.seed)
                means = run.measure(model, name, f"{word}-{share:g}-{strength:g}", noise)
                points.append(_point(strength, means, layer))
            curves.append({"label": f"{name}, {share:.0%} of pixels", "layer": layer, "points": points})
    return curves


def find_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """What a folder holds of weight files and folders with weights, by the last number in their names, ascending.

    Raises:
        InputError: If there are none, one has no number, or two have the same.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    found = [
        path
        for path in folder.iterdir()
        if (path / WEIGHTS).is_file() or (path.is_file() and path.suffix.lower() in WEIGHT_SUFFIXES)
    ]
    if not found:
        raise InputError(
            f"{folder} holds no checkpoint: neither a folder with {WEIGHTS} nor a file of weights "
            f"({', '.join(sorted(WEIGHT_SUFFIXES))})"
        )
    numbered: dict[int, Path] = {}
    for path in sorted(found):
        numbers = re.findall(r"\d+", path.name if path.is_dir() else path.stem)
        if not numbers:
            raise InputError(f"{path} has no number in its name; name checkpoints by epoch or step, as epoch-12")
        if int(numbers[-1]) in numbered:
            raise InputError(f"{numbered[int(numbers[-1])]} and {path} have one number; take one of them out")
        numbered[int(numbers[-1])] = path
    return sorted(numbered.items())


def load_checkpoint(path: Path, model: str = "") -> ImageTransformer:
    """A model from a folder of `save_pretrained`, from a checkpoint of `train`, or from a file of weights.

    Args:
        path: The folder or file.
        model: The architecture of a file; its names and shapes tell the options.

    Raises:
        WeightsError: If it is broken, or no such thing.
        InputError: If names and shapes do not tell enough.
    """
    if (path / CONFIG).is_file():
        made = create_model(f"local-dir:{path}", pretrained=True, dynamic_img_size=True)
    elif (path / RUN).is_file():
        run: Any = read_json(path / RUN).get("run")
        if not isinstance(run, dict) or not isinstance(run.get("model_args"), dict) or "architecture" not in run:
            raise WeightsError(f"{path / RUN} does not say which model it is of; use one that train wrote")
        saved: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in run["model_args"].items()}
        saved["dynamic_img_size"] = True
        made = create_model(str(run["architecture"]), checkpoint_path=path / WEIGHTS, **saved)
    else:
        file = path / WEIGHTS if path.is_dir() else path
        name, found = infer_model(read_checkpoint(file), model=model)
        made = create_model(name, checkpoint_path=file, **{**found, "dynamic_img_size": True})
    if not isinstance(made, ImageTransformer):
        raise InputError(f"{path} makes a {type(made).__name__}, whose layers are not known")
    return made.eval().requires_grad_(False)


def _models(options: argparse.Namespace) -> Iterator[tuple[str, str, ImageTransformer]]:
    """--model and those --against it: a word for files, the name, the model; --checkpoint is for the first."""
    for number, name in enumerate((options.model, *options.against)):
        checkpoint = options.checkpoint if number == 0 else None
        model = load(argparse.Namespace(model=name, checkpoint=checkpoint))
        yield f"{number}-{_as_name(name)}", name, model


def _report(folder: str, text: str) -> None:
    print(f"{folder}: {text}", file=sys.stderr, flush=True)


def _point(x: float, means: LayerMeans, layer: int) -> dict[str, Any]:
    kinds = {"best_head": means.best_head, "mean_head": means.mean_head}
    values = {kind: {rule: by_layer[layer] for rule, by_layer in of.items()} for kind, of in kinds.items()}
    return {"x": x, "images": means.images, **values}


def _as_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).strip("._") or "model"


def _plot(figure: Any, curves: Sequence[Curve], x_label: str, rule: str) -> Any:
    axes = figure.add_subplot()
    for number, curve in enumerate(curves):
        xs = [point["x"] for point in curve["points"]]
        for kind, line, what in (("best_head", "-o", "best head"), ("mean_head", "--", "mean of heads")):
            ys = [point[kind][rule] for point in curve["points"]]
            axes.plot(xs, ys, line, color=f"C{number}", markersize=4, label=f"{curve['label']}, {what}")
    axes.set_xlabel(x_label)
    axes.set_ylabel(f"mIoU ({rule})")
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def _table(curves: Sequence[Curve], x_label: str, rule: str) -> str:
    lines = []
    for curve in curves:
        points = curve["points"]
        lines += [
            f"{curve['label']}, {points[0]['images']} images, mIoU in % ({rule})",
            "",
            f"| {x_label} | {' | '.join(format(point['x'], 'g') for point in points)} |",
            "|---" * (len(points) + 1) + "|",
        ]
        for kind, what in (("best_head", "best head"), ("mean_head", "mean of heads")):
            lines.append(f"| {what} | {' | '.join(f'{100 * point[kind][rule]:.1f}' for point in points)} |")
        lines.append("")
    return "\n".join(lines)
