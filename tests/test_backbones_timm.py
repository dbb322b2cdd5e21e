"""timm's backbones: what is read of them is what they compute, with their fused attention left on."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones_read import check_attention, check_gradients_at_attention, documented, make_lively
from timm_installed import timm_or_skip, version_of
from torch import Tensor, nn

from whitebox_crate import InputError, UnknownNameError, WeightsError, capture, create_model, segment
from whitebox_crate.backbones import readable
from whitebox_crate.cli import main
from whitebox_crate.convert.rename import convert_state_dict
from whitebox_crate.preprocess import fit_photo, to_pillow
from whitebox_crate.ready import named_model
from whitebox_crate.segmentation import METHODS, class_maps, cls_attention, maskcut_of, patch_features

timm: Any = timm_or_skip()
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


def gradients_unfused(model: Any, images: Tensor) -> list[Tensor]:
    """Those of the sum of squares of the logits at the attention of each layer, without a fused kernel."""
    model, seen = copy.deepcopy(model), []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, args, out: seen.append(out))
    out = model(images).square().sum()
    return list(torch.autograd.grad(out, seen))


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_the_rows_that_make_the_output(variant: str) -> None:
    model = vit(**VARIANTS[variant])
    images = images_of(model)
    check_gradients_at_attention(model, images, lambda: gradients_unfused(model, images))


def test_gradients_reach_rows_before_a_norm_and_a_gate() -> None:
    if version_of(timm) < (1, 0, 31):
        pytest.skip("this timm has no gates")
    model = vit(scale_attn_norm=True)
    for block in model.blocks:
        block.attn.gate = make_lively(nn.Linear(32, 32))
    assert isinstance(model.blocks[0].attn.norm, nn.LayerNorm)
    images = images_of(model)
    check_attention(model, images, lambda: unfused(model, images))
    check_gradients_at_attention(model, images, lambda: gradients_unfused(model, images))


def test_attention_of_images_of_any_size() -> None:
    model = vit(dynamic_img_size=True)
    images = images_of(model, (48, 24))
    check_attention(model, images, lambda: unfused(model, images))


def test_attention_of_blocks_with_norms_after() -> None:
    model = vit(block_fn="ResPostBlock", init_values=0.5)
    images = images_of(model)
    check_attention(model, images, lambda: unfused(model, images))


EVA: dict[str, dict[str, Any]] = {
    "plain": {},
    "rotary, normed inside": {"use_rot_pos_emb": True, "scale_attn_inner": True, "swiglu_mlp": True},
    "rotary, projections apart": {"use_rot_pos_emb": True, "qkv_fused": False, "init_values": 0.5},
    "rotary by halves, registers, norms of q and k": {
        "use_rot_pos_emb": True,
        "rope_rotate_half": True,
        "num_reg_tokens": 2,
        "qk_norm": True,
    },
    "as DINOv3": {
        "use_abs_pos_emb": False,
        "use_rot_pos_emb": True,
        "rope_type": "dinov3",
        "rope_rotate_half": True,
        "num_reg_tokens": 4,
        "init_values": 0.5,
        "dynamic_img_size": True,
        "attn_type": "rope",
    },
    "rotations of each layer and head": {"use_rot_pos_emb": True, "rope_type": "mixed", "attn_type": "rope"},
    "fewer heads of keys": {"use_rot_pos_emb": True, "attn_type": "rope", "num_kv_heads": 2, "qkv_fused": False},
    "norms after": {"use_post_norm": True, "use_rot_pos_emb": True},
}


def eva(**options: Any) -> Any:
    if version_of(timm) < (1, 0, 31):
        pytest.skip("Eva of this timm has no norms of q and k")
    torch.manual_seed(0)
    return make_lively(timm.models.eva.Eva(**{**SMALL, **options}))


@pytest.mark.parametrize("variant", EVA)
def test_attention_of_eva_is_timms_own(variant: str) -> None:
    model = eva(**EVA[variant])
    images = images_of(model, (40, 24) if EVA[variant].get("dynamic_img_size") else None)
    check_attention(model, images, lambda: unfused(model, images))
    with torch.no_grad():
        grid = (5, 3) if EVA[variant].get("dynamic_img_size") else (4, 4)
        assert cls_attention(model, images).shape == (2, 4, *grid)
        assert patch_features(model, images)[1] == grid


def test_gradients_of_eva_reach_keys_with_and_without_checkpointing() -> None:
    model = eva(**EVA["as DINOv3"]).train()
    images = images_of(model)
    model(images).square().sum().backward()
    plain = [parameter.grad.clone() for parameter in model.parameters()]
    with capture(model, "projections", "compressed") as trace:
        out = model(images).square().sum()
    for state in trace.states:
        gradients = torch.autograd.grad(out, [trace[state, layer] for layer in trace.layers], retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in gradients)
    model.set_grad_checkpointing()
    model.zero_grad()
    with capture(model, "projections", "attention", "compressed"):
        model(images).square().sum().backward()
    for own, parameter in zip(plain, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, own)


@pytest.mark.parametrize("variant", ["as DINOv3", "rotary, projections apart", "fewer heads of keys"])
def test_gradients_reach_the_rows_of_eva(variant: str) -> None:
    model = eva(**EVA[variant])
    images = images_of(model)
    check_gradients_at_attention(model, images, lambda: gradients_unfused(model, images))


def test_values_that_eva_does_not_show_are_told() -> None:
    model = eva(use_rot_pos_emb=True)
    with pytest.raises(InputError, match="without eager"), capture(model, "attention", eager=True):
        pass


@torch.no_grad()
def test_eva_of_an_early_release_says_what_there_is() -> None:
    if version_of(timm) >= (1, 0, 0):
        pytest.skip("this timm is later")
    model = timm.models.eva.Eva(**SMALL).eval()
    with pytest.raises(UnknownNameError, match=r"'attention'.*compressed"), capture(model, "attention"):
        pass
    with capture(model, "compressed") as trace:
        model(images_of(model))
    assert len(trace) == 3


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


def test_two_tokens_before_the_patches_of_a_distilled_model() -> None:
    model = make_lively(timm.models.deit.VisionTransformerDistilled(**SMALL))
    images = images_of(model)
    check_attention(model, images, lambda: unfused(model, images))
    with torch.no_grad():
        assert cls_attention(model, images).shape == (2, 4, 4, 4)


def test_patches_of_a_hybrid_are_those_of_its_convolutions() -> None:
    model = timm.create_model("vit_tiny_r_s16_p8_224", img_size=64, depth=2, num_classes=0).eval()
    with torch.no_grad():
        assert cls_attention(model, images_of(model, (64, 64))).shape == (2, 3, 2, 2)
    with pytest.raises(InputError, match="64 x 64, not of 32 x 64"):
        cls_attention(model, images_of(model, (32, 64)))


@torch.no_grad()
def test_a_model_without_class_token_has_rows_of_patches() -> None:
    model = vit(class_token=False, global_pool="avg")
    images = images_of(model)
    with pytest.raises(InputError, match=r"no \[CLS\].*queries"), capture(model, "attention"):
        pass
    with pytest.raises(InputError, match=r"no \[CLS\]"):
        segment((255 * torch.rand(3, 40, 60)).byte(), model)
    features, grid = patch_features(model, images)
    assert (features.shape, grid) == ((2, 16, 32), (4, 4))
    assert segment((255 * torch.rand(3, 40, 60)).byte(), model, "maskcut").map.shape == (4, 4)


@pytest.mark.parametrize("options", [{"attn_layer": "diff"}, {"block_fn": "ParallelThingsBlock"}])
@torch.no_grad()
def test_other_attention_says_what_there_is(options: dict[str, Any]) -> None:
    if "attn_layer" in options and version_of(timm) < (1, 0, 23):
        pytest.skip("this timm has no differential attention")
    model = vit(**options)
    images = images_of(model)
    with pytest.raises(UnknownNameError, match=r"'attention'.*'output', 'tokens'"), capture(model, "attention"):
        pass
    with capture(model, "tokens", "output") as trace:
        model(images)
    assert torch.equal(trace["output", 0], trace["tokens", 1])


@torch.no_grad()
def test_masks_are_refused() -> None:
    if version_of(timm) < (1, 0, 20):
        pytest.skip("this timm has no masks")
    model = vit()
    images = images_of(model)
    for mask in ({"attn_mask": torch.ones(17, 17).bool()}, {"is_causal": True}):
        if mask.get("is_causal") and version_of(timm) < (1, 0, 25):
            continue
        with capture(model, "attention"), pytest.raises(InputError, match="cannot be read"):
            model(images, **mask)


@torch.no_grad()
def test_features_only_and_compiled() -> None:
    model = vit(reg_tokens=2)
    images = images_of(model)
    expected = cls_attention(model, images, layer=1)
    assert torch.equal(cls_attention(torch.compile(model, backend="eager"), images, layer=1), expected)
    if version_of(timm) >= (1, 0, 20):
        features = timm.models._features.FeatureGetterNet(copy.deepcopy(model), out_indices=[0, 1])
        assert torch.equal(cls_attention(features, images, layer=1), expected)
    for block in model.blocks:
        block.attn = torch.compile(block.attn, backend="eager")
    assert torch.equal(cls_attention(model, images, layer=1), expected)


def test_gradient_checkpointing_is_not_disturbed() -> None:
    model = vit(qk_norm=True).train()
    images = images_of(model)

    def gradients(reads: bool) -> list[Tensor]:
        model.zero_grad()
        with capture(model, "projections", "attention", "compressed") if reads else nullcontext():
            model(images).square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients(reads=False)
    model.set_grad_checkpointing()
    for own, read in zip(plain, gradients(reads=True), strict=True):
        torch.testing.assert_close(read, own)


def test_training_draws_the_same_dropout_with_and_without_reading() -> None:
    model = vit(attn_drop_rate=0.3, proj_drop_rate=0.3, drop_path_rate=0.3, pos_drop_rate=0.3).train()
    images, outputs = images_of(model), []
    for context in (nullcontext(), capture(model, "tokens", "projections", "attention", "compressed", "output")):
        torch.manual_seed(3)
        with context:
            outputs.append(model(images))
    assert torch.equal(*outputs)


@torch.no_grad()
def test_pruned_heads() -> None:
    model = vit(qkv_bias=True)
    images = images_of(model)
    for block in model.blocks:  # the first and the last of four heads stay
        attention, kept = block.attn, torch.tensor([0, 3])
        rows = (kept[:, None] * 8 + torch.arange(8)).flatten()
        of_qkv = torch.cat([rows, 32 + rows, 64 + rows])
        pruned = nn.Linear(32, 48)
        pruned.weight.copy_(attention.qkv.weight[of_qkv])
        pruned.bias.copy_(attention.qkv.bias[of_qkv])
        out = nn.Linear(16, 32)
        out.weight.copy_(attention.proj.weight[:, rows])
        out.bias.copy_(attention.proj.bias)
        attention.qkv, attention.proj, attention.num_heads, attention.attn_dim = pruned, out, 2, 16
    if version_of(timm) < (1, 0, 24):
        pytest.skip("attention of this timm takes all its heads for granted")
    check_attention(model, images, lambda: unfused(model, images))
    assert cls_attention(model, images).shape[1] == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(dtype: torch.dtype) -> None:
    model = vit(qk_norm=True).to(dtype)
    images = images_of(model).to(dtype)
    check_attention(model, images, lambda: unfused(model, images), atol=2e-2)
    found = segment((255 * torch.rand(3, 40, 60)).byte(), model)
    assert found.map.dtype == torch.float32


def test_photographs_are_normalised_as_the_weights_ask() -> None:
    model = vit()
    model.pretrained_cfg = {"mean": [0.1, 0.2, 0.3], "std": (0.5, 0.5, 0.25), "crop_pct": None, "architecture": "mine"}
    photo = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    seen = fit_photo(model, to_pillow(photo)).pixels
    torch.testing.assert_close(seen[:, 0, 0], torch.tensor([0.9 / 0.5, 0.8 / 0.5, 0.7 / 0.25]))
    assert readable(model).architecture == "mine"
    del model.pretrained_cfg
    torch.testing.assert_close(fit_photo(model, to_pillow(photo)).pixels[0, 0, 0], torch.tensor((1 - 0.485) / 0.229))


def test_class_maps_are_those_of_the_same_weights_here() -> None:
    options = {"img_size": (64, 96), "depth": 3, "num_classes": 5}
    theirs = make_lively(timm.create_model("vit_tiny_patch16_224", **options))
    ours = create_model("vit_tiny_patch16_224", **options).eval()
    ours.load_state_dict(convert_state_dict(theirs.state_dict()))
    images = torch.randn(2, 3, 64, 96)
    for method in ("relevance", "gradient_attention"):
        maps, expected = (class_maps(model, images, 3, method) for model in (theirs, ours))
        torch.testing.assert_close(maps, expected, atol=1e-4 * float(expected.max()), rtol=1e-3)
    with pytest.raises(InputError, match="one logit"):
        class_maps(vit(num_classes=0), torch.randn(1, 3, 32, 32))


def test_models_of_timm_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    name, file = "vit_tiny_patch16_224", tmp_path / "weights.pth"
    theirs = make_lively(timm.create_model(name))
    torch.save(theirs.state_dict(), file)
    assert torch.equal(next(named_model(f"timm:{name}", file).parameters()), next(theirs.parameters()))
    photo = tmp_path / "photo.png"
    to_pillow((255 * torch.rand(3, 40, 60)).byte()).save(photo)
    chosen = [
        str(photo),
        "--model",
        f"timm:{name}",
        "--checkpoint",
        str(file),
        "--size",
        "48",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(["segment", *chosen]) == 0
    assert main(["attention", *chosen, "--label", "207"]) == 0
    assert main(["classify", *chosen[:5]]) == 0
    printed = capsys.readouterr().out
    assert f"(timm:{name}, multiscale, layer 11, 3 x 4 patches" in printed
    assert f"(timm:{name}, all layers, classes class 207, 3 x 4 patches)" in printed
    assert main(["analyze", str(photo), "--model", f"timm:{name}", "--checkpoint", str(file)]) != 0
    assert f"a model of this package, and {name} is not one" in " ".join(capsys.readouterr().err.split())


def test_weights_that_cannot_be_fetched_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="--checkpoint takes a file of them"):
        named_model("timm:vit_tiny_patch16_224")


def test_the_documented_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if version_of(timm) < (1, 0, 0):
        pytest.skip("weights of this timm have other names")
    monkeypatch.chdir(tmp_path)
    to_pillow((255 * torch.rand(3, 40, 60)).byte()).save("photo.jpg")
    (block,) = documented("timm")
    names: dict[str, Any] = {}
    exec(block.replace("pretrained=True", "pretrained=False").replace("size=448", "size=112"), names)
    assert names["trace"]["attention", -1].shape == (1, 6, 1, 261)
    assert (tmp_path / "panel.png").is_file()


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("vit_tinny_patch16_224", UnknownNameError, "vit_tiny_patch16_224"),
        ("vit_small_patch16_36x1_224", WeightsError, "no weights"),
        ("resnet18", InputError, "not a vision transformer"),
    ],
)
def test_names_that_timm_does_not_have(name: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        named_model(f"timm:{name}")


@pytest.mark.parametrize("dynamic", [False, True])
def test_segment_by_every_method(dynamic: bool) -> None:
    model = vit(dynamic_img_size=dynamic, reg_tokens=2)
    photo = (255 * torch.rand(3, 40, 60)).byte()
    size = {"size": 40} if dynamic else {}
    for method in METHODS:  # "class" among them, by the logits
        found = segment(photo, model, method, **size)
        assert found.map.shape == ((5, 8) if dynamic else (4, 4))
        assert found.mask.shape == (40, 60)


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
