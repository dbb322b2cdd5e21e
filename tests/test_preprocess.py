"""Any image becomes the tensor that its pixels say, or a typed error that names it."""

import io
import math
import os
import struct
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from whitebox_crate import PretrainedCfg, create_model
from whitebox_crate.errors import InputError, MissingExtraError, UnknownNameError
from whitebox_crate.images import load_image, to_rgb
from whitebox_crate.preprocess import create_transform, image_to_tensor, resize_to_grid, resolve_data_config
from whitebox_crate.preprocess.photographs import MOST_PATCHES
from whitebox_crate.preprocess.pixels import MOST_PIXELS

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def pixels_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, format_name: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name)
    return buffer.getvalue()


def test_a_lossless_file_comes_back_as_it_was(tmp_path: Path) -> None:
    array = pixels_of(5, 7)
    Image.fromarray(array).save(tmp_path / "photo.png")
    image = load_image(tmp_path / "photo.png")
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), array)
    assert np.array_equal(np.asarray(load_image(str(tmp_path / "photo.png"))), array)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    array = pixels_of(4, 6)
    image = Image.fromarray(array)
    exif = image.getexif()
    exif[0x0112] = 6  # shown turned a quarter clockwise
    image.save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(np.asarray(load_image(tmp_path / "photo.png")), np.rot90(array, -1))


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0, :, :3] = (200, 0, 100)
    rgba[0, :, 3] = (0, 255, 51)  # a fifth
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    shown = np.asarray(load_image(tmp_path / "rgba.png"))[0]
    assert shown[0].tolist() == [255, 255, 255]
    assert shown[1].tolist() == [200, 0, 100]
    assert shown[2].tolist() == [244, 204, 224]

    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode=None).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "palette.png", transparency=0)
    assert np.asarray(load_image(tmp_path / "palette.png"))[0].tolist() == [[255, 255, 255], [40, 50, 60]]


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 128 * 257, 65535]], dtype=np.uint16)).save(tmp_path / "grey.png")
    assert np.asarray(load_image(tmp_path / "grey.png"))[0, :, 0].tolist() == [0, 128, 255]


def test_float_pixels_have_no_known_range(tmp_path: Path) -> None:
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "depth.tiff")
    with pytest.raises(InputError, match=r"depth\.tiff.*8 or 16 bits"):
        load_image(tmp_path / "depth.tiff")


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(load_image(tmp_path / "two.gif"))[0, 0].tolist() == [255, 0, 0]


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    for path, says in [
        (tmp_path / "missing.png", "missing.png' cannot be opened.*No such file"),
        (
            "https://example.com/cat.jpg",
            "a web address, and nothing is downloaded here; download the file, then give its path",
        ),
        (
            Path("https://example.com/cat.jpg"),
            "a web address, and nothing is downloaded here; download the file, then give its path",
        ),
        (tmp_path, "cannot be opened.*directory"),
        (tmp_path / "notes.png" / "inside.png", "cannot be opened"),
        ("nul\0.png", "cannot be opened"),
        (tmp_path / "notes.png", r"notes\.png is not an image"),
        (tmp_path / "empty.png", r"empty\.png is not an image"),
    ]:
        with pytest.raises(InputError, match=says):
            load_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged tags
@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP", "TIFF", "PPM"])
@given(data=st.data())
def test_damage_is_an_image_or_an_input_error_naming_the_file(
    tmp_path_factory: pytest.TempPathFactory, format_name: str, data: st.DataObject
) -> None:
    content = bytearray(encoded(Image.fromarray(pixels_of(12, 9)), format_name))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "photo.img"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert load_image(path).mode == "RGB"
    except InputError as error:
        assert "photo.img" in str(error)


@pytest.mark.parametrize("format_name", ["PNG", "JPEG"])
def test_a_file_cut_short_is_refused(tmp_path: Path, format_name: str) -> None:
    content = encoded(Image.fromarray(pixels_of(64, 64)), format_name)
    (tmp_path / "photo.img").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"photo\.img is damaged or cut short"):
        load_image(tmp_path / "photo.img")


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(png)
    with pytest.raises(InputError, match=r"bomb\.png.*smaller"):
        load_image(tmp_path / "bomb.png")


def test_a_picture_of_more_pixels_than_its_bytes_can_tell_is_refused(tmp_path: Path) -> None:
    """Below what Pillow deems unsafe: white, transparent, and compressed a thousand times."""
    Image.new("RGBA", (6000, 5000)).save(tmp_path / "bomb.png", compress_level=9)
    assert (tmp_path / "bomb.png").stat().st_size < 200_000
    with pytest.raises(InputError, match=r"bomb\.png.*6000 x 5000 pixels in"):
        load_image(tmp_path / "bomb.png")
    Image.new("L", (4096, 4096)).save(tmp_path / "white.png", compress_level=9)
    assert load_image(tmp_path / "white.png").size == (4096, 4096)
    grain = np.random.default_rng(0).integers(0, 256, (1300, 13_000), dtype=np.uint8)
    Image.fromarray(grain).save(tmp_path / "large.jpg", quality=30)
    assert load_image(tmp_path / "large.jpg").size == (13_000, 1300)


@pytest.mark.parametrize(
    ("size", "patch", "side"), [((400, 300), 16, 100_000), ((4, 4), 1, 1 << 24), ((9, 9), 512, 9000)]
)
def test_a_size_that_would_fill_the_memory_is_refused_with_the_largest(
    size: tuple[int, int], patch: int, side: int
) -> None:
    with pytest.raises(InputError, match=r"patches of .*, but at most .*--size") as raised:
        resize_to_grid(Image.new("RGB", size), patch, side)
    assert "width" not in str(raised.value)  # of no model: none is known here
    largest = int(str(raised.value).split()[-1])
    assert 1 <= largest < side
    rows, columns = (round(length * largest / min(size) / patch) for length in reversed(size))
    assert rows * columns <= 1.1 * MOST_PATCHES and rows * columns * patch**2 <= 1.1 * MOST_PIXELS


@pytest.mark.parametrize("side", [10**400, -(10**400), 1 << 40])
def test_sides_that_are_none(side: int) -> None:
    with pytest.raises(InputError, match="sides must be from 1"):
        resize_to_grid(Image.new("RGB", (4, 4)), 16, side)


def test_what_is_cut_off_never_becomes_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of 1 x 99 is 22,176 pixels long before it is cropped to 224."""
    seen = list[int]()
    from_numpy = torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda array: (seen.append(array.size), from_numpy(array))[1])
    assert create_transform(224)(Image.new("RGB", (99, 1))).shape == (3, 224, 224)
    assert seen == [3 * 224 * 224]


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingExtraError, match=r"whitebox-crate\[images\]"):
        load_image("photo.png")


@given(st.integers(1, 9), st.integers(1, 9))
def test_every_kind_of_image_gives_the_same_tensor(height: int, width: int) -> None:
    array = pixels_of(height, width)
    chw = torch.from_numpy(array).permute(2, 0, 1)
    expected = chw.float() / 255
    for image in (Image.fromarray(array), array, array[::-1][::-1], chw, chw.contiguous(), chw.float() / 255):
        tensor = image_to_tensor(image, **PLAIN)
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        assert torch.equal(tensor, expected)


def test_mean_and_std_are_imagenets_unless_given() -> None:
    grey = Image.new("RGB", (2, 2), (128, 128, 128))
    expected = (128 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(image_to_tensor(grey)[:, 0, 0], expected)
    halves = image_to_tensor(grey, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert torch.allclose(halves, torch.full((3, 2, 2), (128 / 255 - 0.5) / 0.25), atol=1e-6)


def test_the_tensor_does_not_share_memory_with_the_image() -> None:
    array = pixels_of(2, 2)
    image_to_tensor(array, **PLAIN).zero_()
    floats = torch.ones(3, 2, 2)
    image_to_tensor(floats, **PLAIN).zero_()
    assert array.any()
    assert floats.all()


@pytest.mark.parametrize("size", [(5, 8), (20, 6), 16])
def test_size_is_height_and_width_by_antialiased_bicubic(size: int | tuple[int, int]) -> None:
    array = pixels_of(11, 17)
    height, width = (size, size) if isinstance(size, int) else size
    by_pillow = np.asarray(Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC))
    by_torch = torch.nn.functional.interpolate(
        torch.from_numpy(array).permute(2, 0, 1)[None], (height, width), mode="bicubic", antialias=True
    )[0]
    for image in (Image.fromarray(array), array, torch.from_numpy(array).permute(2, 0, 1)):
        tensor = image_to_tensor(image, size=size, **PLAIN)
        assert torch.equal(tensor, torch.from_numpy(by_pillow.copy()).permute(2, 0, 1) / 255)
        assert (tensor * 255 - by_torch).abs().max() <= 1.5


@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    patch=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    patches=st.integers(1, 8),
)
def test_resize_to_grid_tiles_and_keeps_proportions(
    height: int, width: int, patch: tuple[int, int], patches: int
) -> None:
    short_side = 16 * patches
    out = resize_to_grid(Image.new("1", (width, height)), patch, short_side)
    assert out.mode == "RGB"
    assert out.height % patch[0] == 0
    assert out.width % patch[1] == 0
    scale = min(short_side / min(height, width), 4 * short_side / max(height, width))
    assert abs(out.height - height * scale) <= max(patch[0] / 2, patch[0] - height * scale)
    assert abs(out.width - width * scale) <= max(patch[1] / 2, patch[1] - width * scale)
    assert max(out.size) <= 4 * short_side + 8


def test_resize_to_grid_in_numbers() -> None:
    photo = Image.new("RGB", (640, 480))
    assert resize_to_grid(photo, 16, 224).size == (304, 224)  # 298.67 is nearest to 19 patches
    assert resize_to_grid(photo, (8, 16), 100).size == (128, 96)
    assert resize_to_grid(photo, 16, 224, long_side=224).size == (224, 160)
    assert resize_to_grid(Image.new("RGB", (100_000, 10)), 16, 224).size == (896, 16)


@pytest.mark.parametrize(("patch", "short_side"), [(0, 224), (16, 0), (16, -1)])
def test_resize_to_grid_refuses(patch: int, short_side: int) -> None:
    with pytest.raises(InputError):
        resize_to_grid(Image.new("RGB", (4, 4)), patch, short_side)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((4, 4), dtype=np.uint8), "uint8 of"),
        (np.zeros((3, 4, 4), dtype=np.uint8), "uint8 of"),
        (np.zeros((4, 4, 3)), r"float64.*\(255 \* values"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "uint8 of"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "uint8 of"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), "uint8 of"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "int64"),
        (torch.zeros(1, 4, 4), "3, height, width"),
        (torch.full((3, 4, 4), 255.0), r"in \[0, 1\].*255"),
        (torch.full((3, 4, 4), float("nan")), r"in \[0, 1\].*nan"),
        ("photo.png", "got str"),
    ],
)
def test_what_is_no_image_is_refused(image: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        image_to_tensor(image)  # type: ignore[arg-type]


def test_bad_options_are_refused() -> None:
    image = Image.new("RGB", (4, 4))
    for options in ({"mean": (0.5,)}, {"std": (0.0, 1.0, 1.0)}, {"size": 0}, {"size": (4, 4, 4)}):
        with pytest.raises(InputError):
            image_to_tensor(image, **options)
    with pytest.raises(InputError, match="not resized"):
        image_to_tensor(torch.zeros(3, 4, 4), size=8)


FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def by_pillow(
    image: Image.Image, size: tuple[int, int], interpolation: str, crop_pct: float, mean: Any, std: Any
) -> torch.Tensor:
    """The evaluation path of torchvision (square inputs) and timm (others), written out."""
    goal_height, goal_width = math.floor(size[0] / crop_pct), math.floor(size[1] / crop_pct)
    width, height = image.size
    if goal_height != goal_width:
        ratio = min(height / goal_height, width / goal_width)
        new_width, new_height = round(width / ratio), round(height / ratio)
    elif width <= height:
        new_width, new_height = goal_width, int(goal_width * height / width)
    else:
        new_width, new_height = int(goal_height * width / height), goal_height
    image = image.resize((new_width, new_height), FILTERS[interpolation])
    left, top = int(round((new_width - size[1]) / 2.0)), int(round((new_height - size[0]) / 2.0))  # noqa: RUF046
    array = np.asarray(image.crop((left, top, left + size[1], top + size[0])))
    array = array.reshape(*size, -1).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    mean, std = (np.asarray(values, dtype=np.float32)[:, None, None] for values in (mean, std))
    return torch.from_numpy((array - mean) / std)


@pytest.mark.parametrize("interpolation", FILTERS)
@given(
    image=st.tuples(st.integers(5, 90), st.integers(5, 90)),
    size=st.integers(1, 40) | st.tuples(st.integers(1, 40), st.integers(1, 40)),
    crop_pct=st.sampled_from([1.0, 0.95, 0.9, 0.875, 0.5]),
)
def test_a_transform_is_bit_for_bit_what_pillow_gives(
    interpolation: str, image: tuple[int, int], size: int | tuple[int, int], crop_pct: float
) -> None:
    array = pixels_of(*image, seed=sum(image))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)
    height, width = (size, size) if isinstance(size, int) else size
    expected = by_pillow(Image.fromarray(array), (height, width), interpolation, crop_pct, mean, std)
    transform = create_transform(size, interpolation, mean, std, crop_pct)
    for source in (Image.fromarray(array), array, torch.from_numpy(array).permute(2, 0, 1)):
        tensor = transform(source)
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        assert torch.equal(tensor, expected)


def test_sizes_before_the_crop_in_numbers() -> None:
    """A ramp along the columns shows where the crop begins: nearest keeps the values of whole pixels."""
    for width, size, crop_pct, first in [
        (9, 8, 1.0, 0),  # (9 - 8) / 2 rounds to 0,
        (11, 8, 1.0, 2),  # and (11 - 8) / 2 to 2: halves go to the even one
        (12, 8, 1.0, 2),
        (8, 8, 1.0, 0),
    ]:
        ramp = np.broadcast_to(np.arange(width, dtype=np.uint8)[:, None], (8, width, 3))
        pixels = create_transform(size, "nearest", **PLAIN, crop_pct=crop_pct)(ramp.copy()) * 255
        assert pixels[0, 0].round().tolist() == list(range(first, first + size))
    photo = Image.fromarray(pixels_of(480, 640))
    for size, crop_pct, resized, corner in [
        ((224, 224), 0.9, (330, 248), (53, 12)),  # timm's ViTs: Resize(248), CenterCrop(224)
        ((224, 224), 0.875, (341, 256), (58, 16)),
        ((224, 224), 1.0, (298, 224), (37, 0)),  # Resize(224), CenterCrop(224)
        ((224, 112), 1.0, (299, 224), (94, 0)),  # 298.67 to the nearest, as in timm
        ((96, 192), 1.0, (192, 144), (0, 24)),
    ]:
        left, top = corner
        crop = photo.resize(resized, FILTERS["bicubic"]).crop((left, top, left + size[1], top + size[0]))
        assert torch.equal(create_transform(size, crop_pct=crop_pct)(photo), image_to_tensor(crop))


def test_batches_are_stacks_of_single_images() -> None:
    transform = create_transform((8, 12), crop_pct=0.9)
    array = np.stack([pixels_of(20, 30, seed) for seed in range(3)])
    single = torch.stack([transform(image) for image in array])
    mixed = [Image.fromarray(array[0]), array[1], torch.from_numpy(array[2]).permute(2, 0, 1)]
    for batch in (array, torch.from_numpy(array).permute(0, 3, 1, 2), mixed, tuple(mixed)):
        assert torch.equal(transform(batch), single)
    assert transform([Image.new("RGB", size) for size in ((9, 9), (40, 13))]).shape == (2, 3, 8, 12)
    assert transform(array[:1]).shape == (1, 3, 8, 12)


def test_float_tensors_are_cropped_and_normalised_but_not_resized() -> None:
    transform = create_transform(8, crop_pct=0.8)
    array = pixels_of(10, 13)
    floats = torch.from_numpy(array).permute(2, 0, 1).float() / 255
    assert torch.equal(transform(floats), transform(array))
    assert torch.equal(transform(floats[None].double()), transform(array[None]))
    with pytest.raises(InputError, match=r"\(9, 13\) would have to become \(10, 14\).*255 \* image"):
        transform(floats[:, :9])


def test_metadata_never_decide_whether_pixels_are_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An odd entry makes Pillow fail to write the tags anew where it turns the picture."""
    image = Image.fromarray(pixels_of(9, 11))
    exif = image.getexif()
    exif[0x0112] = 6
    exif[0x829A] = b"no number"  # the exposure time
    image.save(tmp_path / "photo.jpg", exif=exif)
    assert load_image(tmp_path / "photo.jpg").mode == "RGB"
    monkeypatch.setattr(ImageOps, "exif_transpose", lambda _: 1 / 0)
    assert load_image(tmp_path / "photo.jpg").size == image.size


@pytest.mark.parametrize("value", [200, 70_000, 4_000_000])
def test_integers_of_unknown_range_are_refused(value: int, tmp_path: Path) -> None:
    image = Image.new("I", (4, 4), value)
    image.save(tmp_path / "grey.tif")
    with pytest.raises(InputError, match=r"grey\.tif.*32-bit integers of unknown range"):
        load_image(tmp_path / "grey.tif")
    if value >= 1 << 16:
        with pytest.raises(InputError, match="unknown range"):
            to_rgb(image)


def test_what_is_no_photograph_is_not_opened(tmp_path: Path) -> None:
    """EPS would be handed to another program, and a pipe waited for, whatever they are called."""
    Image.new("RGB", (4, 4)).save(tmp_path / "drawing.eps")
    (tmp_path / "drawing.eps").rename(tmp_path / "drawing.jpg")
    with pytest.raises(
        InputError, match=r"drawing\.jpg is not an image in one of the formats JPEG.*convert it to PNG or JPEG"
    ):
        load_image(tmp_path / "drawing.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(InputError, match="it is a pipe"):
        load_image(tmp_path / "pipe.jpg")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_every_opaque_mode_is_seen_as_rgb(mode: str) -> None:
    image = Image.fromarray(pixels_of(9, 11)).convert(mode)
    transform = create_transform(6)
    assert torch.equal(transform(image), transform(image.convert("RGB")))
    assert transform(image).std() > 0


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_every_transparent_mode_is_laid_on_white(mode: str) -> None:
    image = Image.new("RGBA", (6, 6), (0, 0, 0, 0)).convert("LA" if mode == "La" else "RGBA").convert(mode)
    assert torch.equal(create_transform(6, **PLAIN)(image), torch.ones(3, 6, 6))


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16L", "I;16B"])
def test_sixteen_bit_modes_are_scaled_to_eight(mode: str) -> None:
    bytes_ = np.full((6, 6), 200 * 256, dtype=">u2" if mode == "I;16B" else "<u2").tobytes()
    image = Image.frombytes("I;16" if mode == "I" else mode, (6, 6), bytes_)
    image = image.convert("I") if mode == "I" else image
    assert torch.equal(create_transform(6, **PLAIN)(image), torch.full((3, 6, 6), 200.0) / 255)


def test_one_channel_is_grey() -> None:
    photo = Image.fromarray(pixels_of(20, 31))
    transform = create_transform((1, 8, 8), mean=(0.4,), std=(0.2,))
    expected = by_pillow(photo.convert("L"), (8, 8), "bicubic", 1.0, (0.4,), (0.2,))
    assert torch.equal(transform(photo), expected)
    assert torch.equal(transform([photo, photo])[1], expected)
    assert torch.allclose(transform(torch.full((1, 8, 8), 0.5)), torch.full((1, 8, 8), 0.5))


class TestResolveDataConfig:
    CFG = PretrainedCfg(
        input_size=(3, 96, 64),
        interpolation="bilinear",
        mean=(0.1, 0.2, 0.6),
        std=(0.5, 0.3, 0.1),
        crop_pct=0.9,
    )

    def test_the_facts_are_given_in_timms_names(self) -> None:
        assert resolve_data_config(self.CFG) == {
            "input_size": (3, 96, 64),
            "interpolation": "bilinear",
            "mean": (0.1, 0.2, 0.6),
            "std": (0.5, 0.3, 0.1),
            "crop_pct": 0.9,
            "crop_mode": "center",
        }

    def test_timms_call_forms(self) -> None:
        model = create_model("crate_nano", pretrained_cfg=self.CFG, depth=1)
        config = resolve_data_config(model)
        assert resolve_data_config({}, model=model) == resolve_data_config(None, model=model) == config
        assert resolve_data_config(model=model, pretrained_cfg=dict(self.CFG)) == config
        assert resolve_data_config({}, pretrained_cfg=self.CFG) == resolve_data_config(self.CFG)
        few = {"std": (0.5, 0.5, 0.5), "crop_pct": 0.9}
        assert resolve_data_config({}, pretrained_cfg=few) == {**resolve_data_config(PretrainedCfg()), **few}
        asked = {"img_size": 48, "mean": [0.5, 0.5, 0.5], "crop_pct": None, "batch_size": 8}
        assert resolve_data_config(asked, model=model) == {**config, "input_size": (3, 48, 48), "mean": (0.5, 0.5, 0.5)}
        grey = resolve_data_config({"in_chans": 1, "mean": (0.5,), "crop_pct": 1.0}, model=model)
        assert (grey["input_size"], grey["mean"], grey["crop_pct"]) == ((1, 96, 96), (0.5,), 1.0)
        assert resolve_data_config({"input_size": (3, 8, 16)}, model=model)["input_size"] == (3, 8, 16)
        transform = create_transform(**config, is_training=False)
        assert transform == create_transform(**resolve_data_config({}, model=model))
        with pytest.raises(UnknownNameError, match=r"'squash'.*'center'"):
            create_transform(**{**config, "crop_mode": "squash"})
        with pytest.raises(InputError, match="for evaluation"):
            create_transform(**config, is_training=True)
        for nothing in ({}, None, 3):
            with pytest.raises(InputError, match="expected a model"):
                resolve_data_config(nothing)  # type: ignore[arg-type]

    def test_of_a_model_the_size_is_its_own(self) -> None:
        model = create_model("crate_nano", pretrained_cfg=self.CFG, depth=2)
        expected = {**resolve_data_config(self.CFG), "input_size": (3, 96, 96)}
        assert resolve_data_config(model) == expected
        for wrap in (torch.compile, torch.optim.swa_utils.AveragedModel):
            assert resolve_data_config(wrap(model)) == expected  # type: ignore[arg-type]
        model.set_input_size((48, 36))
        assert resolve_data_config(model)["input_size"] == (3, 48, 36)
        features = create_model("crate_nano", pretrained_cfg=self.CFG, features_only=True, img_size=(12, 18))
        assert resolve_data_config(features) == {**expected, "input_size": (3, 12, 18)}

    def test_the_statistics_follow_the_channels(self) -> None:
        grey = resolve_data_config(create_model("crate_nano", pretrained_cfg=self.CFG, in_chans=1))
        assert grey["input_size"] == (1, 96, 96)
        assert grey["mean"] == pytest.approx((0.3,))
        assert grey["std"] == pytest.approx((0.3,))
        four = resolve_data_config(create_model("crate_nano", pretrained_cfg=self.CFG, in_chans=4))
        assert four["mean"] == (0.1, 0.2, 0.6, 0.1)
        assert four["std"] == (0.5, 0.3, 0.1, 0.5)
        with pytest.raises(InputError, match=r"4, make the tensors yourself"):
            create_transform(**four)

    @pytest.mark.parametrize("in_chans", [1, 3])
    def test_a_model_takes_what_its_transform_gives(self, in_chans: int) -> None:
        model = create_model("crate_nano", depth=1, in_chans=in_chans, img_size=(12, 18), num_classes=2)
        batch = create_transform(**resolve_data_config(model))([Image.new("L", (50, 40)), pixels_of(7, 9)])
        assert model(batch).shape == (2, 2)

    def test_what_has_no_facts_is_refused(self) -> None:
        for source in (torch.nn.Linear(2, 2), {}, None):
            with pytest.raises(InputError, match=r"Linear|got NoneType"):
                resolve_data_config(source)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="no mean"):
            resolve_data_config(replace(self.CFG, mean=()))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"input_size": 0}, "size"),
        ({"input_size": (224,)}, "size"),
        ({"input_size": (3, 224, 0)}, "size"),
        ({"input_size": (3, 224.0, 224)}, "size"),
        ({"input_size": (2, 224, 224)}, "takes 2"),
        ({"mean": (0.5,)}, "3 finite numbers"),
        ({"mean": (0.5, 0.5, float("nan"))}, "3 finite numbers"),
        ({"mean": ("a", "b", "c")}, "3 finite numbers"),
        ({"mean": (0, 0, 10**400)}, "3 finite numbers"),
        ({"std": (0.0, 1.0, 1.0)}, "std positive"),
        ({"crop_pct": 0}, "crop_pct"),
        ({"crop_pct": 1.5}, "crop_pct"),
        ({"crop_pct": float("nan")}, "crop_pct"),
        ({"crop_pct": None}, "crop_pct"),
    ],
)
def test_options_that_make_no_transform_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        create_transform(**options)


def test_an_unknown_interpolation_lists_close_matches() -> None:
    with pytest.raises(UnknownNameError, match=r"'bicubc'; did you mean 'bicubic'"):
        create_transform(interpolation="bicubc")


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ([], "batch is empty"),
        (np.zeros((0, 4, 4, 3), dtype=np.uint8), "batch is empty"),
        (torch.zeros(0, 3, 4, 4), "batch is empty"),
        ([Image.new("RGB", (4, 4)), Image.new("RGB", (4, 0))], "image 1 of the batch: the image is 4 x 0"),
        ([np.zeros((4, 4, 3), dtype=np.uint8)] * 2 + ["photo.png"], "image 2 .* got str"),
        ([[Image.new("RGB", (4, 4))]], "image 0 .* got list"),
        (np.zeros((2, 3, 4, 4), dtype=np.uint8), "image 0 .*uint8 of"),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), "image 0 .*uint8 of"),
        (np.zeros((4, 4, 3), dtype=np.float32), "float32"),
        (torch.zeros(3, 0, 4), "3, height, width"),
        (torch.full((2, 3, 8, 8), 255.0), r"image 0 .*in \[0, 1\].*255"),
        (torch.full((3, 8, 8), float("nan")), r"in \[0, 1\].*nan"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "int64"),
        (Image.new("F", (4, 4)), "8 or 16 bits"),
        (Image.new("RGB", (900, 1)), "1 x 900 pixels would be resized to 8 x 7200.*crop the image first"),
        ("photo.png", "got str"),
    ],
)
def test_what_a_transform_cannot_take_is_refused(images: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        create_transform(8)(images)
