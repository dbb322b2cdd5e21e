"""Pictures are found wherever they lie, with labels that mean classes; what cannot be opened is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from pictures_on_disk import CLASSES, MAKERS, make_folder, make_parquet, make_tar, numbers, picture
from PIL import Image
from pyarrow import parquet

from whitebox_crate.errors import InputError, UnknownNameError, WhiteboxCrateError
from whitebox_crate.images import load_image
from whitebox_crate.preprocess import create_transform
from whitebox_crate.training.datasets import ImageDataset, StreamedImageDataset, open_images

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module", params=MAKERS)
def twelve(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures in three classes, in turn."""
    root: Path = MAKERS[request.param](tmp_path_factory.mktemp("data") / request.param)
    return root


def test_files_of_formats_that_are_not_read_are_passed_over(tmp_path: Path) -> None:
    make_folder(tmp_path)
    for name in ("drawing.eps", "layers.psd"):  # Pillow opens these
        (tmp_path / "ant" / name).write_bytes(b"8BPS")
    assert len(open_images(tmp_path)) == 12  # type: ignore[arg-type]


def test_the_suffix_of_a_file_may_be_in_capitals(tmp_path: Path) -> None:
    [file] = make_parquet(tmp_path / "data", shards=(12,)).glob("*.parquet")
    assert len(open_images(file.rename(tmp_path / "ALL.PARQUET"))) == 12  # type: ignore[arg-type]


@pytest.mark.parametrize("streaming", [False, True])
def test_every_kind_of_data_gives_all_pictures_with_their_labels(twelve: Path, streaming: bool) -> None:
    images = open_images(twelve, streaming=streaming, size=4, label_names=CLASSES if streaming else None)
    assert isinstance(images, StreamedImageDataset if streaming else ImageDataset)
    assert images.class_names == (tuple("012") if twelve.name == "tar" and not streaming else CLASSES)
    shares = [[*images.in_order(5, rank=rank, world=4)] for rank in range(4)]
    batches = list(images.in_order(5))
    for number, batch in enumerate(batches):  # some process may have none
        assert torch.equal(shares[number % 4][number // 4].images, batch.images)
    assert sum(map(len, shares)) == len(batches)
    assert [len(batch.images) for batch in batches] == [5, 5, 2]
    found = {n: int(label) for batch in batches for n, label in zip(numbers(batch), batch.labels, strict=True)}
    assert found == {number: number % 3 for number in range(12)}


def test_a_folder_of_one_split_is_read_apart(tmp_path: Path) -> None:
    make_folder(tmp_path / "train")
    make_folder(tmp_path / "val", count=6)
    assert len(open_images(tmp_path)) == 12
    assert len(open_images(str(tmp_path), split="val")) == 6
    with pytest.raises(UnknownNameError, match="unknown split 'vla'; did you mean 'val'"):
        open_images(tmp_path, split="vla")


def test_a_class_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    for path in make_folder(tmp_path).glob("*/deeper/*"):
        path.rename(path.parents[1] / path.name)
    for folder in tmp_path.glob("*/deeper"):
        folder.rmdir()
    (tmp_path / "ant").rename(tmp_path / "train")
    assert open_images(tmp_path).class_names == ("bee", "cow", "train")


@pytest.mark.parametrize("layout", ["{split}/{shard}.parquet", "birds_{split}-{shard}.parquet"])
def test_shards_are_of_the_split_that_their_paths_name(tmp_path: Path, layout: str) -> None:
    for split, count in (("train", 9), ("validation", 3)):
        for shard in make_parquet(tmp_path / split, shards=(count,)).glob("*"):
            target = tmp_path / "data" / layout.format(split=split, shard=shard.stem)
            target.parent.mkdir(parents=True, exist_ok=True)
            shard.rename(target)
    (tmp_path / "data" / "README.md").write_text("about training")
    assert len(open_images(tmp_path / "data")) == 9
    assert len(open_images(tmp_path / "data", split="validation")) == 3
    with pytest.raises(UnknownNameError, match="unknown split 'test'; known: 'train', 'validation'"):
        open_images(tmp_path / "data", split="test")


def test_labels_of_a_folder_may_be_in_a_table(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    (tmp_path / "metadata.csv").write_text("file_name,label\n0.png,bee\n1.png,ant\n2.png,bee\n")
    images = open_images(tmp_path, size=2)
    [batch] = images.in_order(3)
    assert images.class_names == ("ant", "bee")
    assert sorted(zip(numbers(batch), batch.labels.tolist(), strict=True)) == [(0, 1), (1, 0), (2, 1)]


def test_files_of_a_pattern_are_the_split_that_is_asked_for(tmp_path: Path) -> None:
    root = make_parquet(tmp_path / "data")
    assert len(open_images(root / "[01].parquet", split="validation")) == 9
    assert len(open_images(make_tar(tmp_path / "tar") / "*.tar")) == 12


def test_formats_modes_and_orientation_are_those_of_load_image(tmp_path: Path) -> None:
    """Pictures to measure on are, to the bit, what the evaluation's transform makes of them."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, options in {"a.jpg": {"exif": exif}, "b.png": {}, "c.webp": {}, "d.gif": {}}.items():
        noise.save(tmp_path / name, **options)
    for mode, name in {"L": "e.jpg", "CMYK": "f.jpeg", "P": "g.png", "RGBA": "h.png", "LA": "i.tiff"}.items():
        noise.convert(mode).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture, and not called one")
    [batch] = open_images(tmp_path, labelled=False).in_order(20, size=24)
    plain = create_transform(24, mean=(0, 0, 0), std=(1, 1, 1))
    expected = [plain(load_image(path)) for path in sorted(tmp_path.iterdir()) if path.suffix != ".txt"]
    assert torch.equal(batch.images, torch.stack(expected))
    assert batch.skipped == 0 and batch.labels.tolist() == [0] * 9


# Labels and columns.


@pytest.mark.parametrize(
    ("labels", "names", "says"),
    [
        ([0, 1, 5], None, "labels go up to 5, but no image has the label 2"),
        ([1, 2, 3], None, "no image has the label 0"),
        ([0, 1, -1], None, "image 2 has the label -1, which is none of the 2 classes '0', '1'"),
        ([0, 1, None], None, "image 2 has no label"),
        ([0, 1, 2], ["a", "b"], "image 2 has the label 2, which is none of the 2 classes 'a', 'b'"),
        (["a", "b", "c"], ["a", "b"], "image 2 has the label 'c'"),
        ([0, 0, 0], None, "only one class"),
        (["a"], None, "only one class, 'a'"),
        ([0.5, 1.5], None, "column 'label' holds float64|holds double"),
        (["a", "b"], ["a", "b", "b"], "'b' more than once"),
    ],
)
def test_labels_that_mean_no_class_are_refused(tmp_path: Path, labels: Any, names: Any, says: str) -> None:
    root = make_parquet(tmp_path / "data", labels=labels)
    with pytest.raises(InputError, match=says):
        open_images(root, label_names=names)


def test_names_of_labels_are_kept_and_may_be_put_in_another_order(tmp_path: Path) -> None:
    root = tmp_path / "data"
    make_parquet(root, labels=[2, 0, 1])
    features = datasets.Features(
        {"id": datasets.Value("int64"), "image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y", "z"])}
    )
    table = datasets.load_dataset("parquet", data_files=str(root / "*"), split="train").cast(features)
    table.to_parquet(root / "0.parquet")
    for path in (root / "1.parquet", root / "2.parquet"):
        path.unlink()
    for streaming in (False, True):
        images = open_images(root, streaming=streaming)
        assert images.class_names == ("x", "y", "z")
        assert next(images.in_order(3)).labels.tolist() == [2, 0, 1]
        turned = open_images(root, streaming=streaming, label_names=["z", "y", "x", "w"][: 3 + streaming])
        assert next(turned.in_order(3)).labels.tolist() == [0, 2, 1]


def test_an_empty_class_is_refused_unless_it_is_asked_for(tmp_path: Path) -> None:
    make_folder(tmp_path).joinpath("dog").mkdir()
    with pytest.raises(InputError, match=r"no image has the class 'dog'.*folder.*label_names"):
        open_images(tmp_path)
    with pytest.warns(UserWarning, match="no image has the class 'dog'"):
        assert open_images(tmp_path, label_names=[*CLASSES, "dog"]).class_names[-1] == "dog"


def test_streamed_labels_need_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give label_names"):
        open_images(make_parquet(tmp_path / "data"), streaming=True)


def test_columns_are_found_by_type_or_name_or_given(tmp_path: Path) -> None:
    root = make_parquet(tmp_path / "data")
    table = parquet.read_table(root / "0.parquet").rename_columns(["id", "scan", "what"])
    (tmp_path / "named").mkdir()
    parquet.write_table(table, tmp_path / "named" / "0.parquet")
    named = tmp_path / "named"
    with pytest.raises(InputError, match="column of images among 'id', 'scan', 'what'; give image_column"):
        open_images(named)
    with pytest.raises(InputError, match="give label_column"):
        open_images(named, image_column="scan")
    with pytest.raises(UnknownNameError, match="unknown label_column 'wat'; did you mean 'what'"):
        open_images(named, image_column="scan", label_column="wat")
    with pytest.raises(InputError, match="'scan' holds"):
        open_images(named, image_column="scan", label_column="scan")
    assert open_images(named, image_column="scan", label_column="what").class_names == CLASSES


# What is not there.


@pytest.mark.parametrize(
    ("where", "options", "says"),
    [
        ("missing/folder/of", {}, "is not a folder"),
        ("gone*.parquet", {}, "matches no file"),
        ("data/0.parquet.txt", {}, "is not a folder"),
        ("empty", {}, "has no picture, .parquet or .tar"),
        ("photos/ant/deeper", {}, "no pictures in sub-folders"),
        ("data", {"split": "val"}, "unknown split 'val'; known: 'train'"),
        ("data", {"split": "val", "streaming": True}, "unknown split 'val'; known: 'train'"),
        ("data", {"revision": "main"}, "is no name on the Hub"),
        ("data", {"size": 0}, "size is 0"),
        ("data", {"crop": "middle"}, "unknown crop 'middle'"),
        ("broken", {}, "cannot be opened"),
    ],
)
def test_what_cannot_be_opened_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, options: dict[str, Any], says: str
) -> None:
    make_parquet(tmp_path / "data", shards=(3,))
    make_folder(tmp_path / "photos", count=3)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "0.parquet").write_text("text")
    (tmp_path / "data" / "0.parquet.txt").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WhiteboxCrateError, match=says):
        open_images(where, **options)


def test_a_name_is_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    local = datasets.load_dataset("parquet", data_dir=str(make_parquet(tmp_path / "data")), split="train")
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **options: asked.update(path=path, **options) or local)
    assert len(open_images("owner/insects", subset="small", revision="v2", split="test")) == 12
    assert asked == {"path": "owner/insects", "name": "small", "revision": "v2", "split": "test", "streaming": False}


def test_what_the_hub_does_not_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"'owner/nothing' cannot be opened.*looked for on the Hub"):
        open_images("owner/nothing")
