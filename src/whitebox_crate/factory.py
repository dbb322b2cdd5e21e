"""create_model: turns a name into a model, with or without weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import resources
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from . import hub
from ._files import is_folder
from ._storage import Storage
from .convert.files import read_checkpoint
from .convert.rename import Converted, convert_checkpoint
from .errors import InputError, UnknownNameError, WeightsError, WhiteboxCrateError, check_kind, is_finite
from .fold import fold_for_inference
from .loading import MAX_GROWTH, SMALL, load_state, made_empty
from .models import FeatureExtractor, ImageTransformer
from .models._base import GlobalPool, known_pool
from .models._features import FeatureCls
from .pretrained_cfg import PretrainedCfg
from .registry import Entry, find_entry, is_model

LOCAL, HUB = "local-dir:", "hf-hub:"


def create_model(
    name: str | None = None,
    pretrained: bool = False,
    *,
    pretrained_cfg: str | Mapping[str, Any] | PretrainedCfg | None = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    checkpoint_path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    mmap: bool = False,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    feature_cls: FeatureCls | None = None,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
    model_name: str | None = None,
    **model_options: Any,
) -> Any:
    """Makes a model by name.

    Args:
        name: "architecture", "architecture.tag", an alias, "local-dir:PATH" for a folder that `save_pretrained` wrote,
            or "hf-hub:org/name" or "hf-hub:org/name@revision" for such a folder on the Hugging Face Hub.
        pretrained: Whether to load the weights that the name stands for.
        pretrained_cfg: Facts about the weights, in place of the known ones: a tag, a `PretrainedCfg`, or its fields.
        pretrained_cfg_overlay: Single fields of the facts to change.
        checkpoint_path: A file of weights, in any format that `whitebox_crate.convert` knows, loaded strictly.
        cache_dir: Folder for downloads; None takes huggingface_hub's cache.
        token: Access token for the Hub. None takes the token of `hf auth login` or `HF_TOKEN`; False sends none.
        mmap: Whether to memory-map your own safetensors file: it loads at once and processes share it, but nobody may
            write to it meanwhile. (Files of the package and of the Hub's cache are always mapped.)
        features_only: Whether to return a `FeatureExtractor` (a list of feature maps) instead.
        out_indices: Layers of the `FeatureExtractor`.
        feature_cls: Output of the `FeatureExtractor`; see there.
        device: Device to move the model to; None leaves it.
        dtype: Dtype of the parameters; None leaves it.
        model_name: The same as `name`, as timm calls it.
        **model_options: Options of the model's class, for example `num_classes`, `img_size`, `depth`. None stands for
            the default. Options that only timm's models have are accepted as None, False or 0.

    Returns:
        An `ImageTransformer` in training mode, as PyTorch makes modules; in evaluation mode if it was saved folded.
        With `features_only`, a `FeatureExtractor`; for a registered entrypoint, whatever that makes. With weights, its
        `load_report` says what was loaded.

    Raises:
        UnknownNameError: If the model, tag or option does not exist; the message lists close matches.
        InputError: If the options make no model, or `out_indices` or `feature_cls` is given without `features_only`.
        WeightsError: If weights are asked for but are absent, broken or of other shapes. With `pretrained`, a changed
            `num_classes` leaves only the head fresh. With `checkpoint_path`, all shapes must fit.

    Example:
        >>> model = create_model("crate_small_patch8_224", num_classes=10, img_size=(32, 48), depth=3)
        >>> model(torch.zeros(2, 3, 32, 48)).shape
        torch.Size([2, 10])
        >>> model = create_model("crate_nano", pretrained=True).eval()
    """
    if (out_indices is not None or feature_cls is not None) and not features_only:
        raise InputError("out_indices and feature_cls need features_only=True; give that too, or leave them out")
    if model_name is not None:
        if name is not None:
            raise InputError(
                f"name and model_name mean the same, but {name!r} and {model_name!r} were given; give one of them"
            )
        name = model_name
    if not isinstance(name, str):
        raise InputError(f"a model's name must be text, not {name!r}; write 'local-dir:PATH' for a folder")
    fetch = partial(hub.fetch, cache_dir=cache_dir, token=token)
    source = _source(name, pretrained, pretrained_cfg, fetch)
    if pretrained_cfg_overlay:
        source = replace(source, cfg=_overlaid(source.cfg, _known_fields(pretrained_cfg_overlay)))
    checkpoint_path = checkpoint_path or None  # timm's default is ""
    own_weights = pretrained and checkpoint_path is None
    # The weights decide whether the last norm comes before or after pooling; another pooling is set afterwards.
    given = {key: value for key, value in model_options.items() if not (own_weights and key == "global_pool")}
    options = _options(source, given, pretrained)
    path = _weights_file(name, source, fetch) if own_weights else checkpoint_path
    converted = None
    if path is not None:
        check_kind("checkpoint_path", path, str | Path, "give the path of a file")
        path = Path(path)
        read = partial(read_checkpoint, mmap=mmap or (own_weights and source.is_never_written))
        if own_weights and source.folder is None and source.cfg.hf_hub_id:
            content = hub.read_fresh(path, partial(_weights_file, name, source, fetch), read)
        else:
            content = read(path)
        converted = convert_checkpoint(content, global_pool=options.get("global_pool") or "token")
        options = _with_what_a_file_shows(source.entry, options, converted, path)
    if converted is None:
        _check_growth(source)
    model = _make(source.entry, options, empty=converted is not None)
    if not isinstance(model, ImageTransformer):
        if converted is not None or features_only:
            raise WeightsError(
                f"{name!r} makes a {type(model).__name__}, not an ImageTransformer: load its weights yourself"
            )
        return model.to(device, dtype)
    if source.folded:
        model = fold_for_inference(model.eval(), inplace=True)
    model.architecture, model.model_args, model.pretrained_cfg = source.entry.name, options, source.cfg
    if converted is not None and own_weights:
        new_head, size = model.num_classes != source.cfg.num_classes, source.cfg.input_size[1:]
        load_state(model, converted.state, name, new_head=new_head, img_size=size, unused=converted.unused)
    elif converted is not None:
        load_state(model, converted.state, str(path), unused=converted.unused)
    pool = source.pool
    if model_options.get("global_pool") is not None:
        pool = model_options["global_pool"] if own_weights else None  # else the entrypoint already got it
    if pool is not None:
        model.global_pool = known_pool(pool)
    made = FeatureExtractor(model, out_indices, feature_cls or "list") if features_only else model
    return made.to(device, dtype)


def _with_what_a_file_shows(
    entry: Entry, options: Mapping[str, Any], converted: Converted, path: Path
) -> dict[str, Any]:
    """Adds the options that a file states beside its tensors and that no shape shows: heads and eps of a JAX file.

    Raises:
        WeightsError: If something else was asked for.
    """
    for key, value in converted.options.items():
        if options.get(key, value) != value:
            raise WeightsError(f"{path} was made with {key}={value}, not {options[key]}; leave {key} out")
    return {**options, **{key: value for key, value in converted.options.items() if entry.names(key)}}


@dataclass(frozen=True)
class _Source:
    """The meaning of a name: how to make the model, and the facts about its weights.

    Attributes:
        entry: The registered model.
        cfg: The facts.
        options: Options that were saved with the weights.
        pool: Pooling that was saved with the weights; the pooling in `options` only places the last norm.
        folded: Whether the weights belong to a model that `fold_for_inference` made.
        folder: Where the weights lie, if in a folder.
    """

    entry: Entry
    cfg: PretrainedCfg
    options: Mapping[str, Any] = field(default_factory=dict)
    pool: GlobalPool | None = None
    folded: bool = False
    folder: Path | None = None

    @property
    def is_never_written(self) -> bool:
        """Whether nobody writes to the file: it belongs to the package, or to the Hub's cache under its hash."""
        return self.folder is None and (bool(self.cfg.hf_hub_id) or not Path(self.cfg.file).is_absolute())


def _source(
    name: str,
    pretrained: bool,
    given: str | Mapping[str, Any] | PretrainedCfg | None,
    fetch: Callable[..., Path],
) -> _Source:
    """Looks a name up in the registry, in a folder or on the Hub. Only this function does."""
    if not name.startswith((LOCAL, HUB)):
        if "/" in name or (is_folder(name) and not is_model(name)):
            of_the_hub = "" if is_folder(name) or name[0] in "./" else f", '{HUB}{name}' for the Hub"
            raise UnknownNameError(f"unknown model {name!r}; write '{LOCAL}{name}' for a folder{of_the_hub}")
        entry, tag = find_entry(name)
        cfg = _facts(entry, tag, pretrained, given)
        return _Source(entry, cfg, _classes(entry, cfg) if tag or isinstance(given, str) else {})
    if given is not None:
        raise InputError(f"{name} has its own facts; change single ones with pretrained_cfg_overlay")
    if name.startswith(LOCAL):
        folder = Path(name.removeprefix(LOCAL))
        if not is_folder(folder):
            raise WeightsError(f"there is no folder {folder}; check the path after '{LOCAL}', and its permissions")
        if not (folder / hub.CONFIG).exists():
            raise WeightsError(
                f"there is no {hub.CONFIG} in {folder}: it is not a model's folder; give one that save_pretrained or "
                "train wrote"
            )
        return _described(hub.read_config(folder), folder)
    repo_id, at, revision = name.removeprefix(HUB).partition("@")
    if at and not revision:
        raise InputError(f"{name} has no revision after '@'; give a branch, tag or commit, or leave the '@' out")
    again = partial(fetch, repo_id, hub.CONFIG, revision=revision or None)
    commit, config = hub.read_fresh(again(), again, lambda path: (path.parent.name, hub.read_config(path.parent)))
    source = _described(config)
    # The cache names a snapshot by its commit; the weights come from the same commit.
    return replace(source, cfg=replace(source.cfg, hf_hub_id=repo_id, file=hub.WEIGHTS, revision=commit))


def _described(config: hub.Config, folder: Path | None = None) -> _Source:
    try:
        entry, _ = find_entry(config.architecture)
    except UnknownNameError as error:
        raise UnknownNameError(
            f"{error} If it is your own model, import the module that registers it. For the command line, write a file "
            "that imports it and calls whitebox_crate.cli.main()"
        ) from None
    options = {**_classes(entry, config.cfg), **config.options}
    return _Source(entry, config.cfg, options, config.pool, config.folded, folder)


def _classes(entry: Entry, cfg: PretrainedCfg) -> dict[str, Any]:
    """The number of classes of the weights as an option, if the model has that option."""
    return {"num_classes": cfg.num_classes} if entry.takes("num_classes") else {}


def _facts(
    entry: Entry, tag: str, pretrained: bool, given: str | Mapping[str, Any] | PretrainedCfg | None
) -> PretrainedCfg:
    """The facts about the weights of a registered model."""
    if isinstance(given, PretrainedCfg):
        return given
    if isinstance(given, Mapping):
        return replace(entry.default_cfg, **_known_fields(given))
    chosen = given or tag
    if chosen:
        return entry.pretrained_cfg(chosen)
    if not pretrained:
        return entry.default_cfg
    try:
        return entry.pretrained_cfg()
    except UnknownNameError as error:
        raise WeightsError(str(error)) from None


def _options(source: _Source, given: Mapping[str, Any], pretrained: bool) -> dict[str, Any]:
    """Options for the entrypoint. Given options win over those of the weights; None stands for the default."""
    entry = source.entry
    given = {key: value for key, value in given.items() if entry.takes(key) or not _asks_for_nothing(key, value)}
    merged = {**source.cfg.model_args, **source.options}
    merged.update({key: value for key, value in given.items() if value is not None or key not in merged})
    entry.check_options(merged)
    options = {key: _plain_number(value) for key, value in merged.items() if value is not None}
    for key, value in options.items():  # constants enter no shape, so a wrong one would show only in use
        if type(entry.defaults.get(key)) is float and not is_finite(value):
            raise InputError(f"{key} of {entry.name} must be a finite number, not {value!r:.50}")
        if type(entry.defaults.get(key)) is float:
            options[key] = float(value)  # torch cannot take huge integers
    if pretrained:
        options = {**_classes(entry, source.cfg), **options}
    if source.pool is not None and entry.names("global_pool"):  # timm saves it apart from the options
        options.setdefault("global_pool", source.pool)
    return options


def _asks_for_nothing(option: str, value: Any) -> bool:
    """Whether a model can ignore an option that it lacks.

    It can if an option of timm is switched off, or makes a model fit for export: all models here are.
    """
    return value is None or (isinstance(value, Real) and not value) or option in ("exportable", "no_jit")


def _plain_number(value: Any) -> Any:
    """Numbers of numpy, and pairs of them, as numbers of Python, which JSON can hold."""
    if isinstance(value, tuple | list):
        plain = map(_plain_number, value)
        return list(plain) if isinstance(value, list) else tuple(plain)  # a named tuple cannot be made of one iterable
    return value.item() if isinstance(value, np.generic) else value


def _check_growth(source: _Source) -> None:
    """Refuses options of a folder that make a far larger model, if no weights are loaded that would show its size.

    Raises:
        WeightsError: If the model would be far larger.
    """
    if source.options.keys() <= {"num_classes"}:
        return
    usual, wanted = (
        sum(parameter.numel() for parameter in _make(source.entry, options, empty=True).parameters())
        for options in ({}, source.options)
    )
    if wanted > max(MAX_GROWTH * usual, SMALL):
        raise WeightsError(
            f"{hub.CONFIG} asks for a model of {wanted} numbers, but {source.entry.name} has {usual}: load its "
            f"weights by pretrained=True, or make {source.entry.name} with your own options"
        )


def _make(entry: Entry, options: Mapping[str, Any], empty: bool) -> nn.Module:
    """Runs the entrypoint; inside `meta_init` if weights follow and the model needs no values at construction."""
    try:
        model = made_empty(lambda: entry.entrypoint(**options)) if empty else None
        if model is not None and {name for name, _ in model.named_buffers()} <= model.state_dict().keys():
            return model
        return entry.entrypoint(**options)  # gives values to buffers that no file holds
    except WhiteboxCrateError:
        raise
    except (TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        raise InputError(f"{entry.name} cannot be made with the options {options}: {error}") from error


def _weights_file(name: str, source: _Source, fetch: Callable[..., Path]) -> Path:
    """The file of the weights. Downloads it if it is on the Hub and not in the cache.

    Raises:
        WeightsError: If the file cannot be fetched, or is damaged.
    """
    cfg = source.cfg
    if source.folder is not None:
        return hub.weights_in(source.folder)
    if cfg.hf_hub_id:
        return fetch(cfg.hf_hub_id, cfg.file, revision=cfg.revision or None, sha256=cfg.sha256)
    if cfg.url:
        architecture = source.entry.name
        full_name = f"{architecture}.{cfg.tag}" if cfg.tag else architecture
        raise WeightsError(
            f"the weights of {name} are on a page from which only a person can download them: {cfg.url} . Then run\n"
            f"  whitebox-crate convert {cfg.file or 'FILE'} {architecture} --model {full_name}\n"
            f"and load them by create_model('local-dir:{architecture}', pretrained=True)"
        )
    if cfg.file:
        path = Path(str(resources.files("whitebox_crate") / "weights" / cfg.file))
        hub.verify(path, cfg.sha256, f"{cfg.file} of the package")
        return path
    raise WeightsError(f"no weights come with {name!r}; give checkpoint_path=...")


def _overlaid(cfg: PretrainedCfg, overlay: Mapping[str, Any]) -> PretrainedCfg:
    """The facts with some changed. A new file drops the old hash, and a new repository the old revision."""
    elsewhere = any(overlay.get(key, getattr(cfg, key)) != getattr(cfg, key) for key in ("file", "hf_hub_id", "url"))
    if elsewhere or overlay.get("revision", cfg.revision) != cfg.revision:
        cfg = replace(cfg, sha256="", checked="")
    if overlay.get("hf_hub_id", cfg.hf_hub_id) != cfg.hf_hub_id:
        cfg = replace(cfg, revision="")
    return replace(cfg, **overlay)


def _known_fields(overlay: Mapping[str, Any]) -> Mapping[str, Any]:
    known = inspect.signature(PretrainedCfg).parameters
    for key in overlay:
        if key not in known:
            raise UnknownNameError.of("field of PretrainedCfg", key, known)
    return overlay


class _Folders:
    """The storage behind the methods of models: folders of `save_pretrained`, local and on the Hub."""

    def load(
        self,
        source: str,
        *,
        revision: str | None,
        cache_dir: str | Path | None,
        token: str | bool | None,
        local_files_only: bool,
        force_download: bool,
        model_options: dict[str, Any],
    ) -> Any:
        not_of_models = sorted(model_options.keys() & inspect.signature(create_model).parameters.keys())
        if not_of_models:
            raise InputError(f"{not_of_models} are not options of a model; give them to create_model instead")
        name = f"{LOCAL}{source}"
        if not is_folder(source):
            for file in (hub.CONFIG, hub.WEIGHTS):  # into the cache, where create_model finds them
                place = hub.fetch(
                    source,
                    file,
                    revision=revision,
                    cache_dir=cache_dir,
                    token=token,
                    local_files_only=local_files_only,
                    force_download=force_download,
                )
                revision = place.parent.name  # the cache names a snapshot by its commit; both files come from one
            name = f"{HUB}{source}@{revision}"
        return create_model(name, pretrained=True, cache_dir=cache_dir, token=token, **model_options)

    def save(self, model: ImageTransformer, folder: str | Path, repo_id: str) -> Path:
        return hub.save_pretrained(model, folder, repo_id=repo_id)

    def card(self, model: ImageTransformer, repo_id: str) -> str:
        return hub.model_card(model, repo_id)


FOLDERS: Storage = _Folders()
