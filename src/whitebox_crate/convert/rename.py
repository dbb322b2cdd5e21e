"""Renames and rearranges a checkpoint of any known format into the names of this package."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import zip_longest
from typing import Any

import torch
from einops import EinopsError, rearrange
from torch import Tensor

from ..errors import WeightsError, listed
from .formats import CRATE, DINOV2, FORMATS, IN_TRAINING, JAX_PROJ, PREFIXES, TWO_PART, WRAPPED, WRAPPERS, Format


@dataclass(frozen=True)
class Converted:
    """A checkpoint in the names of this package.

    Attributes:
        format: The format of the file.
        state: Our name -> tensor; the file's own tensor if no change was needed.
        unused: Names in the file that have no counterpart here, or that are not weights of the model, such as a loss.
        options: Options of the model that the file states and `state` does not show: heads and eps of a JAX file.
    """

    format: str
    state: dict[str, Tensor]
    unused: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def convert_checkpoint(checkpoint: Mapping[str, Any], *, global_pool: str = "token", weights: str = "") -> Converted:
    """Converts a checkpoint of any known format to the names of this package.

    Known formats: official CRATE (the demo's two-part head becomes one), CRATE-MAE, CRATE-alpha in PyTorch and JAX,
    DINO, DINOv2, timm's ViT, and this package's own. The weights may be inside one of `WRAPPERS` (a dict, or names with
    this prefix), with `PREFIXES` before all names and `WRAPPED` in any name.

    Args:
        checkpoint: The result of `read_checkpoint`: name -> tensor, perhaps nested.
        global_pool: Pooling of the model: with "avg" and "mean" the last norm is `fc_norm`. Ignored if the names are
            already this package's.
        weights: Which weights to take, if the file has several, by their name there: "state_dict_ema", "student".

    Returns:
        Format, weights, and names without a counterpart.

    Raises:
        WeightsError: If the format is unknown, names are left over, there are several sets of weights, or no set has
            the name `weights`.
    """
    theirs, beside = _unwrapped(checkpoint, weights)
    theirs = _stripped(theirs)
    form = _format_of(theirs)
    if form is None:
        known = "; ".join(form.name for form in FORMATS)
        found = f"no known format has the names {listed(theirs)}" if theirs else "the file has no tensor"
        raise WeightsError(
            f"{found}. Known: {known}. For another format, rename its tensors to the names of model.state_dict()"
        )
    if form.names is None:
        return Converted(form.name, theirs, tuple(beside))
    state, unused, unknown = dict[str, Tensor](), beside, list[str]()
    last_norm = "fc_norm" if global_pool in ("avg", "mean") else "norm"
    for name, value in theirs.items():
        ours = _renamed(name, form)
        if ours is None:
            unknown.append(name)
        elif not ours:
            unused.append(name)
        else:
            target = ours.replace("{norm}", last_norm)
            if target in state:
                raise WeightsError(f"{name!r} and another tensor would both become {target}; remove one of them")
            state[target] = _rearranged(name, value, form)
    if unknown:
        raise WeightsError(
            f"{listed(unknown)} do not belong in a checkpoint of {form.name}, as the other names show; remove "
            "tensors that are not the network's"
        )
    if form.name == IN_TRAINING:
        inside = convert_checkpoint(state, global_pool=global_pool)
        return replace(inside, unused=(*unused, *inside.unused))
    options = dict(form.options)
    if form.name == DINOV2 and "reg_token" in state:
        _move_class_position(state)
        options["no_embed_class"] = True
    heads = theirs.get(JAX_PROJ.replace("#", "0"))
    if heads is not None:
        options["num_heads"] = heads.shape[1]
    folded = form.name == CRATE and _fold_two_part_head(state)
    return Converted(TWO_PART if folded else form.name, state, tuple(unused), options)


def convert_state_dict(
    checkpoint: Mapping[str, Any], *, global_pool: str = "token", weights: str = ""
) -> dict[str, Tensor]:
    """Only the weights of `convert_checkpoint`; see there for arguments and errors.

    Returns:
        Our name -> tensor.

    Example:
        >>> model = create_model("crate_nano")
        >>> theirs = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}  # as DataParallel saves
        >>> convert_state_dict(theirs).keys() == model.state_dict().keys()
        True
    """
    return convert_checkpoint(checkpoint, global_pool=global_pool, weights=weights).state


_WILD = re.compile(r"#|\?|\*\*|\*")
_MEANING = {"#": r"(\d+)", "?": r"\d+", "*": "(weight|bias)", "**": "(.+)"}


@cache
def _pattern(names: str) -> re.Pattern[str]:
    between = [re.escape(part) for part in _WILD.split(names)]
    wild = [_MEANING[part] for part in _WILD.findall(names)]
    return re.compile("".join(a + b for a, b in zip_longest(between, wild, fillvalue="")))


def _renamed(name: str, form: Format) -> str | None:
    """This package's name; "" if there is none; None if the format does not have the given name."""
    for theirs, ours in (form.names or {}).items():
        match = _pattern(theirs).fullmatch(name)
        if match:
            found = match.groups() if ours else ()
            return "".join(a + b for a, b in zip_longest(_WILD.split(ours), found, fillvalue=""))
    return None


def _rearranged(name: str, value: Tensor, form: Format) -> Tensor:
    for theirs, axes in form.axes.items():
        if _pattern(theirs).fullmatch(name):
            try:
                return rearrange(value, axes).contiguous()
            except EinopsError as error:
                raise WeightsError(f"{name!r} is {tuple(value.shape)}, not {axes.partition(' ->')[0]!r}") from error
    return value


def _format_of(names: Iterable[str]) -> Format | None:
    names = list(names)
    marked = (form for form in FORMATS if any(_pattern(m).fullmatch(name) for m in form.marks for name in names))
    return next(marked, None)


def _unwrapped(checkpoint: Mapping[str, Any], weights: str) -> tuple[dict[str, Tensor], list[str]]:
    """The set of weights in a checkpoint, and the names of tensors beside it."""
    beside = list[str]()
    for _ in WRAPPERS:  # a dict may contain itself, so the depth is limited
        tensors, dicts = _grouped(_unmarked(checkpoint), {*WRAPPERS, weights} - {""})
        found = [name for name in WRAPPERS if name in dicts]
        if weights and weights in dicts:
            found, weights = [weights], ""
        elif weights and len(found) != 1:
            raise WeightsError(f"there are no weights named {weights!r}; there are {listed([*dicts, *tensors])}")
        elif not found and (tensors or not dicts):
            return tensors, beside
        elif _format_of(_stripped(tensors)):
            found.append("the top level")
        if len(found) != 1:
            what = f"{listed(found)} all hold weights" if found else f"none of {listed(dicts)} is known to hold weights"
            raise WeightsError(
                f"{what}; choose one, for example whitebox-crate convert --weights {(found or [*dicts])[0]}, "
                "or convert_checkpoint(..., weights=...)"
            )
        beside += tensors
        checkpoint = dicts[found[0]]
    raise WeightsError(f"the weights are nested more than {len(WRAPPERS)} dicts deep; save them in their own file")


def _grouped(
    content: Mapping[str, Any], wrappers: Iterable[str]
) -> tuple[dict[str, Tensor], dict[str, Mapping[str, Any]]]:
    """The tensors and the dicts of a checkpoint. Tensors whose names start with a wrapper's name become a dict.

    That holds only if one of them is a known name without its wrappers; "ema.decay" at the top of a file is not.
    """
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    dicts = {name: value for name, value in content.items() if isinstance(value, Mapping)}
    for wrapper in wrappers:
        group = {name: value for name, value in tensors.items() if name.startswith(f"{wrapper}.")}
        if wrapper not in dicts and _format_of(_LEADING.sub("", name.removeprefix(f"{wrapper}.")) for name in group):
            dicts[wrapper] = {name.removeprefix(f"{wrapper}."): value for name, value in group.items()}
            tensors = {name: value for name, value in tensors.items() if name not in group}
    return tensors, dicts


LONGEST_NAME = 1000
_LEADING = re.compile(rf"^(?:(?:{'|'.join(WRAPPERS)})\.|{'|'.join(map(re.escape, PREFIXES))})+")
_WRAPPED = re.compile(rf"(?:^|(?<=\.))(?:{'|'.join(WRAPPED)})\.")


def _unmarked(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content without the marks that wrappers of modules put into names. Very long names are refused."""
    if content and (longest := max(map(len, content))) > LONGEST_NAME:
        raise WeightsError(f"a name has {longest} characters, too many for a tensor; do not trust the file")
    unmarked = {_WRAPPED.sub("", name): value for name, value in content.items()}
    if len(unmarked) != len(content):
        double = [name for name in content if _WRAPPED.sub("", name) != name]
        raise WeightsError(f"{listed(double)} also exist without the wrapper's mark; remove one of each")
    return unmarked


def _stripped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names without prefixes that all of them share."""
    state = dict(state)
    while prefix := next((prefix for prefix in PREFIXES if state and all(n.startswith(prefix) for n in state)), ""):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _move_class_position(state: dict[str, Tensor]) -> None:
    """Moves the position of [CLS] into `cls_token`, as in timm with registers; only patches have positions."""
    token, positions = (state.get(name, torch.empty(0)) for name in ("cls_token", "pos_embed"))
    of_class = positions[:, :1] if positions.ndim == 3 else positions
    if not token.numel() or token.shape != of_class.shape:
        raise WeightsError(
            f"cls_token {tuple(token.shape)} and pos_embed {tuple(positions.shape)} do not fit a DINOv2 with "
            "registers, which has a position for [CLS] before the patches' positions; fetch the file again"
        )
    state.update({"cls_token": token + of_class, "pos_embed": positions[:, 1:]})


def _fold_two_part_head(state: dict[str, Tensor]) -> bool:
    """Joins two consecutive Linears into one: `W2 (W1 x + b1) + b2`, computed in float64."""
    if not any(name.startswith("second.") for name in state):
        return False
    try:
        first, first_bias = state["head.weight"].double(), state["head.bias"].double()
        second, second_bias = state.pop("second.weight"), state.pop("second.bias")
        if len(second) * first.shape[-1] > 10 * (first.numel() + second.numel()):
            raise RuntimeError(f"{tuple(second.shape)} times {tuple(first.shape)} would be larger than any head")
        weight, bias = second.double() @ first, second.double() @ first_bias + second_bias.double()
    except (KeyError, RuntimeError) as error:
        raise WeightsError(f"the two Linears of the head, mlp_head.1 and head, do not fit together: {error}") from error
    state.update({"head.weight": weight.to(second.dtype), "head.bias": bias.to(second.dtype)})
    return True
