"""timm's backbones: VisionTransformer and derived classes, and Eva, with or without rotary positions."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import Reading
from ..layers.patch_embed import to_pair
from ..models._wrappers import unwrap
from ..pretrained_cfg import PretrainedCfg
from ._names import is_a
from .readings import attention_readings
from .structure import Structure

# Attention whose output is softmax(q k^T / sqrt(head_dim)) v, with q and k after `q_norm` and `k_norm`.
ATTENTION = (
    "timm.layers.attention.Attention",
    "timm.layers.attention.AttentionRope",
    "timm.models.eva.EvaAttention",
    "timm.models.vision_transformer.Attention",  # its place in earlier releases
)
PRE_NORM = ("timm.models.vision_transformer.Block", "timm.models.eva.EvaBlock")
POST_NORM = ("timm.models.vision_transformer.ResPostBlock", "timm.models.eva.EvaBlockPostNorm")
FACTS = ("input_size", "mean", "std", "interpolation", "crop_pct", "num_classes", "license")


def timm_structure(model: Any) -> Structure:
    """The structure of a `VisionTransformer` or an `Eva`."""
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
        num_classes=model.num_classes,
        global_pool=_pool(model),
        architecture=theirs.get("architecture", type(model).__name__),
    )


def _pool(model: Any) -> str:
    """Which tokens the head reads, in this package's words; "" for anything else."""
    if model.global_pool == "avg":
        return "mean" if getattr(model, "pool_include_prefix", False) else "avg"
    return "token" if model.global_pool == "token" and not hasattr(model, "head_dist") else ""


def _patch_size(embed: Any) -> tuple[int, int]:
    """(height, width) in pixels. A hybrid's patch includes the stride of its convolutions."""
    if hasattr(embed, "feat_ratio"):
        return to_pair(embed.feat_ratio(as_scalar=False))
    height, width = (side // patches for side, patches in zip(embed.img_size, embed.grid_size, strict=True))
    return height, width


def _facts(theirs: Mapping[str, Any]) -> PretrainedCfg:
    """timm's facts about the weights; ImageNet's mean and std if timm has none."""
    known = {name: theirs[name] for name in FACTS if theirs.get(name) is not None}
    known = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
    return PretrainedCfg(**known)


def _readings(block: Any) -> dict[str, Reading]:
    found: dict[str, Reading] = {}
    attention: Any = unwrap(getattr(block, "attn", block))
    if is_a(attention, ATTENTION) and hasattr(attention, "q_norm"):  # Eva of early releases lacks it
        found |= attention_readings(
            attention,
            (attention.q_norm, attention.k_norm, *_values(attention)),
            attention.num_heads,
            num_key_heads=getattr(attention, "num_kv_heads", None),
            change=partial(_turned, attention),
            mixed=getattr(attention, "norm", attention.proj),
            dropout=attention.attn_drop.p,
        )
    if is_a(block, PRE_NORM):
        found["compressed"] = Reading(block.norm2, "before", lambda tokens: tokens)
    elif is_a(block, POST_NORM):
        found["compressed"] = Reading(block.mlp, "before", lambda tokens: tokens)
    return found


def _values(attention: Any) -> list[nn.Module]:
    """The module whose output ends with the values, if any. With separate biases, Eva never calls its `qkv`."""
    if attention.qkv is None:
        return [attention.v_proj]
    return [attention.qkv] if getattr(attention, "q_bias", None) is None else []


def _turned(attention: Any, given: Mapping[str, Any], q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys, rotated by the position of their patch if there are rotary positions."""
    rope = given.get("rope")
    if rope is None:
        return q, k
    rotate = importlib.import_module("timm.layers").apply_rot_embed_cat
    half = {"half": True} if getattr(attention, "rotate_half", False) else {}
    first = attention.num_prefix_tokens
    q, k = (torch.cat([z[:, :, :first], rotate(z[:, :, first:], rope, **half)], dim=2).to(z.dtype) for z in (q, k))
    return q, k
