"""list and convert: which models and weights there are, and other people's in our form."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..convert.files import read_checkpoint
from ..convert.infer import infer_model
from ..convert.rename import convert_checkpoint
from ..factory import create_model
from ..hub import save_pretrained
from ..loading import load_state, meta_init
from ..pretrained_cfg import PretrainedCfg
from ..registry import find_entry, list_models, list_pretrained
from ._common import command, option


def add_list(commands: Any) -> None:
    """Adds the command `list`."""
    listing = command(commands, "list", _list, "names of models, weights with --pretrained")
    listing.add_argument("filter", nargs="*", help="wildcards, for example 'crate_*'")
    listing.add_argument("--pretrained", action="store_true", help="only models with weights, with their tags")


def add_convert(commands: Any) -> None:
    """Adds the command `convert`."""
    converting = command(commands, "convert", _convert, "other people's checkpoint to a folder that create_model loads")
    converting.add_argument("file", type=Path, help="safetensors, PyTorch or JAX (npz) file, of a format we know")
    converting.add_argument("out", type=Path, help="folder")
    converting.add_argument(
        "--model", default="", help="architecture, perhaps with a tag (default: what the file shows)"
    )
    converting.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="OPTION=VALUE",
        help="what the file does not show, for example num_heads=12 img_size=224x160",
    )


def _list(options: argparse.Namespace) -> int:
    names = list_pretrained(options.filter) if options.pretrained else list_models(options.filter)
    print(
        "\n".join(names) if names else "no name fits; 'whitebox-crate list' shows all",
        file=sys.stdout if names else sys.stderr,
    )
    return 0 if names else 1


def _convert(options: argparse.Namespace) -> int:
    given = dict(option(text) for text in options.set)
    converted = convert_checkpoint(read_checkpoint(options.file), global_pool=given.get("global_pool") or "token")
    name, model_options = infer_model(converted, model=options.model, options=given)
    find_entry(name)[0].check_options(given)
    with meta_init():
        model = create_model(name, **model_options)
    report = load_state(model, converted.state, str(options.file), unused=converted.unused)
    folder = save_pretrained(model, options.out)
    print(f"format: {converted.format}")
    print(f"model: {name}")
    print("options: " + (", ".join(f"{key}={value}" for key, value in model_options.items()) or "the model's own"))
    print(f"images: {_images(model.pretrained_cfg)}{_tags(name)}")
    print(f"loaded: {report}")
    print(f"{folder}  (create_model('local-dir:{folder}', pretrained=True) loads it)")
    return 0


def _images(cfg: PretrainedCfg) -> str:
    return f"{cfg.interpolation}, crop {cfg.crop_pct:g}, mean {cfg.mean}, std {cfg.std}"


def _tags(name: str) -> str:
    """What to do where the facts are only defaults."""
    known = [] if "." in name else list_pretrained(f"{name}.*")
    return f"; if these are the weights of {' or '.join(known)}, say so by --model, for its facts" if known else ""
