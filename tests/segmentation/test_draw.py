"""Pictures of maps and masks: sizes, colours, edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from whitebox_crate import InputError
from whitebox_crate.segmentation.draw import (
    CAPTION,
    COLOURS,
    GAP,
    draw_colours,
    draw_map,
    draw_mask,
    draw_objects,
    draw_panels,
    draw_scale,
    frame_panels,
)


def test_more_attention_is_lighter() -> None:
    pixels = np.asarray(draw_map(torch.arange(16.0).view(1, 16), (20, 320)).convert("L"), dtype=float)
    assert (np.diff(pixels[0]) >= -1).all() and pixels[0, -1] - pixels[0, 0] > 200


def test_the_scale_of_a_map_does_not_matter() -> None:
    values = torch.rand(4, 5)
    assert np.array_equal(draw_map(values, (40, 50)), draw_map(values * 1e-3, (40, 50)))


def test_a_constant_map_is_one_colour() -> None:
    assert len(np.unique(np.asarray(draw_map(torch.full((3, 3), 0.1), (9, 9))).reshape(-1, 3), axis=0)) == 1


def test_a_mask_keeps_the_inside_and_dims_the_outside() -> None:
    photo = Image.new("RGB", (200, 100), (200, 200, 200))
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[:, :2] = True
    drawn = np.asarray(draw_mask(photo, mask))
    assert drawn.shape == (100, 200, 3)
    assert (drawn[50, 50] == 200).all() and (drawn[50, 150] < 120).all()
    red = (drawn[..., 0] > 240) & (drawn[..., 1] < 100)
    assert red[:, 95:100].any() and not red[:, :90].any() and not red[:, 100:].any()  # an edge inside, none at the rim


@pytest.mark.parametrize("shade", [0, 60, 128, 200, 255])
def test_what_is_kept_stands_out_of_a_photograph_of_any_shade(shade: int) -> None:
    """A uniform photograph, dark or bright: inside as it is, outside far from it in brightness or colour."""
    photo = Image.new("RGB", (200, 100), (shade, shade, shade))
    mask = torch.tensor([[True, False]])
    drawn = np.asarray(draw_mask(photo, mask)).astype(int)
    assert (drawn[50, 40] == shade).all()
    assert np.abs(drawn[50, 150] - shade).max() > 80


def test_objects_have_colours_of_their_own() -> None:
    photo = Image.new("RGB", (200, 100), (120, 120, 120))
    masks = torch.zeros(2, 100, 200, dtype=torch.bool)
    masks[0, 20:60, 20:60] = masks[1, 20:60, 120:160] = True
    drawn = np.asarray(draw_objects(photo, masks))
    assert (drawn[20, 40] == COLOURS[0]).all() and (drawn[20, 140] == COLOURS[1]).all()
    assert len({tuple(drawn[40, column]) for column in (40, 140, 90)}) == 3
    with pytest.raises(InputError, match="expected masks"):
        draw_objects(photo, masks[0])


def test_patches_are_drawn_whole() -> None:
    drawn = np.asarray(draw_map(torch.tensor([[0.0, 1.0]]), (10, 20), mode="nearest"))
    assert len({tuple(pixel) for pixel in drawn.reshape(-1, 3)}) == 2


def test_the_scale_has_the_colours_of_the_map_in_order() -> None:
    bar = np.asarray(draw_scale(torch.tensor([[0.25, 0.5]]), 300).convert("L"))[CAPTION // 2].astype(int)
    inside = bar[50:250]
    assert inside[0] < 60 and inside[-1] > 180 and (np.diff(inside) >= -1).all()


def test_colours_are_those_of_patches_and_the_outside_is_paper() -> None:
    rgb = torch.tensor([[[0.0, 1.0]], [[0.2, 1.0]], [[1.0, 0.0]]])
    drawn = np.asarray(draw_colours(rgb, (4, 8), torch.tensor([[True, False]])))
    assert drawn.shape == (4, 8, 3)
    assert (drawn[:, :4] == (0, 51, 255)).all() and (drawn[:, 4:] == 255).all()
    assert (np.asarray(draw_colours(rgb[1:2], (4, 8)))[0, 0] == 51).all()


def test_pictures_of_any_sizes_are_framed_in_the_middle() -> None:
    wide, tall = frame_panels([Image.new("RGB", (30, 10)), Image.new("RGB", (10, 20))])
    assert wide.size == tall.size == (30, 20)
    assert wide.getbbox() == (0, 0, 30, 20) and wide.getpixel((0, 5)) == tall.getpixel((10, 0)) == (0, 0, 0)
    assert wide.getpixel((0, 4)) == tall.getpixel((9, 0)) == (255, 255, 255)


def test_panels_lie_in_rows() -> None:
    panels = [Image.new("RGB", (30, 20), (index * 20, 0, 0)) for index in range(5)]
    sheet = draw_panels(panels, ["a caption much too long for its panel"] * 5, columns=3)
    assert sheet.size == (3 * (30 + GAP) + GAP, 2 * (20 + CAPTION + GAP))
    assert sheet.getpixel((GAP + 30 + GAP + 5, 20 + CAPTION + GAP + CAPTION + 5)) == (80, 0, 0)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="one map"):
        draw_map(torch.rand(2, 3, 3), (9, 9))
    with pytest.raises(InputError, match="one mask"):
        draw_mask(Image.new("RGB", (9, 9)), torch.ones(1, 3, 3, dtype=torch.bool))
    with pytest.raises(InputError, match="caption"):
        draw_panels([], [])
