"""list and convert: the names of models and weights, and checkpoints of other projects."""

from __future__ import annotations

import argparse

from ..convert.files import read_checkpoint
from ..convert.infer import infer_model
from ..convert.rename import convert_checkpoint
from ..errors import UnknownNameError, printable
from ..factory import create_model
from ..hub import save_pretrained
from ..loading import load_state, meta_init
from ..pretrained_cfg import PretrainedCfg
from ..registry import find_entry, get_pretrained_cfg, is_model, list_models, list_pretrained, split_name
from ._common import option


def show_names(options: argparse.Namespace) -> int:
    filters = [_full_name(text) for text in options.filter]
    tagged = options.pretrained or any("." in text for text in filters)
    names = list_models(filters, pretrained=options.pretrained, include_tags=tagged)
    if not names:
        for text in options.filter:
            get_pretrained_cfg(text)  # raises with close names
        raise UnknownNameError(f"no model matches {' '.join(options.filter)}; whitebox-crate list shows all names")
    print("\n".join(names))
    return 0


def _full_name(text: str) -> str:
    """The full name of a short one; wildcards stay as they are."""
    return ".".join(filter(None, split_name(text))) if is_model(text) else text


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
    print(f"loaded: {printable(str(report))}")
    print(f"{folder}  (create_model('local-dir:{folder}', pretrained=True) loads it)")
    return 0


def _images(cfg: PretrainedCfg) -> str:
    return f"{cfg.interpolation}, crop {cfg.crop_pct:g}, mean {cfg.mean}, std {cfg.std}"


def _tags(name: str) -> str:
    """What to do if mean, crop and the like are only defaults."""
    known = [] if "." in name else list_pretrained(f"{name}.*")
    return (
        f"; if these are the weights of {' or '.join(known)}, give that name with --model to take its settings"
        if known
        else ""
    )
