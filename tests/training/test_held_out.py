"""What is held out is of every class, is never trained on, and is of the seed."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures_on_disk import CLASSES, MAKERS, make_folder, make_parquet, numbers, picture

from whitebox_crate.errors import InputError
from whitebox_crate.training import ImageDataset, open_images


def opened(root: Path, **options: object) -> ImageDataset:
    images = open_images(root, size=2, **options)  # type: ignore[arg-type]
    assert isinstance(images, ImageDataset)
    return images


def seen(images: ImageDataset) -> dict[int, int]:
    """The numbers of the pictures, and their labels."""
    return {
        number: int(label)
        for batch in images.in_order(5)
        for number, label in zip(numbers(batch), batch.labels, strict=True)
    }


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("share", [0.25, 0.01, 0.6, 0.99])
def test_a_share_of_each_class_is_held_out(tmp_path: Path, kind: str, share: float) -> None:
    images = opened(MAKERS[kind](tmp_path / "data"))
    rest, held = images.hold_out(share, seed=3)
    assert {**seen(rest), **seen(held)} == seen(images) and len(rest) + len(held) == 12
    wanted = min(max(1, round(4 * share)), 3)
    for label in range(3):
        assert list(seen(held).values()).count(label) == wanted
    assert rest.class_names == held.class_names == images.class_names
    drawn = numbers(rest.draw(len(rest), seed=0, step=0))
    assert sorted(drawn) == sorted(seen(rest))


def test_what_is_held_out_is_of_the_seed(tmp_path: Path) -> None:
    images = opened(make_folder(tmp_path, count=60))
    first, again, other = (seen(images.hold_out(0.2, seed=seed)[1]) for seed in (1, 1, 2))
    assert first == again != other
    assert sorted(first) != list(range(12)) and sorted(first) != list(range(48, 60))
    assert images.hold_out(0.2)[0].name == f"{tmp_path} (train) without the held-out 20% of each class (seed 0)"


def test_a_class_of_one_picture_is_trained_on(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "0.png").write_bytes(picture(200))
    rest, held = opened(tmp_path).hold_out(0.9)
    assert seen(rest)[200] == 3 and 3 not in seen(held).values() and held.class_names == (*CLASSES, "dog")


def test_pictures_without_labels_are_held_out_too(tmp_path: Path) -> None:
    rest, held = opened(make_parquet(tmp_path / "data"), labelled=False).hold_out(0.25)
    assert (len(rest), len(held)) == (9, 3)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.2, 20.0, float("nan")])
def test_what_is_no_share_is_refused(tmp_path: Path, share: float) -> None:
    with pytest.raises(InputError, match=f"more than 0 and less than 1, not {share}"):
        opened(make_folder(tmp_path)).hold_out(share)


def test_one_picture_of_each_class_cannot_be_held_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only one image per class"):
        opened(make_folder(tmp_path, count=3)).hold_out(0.5)
