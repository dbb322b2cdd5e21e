"""Any image becomes the tensor that its pixels say, or a typed error that names it."""

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from whitebox_crate.errors import InputError, MissingExtraError
from whitebox_crate.preprocess import image_to_tensor, load_image, resize_to_grid

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
        (tmp_path, "cannot be opened.*directory"),
        (tmp_path / "notes.png" / "inside.png", "cannot be opened"),
        ("nul\0.png", "cannot be opened"),
        (tmp_path / "notes.png", r"notes\.png is no image"),
        (tmp_path / "empty.png", r"empty\.png is no image"),
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
        (np.zeros((4, 4, 3)), "float64"),
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
