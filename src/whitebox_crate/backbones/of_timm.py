"""timm's backbones: VisionTransformer and what derives from it, and Eva, with rotary positions or without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..layers import Reading
from ..layers.patch_embed import to_pair
from ..models._wrappers import unwrap
from ..pretrained_cfg import PretrainedCfg
from ._names import is_a
from .readings import attention_readings
from .structure import Structure

# Attention whose output is softmax(q k^T / sqrt(head_dim)) v, with q and k out of `q_norm` and `k_norm`.
ATTENTION = (
    "timm.layers.attention.Attention",
    "timm.models.vision_transformer.Attention",  # where it was in earlier releases
)
PRE_NORM = ("timm.models.vision_transformer.Block", "timm.models.eva.EvaBlock")
POST_NORM = ("timm.models.vision_transformer.ResPostBlock", "timm.models.eva.EvaBlockPostNorm")
FACTS = ("input_size", "mean", "std", "interpolation", "crop_pct", "num_classes", "license")


def timm_structure(model: Any) -> Structure:
    """Where the parts of a `VisionTransformer` or an `Eva` are."""
    theirs = getattr(model, "pretrained_cfg", None) or {}
    embed, cfg = model.patch_embed, _facts(theirs)
    return Structure(
        layers=list(model.blocks),
        patch_embed=embed,
        readings=_readings,
        patch_size=_patch_size(embed),
        img_size=to_pair(embed.img_size or cfg.input_size[1:]),
        num_prefix_tokens=model.num_prefix_tokens,
        has_class_token=model.cls_token is not None,
        dynamic_img_size=model.dynamic_img_size,
        in_chans=getattr(model, "in_chans", cfg.input_size[0]),
        pretrained_cfg=cfg,
        grad_checkpointing=model.grad_checkpointing,
        architecture=theirs.get("architecture", type(model).__name__),
    )


def _patch_size(embed: Any) -> tuple[int, int]:
    """(height, width) in pixels; those of a hybrid count what its convolutions leave out as well."""
    if hasattr(embed, "feat_ratio"):
        return to_pair(embed.feat_ratio(as_scalar=False))
    height, width = (side // patches for side, patches in zip(embed.img_size, embed.grid_size, strict=True))
    return height, width


def _facts(theirs: Mapping[str, Any]) -> PretrainedCfg:
    """What timm knows of the weights; where it says nothing, ImageNet's mean and std."""
    known = {name: theirs[name] for name in FACTS if theirs.get(name) is not None}
    known = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
    return PretrainedCfg(**known)


def _readings(block: Any) -> dict[str, Reading]:
    found: dict[str, Reading] = {}
    attention: Any = unwrap(getattr(block, "attn", block))
    if is_a(attention, ATTENTION):
        found |= attention_readings(attention, attention.q_norm, attention.k_norm, attention.num_heads)
    if is_a(block, PRE_NORM):
        found["compressed"] = Reading(block.norm2, "before", lambda tokens: tokens)
    elif is_a(block, POST_NORM):
        found["compressed"] = Reading(block.mlp, "before", lambda tokens: tokens)
    return found
