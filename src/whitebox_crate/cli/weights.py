"""list and convert: which models and weights there are, and other people's in our form."""

from __future__ import annotations

import argparse
import sys

from ..convert.files import read_checkpoint
from ..convert.infer import infer_model
from ..convert.rename import convert_checkpoint
from ..factory import create_model
from ..hub import save_pretrained
from ..loading import load_state, meta_init
from ..pretrained_cfg import PretrainedCfg
from ..registry import find_entry, list_models, list_pretrained
from ._common import option


def show_names(options: argparse.Namespace) -> int:
    names = list_pretrained(options.filter) if options.pretrained else list_models(options.filter)
    print(
        "\n".join(names) if names else "no name fits; 'whitebox-crate list' shows all",
        file=sys.stdout if names else sys.stderr,
    )
    return 0 if names else 1


def convert(options: argparse.Namespace) -> int:
    given = dict(option(text) for text in options.set)
    pool = given.get("global_pool") or "token"
    converted = convert_checkpoint(read_checkpoint(options.file), global_pool=pool, weights=options.weights)
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
