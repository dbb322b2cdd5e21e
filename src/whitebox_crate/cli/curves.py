"""curves: how well attention segments a data set, by layer, by checkpoint, and under noise."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from ..backbones import Readable
from ..errors import require
from ..evaluation import Curves, find_checkpoints, load_checkpoint, read_folder, read_voc
from ..evaluation.curves import Curve
from ..segmentation.states import resolve_layer
from ._common import device_for, load
from .evaluate import run_of


def layers(options: argparse.Namespace) -> int:
    """Draws IoU by layer."""
    curves = _of(options)
    return _write(options, curves, curves.by_layer(_models(options)), "layer")


def epochs(options: argparse.Namespace) -> int:
    """Draws IoU by checkpoint."""
    curves = _of(options)
    found = curves.by_checkpoint(_checkpoints(options), options.checkpoints.name, options.layer)
    return _write(options, curves, found, "epoch or step")


def noise(options: argparse.Namespace) -> int:
    """Draws IoU by the strength of noise."""
    curves = _of(options)
    found = curves.by_noise(_models(options), options.strengths, options.shares, options.seed, options.layer)
    return _write(options, curves, found, "standard deviation of the noise")


def _of(options: argparse.Namespace) -> Curves:
    require("matplotlib.figure", extra="plots")  # say that it is missing before all work
    voc = options.data == "voc"
    data = read_voc(options.root, options.split) if voc else read_folder(options.root, options.void)
    run = run_of(options, data=options.data)
    run.check_files(data.check_files)
    for name in getattr(options, "against", ()):  # say that a model is missing before hours of work
        resolve_layer(_model(options, name, quiet=True), getattr(options, "layer", None))
    return Curves(run, data, options.size, options.keep)


def _write(options: argparse.Namespace, curves: Curves, found: list[Curve], x_label: str) -> int:
    written = curves.write(found, x_label, options.rule)
    if written is not None:
        path, table = written
        print(table)
        print(f"{path}  {path.with_suffix('.png')}")
    return 0


def _models(options: argparse.Namespace) -> Iterator[tuple[str, Readable]]:
    """--model and the models --against it, each with its name. --checkpoint belongs to the first."""
    for number, name in enumerate((options.model, *options.against)):
        yield name, _model(options, name, options.checkpoint if number == 0 else None)


def _model(options: argparse.Namespace, name: str, checkpoint: Path | None = None, quiet: bool = False) -> Readable:
    about = {"device": options.device, "size": None if quiet else options.size, "quiet": quiet}
    return load(argparse.Namespace(model=name, checkpoint=checkpoint, **about))


def _checkpoints(options: argparse.Namespace) -> Iterator[tuple[int, Path, Readable]]:
    device = device_for(options)
    for number, path in find_checkpoints(options.checkpoints):
        yield number, path, load_checkpoint(path, options.model).to(device)
