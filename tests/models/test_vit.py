"""ViT with what DINOv2 added: registers and LayerScale, its own files, and everything that reads a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dinov2 import HEADS, dinov2_state, dinov2_tokens
from small_models import DIM, GRID, images_for, small_model
from torch import Tensor, nn

from whitebox_crate import ImageTransformer, capture, create_model, fold_for_inference
from whitebox_crate.analysis import attention_rollout, cls_rollout, explain, head_outputs
from whitebox_crate.convert.infer import infer_model
from whitebox_crate.convert.rename import convert_checkpoint
from whitebox_crate.errors import InputError, WeightsError
from whitebox_crate.layers import LayerScale
from whitebox_crate.segmentation import all_cls_attention, cls_attention, default_layer, patch_features

NAME = "vit_small_patch14_reg4_dinov2"
PREFIX, PATCHES = 5, GRID[0] * GRID[1]


@pytest.fixture
def model() -> ImageTransformer:
    return small_model(NAME)


@pytest.fixture
def images(model: ImageTransformer) -> Tensor:
    return images_for(model)


# The network


@torch.no_grad()
def test_layer_scale_scales_what_a_branch_adds() -> None:
    x = torch.randn(2, 3, 4)
    scale = LayerScale(4, 0.5)
    assert torch.equal(scale(x), 0.5 * x)
    scale.gamma.copy_(torch.arange(4.0))
    assert torch.equal(scale(x), x * torch.arange(4.0))
    block = small_model(NAME, depth=1).blocks[0]
    for branch in (block.ls1, block.ls2):
        branch.gamma.zero_()
    tokens = torch.randn(2, 7, DIM)
    assert torch.equal(block(tokens), tokens)


@pytest.mark.parametrize("options", [{}, {"init_values": None}, {"init_values": 0.0}])
def test_without_layer_scale_there_is_none(options: dict[str, Any]) -> None:
    plain = small_model("vit_tiny_patch16_224", **options)
    assert not any(".ls" in name for name in plain.state_dict())
    assert not any(".ls" in name for name in small_model(NAME, init_values=0).state_dict())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reg_tokens": -1}, "a number of registers, at least 0, not -1"),
        ({"reg_tokens": "four"}, "reg_tokens"),
        ({"reg_tokens": 2.5}, "reg_tokens"),
        ({"init_values": float("nan")}, "init_values of .* finite number.* not nan"),
        ({"init_values": "small"}, "init_values of .* finite number.* not 'small'"),
    ],
)
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", NAME])
def test_registers_and_scales_that_make_no_model_are_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        small_model(name, **options)


@pytest.mark.parametrize("registers", [0, 3])
@torch.no_grad()
def test_positions_are_of_all_tokens_or_of_patches_alone(registers: int) -> None:
    for no_embed_class in (False, True):
        model = small_model("vit_tiny_patch16_224", reg_tokens=registers, no_embed_class=no_embed_class)
        assert model.pos_embed.shape[1] == PATCHES + (0 if no_embed_class else 1 + registers)
        tokens, before = model.embed(images_for(model)), model.pos_embed.clone()
        model.pos_embed += 1
        moved = (model.embed(images_for(model)) - tokens).round(decimals=4)
        assert (moved[:, 1 + registers :] == 1).all()
        assert (moved[:, : 1 + registers] == (0 if no_embed_class else 1)).all()
        model.set_input_size((3 * 16, 4 * 16))
        assert torch.equal(
            model.pos_embed[:, : model.num_prefix_positions], before[:, : model.num_prefix_positions] + 1
        )


@torch.no_grad()
def test_dropped_patches_leave_the_registers(images: Tensor) -> None:
    model = small_model(NAME, patch_drop_rate=0.5).train()
    whole = model.embed(images)
    kept = model.patch_drop(whole)
    assert kept.shape[1] == PREFIX + PATCHES // 2
    assert torch.equal(kept[:, :PREFIX], whole[:, :PREFIX])


# DINOv2's own files


@pytest.mark.parametrize("groups", [0, 2])
@pytest.mark.parametrize("registers", [0, 4])
@torch.no_grad()
def test_a_file_of_dinov2_gives_what_dinov2_gives(registers: int, groups: int, tmp_path: Path) -> None:
    state = dinov2_state(registers, groups)
    torch.save(state, tmp_path / "dinov2.pth")
    name, options = infer_model(state, options={"num_heads": HEADS})
    model = create_model(name, checkpoint_path=tmp_path / "dinov2.pth", dynamic_img_size=True, **options).eval()
    assert (model.num_prefix_tokens, model.num_classes) == (1 + registers, 0)
    assert model.load_report.unused == ("mask_token",)
    images = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(model.forward_features(images), dinov2_tokens(state, images), rtol=1e-5, atol=1e-5)
    if registers:  # without, DINOv2 resamples positions by another rule than timm
        wide = torch.randn(2, 3, 16, 20)
        torch.testing.assert_close(model.forward_features(wide), dinov2_tokens(state, wide), rtol=1e-4, atol=1e-5)


def test_a_teacher_with_its_heads_is_found_in_a_checkpoint_of_training() -> None:
    state = dinov2_state(4, groups=2)
    heads = {"dino_head.mlp.0.weight": torch.ones(2), "ibot_head.last_layer.weight_g": torch.ones(2)}
    teacher = {**{f"backbone.{name}": value for name, value in state.items()}, **heads}
    converted, alone = convert_checkpoint({"teacher": teacher}), convert_checkpoint(state)
    assert converted.format == alone.format == "DINOv2"
    assert converted.options == alone.options == {"no_embed_class": True}
    assert set(converted.unused) == {*heads, "mask_token"}
    assert converted.state.keys() == alone.state.keys()
    assert all(torch.equal(value, alone.state[name]) for name, value in converted.state.items())


@pytest.mark.parametrize(
    "changed",
    [
        {"cls_token": None},
        {"pos_embed": None},
        {"pos_embed": torch.ones(3)},
        {"cls_token": torch.ones(1, 1, 8)},
        {"cls_token": torch.ones(9, 1, 16)},
    ],
)
def test_registers_beside_tokens_of_another_shape_are_refused(changed: dict[str, Tensor | None]) -> None:
    state = {name: value for name, value in {**dinov2_state(4), **changed}.items() if value is not None}
    with pytest.raises(WeightsError, match="do not fit a DINOv2 with registers"):
        convert_checkpoint(state)


def test_files_of_registers_do_not_enter_a_model_without(tmp_path: Path) -> None:
    torch.save(dinov2_state(4), tmp_path / "dinov2.pth")
    sizes = {"embed_dim": 16, "depth": 4, "num_heads": HEADS, "patch_size": 4, "img_size": 12}
    with pytest.raises(WeightsError, match="reg_token has no place"):
        create_model("vit_small_patch14_dinov2", checkpoint_path=tmp_path / "dinov2.pth", **sizes)


# What reads a model


@torch.no_grad()
def test_maps_and_features_are_of_the_patches(model: ImageTransformer, images: Tensor) -> None:
    with capture(model, "attention", "output", queries="all") as trace:
        model(images)
    assert default_layer(model) == 2
    rows = trace["attention", -1]
    assert rows.shape == (2, 2, PREFIX + PATCHES, PREFIX + PATCHES)
    assert torch.allclose(cls_attention(model, images, -1).flatten(2), rows[:, :, 0, PREFIX:])
    assert all_cls_attention(model, images).shape == (2, 3, 2, *GRID)
    features, grid = patch_features(model, images, layer=-1, state="output")
    assert grid == GRID
    assert torch.equal(features, trace["output", -1][:, PREFIX:])
    assert torch.allclose(cls_rollout(model, images).flatten(1), attention_rollout(model, images)[:, 0, PREFIX:])


@torch.no_grad()
def test_parts_of_heads_are_what_attention_adds(model: ImageTransformer, images: Tensor) -> None:
    split = head_outputs(model, images, queries="all")
    with capture(model, "tokens", "compressed") as trace:
        model(images)
    for layer in range(3):
        added = trace["compressed", layer] - trace["tokens", layer]
        torch.testing.assert_close(split.total[:, layer], added, rtol=1e-4, atol=1e-5)
    folded = head_outputs(fold_for_inference(model), images, queries="all")
    torch.testing.assert_close(folded.parts, split.parts, rtol=1e-4, atol=1e-5)
    model.blocks[1].ls1 = nn.Linear(DIM, DIM)
    with pytest.raises(InputError, match="ls1 of ViTBlock is Linear"):
        head_outputs(model, images)


@pytest.mark.parametrize("options", [{}, {"qkv_bias": False}, {"init_values": 0}, {"reg_tokens": 0}])
@torch.no_grad()
def test_folding_is_exact(options: dict[str, Any]) -> None:
    model = small_model(NAME, **options).double()
    images = images_for(model).double()
    folded = fold_for_inference(model)
    torch.testing.assert_close(folded(images), model(images), rtol=1e-10, atol=1e-10)
    assert not any(".ls" in name for name in folded.state_dict())


@pytest.mark.parametrize("where", ["ls1", "proj", "hook"])
def test_scales_and_products_that_are_not_known_do_not_fold(model: ImageTransformer, where: str) -> None:
    block = model.blocks[1]
    if where == "ls1":
        block.ls1 = type("Mine", (LayerScale,), {})(DIM)
    elif where == "proj":
        block.attn.proj = type("Mine", (nn.Linear,), {})(DIM, DIM)
    else:
        block.ls2.register_forward_hook(lambda _, __, out: out + 1)
    names = list(model.state_dict())
    with pytest.raises(InputError, match="only a plain"):
        fold_for_inference(model, inplace=True)
    assert list(model.state_dict()) == names


# Its equations


@torch.no_grad()
def test_the_equations_of_layer_scale_are_what_a_layer_computes(model: ImageTransformer) -> None:
    text, block = explain(model), model.blocks[0]
    tokens = torch.randn(1, 7, DIM)
    assert "H = Z + diag(s_1) (sum_k P_k V_k softmax(K_k^T Q_k / sqrt(p)) + b 1^T)\n" in text
    h = tokens + block.attn(block.norm1(tokens)) @ torch.diag(block.ls1.gamma)
    assert "Z' = H + diag(s_2) (F_2 GELU(F_1 Y + f_1 1^T) + f_2 1^T), GELU(x) = x Phi(x)\n" in text
    torch.testing.assert_close(h + block.mlp(block.norm2(h)) @ torch.diag(block.ls2.gamma), block(tokens))
    assert "diag" not in explain(small_model("vit_tiny_patch16_224"))
    model.blocks[0].ls1 = nn.Linear(DIM, DIM)
    assert "H comes from Z through modules that are not known here: ls1 is Linear" in explain(model)


@torch.no_grad()
def test_the_equations_of_the_tokens_are_what_the_model_computes() -> None:
    for options, line in (
        ({}, "Z = [c, R, T + Pi]"),
        ({"no_embed_class": False}, "Z = [c, R, T] + Pi"),
        ({"reg_tokens": 0}, "Z = [c, T + Pi]"),
        ({"reg_tokens": 0, "no_embed_class": False}, "Z = [c, T] + Pi"),
    ):
        model = small_model(NAME, **options, global_pool="avg")
        text, count = explain(model), model.num_prefix_tokens
        assert f"    {line}\n" in text
        t, pi = model.patch_embed(images_for(model)), model.pos_embed
        before = [model.cls_token.expand(2, -1, -1)]
        before += [model.reg_token.expand(2, -1, -1)] if "R" in line else []
        z = torch.cat([*before, t + pi], 1) if "T + Pi" in line else torch.cat([*before, t], 1) + pi
        assert torch.equal(model.embed(images_for(model)), z)
        assert f"n = {count + PATCHES} tokens" in text
        assert f"y = mean of the columns {count}, ..., n - 1 of Z" in text
        assert ("registers follow, 4 of them" in text) == (count == PREFIX)
