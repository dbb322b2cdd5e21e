"""This package's models by timm's `create_model`: `import whitebox_crate.timm_bridge` registers them with timm.

Nothing else in the package imports timm. Names that timm has itself, such as `vit_base_patch16_224`, stay timm's. The
models equal those of `whitebox_crate.create_model`, with weights, tags, folders and `features_only`.
`python -m whitebox_crate.timm_bridge train.py ...` runs a script of timm's with the models registered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import nn

from .. import hub
from ..errors import require
from ..factory import HUB, LOCAL, create_model
from ..pretrained_cfg import PretrainedCfg
from ..registry import Entry, find_entry, list_models

_timm: Any = require("timm", extra="timm")
_models: Any = require("timm.models", extra="timm")

__all__: list[str] = []  # timm adds the names of the models


def _entrypoint(entry: Entry) -> Callable[..., nn.Module]:
    """The function that timm calls to make a model."""

    def make(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Mapping[str, Any] | None = None,
        cache_dir: str | Path | None = None,
        pretrained_model_args: object = None,  # the model_args of a folder, which are among the options too
        **options: Any,
    ) -> nn.Module:
        given = asdict(pretrained_cfg) if is_dataclass(pretrained_cfg) else pretrained_cfg  # type: ignore[arg-type]
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        if isinstance(given, Mapping) and given.get("source"):
            name, saved = _folder(given, cache_dir)
            options = {key: value for key, value in options.items() if value != saved.get(key)}
            overlay = {**(pretrained_cfg_overlay or {})}
        else:
            facts = dict(given) if isinstance(given, Mapping) else {"tag": given or ""}
            tag = facts.get("tag") or ""
            name = f"{entry.name}.{tag}" if tag else entry.name
            overlay = _changed(_facts(entry, tag), {**facts, **(pretrained_cfg_overlay or {})})
        model: nn.Module = create_model(
            name, pretrained, pretrained_cfg_overlay=overlay, cache_dir=cache_dir, **options
        )
        return model

    make.__name__ = make.__qualname__ = entry.name
    return make


def _folder(cfg: Mapping[str, Any], cache_dir: str | Path | None) -> tuple[str, Mapping[str, Any]]:
    """The name of a local or Hub folder, and the options that are saved in it."""
    if cfg["source"] == "local-dir":
        return f"{LOCAL}{cfg['file']}", hub.read_config(cfg["file"]).options
    repo_id, _, revision = cfg["hf_hub_id"].partition("@")
    config = hub.fetch(repo_id, hub.CONFIG, revision=revision or None, cache_dir=cache_dir)
    return f"{HUB}{cfg['hf_hub_id']}", hub.read_config(config.parent).options


def _facts(entry: Entry, tag: str) -> PretrainedCfg:
    return entry.pretrained_cfg(tag) if tag or entry.pretrained else entry.default_cfg


def _changed(cfg: PretrainedCfg, given: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that were given another value, in the names of this package."""
    names = {fact.name for fact in fields(cfg)}
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    if given.get("hf_hub_filename"):
        given["file"] = given["hf_hub_filename"]
    changed = {key: value for key, value in given.items() if key in names and value and value != cfg[key]}
    if Path(changed.get("file", "")).is_file():  # a local file wins, and no other facts about the source apply to it
        changed = {**dict.fromkeys(("hf_hub_id", "url", "revision", "sha256"), ""), **changed}
        changed["file"] = str(Path(changed["file"]).absolute())
    return changed


def _for_timm(cfg: PretrainedCfg) -> Any:
    """The same facts in timm's class."""
    shared = {fact.name for fact in fields(_models.PretrainedCfg)} - {"tag", "notes"}
    facts = {key: value for key, value in cfg.items() if key in shared and value not in ("", ())}
    if cfg.hf_hub_id:
        facts["hf_hub_filename"] = facts.pop("file", None)
    return _models.PretrainedCfg(**facts)


def _register() -> dict[str, Any]:
    """Registers the models that timm lacks. timm reads the facts about weights from this module's `default_cfgs`."""
    entries = [find_entry(name)[0] for name in list_models() if not _timm.is_model(name)]
    named: dict[str, Any] = {}
    for entry in entries:
        for tag, cfg in (entry.pretrained or {"": entry.default_cfg}).items():
            named[f"{entry.name}.{tag}" if tag else entry.name] = _for_timm(cfg)
    globals()["default_cfgs"] = _models.generate_default_cfgs(named)
    return {entry.name: _models.register_model(_entrypoint(entry)) for entry in entries}


globals().update(_register())
