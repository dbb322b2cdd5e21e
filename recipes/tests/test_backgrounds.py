"""Wallpapers and noise: on tiny files made here, and on the Debian packages where installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recipes.backgrounds import WALLPAPERS, _picture_name, noise_backgrounds, wallpapers
from whitebox_crate.errors import InputError

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def walls(tmp_path: Path) -> Path:
    """Ten pictures, each of one hue: red is 20 times its number; some in several sizes and shades."""
    root = tmp_path / "walls"
    root.mkdir()
    for number in range(10):
        noise = np.random.default_rng(number).integers(0, 256, (90, 160, 3), np.uint8)
        noise[..., 0] = 20 * number
        picture = Image.fromarray(noise)
        if number % 2:
            folder = root / f"Wall{number}" / "contents"
            for name in ("images/160x90.png", "images/80x45.png", "images_dark/160x90.png", "screenshot.png"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shown = picture.resize((80, 45)) if "80x" in name else picture
                shown = Image.new("RGB", (60, 60), (255, 0, 0)) if "screen" in name else shown
                shown.save(folder / name)
        else:
            for shade in "ld":
                picture.save(root / f"wall{number}-{shade}.png")
    return root


def numbers(crops: torch.Tensor) -> set[int]:
    return set((crops[:, 0].float().mean((1, 2)) / 20).round().int().tolist())


class TestWallpapers:
    def test_whole_pictures_are_held_out(self, walls: Path) -> None:
        train = wallpapers("train", [walls], count=24, side=32)
        held_out = wallpapers("held_out", [walls], count=6, side=32)
        assert train.shape == (24, 3, 32, 32) and train.dtype == torch.uint8
        assert len(numbers(held_out)) == 2  # a fifth of ten pictures, though there are twenty-five files
        assert numbers(train) == set(range(10)) - numbers(held_out)

    @pytest.mark.parametrize(
        "file, picture",
        [
            ("/usr/share/wallpapers/Kay/contents/images/1080x1920.png", "Kay"),
            ("Kay/contents/images_dark/5120x2880.png", "Kay"),
            ("/usr/share/backgrounds/gnome/wood-l.webp", "gnome/wood"),
            ("gnome/wood-d.webp", "gnome/wood"),
            ("mine/old-dog.jpg", "mine/old-dog"),
        ],
    )
    def test_sizes_and_shades_are_one_picture(self, file: str, picture: str) -> None:
        assert _picture_name(Path(file)) == picture

    def test_crops_depend_on_the_seed_alone(self, walls: Path) -> None:
        first, again, other = (wallpapers("train", [walls], 16, 16, seed=seed) for seed in (0, 0, 1))
        assert torch.equal(first, again) and not torch.equal(first, other)
        assert numbers(first) == numbers(other)

    def test_busy_parts_are_preferred(self, tmp_path: Path) -> None:
        for number in range(5):
            picture = np.zeros((100, 400, 3), np.uint8)
            picture[:, 200:] = np.random.default_rng(number).integers(0, 256, (100, 200, 3))
            Image.fromarray(picture).save(tmp_path / f"{number}.png")
        crops = wallpapers("train", [tmp_path], count=60, side=16).float()
        assert (crops.std((1, 2, 3)) > 10).float().mean() > 0.75  # a lone try finds it in about half of the cases

    def test_pictures_smaller_than_a_crop_are_enlarged(self, tmp_path: Path) -> None:
        for number in range(5):
            Image.new("RGB", (20, 12), (number, 0, 0)).save(tmp_path / f"{number}.jpg")
        assert wallpapers("train", [tmp_path], count=5, side=40).shape == (5, 3, 40, 40)

    def test_bad_input_says_what_to_do(self, walls: Path) -> None:
        with pytest.raises(InputError, match="apt-get install plasma-workspace-wallpapers gnome-backgrounds"):
            wallpapers("train", [walls / "nowhere"])
        with pytest.raises(InputError, match="count is 0"):
            wallpapers("train", [walls], count=0)
        (walls / "empty").mkdir()
        with pytest.raises(InputError, match="no train picture among the 0"):
            wallpapers("train", [walls / "empty"])
        for path in walls.rglob("*.png"):
            path.write_bytes(b"no picture")
        with pytest.raises(InputError, match=r"cannot read the picture .*\.png"):
            wallpapers("train", [walls])


class TestNoise:
    @given(st.integers(1, 5), st.integers(1, 33))
    def test_shape(self, count: int, side: int) -> None:
        assert noise_backgrounds(count, side, seed=0).shape == (count, 3, side, side)

    def test_images_differ_in_colour_and_smoothness(self) -> None:
        images = noise_backgrounds(40, 32, seed=1).float()
        assert torch.equal(images.byte(), noise_backgrounds(40, 32, seed=1))
        assert not torch.equal(images.byte(), noise_backgrounds(40, 32, seed=2))
        roughness = images.diff(dim=-1).abs().mean((1, 2, 3)) / images.std((2, 3)).mean(1)
        assert roughness.max() > 2 * roughness.min()
        assert images.mean((2, 3)).std(0).min() > 20

    def test_bad_input(self) -> None:
        with pytest.raises(InputError, match="side is 0"):
            noise_backgrounds(1, 0, seed=0)


@pytest.mark.skipif(
    not all(root.is_dir() for root in WALLPAPERS),
    reason="needs the Debian packages plasma-workspace-wallpapers and gnome-backgrounds",
)
def test_real_wallpapers() -> None:
    held_out = wallpapers("held_out", count=8, side=32)
    assert held_out.float().std((1, 2, 3)).max() > 20
