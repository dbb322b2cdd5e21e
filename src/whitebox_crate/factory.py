"""create_model: turns a name into a model, with or without weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from . import hub
from .errors import InputError, UnknownNameError, WeightsError
from .loading import load_state, read_safetensors
from .models import FeatureExtractor, ImageTransformer, PretrainedCfg
from .registry import get_pretrained_cfg, model_entrypoint, split_name

LOCAL, HUB = "local-dir:", "hf-hub:"


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    pretrained_cfg: str | PretrainedCfg | None = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    checkpoint_path: str | Path | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    **model_options: Any,
) -> Any:
    """Makes a model by name.

    Args:
        name: "architecture", "architecture.tag", an alias, or "local-dir:PATH" for a folder that
            `save_pretrained` wrote.
        pretrained: Whether to load the weights that the name stands for.
        pretrained_cfg: Other facts about the weights: a tag, or a `PretrainedCfg`.
        pretrained_cfg_overlay: Single fields of it to change.
        checkpoint_path: A safetensors file in the names of this package, loaded strictly.
        features_only: Whether to return a `FeatureExtractor` (a list of feature maps) instead.
        out_indices: Its layers.
        **model_options: Options of the model's class, for example `num_classes`, `img_size`, `depth`; None stands for
            the default.

    Returns:
        An `ImageTransformer` in training mode, as PyTorch makes modules (or a `FeatureExtractor`, or whatever a
        registered entrypoint makes). With weights, its `load_report` says what was loaded.

    Raises:
        UnknownNameError: If the model, tag or option does not exist; the message lists close matches.
        InputError: If an option has a value that makes no model, or `out_indices` is given without `features_only`.
        WeightsError: If weights are asked for and absent, broken or of other shapes. With `pretrained`, a changed
            `num_classes` leaves the head fresh, and nothing but the head; `checkpoint_path` takes no other shapes.
    """
    if out_indices is not None and not features_only:
        raise InputError("out_indices chooses the maps of features_only=True; without it there are none")
    folder, saved_pool = None, None
    if name.startswith(HUB):
        raise UnknownNameError(f"models are not fetched from the Hub: download {name} and give {LOCAL}PATH")
    if name.startswith(LOCAL):
        if pretrained_cfg is not None:
            raise InputError(f"{name} has facts of its own; change single ones with pretrained_cfg_overlay")
        folder = Path(name.removeprefix(LOCAL))
        architecture, saved_options, cfg, saved_pool = hub.read_config(folder)
        given = {key: value for key, value in model_options.items() if value is not None or key not in saved_options}
        model_options = {**saved_options, **given}
        if given.get("global_pool") is not None:
            saved_pool = None
    else:
        architecture, tag = split_name(name)
        cfg = _facts(architecture, tag, pretrained, pretrained_cfg)
    if pretrained_cfg_overlay:
        cfg = replace(cfg, **_known_fields(pretrained_cfg_overlay))
    weights = _package_file(cfg) if folder is None else folder / hub.WEIGHTS

    options = _known_options(architecture, model_options)
    if pretrained:
        options.setdefault("num_classes", cfg.num_classes)
    model = model_entrypoint(architecture)(**options)
    if isinstance(model, ImageTransformer):
        model.architecture, model.model_args = architecture, options
        model.pretrained_cfg = cfg
        if saved_pool is not None and saved_pool != model.global_pool:
            model.reset_classifier(model.num_classes, saved_pool)
        if checkpoint_path is not None:
            load_state(model, read_safetensors(checkpoint_path), str(checkpoint_path))
        elif pretrained:
            if weights is None:
                raise WeightsError(f"no weights come with {name!r}; give checkpoint_path=...")
            new_head = model.num_classes != cfg.num_classes
            size = cfg.input_size[1:]
            load_state(model, read_safetensors(weights), str(name), new_head=new_head, img_size=size)
        return FeatureExtractor(model, out_indices) if features_only else model
    if pretrained or checkpoint_path is not None or features_only:
        raise WeightsError(f"{name!r} makes a {type(model).__name__}, which is no ImageTransformer: load it yourself")
    return model


def _facts(architecture: str, tag: str, pretrained: bool, given: str | PretrainedCfg | None) -> PretrainedCfg:
    """The facts about the weights."""
    if isinstance(given, PretrainedCfg):
        cfg = given
    elif pretrained or tag or given:
        try:
            cfg = get_pretrained_cfg(f"{architecture}.{given or tag}" if given or tag else architecture)
        except UnknownNameError as error:
            if tag or given:
                raise
            raise WeightsError(str(error)) from None
    else:
        try:
            cfg = get_pretrained_cfg(architecture)
        except UnknownNameError:
            cfg = _default_cfg(architecture)
    return cfg


def _package_file(cfg: PretrainedCfg) -> Path | None:
    """The file that comes with the package."""
    return Path(str(resources.files("whitebox_crate") / "weights" / cfg.file)) if cfg.file else None


def _default_cfg(architecture: str) -> PretrainedCfg:
    defaults = {k: p.default for k, p in inspect.signature(model_entrypoint(architecture)).parameters.items()}
    size, classes = defaults.get("img_size", 224), defaults.get("num_classes", 1000)
    return PretrainedCfg(input_size=(3, size, size), num_classes=classes)


def _known_options(architecture: str, options: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(model_entrypoint(architecture)).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for option in options:
        if option not in parameters and not takes_any:
            raise UnknownNameError.of(f"option of {architecture}", option, parameters)
    return {key: value for key, value in options.items() if value is not None}


def _known_fields(overlay: Mapping[str, Any]) -> Mapping[str, Any]:
    known = inspect.signature(PretrainedCfg).parameters
    for key in overlay:
        if key not in known:
            raise UnknownNameError.of("field of PretrainedCfg", key, known)
    return overlay
