"""Names, tags and aliases: which models exist, and which weights exist for them."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

from torch import nn

from ._deprecated import ARCHITECTURES, current_architecture
from .errors import InputError, UnknownNameError, UnknownOptionError, check_kind
from .layers.patch_embed import to_pair
from .pretrained import PRETRAINED
from .pretrained_cfg import PretrainedCfg
from .variants import ALIASES, VARIANTS

Entrypoint = Callable[..., nn.Module]
E = TypeVar("E", bound=Entrypoint)


@dataclass(frozen=True)
class Entry:
    """A registered model.

    Attributes:
        name: Full name.
        entrypoint: Makes the model from keyword options.
        pretrained: Tag -> facts about its weights, the default first.
    """

    name: str
    entrypoint: Entrypoint
    pretrained: Mapping[str, PretrainedCfg]

    @cached_property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.entrypoint).parameters

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """Option -> default, for the options that have a default."""
        return {key: p.default for key, p in self._parameters.items() if p.default is not inspect.Parameter.empty}

    def takes(self, option: str) -> bool:
        """Whether the entrypoint takes an option of this name."""
        return option in self._parameters or any(
            parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in self._parameters.values()
        )

    def names(self, option: str) -> bool:
        """Whether the entrypoint names this option itself, not only through **kwargs."""
        return option in self._parameters

    def check_options(self, options: Iterable[str]) -> None:
        """Checks that the entrypoint takes these options.

        Raises:
            UnknownOptionError: If it does not take one; the message lists close matches.
        """
        for option in options:
            if not self.takes(option):
                raise UnknownOptionError.of(f"option of {self.name}", option, self._parameters)

    @property
    def default_cfg(self) -> PretrainedCfg:
        """The facts about a model without weights: its own size and number of classes."""
        height, width = to_pair(self.defaults.get("img_size", 224))
        return PretrainedCfg(
            input_size=(3, height, width),
            num_classes=self.defaults.get("num_classes", 1000),
            first_conv=getattr(self._made_by, "first_conv", PretrainedCfg.first_conv),
        )

    @property
    def _made_by(self) -> Any:
        """The class or function, without its bound options."""
        return self.entrypoint.func if isinstance(self.entrypoint, partial) else self.entrypoint

    @property
    def module(self) -> str:
        """The last part of the name of its Python module, for example "vit"."""
        return str(getattr(self._made_by, "__module__", "")).rpartition(".")[2]

    def pretrained_cfg(self, tag: str = "") -> PretrainedCfg:
        """The facts about the weights of a tag; without a tag, about the first weights.

        Raises:
            UnknownNameError: If the tag does not exist, or the model has no weights.
        """
        if tag in self.pretrained:
            return self.pretrained[tag]
        if not tag and self.pretrained:
            return next(iter(self.pretrained.values()))
        if not self.pretrained:
            close = difflib.get_close_matches(f"{self.name}.{tag}", list_pretrained(), n=3, cutoff=0.5)
            raise UnknownNameError(
                f"no pretrained weights are known for {self.name!r}; give a file of weights (checkpoint_path, or "
                f"--checkpoint), or choose others{', as ' if close else ''}{', '.join(close)}: list_pretrained(), or "
                "whitebox-crate list --pretrained, shows all"
            )
        raise UnknownNameError.of(f"tag of {self.name}", tag, self.pretrained)


_models: dict[str, Entry] = {}
_aliases: dict[str, str] = {}


def register_model(
    entrypoint: E | None = None,
    *,
    name: str | None = None,
    aliases: Sequence[str] = (),
    pretrained: Iterable[PretrainedCfg] = (),
    override: bool = False,
) -> Any:
    """Registers a function or class under a name. A decorator, with or without arguments.

    Args:
        entrypoint: Makes the model from keyword options; its signature says which options exist.
        name: Name of the model; the function's own if None.
        aliases: Other names for it.
        pretrained: Weights that exist for it.
        override: Whether to replace a model that has the name already.

    Returns:
        The entrypoint.

    Raises:
        InputError: If a name is taken, or holds a dot (a dot separates name and tag).

    Example:
        >>> from whitebox_crate.models import Crate
        >>> @register_model
        ... def crate_shallow(num_classes=10, depth=2):
        ...     return Crate(32, 4, num_classes=num_classes, embed_dim=64, depth=depth, num_heads=4)
        >>> len(create_model("crate_shallow").blocks)
        2
    """
    if entrypoint is None:
        return lambda function: register_model(
            function, name=name, aliases=aliases, pretrained=pretrained, override=override
        )
    full_name = name or str(getattr(entrypoint, "__name__", ""))
    for new in (full_name, *aliases):
        if not new or "." in new or ":" in new:
            raise InputError(f"{new!r} cannot be a model's name: it is empty or holds '.' or ':'; pass name=...")
        if not override and (new in _models or new in _aliases):
            raise InputError(f"the model name {new!r} is taken; choose another or pass override=True")
    for taken in (full_name, *aliases):
        _models.pop(taken, None)
        for alias in [alias for alias, target in _aliases.items() if taken in (alias, target)]:
            del _aliases[alias]
    _models[full_name] = Entry(full_name, entrypoint, {cfg.tag: cfg for cfg in pretrained})
    _aliases.update(dict.fromkeys(aliases, full_name))
    return entrypoint


def find_entry(name: str) -> tuple[Entry, str]:
    """The registered model of a name or alias, and the tag ("" if the name has none).

    Args:
        name: "crate_base", "crate_base_patch16_224" or "architecture.tag".

    Raises:
        UnknownNameError: If there is no such model; the message lists close matches.
    """
    architecture, _, tag = name.partition(".")
    architecture = _aliases.get(architecture, current_architecture(architecture))
    if architecture not in _models:
        raise UnknownNameError.of(
            "model", name, [*_models, *_aliases], "whitebox-crate list, or list_models(), shows all."
        )
    return _models[architecture], tag


def split_name(name: str) -> tuple[str, str]:
    """The full architecture name and the tag, as `find_entry` finds them."""
    entry, tag = find_entry(name)
    return entry.name, tag


def is_model(name: str) -> bool:
    """Whether there is a model or an alias of this name. A tag is ignored.

    Example:
        >>> is_model("crate_nano"), is_model("crate_giant")
        (True, False)
    """
    architecture = name.partition(".")[0]
    return ARCHITECTURES.get(architecture, architecture) in _models or architecture in _aliases


def is_model_pretrained(name: str) -> bool:
    """Whether weights are known for a name: for its tag, or for the architecture if the name has no tag.

    Example:
        >>> is_model_pretrained("crate_nano"), is_model_pretrained("crate_large")
        (True, False)
    """
    try:
        get_pretrained_cfg(name)
    except UnknownNameError:
        return False
    return True


def model_entrypoint(name: str) -> Entrypoint:
    """The function or class behind a name.

    Raises:
        UnknownNameError: If there is no such model.

    Example:
        >>> model_entrypoint("crate_nano")(num_classes=2).num_classes
        2
    """
    return find_entry(name)[0].entrypoint


def get_pretrained_cfg(name: str) -> PretrainedCfg:
    """The facts about the weights that a name stands for.

    Args:
        name: "architecture.tag", or an architecture alone for the first of its weights.

    Raises:
        UnknownNameError: If the model or the tag does not exist, or the model has no weights.

    Example:
        >>> cfg = get_pretrained_cfg("crate_nano")
        >>> cfg.num_classes, cfg.license
        (476, 'apache-2.0')
    """
    entry, tag = find_entry(name)
    return entry.pretrained_cfg(tag)


def get_pretrained_cfg_value(name: str, key: str) -> Any:
    """One of the facts of `get_pretrained_cfg`, or of a model without weights; None if there is no such fact.

    Args:
        name: "architecture", or "architecture.tag".
        key: A field of `PretrainedCfg`, or of timm's.

    Raises:
        UnknownNameError: If the model or the tag does not exist.

    Example:
        >>> get_pretrained_cfg_value("crate_nano", "num_classes")
        476
    """
    entry, tag = find_entry(name)
    return (entry.pretrained_cfg(tag) if tag or entry.pretrained else entry.default_cfg).get(key)


def list_models(
    filter: str | Sequence[str] = "",
    module: str | Sequence[str] = "",
    *,
    pretrained: bool = False,
    exclude_filters: str | Sequence[str] = "",
    name_matches_cfg: bool = False,
    include_tags: bool | None = None,
) -> list[str]:
    """Names of the models, in natural order; an empty list if none matches.

    Args:
        filter: Wildcards, for example "crate_*"; a name must match one of them. "" for all.
        module: Names of modules (of `whitebox_crate.models`, or your own), for example "vit"; the model's class must be
            in one of them. "" for all.
        pretrained: Whether to list only models that have weights.
        exclude_filters: Wildcards; a name must match none of them.
        name_matches_cfg: timm's option to leave out aliases; aliases are never listed here.
        include_tags: Whether to list "name.tag"; None means the same as `pretrained`.

    Raises:
        InputError: If a filter or a module is not text.

    Example:
        >>> list_models("crate_small_*")
        ['crate_small_patch8_224', 'crate_small_patch16_224']
    """
    with_tags = pretrained if include_tags is None else include_tags
    wanted, unwanted = _patterns("filter", filter), _patterns("exclude_filters", exclude_filters)
    modules = _patterns("module", module)
    names: list[str] = []
    for name, entry in _models.items():
        if modules and entry.module not in modules:
            continue
        if entry.pretrained and with_tags:
            names += [f"{name}.{tag}" for tag in entry.pretrained]
        elif not pretrained or entry.pretrained:
            names.append(name)
    kept = [name for name in names if (not wanted or _matches(name, wanted)) and not _matches(name, unwanted)]
    return sorted(kept, key=_natural)


def list_pretrained(filter: str | Sequence[str] = "", exclude_filters: str | Sequence[str] = "") -> list[str]:
    """Names with tags of all weights: `list_models` with `pretrained=True`.

    Example:
        >>> list_pretrained("crate_pico*")
        ['crate_pico_patch4_32.fashion_mnist_composites']
    """
    return list_models(filter, pretrained=True, exclude_filters=exclude_filters)


def _patterns(argument: str, given: str | Sequence[str] | None) -> list[str]:
    """The patterns in an argument, without empty ones."""
    advice = f"give text or a list of texts, for example {argument}='crate_*'"
    check_kind(argument, given, str | Sequence | None, advice)
    patterns = [given] if isinstance(given, str) else list(given or ())
    for pattern in patterns:
        check_kind(argument, pattern, str, advice)
    return [pattern for pattern in patterns if pattern]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, p) or fnmatch.fnmatchcase(name, f"{p}.*") for p in patterns)


def _natural(name: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _register_variants() -> None:
    for name, entrypoint in VARIANTS.items():
        aliases = [alias for alias, target in ALIASES.items() if target == name]
        register_model(entrypoint, name=name, aliases=aliases, pretrained=PRETRAINED.get(name, []))


_register_variants()
