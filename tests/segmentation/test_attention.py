"""Masks are DINO's to the bit, keep what they promise, and refuse maps that mean nothing."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_models import small_model
from torch import Tensor

from whitebox_crate import create_model
from whitebox_crate.errors import InputError, UnknownNameError
from whitebox_crate.pretrained_cfg import PretrainedCfg
from whitebox_crate.segmentation import attention_masks, cls_attention, default_layer, upsample

GOLDEN = Path(__file__).parents[1] / "golden" / "attention_masks.safetensors"
RULES = ("mass", "entries", "mean")


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


@st.composite
def attention_maps(draw: st.DrawFn) -> Tensor:
    """Softmax maps (batch, heads, grid_h, grid_w), from nearly flat to nearly one patch."""
    shape = [
        draw(st.integers(1, 3)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 9)),
    ]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scores = torch.randn(shape, generator=generator) * draw(st.sampled_from([0.01, 1.0, 5.0]))
    return scores.flatten(-2).softmax(dim=-1).view(shape)


shares = st.floats(0.01, 1)


@pytest.mark.parametrize(("case", "keep"), [("m1", 0.6), ("m2", 0.6), ("m3", 0.8)])
def test_mass_rule_is_dinos(golden: dict[str, Tensor], case: str, keep: float) -> None:
    masks = attention_masks(golden[f"input/{case}.cls_attn"], keep=keep)
    assert torch.equal(masks, golden[f"output/{case}.mask_grid"].bool())


@pytest.mark.parametrize("case", ["m1", "m2", "m3"])
def test_nearest_upsampling_is_dinos(golden: dict[str, Tensor], case: str) -> None:
    expected = golden[f"output/{case}.mask_image"].bool()
    masks = upsample(golden[f"output/{case}.mask_grid"].bool(), tuple(expected.shape[-2:]))
    assert masks.dtype == torch.bool
    assert torch.equal(masks, expected)


@pytest.mark.parametrize("case", ["m2", "m3"])
def test_nearest_upsampling_of_values_is_dinos(golden: dict[str, Tensor], case: str) -> None:
    expected = golden[f"output/{case}.heat_image"]
    assert torch.equal(upsample(golden[f"input/{case}.cls_attn"], tuple(expected.shape[-2:])), expected)


@given(maps=attention_maps(), keep=shares)
def test_mass_rule_keeps_the_fewest_patches_that_hold_the_share(maps: Tensor, keep: float) -> None:
    masks = attention_masks(maps, keep=keep)
    assert masks.shape == maps.shape
    assert masks.dtype == torch.bool
    share = maps / maps.sum(dim=(-2, -1), keepdim=True)
    kept = (share * masks).sum(dim=(-2, -1))
    least = share.masked_fill(~masks, torch.inf).amin(dim=(-2, -1))
    assert (kept >= keep - 1e-5).all()
    assert (kept - least <= keep + 1e-5).all()  # one patch fewer would not do


@given(maps=attention_maps(), keep=shares)
def test_entries_rule_keeps_the_share_of_patches(maps: Tensor, keep: float) -> None:
    count = attention_masks(maps, keep=keep, rule="entries").sum(dim=(-2, -1))
    patches = maps.shape[-2] * maps.shape[-1]
    assert (count == count.flatten()[0]).all()
    assert count.flatten()[0] >= 1
    assert abs(count.flatten()[0] - keep * patches) <= 0.5 or count.flatten()[0] == 1


@given(maps=attention_maps(), keep=shares, rule=st.sampled_from(RULES))
def test_no_patch_left_out_has_more_than_one_kept(maps: Tensor, keep: float, rule: str) -> None:
    masks = attention_masks(maps, keep=keep, rule=rule)
    left_out = maps.masked_fill(masks, -torch.inf).amax(dim=(-2, -1))
    kept = maps.masked_fill(~masks, torch.inf).amin(dim=(-2, -1))
    assert (left_out <= kept).all()


@given(maps=attention_maps(), keeps=st.tuples(shares, shares), rule=st.sampled_from(["mass", "entries"]))
def test_keeping_more_keeps_all_that_was_kept(maps: Tensor, keeps: tuple[float, float], rule: str) -> None:
    fewer = attention_masks(maps, keep=min(keeps), rule=rule)
    more = attention_masks(maps, keep=max(keeps), rule=rule)
    assert (more | ~fewer).all()


@given(maps=attention_maps(), keep=shares, rule=st.sampled_from(RULES))
def test_each_map_is_judged_alone_and_up_to_scale(maps: Tensor, keep: float, rule: str) -> None:
    masks = attention_masks(maps, keep=keep, rule=rule)
    scale = torch.tensor([2.0**-5, 1.0, 2.0**7])[: maps.shape[1], None, None]
    assert torch.equal(attention_masks(maps * scale, keep=keep, rule=rule), masks)
    assert torch.equal(attention_masks(maps[0, 0], keep=keep, rule=rule), masks[0, 0])


@given(maps=attention_maps(), keep=shares, rule=st.sampled_from(RULES))
def test_strides_do_not_matter(maps: Tensor, keep: float, rule: str) -> None:
    strided = maps.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    assert torch.equal(attention_masks(strided, keep=keep, rule=rule), attention_masks(maps, keep=keep, rule=rule))


def test_mean_rule_keeps_what_is_above_the_mean() -> None:
    maps = torch.tensor([[0.1, 0.2, 0.3], [0.0, 0.1, 0.2]])  # mean 0.15
    expected = torch.tensor([[False, True, True], [False, False, True]])
    assert torch.equal(attention_masks(maps, rule="mean"), expected)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1 / 49])
def test_a_constant_map_has_nothing_above_its_mean(value: float) -> None:
    assert not attention_masks(torch.full((7, 7), value), rule="mean").any()


@pytest.mark.parametrize("rule", ["mass", "entries"])
def test_ties_keep_the_later_patches(rule: str) -> None:
    expected = torch.tensor([[False, False], [True, True]])
    assert torch.equal(attention_masks(torch.full((2, 2), 0.25), keep=0.5, rule=rule), expected)


def test_keeping_everything() -> None:
    maps = torch.tensor([[0.5, 0.0], [0.25, 0.25]])
    assert attention_masks(maps, keep=1, rule="entries").all()
    assert torch.equal(attention_masks(maps, keep=1, rule="mass"), maps > 0)


def test_half_precision_is_cumulated_in_float32() -> None:
    maps = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    assert torch.equal(attention_masks(maps), attention_masks(maps.float()))


@pytest.mark.parametrize("keep", [0, -0.1, 1.1, float("nan")])
def test_keep_must_be_a_share(keep: float) -> None:
    with pytest.raises(InputError, match=r"\(0, 1\]"):
        attention_masks(torch.ones(2, 2), keep=keep)


def test_unknown_rule_and_mode_name_the_close_match() -> None:
    with pytest.raises(UnknownNameError, match="'entries'"):
        attention_masks(torch.ones(2, 2), rule="entry")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="'bilinear'"):
        upsample(torch.ones(2, 2), (4, 4), mode="bilinar")  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("maps", "says"),
    [
        (torch.tensor([[0.5, float("nan")], [0.2, 0.3]]), "1 values .* NaN"),
        (torch.tensor([[0.5, float("inf")], [0.2, 0.3]]), "1 values .* infinite"),
        (torch.tensor([[0.5, -0.5], [0.2, 0.3]]), "-0.5"),
        (torch.stack([torch.ones(2, 2), torch.zeros(2, 2)]), "1 of 2 maps are zero"),
        (torch.ones(2, 2, dtype=torch.int64), "int64"),
        (torch.ones(4), "grid_h"),
        (torch.ones(2, 0, 3), "grid_h"),
    ],
)
def test_maps_that_mean_nothing_are_refused(rule: str, maps: Tensor, says: str) -> None:
    with pytest.raises(InputError, match=says):
        attention_masks(maps, rule=rule)  # type: ignore[arg-type]


@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_nearest_takes_the_patch_under_the_pixels_centre(grid: tuple[int, int], size: tuple[int, int]) -> None:
    index = torch.arange(grid[0] * grid[1]).view(2 * [1] + list(grid))
    out = upsample(index, size)
    assert out.shape == (1, 1, *size)
    for y, x in [(0, 0), (size[0] - 1, size[1] - 1), (size[0] // 2, size[1] // 3)]:
        row = int((y + 0.5) / size[0] * grid[0] + 1e-9)
        column = int((x + 0.5) / size[1] * grid[1] + 1e-9)
        assert out[0, 0, y, x] == row * grid[1] + column


@given(maps=attention_maps(), size=st.tuples(st.integers(1, 30), st.integers(1, 30)))
def test_bilinear_stays_within_the_values_of_each_map(maps: Tensor, size: tuple[int, int]) -> None:
    out = upsample(maps, size, mode="bilinear")
    assert out.shape == (*maps.shape[:2], *size)
    assert (out.amax(dim=(-2, -1)) <= maps.amax(dim=(-2, -1)) + 1e-6).all()
    assert (out.amin(dim=(-2, -1)) >= maps.amin(dim=(-2, -1)) - 1e-6).all()


def test_bilinear_passes_through_patch_centres() -> None:
    maps = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(upsample(maps, (15, 21), mode="bilinear")[:, 1::3, 1::3], maps)


@pytest.mark.parametrize(
    ("maps", "size", "mode"),
    [
        (torch.ones(4), (8, 8), "nearest"),
        (torch.ones(2, 2), (0, 8), "nearest"),
        (torch.ones(2, 2), (8,), "nearest"),
        (torch.ones(2, 2).bool(), (8, 8), "bilinear"),
    ],
)
def test_upsample_refuses(maps: Tensor, size: tuple[int, int], mode: str) -> None:
    with pytest.raises(InputError):
        upsample(maps, size, mode=mode)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["crate_tiny_patch16_224", "vit_tiny_patch16_224", "crate_mhsa_paper_small_patch16_224"]
)
def test_cls_attention_is_the_patch_part_of_the_softmax_rows(name: str) -> None:
    model = create_model(name, img_size=(32, 64), num_classes=3).eval()
    images = torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    before = model(images)
    maps = cls_attention(model, images, layer=-1)
    assert maps.shape == (2, model.blocks[-1].attention.num_heads, 2, 4)

    seen: list[Tensor] = []
    hook = model.blocks[-1].norm1.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    model(images)
    hook.remove()
    attention = model.blocks[-1].attention
    queries, keys, _ = attention.split_heads(attention.qkv(seen[0]))
    scores = queries[:, :, :1] @ keys.transpose(-2, -1) / attention.head_dim**0.5
    rows = scores.softmax(dim=-1)[:, :, 0, 1:]
    assert torch.allclose(maps.flatten(-2), rows, atol=1e-6)
    assert torch.equal(model(images), before)


def test_cls_attention_on_any_size_with_dynamic_img_size() -> None:
    model = create_model("crate_tiny_patch16_224", dynamic_img_size=True, num_classes=0).eval()
    assert cls_attention(model, torch.randn(1, 3, 48, 80)).shape[-2:] == (3, 5)


def test_cls_attention_leaves_mode_and_autograd_to_the_caller() -> None:
    model = create_model("crate_tiny_patch16_224", img_size=32, num_classes=3).train()
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    cls_attention(model, images, layer=-1)[..., 0, 0].sum().backward()
    assert model.training
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    with torch.inference_mode():
        assert not cls_attention(model, images).requires_grad


def test_cls_attention_of_a_compiled_model_is_the_same() -> None:
    model = create_model("crate_tiny_patch16_224", img_size=32, num_classes=3, depth=2).eval()
    compiled = torch.compile(model, backend="eager")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    compiled(images)
    assert torch.equal(cls_attention(compiled, images), cls_attention(model, images))


def test_cls_attention_takes_wrapped_models_and_refuses_what_has_no_known_layers() -> None:
    features, images = create_model("crate_tiny_patch16_224", img_size=32, features_only=True), torch.rand(1, 3, 32, 32)
    assert torch.equal(cls_attention(features, images), cls_attention(features.model, images))
    with pytest.raises(InputError, match="Linear"):
        cls_attention(torch.nn.Linear(3, 3), images)


def test_cls_attention_names_the_images_that_are_not_finite() -> None:
    model = create_model("crate_tiny_patch16_224", img_size=32, num_classes=3)
    images = torch.zeros(3, 3, 32, 32)
    images[1, 0, :2] = float("nan")
    with pytest.raises(InputError, match=r"64 values .* images \[1\] of 3"):
        cls_attention(model, images)


def test_cls_attention_refuses_sizes_and_layers_that_are_not_there() -> None:
    model = create_model("crate_tiny_patch16_224", img_size=32, num_classes=3)
    with pytest.raises(InputError, match="48 x 48"):
        cls_attention(model, torch.zeros(1, 3, 48, 48))
    with pytest.raises(UnknownNameError, match="12"):
        cls_attention(model, torch.zeros(1, 3, 32, 32), layer=12)


@pytest.mark.parametrize(
    ("name", "depth", "layer"),
    [("crate_nano", 5, 3), ("crate_mhsa_paper_small_patch16_224", 4, 2), ("vit_nano", 5, 4), ("crate_nano", 1, 0)],
)
def test_the_papers_layer_unless_one_was_measured(name: str, depth: int, layer: int) -> None:
    model = small_model(name, depth=depth)
    model.pretrained_cfg = PretrainedCfg()
    assert default_layer(model) == layer
    model.pretrained_cfg = PretrainedCfg(attention_layer=-depth)
    assert default_layer(model) == 0
    model.pretrained_cfg = PretrainedCfg(attention_layer=9)  # of a model that was cut since
    assert default_layer(model) == layer
