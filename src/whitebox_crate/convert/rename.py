"""Other people's names in ours: a checkpoint of any known format, renamed and rearranged."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import zip_longest
from typing import Any

from einops import EinopsError, rearrange
from torch import Tensor

from ..errors import WeightsError
from .formats import CRATE, FORMATS, JAX_PROJ, PREFIXES, TWO_PART, WRAPPERS, Format


@dataclass(frozen=True)
class Converted:
    """A checkpoint in the names of this package.

    Attributes:
        format: What it was.
        state: Our name -> tensor; the tensor of the file itself where no change was needed.
        unused: Names in the file that have no counterpart here.
        options: What the file tells of the model and `state` does not: heads and eps of a JAX file.
    """

    format: str
    state: dict[str, Tensor]
    unused: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def convert_checkpoint(checkpoint: Mapping[str, Any], *, global_pool: str = "token") -> Converted:
    """A checkpoint of any known format in the names of this package.

    Known are official CRATE (with the demo's two-part head, which becomes one), CRATE-MAE, CRATE-alpha of PyTorch and
    JAX, DINO, timm's ViT, and our own. The weights may be in one of `WRAPPERS`, and all names have `PREFIXES`.

    Args:
        checkpoint: What `read_checkpoint` gives: name -> tensor, perhaps nested.
        global_pool: Of the model that it is for: with "avg" and "mean" the last norm is `fc_norm`. Not asked where the
            names are ours already.

    Returns:
        Format, weights, and the names of what has no counterpart.

    Raises:
        WeightsError: If the format is not known, names are left over, or there are several sets of weights.
    """
    theirs = _stripped(_unwrapped(checkpoint))
    form = _format_of(theirs)
    if form is None:
        known = "; ".join(form.name for form in FORMATS)
        raise WeightsError(
            f"no known format has the names {listed(theirs)}. Known: {known}. For another one, rename its tensors to "
            "those of model.state_dict()"
        )
    if form.names is None:
        return Converted(form.name, theirs)
    state, unused, unknown = dict[str, Tensor](), list[str](), list[str]()
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
                raise WeightsError(f"{name!r} and another tensor would both be {target}; remove one of them")
            state[target] = _rearranged(name, value, form)
    if unknown:
        raise WeightsError(
            f"{listed(unknown)} cannot be in a checkpoint of {form.name}, as the other names are; remove what is not "
            "of the network"
        )
    options = dict(form.options)
    heads = theirs.get(JAX_PROJ.replace("#", "0"))
    if heads is not None:
        options["num_heads"] = heads.shape[1]
    folded = form.name == CRATE and _fold_two_part_head(state)
    return Converted(TWO_PART if folded else form.name, state, tuple(unused), options)


def convert_state_dict(checkpoint: Mapping[str, Any], *, global_pool: str = "token") -> dict[str, Tensor]:
    """The weights of `convert_checkpoint`, which says what the arguments are and what is raised.

    Returns:
        Our name -> tensor.
    """
    return convert_checkpoint(checkpoint, global_pool=global_pool).state


def listed(names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:most]) or "(there is no tensor)"
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


_WILD = re.compile(r"#|\*\*|\*")
_MEANING = {"#": r"(\d+)", "*": "(weight|bias)", "**": "(.+)"}


@cache
def _pattern(names: str) -> re.Pattern[str]:
    between = [re.escape(part) for part in _WILD.split(names)]
    wild = [_MEANING[part] for part in _WILD.findall(names)]
    return re.compile("".join(a + b for a, b in zip_longest(between, wild, fillvalue="")))


def _renamed(name: str, form: Format) -> str | None:
    """Our name, "" if there is none for it, None if the format does not have this one."""
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


def _unwrapped(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The one set of weights in a checkpoint."""
    for _ in WRAPPERS:  # a dict may hold itself, so that there must be an end
        tensors = {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}
        dicts = {name: value for name, value in checkpoint.items() if isinstance(value, Mapping)}
        found = [name for name in WRAPPERS if name in dicts]
        if not found and (tensors or not dicts):
            return tensors
        if _format_of(_stripped(tensors)):
            found.append("the top level")
        if len(found) != 1:
            what = f"{listed(found)} all hold weights" if found else f"none of {listed(dicts)} is known to hold them"
            raise WeightsError(f"{what}; save the weights that you mean in a file of their own")
        checkpoint = dicts[found[0]]
    raise WeightsError(f"the weights are deeper than {len(WRAPPERS)} dicts; save them in a file of their own")


def _stripped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names without the prefixes that all of them have."""
    state = dict(state)
    while state:
        common = [prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in state)]
        if not common:
            break
        state = {name.removeprefix(common[0]): value for name, value in state.items()}
    return state


def _fold_two_part_head(state: dict[str, Tensor]) -> bool:
    """Two Linears with nothing in between become one: `W2 (W1 x + b1) + b2`, computed in float64."""
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
