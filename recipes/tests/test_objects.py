"""Readers of objects: on tiny files made here, and on the Debian packages where installed."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays

from recipes.objects import FASHION_MNIST, STAMPS, _fill_holes, _fit_square, garments, photographs
from whitebox_crate.errors import InputError, MissingExtraError

Image = pytest.importorskip("PIL.Image")


def save_object(path: Path, *, seed: int = 0, width: int = 80, height: int = 60, flat: bool = False) -> None:
    """An ellipse of noise (a photograph) or of one colour (a drawing) in a transparent margin of 10 px."""
    random = np.random.default_rng(seed)
    rgba = np.zeros((height + 20, width + 20, 4), np.uint8)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    inner = rgba[10:-10, 10:-10]
    inner[..., :3] = 200 if flat else random.integers(0, 256, (height, width, 3))
    inner[..., 3] = 255 * (x**2 + y**2 <= 1.02)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgba).save(path)


@pytest.fixture
def stamps(tmp_path: Path) -> Path:
    root = tmp_path / "stamps"
    for index in range(40):
        save_object(root / "animals" / f"{'abcdefghij'[index % 10]}{'klmn'[index // 10]}.png", seed=index)
    return root


class TestPhotographs:
    def test_images_are_tight_centred_squares_with_a_class_each(self, stamps: Path) -> None:
        objects = photographs("all", stamps, side=40)
        assert objects.images.shape == (40, 4, 40, 40) and objects.images.dtype == torch.uint8
        assert objects.labels.tolist() == list(range(40)) and len(set(objects.class_names)) == 40
        visible = objects.images[:, 3] > 127
        across, down = visible.any(1), visible.any(2)
        assert across.all()  # 80 wide: it spans the square
        assert down.sum(1).sub(30).abs().le(1).all()  # 60 high: its aspect is kept
        assert (down == down.flip(1)).float().mean() > 0.95  # and it is in the middle

    def test_held_out_objects_are_a_share_of_their_own(self, stamps: Path) -> None:
        train, held_out = photographs("train", stamps, 16), photographs("held_out", stamps, 16)
        assert not set(train.class_names) & set(held_out.class_names)
        assert set(train.class_names) | set(held_out.class_names) == set(photographs("all", stamps, 16).class_names)
        assert len(held_out.class_names) == round(0.15 * 40)
        assert held_out.labels.tolist() == list(range(6))

    def test_relatives_are_held_out_together(self, tmp_path: Path) -> None:
        for index in range(51):
            save_object(tmp_path / f"{'abcdefghijklmnopq'[index // 3]}-{index % 3}.png", seed=index)
        train, held_out = (photographs(split, tmp_path, 8).class_names for split in ("train", "held_out"))
        assert not {name[0] for name in train} & {name[0] for name in held_out}
        assert len(held_out) == 6  # two families of three: a third one would be more than 15%

    @pytest.mark.parametrize(
        "name, options",
        [
            ("drawing", {"flat": True}),
            ("tiny", {"width": 40, "height": 30}),
            ("symbols/sign", {}),
            ("birds/cartoon/duck", {}),
            ("animals/ak_mirror", {}),
            ("people/copy", {"seed": 3}),
        ],
    )
    def test_what_is_no_photograph_is_left_out(self, stamps: Path, name: str, options: dict[str, int]) -> None:
        save_object(stamps / f"{name}.png", **({"seed": 99} | options))
        names = photographs("all", stamps, 8).class_names
        assert len(names) == 40 and name not in names

    def test_rectangles_and_ghosts_are_left_out(self, stamps: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (70, 70, 4), np.uint8)
        noise[..., 3] = 255
        Image.fromarray(noise).save(stamps / "card.png")
        save_object(stamps / "ghost.png", seed=50)
        ghost = np.array(Image.open(stamps / "ghost.png"))
        ghost[..., 3] = ghost[..., 3] * 0.6
        Image.fromarray(ghost).save(stamps / "ghost.png")
        assert len(photographs("all", stamps, 8).class_names) == 40

    def test_hidden_colours_do_not_bleed_into_the_edge(self, tmp_path: Path) -> None:
        rgba = np.zeros((120, 120, 4), np.uint8)
        rgba[..., 0] = 255  # red where nothing is to be seen
        rgba[20:100, 20:100] = [0, 255, 0, 255]
        rgba[30:50, 30:50, 3] = 0
        square = _fit_square(Image.fromarray(rgba), 50)
        seen = square[3] > 25
        assert square[0][seen].max() < 20 and square[1][seen].min() > 235

    def test_bad_input_says_what_to_do(self, stamps: Path) -> None:
        with pytest.raises(InputError, match="apt-get install tuxpaint-stamps-default"):
            photographs("train", stamps / "nowhere")
        with pytest.raises(InputError, match=r"'test'.*'held_out'"):
            photographs("test", stamps)
        with pytest.raises(InputError, match="side is 0"):
            photographs("all", stamps, side=0)
        path = stamps / "animals" / "broken.png"
        path.write_bytes((stamps / "animals" / "ak.png").read_bytes()[:200])
        with pytest.raises(InputError, match=r"broken\.png"):
            photographs("all", stamps)

    def test_nothing_found_is_an_error(self, tmp_path: Path) -> None:
        save_object(tmp_path / "drawing.png", flat=True)
        with pytest.raises(InputError, match="no photograph"):
            photographs("all", tmp_path)

    def test_without_pillow_the_extra_is_named(self, stamps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "PIL.Image", None)
        with pytest.raises(MissingExtraError, match=r"whitebox-crate\[train\]"):
            photographs("all", stamps)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    images = np.zeros((5, 28, 28), np.uint8)
    images[:, 4:24, 8:20] = 180
    images[:, 10:14, 11:15] = 0  # a black print
    images[:, 1, 1] = 2  # a speck
    labels = np.arange(5, dtype=np.uint8)
    for prefix in ("train", "t10k"):
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


class TestGarments:
    @pytest.mark.parametrize("split", ["train", "test"])
    def test_alpha_is_the_garment_with_holes_filled_and_without_specks(self, fashion: Path, split: str) -> None:
        objects = garments(split, fashion)
        assert objects.labels.tolist() == [0, 1, 2, 3, 4] and objects.labels.dtype == torch.int64
        assert len(objects.class_names) == 10
        expected = torch.zeros(28, 28, dtype=torch.uint8)
        expected[4:24, 8:20] = 255
        assert (objects.images[:, 3] == expected).all()
        assert (objects.images[:, 0, 10:14, 11:15] == 0).all() and objects.images[0, 1, 5, 9] == 180

    def test_other_sides_keep_the_colour_straight(self, fashion: Path) -> None:
        images = garments("train", fashion, side=50).images
        assert images.shape == (5, 4, 50, 50)
        edge = (images[:, 3] > 40) & (images[:, 3] < 200)
        assert edge.any() and (images[:, 0][edge].float() - 180).abs().max() <= 2

    def test_bad_files_say_which(self, fashion: Path) -> None:
        with pytest.raises(InputError, match="apt-get install dataset-fashion-mnist"):
            garments("train", fashion / "nowhere")
        labels = fashion / "train-labels-idx1-ubyte"
        labels.write_bytes(idx(np.full(5, 10, np.uint8)))
        with pytest.raises(InputError, match="labels up to 10"):
            garments("train", fashion)
        labels.write_bytes(labels.read_bytes()[:-1])
        with pytest.raises(InputError, match="train-labels-idx1-ubyte is not an idx file"):
            garments("train", fashion)
        labels.unlink()
        with pytest.raises(InputError, match=r"train-labels-idx1-ubyte\.gz is missing"):
            garments("train", fashion)
        images = fashion / "train-images-idx3-ubyte.gz"
        images.write_bytes(images.read_bytes()[:-20])
        with pytest.raises(InputError, match=r"cannot read .*train-images-idx3-ubyte"):
            garments("train", fashion)

    @given(arrays(np.bool_, (2, 6, 7)))
    def test_holes_are_what_a_flood_from_outside_does_not_reach(self, ink: np.ndarray) -> None:
        filled = _fill_holes(ink)
        for one, result in zip(ink, filled, strict=True):
            reached, stack = set(), [(-1, -1)]
            while stack:
                y, x = stack.pop()
                inside = 0 <= y < 6 and 0 <= x < 7
                if (y, x) in reached or not (-1 <= y <= 6 and -1 <= x <= 7) or (inside and one[y, x]):
                    continue
                reached.add((y, x))
                stack += [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            assert all(result[y, x] == ((y, x) not in reached) for y in range(6) for x in range(7))


@pytest.mark.skipif(not STAMPS.is_dir(), reason="needs the Debian package tuxpaint-stamps-default")
def test_real_stamps() -> None:
    train, held_out = photographs("train", side=32), photographs("held_out", side=32)
    names = {*train.class_names, *held_out.class_names}
    assert len(names) == len(train.labels) + len(held_out.labels) >= 250
    assert abs(len(held_out.labels) / len(names) - 0.15) < 0.01
    assert {"animals/mammals/equines/horse", "vehicles/auto/beetle"} <= names
    assert not {"seasonal/christmas/Santa", "people/fireman240a", "town/monuments/grave-a"} & names


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="needs the Debian package dataset-fashion-mnist")
def test_real_garments() -> None:
    objects = garments("test")
    assert objects.images.shape == (10_000, 4, 28, 28)
    assert torch.bincount(objects.labels).tolist() == [1000] * 10
