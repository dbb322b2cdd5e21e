"""Parts of pictures: inside them, as large and as long as they may be, from where they should be, however decoded."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin

from whitebox_crate.errors import InputError
from whitebox_crate.images import load_image
from whitebox_crate.preprocess import image_to_tensor
from whitebox_crate.training.transforms import AREAS, ASPECTS, Box, centre_box, random_box, read_part

SIDES = st.integers(1, 3000)


def ramp(width: int, height: int) -> Image.Image:
    """Red tells the column, green the row, both from 0 to 255."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, 0 * red], axis=-1).round().astype(np.uint8))


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def whole(width: int, height: int) -> Box:
    return 0, 0, width, height


@given(SIDES, SIDES, st.integers(0, 2**60))
def test_a_random_part_lies_inside_and_has_an_allowed_area_and_aspect(width: int, height: int, seed: int) -> None:
    left, top, right, bottom = random_box(width, height, np.random.default_rng(seed))
    assert 0 <= left < right <= width * (1 + 1e-12) and 0 <= top < bottom <= height * (1 + 1e-12)
    assert ASPECTS[0] - 1e-9 <= (right - left) / (bottom - top) <= ASPECTS[1] + 1e-9
    possible = min(AREAS[0], min(width, height) ** 2 * ASPECTS[0] / (width * height))  # less where it is a strip
    assert possible - 1e-9 <= (right - left) * (bottom - top) / (width * height) <= AREAS[1] + 1e-9
    assert (left, top, right, bottom) == random_box(width, height, np.random.default_rng(seed))


def test_of_a_strip_the_part_is_the_largest_in_the_middle() -> None:
    assert random_box(10_000, 10, np.random.default_rng(0)) == pytest.approx((4993.333, 0, 5006.667, 10))
    assert random_box(30, 40_000, np.random.default_rng(0)) == pytest.approx((0, 19_980, 30, 20_020))


def test_areas_are_uniform_and_aspects_as_often_lying_as_standing() -> None:
    boxes = np.array([random_box(100, 100, np.random.default_rng(n), areas=(0.1, 0.5)) for n in range(2000)])
    wide, tall = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert np.quantile(wide * tall / 1e4, [0.25, 0.5, 0.75]) == pytest.approx([0.2, 0.3, 0.4], abs=0.02)
    assert np.log(wide / tall).mean() == pytest.approx(0, abs=0.015)
    middle = (boxes[:, :2] + boxes[:, 2:]).mean(0) / 2
    assert middle == pytest.approx([50, 50], abs=1.5)


@given(SIDES, SIDES)
def test_the_centre_is_the_largest_square_in_the_middle(width: int, height: int) -> None:
    left, top, right, bottom = centre_box(width, height)
    assert right - left == bottom - top == min(width, height)
    assert left == width - right and top == height - bottom


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("box", [(100, 40, 420, 360), (0, 0, 64, 64), (160.5, 200, 600, 480)])
def test_pixels_come_from_the_part_that_was_asked_for(kind: str, orientation: int, box: Box) -> None:
    """Also of a JPEG that is decoded at a part of its size, and of one that lies on its side."""
    stored = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    image, turn = ramp(640, 480), stored[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = saved(image if turn is None else image.transpose(turn), kind, exif=exif)
    sizes: list[tuple[int, int]] = []

    def part(width: int, height: int) -> Box:
        sizes.append((width, height))
        return box

    read = read_part(file, "ramp", 32, part, mirrored=False)
    assert sizes == [(640, 480)]
    at = (torch.arange(32) + 0.5) / 32
    columns, rows = box[0] + (box[2] - box[0]) * at, box[1] + (box[3] - box[1]) * at
    assert (read[0] - columns / 640).abs().max() < 0.02
    assert (read[1] - rows[:, None] / 480).abs().max() < 0.02


@pytest.mark.parametrize(
    ("side", "size", "decoded"),
    [(480, 300, (640, 480)), (480, 200, (320, 240)), (480, 60, (80, 60)), (121, 60, (320, 240)), (119, 60, (640, 480))],
)
def test_no_more_of_a_jpeg_is_decoded_than_the_part_needs(
    side: int, size: int, decoded: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = set()
    load = JpegImagePlugin.JpegImageFile.load

    def watched(image: JpegImagePlugin.JpegImageFile) -> object:
        sizes.add(image.size)
        return load(image)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", watched)
    read_part(saved(ramp(640, 480), "JPEG"), "ramp", size, lambda *_: (0, 0, side, side), mirrored=False)
    assert sizes == {decoded}


def test_a_mirror_image_is_one() -> None:
    plain, mirrored = (read_part(saved(ramp(64, 48)), "ramp", 24, centre_box, flip) for flip in (False, True))
    assert torch.equal(mirrored, plain.flip(-1)) and not torch.equal(mirrored, plain)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGB", "WEBP"), ("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG"), ("LA", "PNG"), ("1", "PNG")],
)
def test_every_mode_is_what_load_image_makes_of_it(mode: str, kind: str, tmp_path: Path) -> None:
    image = ramp(40, 40)
    if mode == "RGBA":
        image.putalpha(ramp(40, 40).getchannel(0))
    path = tmp_path / "picture"
    path.write_bytes(saved(image.convert(mode), kind).getvalue())
    with path.open("rb") as file:
        read = read_part(file, "picture", 40, whole, mirrored=False)
    assert read.dtype == torch.float32 and read.shape == (3, 40, 40)
    assert torch.equal(read, image_to_tensor(load_image(path), mean=(0, 0, 0), std=(1, 1, 1)))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 9))
def test_pictures_of_any_size_give_the_size_that_is_asked_for(width: int, height: int, seed: int) -> None:
    for box_of in (centre_box, partial(random_box, generator=np.random.default_rng(seed))):
        read = read_part(saved(ramp(width, height)), "ramp", 17, box_of, mirrored=bool(seed % 2))
        assert read.shape == (3, 17, 17) and read.min() >= 0 and read.max() <= 1


def test_what_is_damaged_is_named() -> None:
    cut = saved(ramp(640, 480), "JPEG").getvalue()[:2000]
    for content, says in ((cut, "photo.jpg is damaged or cut short"), (b"text", "photo.jpg is not an image")):
        with pytest.raises(InputError, match=says):
            read_part(io.BytesIO(content), "photo.jpg", 32, centre_box, mirrored=False)
