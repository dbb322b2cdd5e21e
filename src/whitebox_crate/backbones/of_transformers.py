"""transformers' backbones: ViT, DINOv2 with and without registers, DINOv3 with its rotary positions."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..layers import Reading
from ..layers.patch_embed import to_pair
from ..models._wrappers import unwrap
from ..pretrained_cfg import PretrainedCfg
from .readings import attention_readings
from .structure import Structure

HALVES = PretrainedCfg(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), notes="mean and std are those of ViTImageProcessor")

# The names now, and before release 5.
PROJECTIONS = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"))


def vit_structure(model: Any) -> Structure:
    """The structure of a `ViTModel`. Only the image processor of its weights knows mean and std of photographs."""
    config = model.config
    height, width = size = to_pair(config.image_size)

    def call(whole: nn.Module, images: Tensor) -> Any:
        other = images.shape[-2:] != size
        return whole(images, interpolate_pos_encoding=True) if other else whole(images)

    # Its positions are assumed to form a square.
    return _structure(model, pretrained_cfg=HALVES, dynamic_img_size=height == width, call=call)


def classifier_structure(model: Any) -> Structure:
    """The structure of a `ViTForImageClassification`. As a backbone it returns only its logits."""
    backbone, config = vit_structure(model.vit), model.config
    names = tuple(config.id2label[index] for index in range(config.num_labels))

    def call(whole: nn.Module, images: Tensor) -> Any:
        out = backbone.call(whole, images)
        return getattr(out, "logits", out)

    return replace(
        backbone,
        call=call,
        num_classes=config.num_labels,
        pretrained_cfg=replace(HALVES, num_classes=config.num_labels, label_names=names),
        architecture=type(model).__name__,
    )


def dino_structure(model: Any) -> Structure:
    """The structure of a `Dinov2Model`, `Dinov2WithRegistersModel`, `DINOv3ViTModel`, or their backbones."""
    return _structure(model, dynamic_img_size=True)


def _structure(model: Any, **facts: Any) -> Structure:
    config = model.config
    layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    rate = getattr(config, "attention_dropout", getattr(config, "attention_probs_dropout_prob", 0.0))
    return Structure(
        layers=list(layers),
        patch_embed=model.embeddings.patch_embeddings,
        readings=partial(_readings, num_heads=config.num_attention_heads, dropout=rate),
        patch_size=to_pair(config.patch_size),
        img_size=to_pair(config.image_size),
        num_prefix_tokens=1 + getattr(config, "num_register_tokens", 0),
        in_chans=config.num_channels,
        grad_checkpointing=any(getattr(layer, "gradient_checkpointing", False) for layer in layers),
        architecture=type(model).__name__,
        **facts,
    )


def _readings(layer: Any, num_heads: int, dropout: float) -> dict[str, Reading]:
    whole: Any = unwrap(layer.attention)
    attention: Any = unwrap(getattr(whole, "attention", whole))  # releases before 5 nest one inside another
    projections = [getattr(attention, new if hasattr(attention, new) else old) for new, old in PROJECTIONS]
    after = layer.norm2 if hasattr(layer, "norm2") else layer.layernorm_after
    mixed = attention.o_proj if hasattr(attention, "o_proj") else whole.output
    return {
        **attention_readings(attention, projections, num_heads, change=_rotated, mixed=mixed, dropout=dropout),
        "compressed": Reading(after, "before", lambda tokens: tokens),
    }


def _rotated(given: Mapping[str, Any], q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys, rotated by the position of their patch in DINOv3, unchanged in others."""
    positions = given.get("position_embeddings")
    if positions is None:
        return q, k
    rotate = importlib.import_module("transformers.models.dinov3_vit.modeling_dinov3_vit").apply_rotary_pos_emb
    q, k = rotate(q, k, *positions)
    return q, k
