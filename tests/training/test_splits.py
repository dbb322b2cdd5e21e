"""Splits are no classes, whatever they are called; a part of one is of every class; links lead to nothing twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pictures_on_disk import CLASSES, make_folder, make_parquet, make_tar, numbers, picture

from whitebox_crate.errors import InputError, UnknownNameError
from whitebox_crate.evaluation import read_folder
from whitebox_crate.training import open_images


def seen(root: Path, **options: object) -> dict[str, list[int]]:
    """The numbers of the pictures of each class."""
    images = open_images(root, **options)  # type: ignore[arg-type]
    found: dict[str, list[int]] = {name: [] for name in images.class_names}
    for batch in images.in_order(5, size=2):
        for number, label in zip(numbers(batch), batch.labels, strict=True):
            found[images.class_names[label]].append(number)
    return {name: sorted(of_class) for name, of_class in found.items()}


@pytest.mark.parametrize(
    ("train", "other", "asked"),
    [
        ("Train", "Val", "validation"),
        ("TRAIN", "VALIDATION", "val"),
        ("Training", "Testing", "test"),
        ("training", "dev", "validation"),
        ("seg_train", "seg_test", "test"),
        ("my-train", "my-val", "valid"),
        ("train2017", "val2017", "val"),
        ("training_set", "test_set", "test"),
        ("train", "val", "valid"),
        ("train", "fold_0", "fold_0"),
    ],
)
def test_splits_are_known_by_their_usual_names(tmp_path: Path, train: str, other: str, asked: str) -> None:
    make_folder(tmp_path / train)
    make_folder(tmp_path / other, count=6)
    assert seen(tmp_path) == {name: list(range(at, 12, 3)) for at, name in enumerate(CLASSES)}
    assert seen(tmp_path, split=asked) == {name: [at, at + 3] for at, name in enumerate(CLASSES)}
    assert len(open_images(tmp_path, labelled=False)) == 12  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match=f"unknown split 'nothing'.*{train}"):
        open_images(tmp_path, split="nothing")


def test_a_folder_in_a_folder_of_the_same_name_is_one(tmp_path: Path) -> None:
    make_folder(tmp_path / "seg_train" / "seg_train")
    make_folder(tmp_path / "seg_test" / "seg_test", count=6)
    (tmp_path / "seg_pred" / "seg_pred").mkdir(parents=True)
    (tmp_path / "seg_pred" / "seg_pred" / "0.png").write_bytes(picture(0))
    assert len(open_images(tmp_path)) == 12 and len(open_images(tmp_path, split="test")) == 6  # type: ignore[arg-type]


def test_two_folders_of_one_meaning_are_not_mixed(tmp_path: Path) -> None:
    for split in ("train", "val", "dev"):
        make_folder(tmp_path / split)
    with pytest.raises(InputError, match="'dev', 'val' for the split 'validation': name one"):
        open_images(tmp_path, split="validation")
    assert len(open_images(tmp_path, split="dev")) == 12  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [("part1", "part2"), ("keep", "hold out", "rest"), ("2019", "2020")])
def test_classes_that_hold_the_same_folders_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    for count, name in enumerate(names):
        make_folder(tmp_path / name, count=12 - 10 * (count == 1))  # one of them lacks a class
    with pytest.raises(InputError, match=rf"'{names[0]}'.* all hold folders 'ant', 'bee'.*splits"):
        open_images(tmp_path)


def test_classes_that_hold_train_and_test_each_are_refused(tmp_path: Path) -> None:
    for name in CLASSES:
        for split in ("train", "test"):
            (tmp_path / name / split).mkdir(parents=True)
            (tmp_path / name / split / "0.png").write_bytes(picture(0))
    with pytest.raises(InputError, match="all hold folders 'test', 'train'"):
        open_images(tmp_path)


def test_one_folder_around_all_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path / "animals")
    with pytest.raises(InputError, match=r"animals' has 'ant', 'bee', 'cow'.*give that one"):
        open_images(tmp_path)


def test_a_class_may_be_called_nearly_as_a_split(tmp_path: Path) -> None:
    for path in (make_folder(tmp_path) / "ant").rglob("*.png"):  # ant/deeper, as the others
        assert path.exists()
    (tmp_path / "ant").rename(tmp_path / "steam-train")
    assert set(seen(tmp_path)) == {"bee", "cow", "steam-train"}


@pytest.mark.parametrize("kind", [make_parquet, make_tar])
def test_shards_are_known_by_the_same_names(tmp_path: Path, kind: object) -> None:
    for split, count in (("Training", 9), ("Val", 3)):
        kind(tmp_path / "data" / split, shards=(count,))  # type: ignore[operator]
    assert len(open_images(tmp_path / "data")) == 9  # type: ignore[arg-type]
    assert len(open_images(tmp_path / "data", split="validation")) == 3  # type: ignore[arg-type]


# Parts.


@pytest.mark.parametrize(("first", "second"), [("[:50%]", "[50%:]"), ("[:3]", "[3:]"), ("[:-25%]", "[-25%:]")])
def test_a_part_of_a_folder_is_of_each_class_and_two_are_the_whole(tmp_path: Path, first: str, second: str) -> None:
    make_folder(tmp_path / "Train")
    parts = [seen(tmp_path, split=f"train{part}") for part in (first, second)]
    assert all(part[name] for part in parts for name in CLASSES)
    assert {name: sorted(parts[0][name] + parts[1][name]) for name in CLASSES} == seen(tmp_path)


def test_a_part_of_a_class_is_rounded(tmp_path: Path) -> None:
    make_folder(tmp_path)
    assert seen(tmp_path, split="train[:60%]") == {"ant": [0, 3], "bee": [1, 4], "cow": [2, 5]}
    assert seen(tmp_path, split="train[-20%:]") == {"ant": [9], "bee": [10], "cow": [11]}
    with pytest.raises(InputError, match=r"no image has the class|no pictures"):
        open_images(tmp_path, split="train[-1%:]")


def test_a_part_of_files_is_of_their_rows(tmp_path: Path) -> None:
    root = make_parquet(tmp_path / "data")
    assert seen(root, split="train[:75%]") == {"ant": [0, 3, 6], "bee": [1, 4, 7], "cow": [2, 5, 8]}
    assert seen(root / "*.parquet", split="train[-3:]") == {"ant": [9], "bee": [10], "cow": [11]}


@pytest.mark.parametrize("split", ["train[80%]", "train[:80%", "train[a:]", "train[:0.5]"])
def test_what_is_no_part_is_said(tmp_path: Path, split: str) -> None:
    with pytest.raises(InputError, match=r"train\[:80%\]"):
        open_images(make_folder(tmp_path), split=split)


def test_streamed_data_have_no_parts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give the whole one"):
        open_images(make_folder(tmp_path), split="train[:80%]", streaming=True)


# Links.


def test_links_that_lead_back_count_no_picture_twice(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos")
    expected = seen(root)
    (root / "ant" / "again").symlink_to(".")
    (root / "ant" / "up").symlink_to("..")
    (root / "bee" / "deeper" / "back").symlink_to(root / "bee")
    (root / "all").symlink_to(".")
    (root / "above").symlink_to(tmp_path)
    assert seen(root) == expected
    assert len(open_images(root, labelled=False)) == 12  # type: ignore[arg-type]


def test_a_folder_that_nobody_may_look_into_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path)
    scan = os.scandir

    def refused(folder: Path) -> object:
        if str(folder) == str(root / "bee"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(InputError, match=r"the folder '.*bee' cannot be read: Permission denied"):
        open_images(root)


def test_a_link_to_pictures_elsewhere_is_followed(tmp_path: Path) -> None:
    root, elsewhere = make_folder(tmp_path / "photos"), make_folder(tmp_path / "elsewhere")
    expected = seen(root)
    for path in list((root / "ant").rglob("*")):
        path.is_file() and path.unlink()
    (root / "ant" / "there").symlink_to(elsewhere / "ant")
    (root / "ant" / "there too").symlink_to(elsewhere / "ant" / "deeper")
    (root / "bee").rename(tmp_path / "bees")
    (root / "bee").symlink_to(tmp_path / "bees")
    assert seen(root) == expected


@pytest.mark.parametrize("link", ["bee/more", "dog"])
def test_a_folder_is_not_of_two_classes(tmp_path: Path, link: str) -> None:
    root = make_folder(tmp_path)
    (root / link).symlink_to(root / "ant")
    with pytest.raises(InputError, match=r"a folder of '(ant|dog)' too"):
        open_images(root)


@pytest.mark.parametrize("pattern", ["", "**/*.parquet"])
def test_files_are_found_once_though_links_lead_back(tmp_path: Path, pattern: str) -> None:
    root = make_parquet(tmp_path / "data")
    (root / "again").symlink_to(".")
    (root / "up").symlink_to("..")
    assert len(open_images(root / pattern)) == 12  # type: ignore[arg-type]


def test_images_with_masks_are_found_once_though_links_lead_back(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name / "deeper").mkdir(parents=True)
        (tmp_path / name / "deeper" / "a.png").write_bytes(picture(1))
        (tmp_path / name / "deeper" / "again").symlink_to("..")
        (tmp_path / name / "up").symlink_to("..")
    assert [name for name, _ in read_folder(tmp_path).items] == ["deeper/a"]
