"""Other people's checkpoints in our names, and the model that a checkpoint is for."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import zip_longest
from typing import Any

from einops import EinopsError, rearrange
from torch import Tensor

from ._formats import CRATE, FORMATS, JAX_PROJ, PREFIXES, TWO_PART, WRAPPERS, Format
from .errors import InputError, WeightsError
from .layers.embed import to_pair
from .models import Crate, CrateAlpha, CrateMae, CrateMhsa, CrateMlp, ViT
from .registry import list_models, model_entrypoint, split_name


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


def convert(checkpoint: Mapping[str, Any], *, global_pool: str = "token") -> Converted:
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
            f"no known format has the names {_listed(theirs)}. Known: {known}. For another one, rename its tensors to "
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
            f"{_listed(unknown)} cannot be in a checkpoint of {form.name}, as the other names are; remove what is not "
            "of the network"
        )
    options = dict(form.options)
    heads = theirs.get(JAX_PROJ.replace("#", "0"))
    if heads is not None:
        options["num_heads"] = heads.shape[1]
    folded = form.name == CRATE and _fold_two_part_head(state)
    return Converted(TWO_PART if folded else form.name, state, tuple(unused), options)


def convert_state_dict(checkpoint: Mapping[str, Any], *, global_pool: str = "token") -> dict[str, Tensor]:
    """The weights of `convert`, which says what the arguments are and what is raised.

    Returns:
        Our name -> tensor.
    """
    return convert(checkpoint, global_pool=global_pool).state


def _listed(names: Iterable[str], most: int = 8) -> str:
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
            what = f"{_listed(found)} all hold weights" if found else f"none of {_listed(dicts)} is known to hold them"
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


# What a model is made of: the parts of its blocks but for norms, and whether a convolution embeds the patches.
_CLASSES = {
    (frozenset({"mssa", "ista"}), False): Crate,
    (frozenset({"mssa", "mlp"}), False): CrateMlp,
    (frozenset({"attn", "ista"}), False): CrateMhsa,
    (frozenset({"mssa", "odl"}), True): CrateAlpha,
    (frozenset({"mssa", "ista"}), True): CrateMae,
    (frozenset({"attn", "mlp"}), True): ViT,
}
# Of B/8, the public demo has 6 heads and the released size 12.
_DEMO = "crate_demo_base_patch8_224"


def infer_model(
    checkpoint: Mapping[str, Any] | Converted, *, model: str = "", options: Mapping[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """The registered model that a checkpoint is for, and the options that differ from its defaults.

    Names and shapes tell all but the number of heads, the sides of an image that is not square, and constants (eta,
    lambda). The heads are those of the registered models of this width, depth and patch, if these agree; CRATE-MAE's
    decoder is taken to have as many as its encoder. Of models that shapes cannot tell apart, the one with the shortest
    name is taken: "crate_tiny", not "crate_sth_paper_small".

    Args:
        checkpoint: As of `convert`, or what it made of one.
        model: Its registered name, if that is known, with or without a tag.
        options: Options that are known; they go before what the shapes say.

    Returns:
        (name, options), for `create_model(name, **options)`.

    Raises:
        InputError: If names and shapes do not tell enough; the message says what to give.
        WeightsError: If the checkpoint is of no known format, or not complete.
        UnknownNameError: If there is no such model.
    """
    given = dict(options or {})
    converted = checkpoint
    if not isinstance(converted, Converted):
        converted = convert(converted, global_pool=given.get("global_pool") or "token")
    wanted = {**converted.options, **given}
    architecture, tag = split_name(model) if model else ("", "")
    if model:
        fits = [architecture]
        kind = _class_behind(architecture)
        if kind in _CLASSES.values() and kind is not _class_of(converted.state):
            raise InputError(
                f"{model} is of another kind than the file, which holds a {converted.format}: leave it out"
            )
    else:
        kind = _class_of(converted.state)
        fits = [name for name in list_models() if _class_behind(name) is kind]
    wanted = {**_visible_options(converted.state, wanted, kind), **wanted}
    if "num_heads" not in wanted:
        demo = not model and (converted.format == TWO_PART or wanted["num_classes"] == _defaults(_DEMO)["num_classes"])
        fits = _of_one_head_count(fits, wanted, ("embed_dim",) if model else ("embed_dim", "depth", "patch_size"), demo)
    name = min(fits, key=lambda name: (len(_differences(name, wanted)), len(name)))
    return (f"{name}.{tag}" if tag else name), _differences(name, wanted)


def _class_behind(name: str) -> Any:
    entrypoint = model_entrypoint(name)
    return entrypoint.func if isinstance(entrypoint, partial) else entrypoint


def _class_of(state: Mapping[str, Tensor]) -> Any:
    parts = {name.split(".")[2] for name in state if name.startswith("blocks.0.") and name.count(".") > 2}
    by_convolution = "patch_embed.proj.weight" in state and state["patch_embed.proj.weight"].ndim == 4
    kind = _CLASSES.get((frozenset(parts - {"norm1", "norm2"}), by_convolution))
    if kind is None:
        raise InputError(
            f"no model of this package has layers of {_listed(sorted(parts))} after "
            f"{'a convolution' if by_convolution else 'patches with norms'}; if you registered one, add --model NAME"
        )
    return kind


def _defaults(name: str) -> dict[str, Any]:
    return {key: p.default for key, p in inspect.signature(model_entrypoint(name)).parameters.items()}


def _differences(name: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What of the wanted options the model of this name does not have by default."""

    def comparable(key: str, value: Any) -> Any:
        return to_pair(value) if key in ("img_size", "patch_size") else value

    defaults = _defaults(name)
    same = {
        key for key in wanted.keys() & defaults.keys() if comparable(key, wanted[key]) == comparable(key, defaults[key])
    }
    return {key: value for key, value in wanted.items() if key not in same}


def _of_one_head_count(fits: list[str], wanted: Mapping[str, Any], sizes: tuple[str, ...], demo: bool) -> list[str]:
    """Those of the same sizes, all of which have as many heads."""
    same = [name for name in fits if not _differences(name, {key: wanted[key] for key in sizes})]
    if demo and _DEMO in same:
        return [_DEMO]
    counts = {name: _defaults(name)["num_heads"] for name in same}
    if len(set(counts.values())) != 1:
        have = ", ".join(f"{name} has {count}" for name, count in counts.items()) or "no known model has these sizes"
        shown = ", ".join(f"{key} {wanted[key]}" for key in sizes)
        raise InputError(
            f"the file does not tell how many heads there are ({shown}; {have}): add --set num_heads=NUMBER"
        )
    return same


def _visible_options(state: Mapping[str, Tensor], known: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """The options that names and shapes tell."""
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    cls_token, positions, proj = (shapes.get(n, ()) for n in ("cls_token", "pos_embed", "patch_embed.proj.weight"))
    dim = cls_token[-1] if cls_token else 0
    depth = _count("blocks", shapes)
    whole = depth and dim and cls_token == (1, 1, dim) and positions[::2] == (1, dim)
    if not whole or len(proj) not in (2, 4) or 0 in proj:
        raise WeightsError(
            f"the checkpoint is not complete: cls_token is {cls_token}, pos_embed {positions}, patch_embed.proj.weight "
            f"{proj}, and there are {depth} layers; fetch or write it again"
        )
    if "fc_norm.weight" in shapes and "global_pool" not in known:
        raise InputError(
            "the file pools before its last norm: add --set global_pool=avg (patches) or mean (all tokens)"
        )
    patch, chans = _patch_and_channels(proj, known)
    options: dict[str, Any] = {"embed_dim": dim, "depth": depth, "patch_size": patch, "in_chans": chans}
    options["num_classes"] = shapes["head.weight"][0] if shapes.get("head.weight") else 0
    if "img_size" not in known:
        options["img_size"] = _square_image(positions[1] - 1, to_pair(patch))
    for part, matrices in (("mssa", 1), ("attn", 3)):
        rows = (shapes.get(f"blocks.0.{part}.qkv.weight") or (matrices * dim,))[0]
        if rows != matrices * dim and "head_dim" not in known:
            options["head_dim"] = _head_dim(rows // matrices, known.get("num_heads"))
    if "blocks.0.attn.qkv.weight" in shapes:
        options["qkv_bias"] = "blocks.0.attn.qkv.bias" in shapes
    if shapes.get("blocks.0.mlp.fc1.weight"):
        options["mlp_ratio"] = shapes["blocks.0.mlp.fc1.weight"][0] / dim
    if shapes.get("blocks.0.odl.dictionary"):
        options["expansion"] = shapes["blocks.0.odl.dictionary"][-1] // dim
    if kind is CrateMae and _count("decoder_blocks", shapes) != depth:
        options["decoder_depth"] = _count("decoder_blocks", shapes)
    return options


def _count(stack: str, names: Iterable[str]) -> int:
    """How many layers there are.

    Raises:
        WeightsError: If they are not counted from 0 without a gap.
    """
    found = {name.split(".")[1] for name in names if name.startswith(f"{stack}.")}
    lacking = {str(index) for index in range(len(found))} - found
    if lacking:
        raise WeightsError(
            f"of the {len(found)} layers in {stack}, {_listed(sorted(lacking))} is missing; fetch the file again"
        )
    return len(found)


def _patch_and_channels(proj: tuple[int, ...], known: Mapping[str, Any]) -> tuple[Any, int]:
    """Patch size, one number if it is square, and channels, from the shape of the projection."""
    if len(proj) == 4:
        patch, chans = proj[2:], proj[1]
    else:
        chans = known.get("in_chans", 3)
        side = math.isqrt(proj[1] // chans) if type(chans) is int and chans > 0 else 0
        patch = to_pair(known["patch_size"]) if "patch_size" in known else (side, side)
        area = patch[0] * patch[1]
        if "in_chans" not in known and "patch_size" in known:
            chans = proj[1] // area
        if not area or area * chans != proj[1]:
            raise InputError(
                f"a patch has {proj[1]} values, which is no square of {chans} channels: add --set in_chans=NUMBER "
                "or patch_size=HEIGHTxWIDTH"
            )
    return (patch[0] if patch[0] == patch[1] else tuple(patch)), chans


def _square_image(patches: int, patch: tuple[int, int]) -> Any:
    side = math.isqrt(max(patches, 0))
    if not side or side * side != patches:
        raise InputError(
            f"there are positions for {patches} patches, which is no square: add --set img_size=HEIGHTxWIDTH"
        )
    return side * patch[0] if patch[0] == patch[1] else (side * patch[0], side * patch[1])


def _head_dim(together: int, num_heads: Any) -> int:
    if type(num_heads) is not int or num_heads < 1 or together % num_heads:
        raise InputError(f"the heads are {together} wide together: add --set num_heads=NUMBER, which divides that")
    return together // num_heads
