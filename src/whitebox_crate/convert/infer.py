"""Which registered model a checkpoint is for, told by names and shapes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from ..errors import InputError, WeightsError, listed
from ..layers.patch_embed import to_pair
from ..loading import MAX_DEPTH
from ..models import CBT, Crate, CrateAlpha, CrateAttentionOnly, CrateCBT, CrateMae, CrateMhsa, CrateMlp, ToST, ViT
from ..registry import find_entry, list_models
from .formats import TWO_PART
from .rename import Converted, convert_checkpoint

# The parts of a model: its patch embedding, and the parts of its blocks without norms.
_CLASSES = {
    ("norms", frozenset({"mssa", "ista"})): Crate,
    ("norms", frozenset({"mssa"})): CrateAttentionOnly,
    ("norms", frozenset({"mssa", "cbsa", "ista"})): CrateCBT,
    ("norms", frozenset({"mssa", "mlp"})): CrateMlp,
    ("norms", frozenset({"attn", "ista"})): CrateMhsa,
    ("convolution", frozenset({"mssa", "odl"})): CrateAlpha,
    ("convolution", frozenset({"mssa", "ista"})): CrateMae,
    ("convolution", frozenset({"attn", "mlp"})): ViT,
    ("stem", frozenset({"cbsa", "ista"})): CBT,
    ("stem", frozenset({"tssa", "mlp"})): ToST,
}
_EMBEDDINGS = {"norms": "patches with norms", "convolution": "a convolution", "stem": "a convolutional stem"}
# The convolutions of a stem have even numbers.
_STEM = "patch_embed.proj.{}.0.weight"
LAYER_SCALE = 1e-5  # timm's initial values; trained weights do not show theirs
# B/8 has 6 heads in the public demo and 12 in the released size.
_DEMO = "crate_demo_base_patch8_224"


def infer_model(
    checkpoint: Mapping[str, Any] | Converted, *, model: str = "", options: Mapping[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """The registered model of a checkpoint, and the options that differ from its defaults.

    Names and shapes show everything but the number of heads, the sides of an image that is not square, and constants
    (eta, lambda). The number of heads comes from the registered models of this width, depth and patch, if these agree;
    CRATE-MAE's decoder is assumed to have as many as its encoder. If shapes fit several models, the shortest name is
    taken: "crate_tiny", not "crate_sth_paper_small".

    Args:
        checkpoint: A checkpoint (see `convert_checkpoint`), or the result of `convert_checkpoint`.
        model: The registered name, if known, with or without a tag.
        options: Known options; they win over what the shapes show.

    Returns:
        (name, options), for `create_model(name, **options)`.

    Raises:
        InputError: If names and shapes do not show enough; the message says what to give.
        WeightsError: If the checkpoint has no known format, or is not complete.
        UnknownNameError: If there is no such model.

    Example:
        >>> infer_model(create_model("crate_base", num_classes=10).state_dict())
        ('crate_base_patch16_224', {'num_classes': 10})
    """
    given = dict(options or {})
    converted = checkpoint
    if not isinstance(converted, Converted):
        converted = convert_checkpoint(converted, global_pool=given.get("global_pool") or "token")
    wanted = {**converted.options, **given}
    tag = ""
    if model:
        entry, tag = find_entry(model)
        fits = [entry.name]
        kind = _class_behind(entry.name)
        if kind in _CLASSES.values() and kind is not _class_of(converted.state):
            raise InputError(
                f"{model} does not fit the file, which holds a {converted.format}: "
                "name a model of that kind, or none (leave --model out)"
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
    entrypoint = find_entry(name)[0].entrypoint
    return entrypoint.func if isinstance(entrypoint, partial) else entrypoint


def _class_of(state: Mapping[str, Tensor]) -> Any:
    parts = {name.split(".")[2] for name in state if name.startswith("blocks.") and name.count(".") > 2}
    proj = state.get("patch_embed.proj.weight")
    embedding = "convolution" if proj is not None and proj.ndim == 4 else "norms"
    embedding = "stem" if _STEM.format(0) in state else embedding
    kind = _CLASSES.get((embedding, frozenset(parts - {"norm1", "norm2", "ls1", "ls2"})))
    if kind is None:
        raise InputError(
            f"no model of this package has layers of {listed(sorted(parts))} after {_EMBEDDINGS[embedding]}; if you "
            "registered one, add --model NAME"
        )
    return kind


def _defaults(name: str) -> dict[str, Any]:
    return find_entry(name)[0].defaults


def _differences(name: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The wanted options that differ from the defaults of the model of this name."""

    def comparable(key: str, value: Any) -> Any:
        if key == "init_values":  # the initial value of LayerScale does not show, only whether there is LayerScale
            return bool(value)
        return to_pair(value) if key in ("img_size", "patch_size") else value

    defaults = _defaults(name)
    same = {
        key for key in wanted.keys() & defaults.keys() if comparable(key, wanted[key]) == comparable(key, defaults[key])
    }
    return {key: value for key, value in wanted.items() if key not in same}


def _of_one_head_count(fits: list[str], wanted: Mapping[str, Any], sizes: tuple[str, ...], demo: bool) -> list[str]:
    """The models of the same sizes, if they all have the same number of heads."""
    same = [name for name in fits if not _differences(name, {key: wanted[key] for key in sizes})]
    if demo and _DEMO in same:
        return [_DEMO]
    counts = {name: _defaults(name)["num_heads"] for name in same}
    if len(set(counts.values())) != 1:
        have = ", ".join(f"{name} has {count}" for name, count in counts.items()) or "no known model has these sizes"
        shown = ", ".join(f"{key} {wanted[key]}" for key in sizes)
        raise InputError(f"the file does not show the number of heads ({shown}; {have}): add --set num_heads=NUMBER")
    return same


def _visible_options(state: Mapping[str, Tensor], known: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """The options that names and shapes show."""
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    stem = _STEM.format(0) in shapes
    first = _STEM.format(0) if stem else "patch_embed.proj.weight"
    cls_token, positions, proj = (shapes.get(name, ()) for name in ("cls_token", "pos_embed", first))
    dim = cls_token[-1] if cls_token else 0
    depth = _count("blocks", shapes)
    of_any_grid = "pos_embed.token_projection.weight" in shapes
    whole = depth and dim and cls_token == (1, 1, dim) and (of_any_grid or positions[::2] == (1, dim))
    if not whole or len(proj) not in (2, 4) or 0 in proj:
        raise WeightsError(
            f"the checkpoint is not complete: cls_token is {cls_token}, pos_embed {positions}, {first} {proj}, "
            f"and there are {depth} layers; fetch or write it again"
        )
    if "fc_norm.weight" in shapes and "global_pool" not in known:
        raise InputError(
            "the file pools before its last norm: add --set global_pool=avg (patches) or mean (all tokens)"
        )
    patch, chans = (_patch_of_stem(shapes), proj[1]) if stem else _patch_and_channels(proj, known)
    options: dict[str, Any] = {"embed_dim": dim, "depth": depth, "patch_size": patch, "in_chans": chans}
    options["num_classes"] = shapes["head.weight"][0] if shapes.get("head.weight") else 0
    if kind is ViT:
        options["reg_tokens"] = (shapes.get("reg_token") or (1, 0))[1]
        options["init_values"] = LAYER_SCALE if "blocks.0.ls1.gamma" in shapes else None
        options["no_embed_class"] = _only_patches_have_positions(positions[1], 1 + options["reg_tokens"], patch, known)
    without = known.get("no_embed_class", options.get("no_embed_class"))
    prefix = 0 if without else 1 + options.get("reg_tokens", 0)
    if "img_size" not in known and not of_any_grid:
        options["img_size"] = _square_image(positions[1] - prefix, to_pair(patch))
    by_head = shapes.get(f"blocks.{depth - 1}.cbsa.step_rep") or shapes.get("blocks.0.tssa.temperature")
    if by_head:
        options["num_heads"] = by_head[0]
        known = {"num_heads": by_head[0], **known}
    for part, matrices in (("mssa", 1), ("cbsa", 1), ("tssa", 1), ("attn", 3)):
        rows = (shapes.get(f"blocks.0.{part}.qkv.weight") or (matrices * dim,))[0]
        if rows != matrices * dim and "head_dim" not in known:
            options["head_dim"] = _head_dim(rows // matrices, known.get("num_heads"))
    learned = "blocks.0.mssa.proj.weight" in shapes or known.get("num_heads") == 1
    if "blocks.0.mssa.qkv.weight" in shapes and not learned and kind in (Crate, CrateAttentionOnly):
        options["proj"] = "tied"
    for part in ("attn", "tssa"):
        if f"blocks.0.{part}.qkv.weight" in shapes:
            options["qkv_bias"] = f"blocks.0.{part}.qkv.bias" in shapes
    if shapes.get("blocks.0.mlp.fc1.weight"):
        options["mlp_ratio"] = shapes["blocks.0.mlp.fc1.weight"][0] / dim
    if shapes.get("blocks.0.odl.dictionary"):
        options["expansion"] = shapes["blocks.0.odl.dictionary"][-1] // dim
    upper = sum(name.endswith(".cbsa.step_rep") for name in shapes)
    if kind is CrateCBT and upper != depth // 2:
        options["cbt_depth"] = upper
    if kind is ToST:
        options["cls_attn_layers"] = _count("cls_attn_blocks", shapes)
    if kind is CrateMae and _count("decoder_blocks", shapes) != depth:
        options["decoder_depth"] = _count("decoder_blocks", shapes)
    return options


def _count(stack: str, names: Iterable[str]) -> int:
    """The number of layers.

    Raises:
        WeightsError: If they do not count from 0 without a gap, or there are too many.
    """
    found = {name.split(".")[1] for name in names if name.startswith(f"{stack}.")}
    if len(found) > MAX_DEPTH:
        raise WeightsError(
            f"there are {len(found)} layers in {stack}, but a file may have at most {MAX_DEPTH}; check the file"
        )
    lacking = {str(index) for index in range(len(found))} - found
    if lacking:
        raise WeightsError(
            f"of the {len(found)} layers in {stack}, {listed(sorted(lacking))} is missing; fetch the file again"
        )
    return len(found)


def _patch_of_stem(names: Iterable[str]) -> int:
    """The patch size: each convolution halves the image."""
    steps = 0
    while _STEM.format(2 * steps) in names:
        steps += 1
    return int(2**steps)


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
                f"a patch has {proj[1]} values, which is not a square with {chans} channels: add --set in_chans=NUMBER "
                "or patch_size=HEIGHTxWIDTH"
            )
    return (patch[0] if patch[0] == patch[1] else tuple(patch)), chans


def _only_patches_have_positions(positions: int, prefix: int, patch: Any, known: Mapping[str, Any]) -> bool:
    """Whether the number of positions fits the patches of the given image, or of a square one."""
    if "img_size" not in known:
        return not _is_square(positions - prefix) and _is_square(positions)
    sides = zip(to_pair(known["img_size"]), to_pair(patch), strict=True)
    return positions == math.prod(side // of_patch for side, of_patch in sides)


def _is_square(patches: int) -> bool:
    return patches > 0 and math.isqrt(patches) ** 2 == patches


def _square_image(patches: int, patch: tuple[int, int]) -> Any:
    if not _is_square(patches):
        raise InputError(
            f"there are positions for {patches} patches, which is not a square: add --set img_size=HEIGHTxWIDTH"
        )
    side = math.isqrt(patches)
    return side * patch[0] if patch[0] == patch[1] else (side * patch[0], side * patch[1])


def _head_dim(together: int, num_heads: Any) -> int:
    if type(num_heads) is not int or num_heads < 1 or together % num_heads:
        raise InputError(f"all heads together are {together} wide: add --set num_heads=NUMBER, a divisor of that")
    return together // num_heads
