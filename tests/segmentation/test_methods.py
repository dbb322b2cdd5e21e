"""Methods: one table of ways from pixels to masks, each with settings that are checked by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import FAMILIES, images_for, small_model
from torch import Tensor

from whitebox_crate.errors import InputError, UnknownNameError, WeightsError
from whitebox_crate.models import ImageTransformer
from whitebox_crate.segmentation import (
    METHODS,
    attention_masks,
    clearness,
    cls_attention,
    large_pieces,
    maskcut,
    otsu_cut,
    patch_features,
)
from whitebox_crate.segmentation.methods import choose_method, method_with, settings_of

GRID = (5, 7)


@pytest.fixture(scope="module")
def model() -> ImageTransformer:
    return small_model(FAMILIES["crate"], dynamic_img_size=True)


@pytest.fixture(scope="module")
def pixels(model: ImageTransformer) -> Tensor:
    return images_for(model, batch=1, grid=GRID)[0]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["crate", "vit", "registers"])
def test_every_method_gives_segments_on_the_grid(name: str, family: str) -> None:
    model = small_model(FAMILIES[family], dynamic_img_size=True)
    found = choose_method(name)(model, images_for(model, batch=1, grid=GRID)[0])
    assert found.levels.shape == (len(found.scores), *GRID)
    assert found.map.shape == found.maps.shape[1:] == GRID
    assert all(of.dtype == torch.float32 and of.isfinite().all() for of in found)
    assert found.masks.flatten(1).any(1).all()  # what has no patch is no object
    assert (found.masks.sum(0) <= 1).all()
    assert ((found.scores >= 0) & (found.scores <= 1)).all()


@pytest.mark.parametrize("rule", ["mean", "mass", "entries"])
@pytest.mark.parametrize("head", [1, [0, 1], "all", None])
def test_attention_cuts_the_mean_of_the_heads(
    model: ImageTransformer, pixels: Tensor, rule: Any, head: int | list[int] | str | None
) -> None:
    found = choose_method("attention", layer=0, head=head, rule=rule, keep=0.3)(model, pixels)
    maps = cls_attention(model, pixels[None], layer=0)[0]
    maps = maps[[1]] if head == 1 else maps
    torch.testing.assert_close(found.maps, maps)
    torch.testing.assert_close(found.map, maps.mean(0))
    assert torch.equal(found.masks[0], attention_masks(maps.mean(0), 0.3, rule))


def test_a_share_alone_is_kept_by_mass(model: ImageTransformer, pixels: Tensor) -> None:
    alone, by_mass, by_mean = (
        choose_method("attention", **settings)(model, pixels).masks
        for settings in ({"keep": 0.3}, {"keep": 0.3, "rule": "mass"}, {})
    )
    assert torch.equal(alone, by_mass) and not torch.equal(alone, by_mean)


def test_attention_takes_the_head_that_was_measured(model: ImageTransformer, pixels: Tensor) -> None:
    measured = small_model(FAMILIES["crate"], dynamic_img_size=True, pretrained_cfg_overlay={"attention_head": 1})
    torch.testing.assert_close(
        choose_method("attention")(measured, pixels).map, choose_method("attention", head=1)(model, pixels).map
    )


def test_multiscale_is_the_mean_of_logarithms(model: ImageTransformer, pixels: Tensor) -> None:
    found = choose_method("multiscale", layer=0, scales=[1.0])(model, pixels)
    shares = torch.cat([cls_attention(model, pixels[None], layer)[0] for layer in range(len(model.blocks))])
    logs = (shares / shares.mean((1, 2), keepdim=True)).log()
    torch.testing.assert_close(found.map, logs.mean(0), rtol=1e-4, atol=1e-5)
    assert torch.equal(found.masks[0], large_pieces(found.map > otsu_cut(found.map)))


def test_multiscale_looks_from_the_best_layer_on_at_every_scale(pixels: Tensor) -> None:
    measured = small_model(FAMILIES["crate"], dynamic_img_size=True, pretrained_cfg_overlay={"attention_layer": 0})
    depth = len(measured.blocks)
    found = choose_method("multiscale", scales=[0.5, 1.0, 2.0])(measured, pixels)
    assert found.maps.shape == (3 * depth * measured.num_heads, *GRID)
    own = choose_method("multiscale", layer=0, scales=[1.0])(measured, pixels)
    torch.testing.assert_close(found.maps.chunk(3)[1], own.maps)


@pytest.mark.parametrize("scales", [[], [0.0], [1.0, -1.0], [float("nan")]])
def test_scales_are_above_zero(model: ImageTransformer, pixels: Tensor, scales: list[float]) -> None:
    with pytest.raises(InputError, match="scales"):
        choose_method("multiscale", scales=scales)(model, pixels)


def test_maskcut_finds_what_maskcut_finds(model: ImageTransformer, pixels: Tensor) -> None:
    found = choose_method("maskcut", n=4, layer=0, tau=0.1)(model, pixels)
    features, grid = patch_features(model, pixels[None], layer=0)
    masks = maskcut(features[0], grid, n=4, tau=0.1)
    assert torch.equal(found.masks, masks[masks.flatten(1).any(1)])


def test_a_function_of_ones_own(model: ImageTransformer, pixels: Tensor) -> None:
    def left(features: Tensor, grid: tuple[int, int]) -> Tensor:
        mask = torch.zeros(grid, dtype=torch.bool)
        mask[:, : grid[1] // 2] = features.isfinite().all()
        return mask

    found = choose_method(left, layer=-1)(model, pixels)
    assert found.masks.shape == (1, *GRID)
    assert found.masks[0, :, :3].all() and not found.masks[0, :, 3:].any()
    with pytest.raises(InputError, match="bool masks"):
        choose_method(lambda features, grid: features)(model, pixels)


def test_unknown_names_are_answered_with_close_ones() -> None:
    with pytest.raises(UnknownNameError, match="attention"):
        choose_method("atention")
    with pytest.raises(UnknownNameError, match="'head'"):
        choose_method("attention", haed=1)
    with pytest.raises(UnknownNameError, match=r"'maskcut'.*The method attention has it"):
        choose_method("maskcut", head=1)
    with pytest.raises(InputError, match="a name or a function"):
        choose_method(3)  # type: ignore[arg-type]
    assert settings_of("maskcut")["tau"] == 0.15
    with pytest.raises(UnknownNameError, match="attention"):
        settings_of("atention")


def test_the_method_is_the_first_that_has_the_settings() -> None:
    assert method_with([]) == next(iter(METHODS))
    assert method_with(["head", "rule"]) == "attention"
    assert method_with(["n", "tau"]) == "maskcut"
    with pytest.raises(UnknownNameError, match="'head'"):
        method_with(["haed"])
    with pytest.raises(InputError, match="n, head"):
        method_with(["n", "head"])


def test_none_is_the_methods_own_value(model: ImageTransformer, pixels: Tensor) -> None:
    own, given = (choose_method("maskcut", **settings)(model, pixels) for settings in ({}, {"n": None, "head": None}))
    assert torch.equal(own.levels, given.levels)


def test_damaged_weights_are_told(pixels: Tensor) -> None:
    model = small_model(FAMILIES["crate"], dynamic_img_size=True)
    torch.nn.init.constant_(model.blocks[1].attention.qkv.weight, float("nan"))
    with pytest.raises(WeightsError, match="not finite"):
        choose_method("attention")(model, pixels)


class TestClearness:
    def test_two_flat_sides_are_told_apart_entirely(self) -> None:
        mask = torch.rand(GRID, generator=torch.Generator().manual_seed(0)) > 0.5
        assert float(clearness(3 * mask.float() + 1, mask)) == pytest.approx(1)

    def test_a_mask_that_has_nothing_to_do_with_the_map_is_hardly_told(self) -> None:
        map_, mask = torch.rand(2, 40, 40, generator=torch.Generator().manual_seed(0))
        assert float(clearness(map_, mask > 0.5)) < 0.01

    def test_scale_and_shift_of_the_map_change_nothing(self) -> None:
        map_ = torch.rand(GRID, generator=torch.Generator().manual_seed(0))
        one, other = clearness(map_, map_ > 0.4), clearness(7 * map_ - 2, map_ > 0.4)
        torch.testing.assert_close(one, other)

    def test_no_inside_no_outside_and_no_difference(self) -> None:
        map_ = torch.rand(GRID, generator=torch.Generator().manual_seed(0))
        for of, mask in ((map_, map_ < 0), (map_, map_ >= 0), (torch.ones(GRID), map_ > 0.5)):
            assert float(clearness(of, mask)) == 0
