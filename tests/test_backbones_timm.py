"""timm's backbones: what is read of them is what they compute, with their fused attention left on."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from backbones_read import check_attention, make_lively
from timm_installed import timm_or_skip, version_of
from torch import Tensor

from whitebox_crate import capture, create_model
from whitebox_crate.convert.rename import convert_state_dict
from whitebox_crate.segmentation import cls_attention, maskcut_of, patch_features

timm: Any = timm_or_skip()
NEW = version_of(timm) >= (1, 0, 20)
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "registers, norms of q and k, LayerScale": {"reg_tokens": 2, "qk_norm": True, "init_values": 0.5},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "positions of patches alone, norm before": {"no_embed_class": True, "pre_norm": True, "reg_tokens": 1},
    "oblong": {"img_size": (32, 48), "patch_size": (8, 16)},
}


def vit(**options: Any) -> Any:
    torch.manual_seed(0)
    vision_transformer = timm.models.vision_transformer
    if isinstance(options.get("block_fn"), str):
        options["block_fn"] = getattr(vision_transformer, options["block_fn"])
    return make_lively(vision_transformer.VisionTransformer(**{**SMALL, **options}))


def images_of(model: Any, size: tuple[int, int] | None = None) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, *(size or model.patch_embed.img_size))


def unfused(model: Any, images: Tensor) -> list[Tensor]:
    """The attention of each layer as timm computes it without a fused kernel."""
    model, seen = copy.deepcopy(model), []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, args, out: seen.append(out))
    model(images)
    return seen


@pytest.mark.parametrize("variant", VARIANTS)
def test_attention_is_timms_own(variant: str) -> None:
    model = vit(**VARIANTS[variant])
    images = images_of(model)
    assert all(block.attn.fused_attn for block in model.blocks)
    check_attention(model, images, lambda: unfused(model, images))


def test_attention_of_images_of_any_size() -> None:
    model = vit(dynamic_img_size=True)
    images = images_of(model, (48, 24))
    check_attention(model, images, lambda: unfused(model, images))


def test_attention_of_blocks_with_norms_after() -> None:
    model = vit(block_fn="ResPostBlock", init_values=0.5)
    images = images_of(model)
    check_attention(model, images, lambda: unfused(model, images))


@pytest.mark.parametrize("block_fn", ["Block", "ResPostBlock"])
@torch.no_grad()
def test_states_are_where_the_block_computes_them(block_fn: str) -> None:
    model = vit(block_fn=block_fn, init_values=0.5, qk_norm=True, reg_tokens=2)
    images = images_of(model)
    with capture(model, "tokens", "projections", "compressed", "output") as trace:
        model(images)
    for layer, block in enumerate(model.blocks):
        z, h = trace["tokens", layer], trace["compressed", layer]
        before = block.norm1(z) if block_fn == "Block" else z
        _, keys, _ = block.attn.qkv(before).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        assert torch.equal(trace["projections", layer], block.attn.k_norm(keys))
        attended = block.ls1(block.attn(before)) if block_fn == "Block" else block.norm1(block.attn(z))
        torch.testing.assert_close(h, z + attended)
        coded = block.ls2(block.mlp(block.norm2(h))) if block_fn == "Block" else block.norm2(block.mlp(h))
        torch.testing.assert_close(trace["output", layer], h + coded)


@torch.no_grad()
def test_the_same_weights_are_read_the_same_there_and_here() -> None:
    options = {"img_size": (64, 96), "depth": 3, "num_classes": 5}
    theirs = make_lively(timm.create_model("vit_tiny_patch16_224", **options))
    ours = create_model("vit_tiny_patch16_224", **options).eval()
    ours.load_state_dict(convert_state_dict(theirs.state_dict()))
    images = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(cls_attention(theirs, images), cls_attention(ours, images), atol=1e-5, rtol=0)
    (keys, grid), (our_keys, our_grid) = (patch_features(model, images) for model in (theirs, ours))
    torch.testing.assert_close(keys, our_keys, atol=1e-4, rtol=1e-4)
    assert grid == our_grid == (4, 6)
    assert torch.equal(maskcut_of(theirs, images).masks, maskcut_of(ours, images).masks)
