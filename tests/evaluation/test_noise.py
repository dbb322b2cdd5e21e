"""Noise as the paper adds it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import images_for, small_model

from whitebox_crate import InputError
from whitebox_crate._random import torch_generator
from whitebox_crate.evaluation import add_noise, noisy
from whitebox_crate.segmentation import all_cls_attention


@given(
    share=st.floats(0, 1),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    leading=st.sampled_from([(), (2,), (2, 3)]),
)
def test_exactly_the_share_of_pixels_changes_in_each_image(
    share: float, height: int, width: int, leading: tuple[int, ...]
) -> None:
    images = torch.rand(*leading, 3, height, width)
    noise = add_noise(images, 75, share, torch_generator(0, "a")) - images
    changed = noise.reshape(-1, 3, height * width) != 0
    wanted = math.floor(share * height * width + 0.5)
    assert (changed.any(1).sum(1) == wanted).all()
    assert torch.equal(changed.any(1), changed.all(1))  # all channels of a pixel


def test_noise_has_the_mean_deviation_and_shape_of_a_gaussian() -> None:
    images = torch.rand(4, 3, 200, 200, dtype=torch.float64)
    noise = (add_noise(images, 50, 1, torch_generator(1, "b")) - images) * 255 / 50
    count = noise.numel()
    assert abs(noise.mean()) < 4 / count**0.5
    assert abs(noise.std() - 1) < 4 / (2 * count) ** 0.5
    assert abs((noise**4).mean() - 3) < 4 * (96 / count) ** 0.5
    channels = noise.transpose(0, 1).flatten(1)
    assert (torch.corrcoef(channels) - torch.eye(3)).abs().max() < 4 / channels.shape[1] ** 0.5


def test_pixels_are_chosen_evenly_and_differently_in_each_image() -> None:
    images = torch.zeros(400, 1, 10, 10)
    chosen = add_noise(images, 10, 0.3, torch_generator(0, "c")) != 0
    by_pixel = chosen.float().mean((0, 1))
    assert (by_pixel - 0.3).abs().max() < 4 * (0.3 * 0.7 / 400) ** 0.5
    assert len(chosen.flatten(1).unique(dim=0)) == 400


@pytest.mark.parametrize(("strength", "share"), [(75, 0), (0, 1), (0, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_share_or_no_strength_is_the_same_image(strength: float, share: float, dtype: torch.dtype) -> None:
    images = torch.rand(2, 3, 5, 5).to(dtype)
    same = add_noise(images, strength, share, torch_generator(0, "d"))
    assert same.dtype == dtype and torch.equal(same, images)


def test_noise_is_the_same_again_and_another_for_each_image_and_seed() -> None:
    images = torch.rand(3, 6, 6)
    drawn = [add_noise(images, 9, 0.5, torch_generator(*of)) for of in ((0, "a"), (0, "a"), (0, "b"), (1, "a"))]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[3])


def test_curves_compare_like_with_like() -> None:
    images = torch.rand(3, 8, 8).double()
    little, more, strong = (
        add_noise(images, *noise, torch_generator(0, "a")) - images for noise in ((10, 0.25), (10, 0.75), (30, 0.25))
    )
    assert torch.equal(little[little != 0], more[little != 0])
    torch.testing.assert_close(strong, 3 * little)


def test_noise_on_normalised_pixels_is_the_noise_of_the_pixels() -> None:
    mean, std = torch.tensor([0.5, 0.4, 0.3])[:, None, None], torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    pixels = torch.rand(2, 3, 7, 7)
    noisy_pixels = add_noise(pixels, 25, 0.5, torch_generator(0, "a"))
    normalised = add_noise((pixels - mean) / std, 25, 0.5, torch_generator(0, "a"), std=(0.2, 0.3, 0.4))
    torch.testing.assert_close(normalised, (noisy_pixels - mean) / std)


@pytest.mark.parametrize(
    ("shape", "strength", "share", "std", "message"),
    [
        ((3, 4, 4), -1, 0.5, None, "strength"),
        ((3, 4, 4), float("nan"), 0.5, None, "strength"),
        ((3, 4, 4), 10, 1.5, None, r"share in \[0, 1\]"),
        ((3, 4, 4), 10, float("nan"), None, "share"),
        ((4, 4), 10, 0.5, None, "channels, height, width"),
        ((3, 4, 4), 10, 0.5, (1.0, 1.0), "each of 3 channels"),
        ((3, 4, 4), 10, 0.5, (1.0, 0.0, 1.0), "positive"),
    ],
)
def test_bad_noise_is_refused(
    shape: tuple[int, ...], strength: float, share: float, std: tuple[float, ...] | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        add_noise(torch.rand(shape), strength, share, torch_generator(0, "a"), std=std)


@pytest.mark.parametrize("name", ["crate_nano", "vit_nano"])
def test_a_noisy_model_sees_noise_inside_of_the_block_only(name: str) -> None:
    model = small_model(name)
    images = images_for(model)
    before = model(images)
    disturbed = add_noise(images, 75, 0.5, torch_generator(0, "a"), std=model.pretrained_cfg.std)
    with noisy(model, 75, 0.5, torch_generator(0, "a")):
        maps = all_cls_attention(model, images)
    assert torch.equal(maps, all_cls_attention(model, disturbed))
    with pytest.raises(ZeroDivisionError), noisy(model, 75, 0.5, torch_generator(0, "a")):
        raise ZeroDivisionError
    assert torch.equal(model(images), before)
