"""Labelled pictures, drawn or streamed: each once per epoch, the same again after a stop, and never silently fewer."""

from __future__ import annotations

import io
import itertools
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from whitebox_crate.errors import InputError, UnknownNameError, WhiteboxCrateError
from whitebox_crate.images import load_image
from whitebox_crate.preprocess import create_transform
from whitebox_crate.training import Batch, Recipe
from whitebox_crate.training.batches import Share, batches_of
from whitebox_crate.training.datasets import ImageDataset, StreamedImageDataset, open_images

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

datasets.disable_progress_bars()
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
CLASSES = ("ant", "bee", "cow")


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def picture(number: int) -> bytes:
    """A plain picture that tells its number (below 256) by its colour, and its class by its number."""
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (number, number, number)).save(file, "PNG")
    return file.getvalue()


def numbers(batch: Batch) -> list[int]:
    assert torch.equal(batch.images.amin((1, 2, 3)), batch.images.amax((1, 2, 3)))
    return [round(255 * float(image.mean())) for image in batch.images]


def make_folder(root: Path, count: int = 12) -> Path:
    for number in range(count):
        path = root / CLASSES[number % 3] / "deeper" / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return root


def noise(number: int) -> bytes:
    """A picture of which every part, and the mirror image, looks different."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def make_parquet(
    root: Path,
    shards: Iterable[int] = (5, 4, 3),
    labels: Any = CLASSES,
    drawn: Callable[[int], bytes] = picture,
) -> Path:
    root.mkdir(parents=True)
    number = itertools.count()
    for shard, count in enumerate(shards):
        rows = [next(number) for _ in range(count)]
        columns = {
            "id": rows,
            "image": [{"bytes": drawn(row), "path": None} for row in rows],
            "label": [labels[row % len(labels)] for row in rows],
        }
        parquet.write_table(pa.table(columns), root / f"{shard}.parquet")
    return root


def make_tar(root: Path, shards: Iterable[int] = (5, 4, 3)) -> Path:
    root.mkdir(parents=True)
    number = itertools.count()
    for shard, count in enumerate(shards):
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for row in itertools.islice(number, count):
                for name, content in ((f"{row:03}.png", picture(row)), (f"{row:03}.cls", b"%d" % (row % 3))):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return root


MAKERS = {"folder": make_folder, "parquet": make_parquet, "tar": make_tar}


@pytest.fixture(scope="module", params=MAKERS)
def twelve(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures in three classes, in turn."""
    root: Path = MAKERS[request.param](tmp_path_factory.mktemp("data") / request.param)
    return root


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
    with pytest.raises(UnknownNameError, match="unknown split 'valid'; did you mean 'val'"):
        open_images(tmp_path, split="valid")


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
    with pytest.raises(UnknownNameError, match="unknown split 'val'; known: 'train', 'validation'"):
        open_images(tmp_path / "data", split="val")


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


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    images = open_images(make_folder(tmp_path_factory.mktemp("drawn")), size=2)
    assert isinstance(images, ImageDataset)
    return images


@given(batch_size=st.integers(1, 12), seed=st.integers(-3, 2**40), epochs=st.integers(1, 3))
def test_each_picture_is_drawn_once_per_epoch(drawn: ImageDataset, batch_size: int, seed: int, epochs: int) -> None:
    steps = -(-12 * epochs // batch_size)
    seen = [n for step in range(steps) for n in numbers(drawn.draw(batch_size, seed=seed, step=step))]
    for epoch in range(epochs):
        assert sorted(seen[12 * epoch : 12 * (epoch + 1)]) == list(range(12))
    assert epochs == 1 or seen[:12] != seen[12:24]


@given(parts=st.sampled_from([2, 3, 6]), step=st.integers(0, 40))
def test_what_a_step_sees_does_not_depend_on_how_it_is_shared(drawn: ImageDataset, parts: int, step: int) -> None:
    whole = numbers(drawn.draw(6, seed=1, step=step))
    shared = [drawn.draw(6 // parts, seed=1, step=step * parts + part) for part in range(parts)]
    assert [n for part in shared for n in numbers(part)] == whole


def test_augmentation_depends_on_seed_epoch_and_picture_alone(tmp_path: Path) -> None:
    for index in range(8):
        noise = np.random.default_rng(index).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        (tmp_path / "ab"[index % 2]).mkdir(exist_ok=True)
        Image.fromarray(noise).save(tmp_path / "ab"[index % 2] / f"{index}.png")
    images = open_images(tmp_path, crop="random", flip=True, size=8)
    assert isinstance(images, ImageDataset)
    whole = images.draw(8, seed=3, step=1)
    parts = [images.draw(2, seed=3, step=step) for step in (7, 6, 5, 4)]
    assert torch.equal(whole.images, torch.cat([part.images for part in reversed(parts)]))
    others = torch.cat([images.draw(8, seed=3, step=2).images, images.draw(8, seed=4, step=1).images])
    assert not (whole.images[:, None] == others).flatten(2).all(2).any()
    flips = [open_images(tmp_path, flip=flip, size=8).draw(8, seed=0, step=0).images for flip in (False, True)]  # type: ignore[union-attr]
    same, turned = ((flips[1] == other).flatten(1).all(1) for other in (flips[0], flips[0].flip(-1)))
    assert (same | turned).all() and same.any() and turned.any()


def damage(root: Path) -> list[int]:
    """One picture cut short, one that is text, one that is gone after it was found."""
    paths = sorted(root.rglob("*.png"), key=lambda path: path.name)
    paths[1].write_bytes(paths[1].read_bytes()[:50])
    paths[4].write_text("text")
    return [1, 4]


def test_the_places_of_damaged_pictures_are_taken_by_others_and_counted(tmp_path: Path) -> None:
    lost = damage(make_folder(tmp_path))
    images = open_images(tmp_path, size=2)
    assert isinstance(images, ImageDataset)
    whole = open_images(make_folder(tmp_path / "whole"), size=2)
    assert isinstance(whole, ImageDataset)
    with pytest.warns(UserWarning, match=r"left out: .*001\.png.*cut short|left out: .*004\.png.*no image"):
        batch = images.draw(12, seed=0, step=0)
    order = numbers(whole.draw(12, seed=0, step=0))
    good = [number for number in order if number not in lost]
    instead = iter(good)
    assert numbers(batch) == [next(instead) if number in lost else number for number in order]
    assert batch.labels.tolist() == [number % 3 for number in numbers(batch)]
    assert batch.skipped == 2


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.filterwarnings("ignore:left out")
def test_to_measure_damaged_pictures_are_missing_and_counted(tmp_path: Path, streaming: bool) -> None:
    lost = [*damage(make_folder(tmp_path)), 11]  # the last one too
    next(tmp_path.rglob("*011.png")).write_text("text")
    batches = list(open_images(tmp_path, size=2, streaming=streaming).in_order(1))
    assert sorted(n for batch in batches for n in numbers(batch)) == [n for n in range(12) if n not in lost]
    assert sum(batch.skipped for batch in batches) == 3


@pytest.mark.filterwarnings("ignore:left out")
def test_only_the_first_damaged_pictures_are_named_and_a_batch_of_them_is_an_error(tmp_path: Path) -> None:
    for path in make_folder(tmp_path).rglob("*.png"):
        path.write_text("text")
    images = open_images(tmp_path)
    assert isinstance(images, ImageDataset)
    with pytest.warns(UserWarning, match="left out") as warned:
        for step in range(3):
            with pytest.raises(InputError, match=r"none of 4 pictures can be decoded; the first: .*png .* no image"):
                images.draw(4, seed=0, step=step)
    assert len(warned) == 5 and "further ones are only counted" in str(warned[-1].message)
    with pytest.raises(InputError, match="none of 12 pictures"):
        list(images.in_order(5))


# Streams. A run of one part per step, unless it says otherwise.


def recipe(batch_size: int, accumulation: int = 1, seed: int = 0) -> Recipe:
    return Recipe(
        steps=999, batch_size=batch_size, accumulation=accumulation, sizes=(2, 4), size_starts=(0, 0.004), seed=seed
    )


def streamed(root: Path, **options: Any) -> StreamedImageDataset:
    images = open_images(root, streaming=True, size=2, label_names=CLASSES, **options)
    assert isinstance(images, StreamedImageDataset)
    return images


def take(
    images: StreamedImageDataset, plan: Recipe, steps: range, workers: int, rank: int = 0, world: int = 1
) -> list[Batch]:
    """What one process gets, from a DataLoader with workers as a training has it."""
    batches = batches_of(images, plan, Share(steps.start, steps.stop, rank, world), workers)
    return list(itertools.islice(batches, len(steps) * plan.accumulation))


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize(
    ("workers", "accumulation", "starts", "known"),
    [
        *((0, 2, (1, 3, 6), None), (0, 2, (1, 3, 6), 26), (1, 2, (3,), None)),
        *((2, 1, (3, 6), 26), (2, 1, (5,), None), (3, 2, (2,), None), (3, 2, (4,), 26)),
    ],
)
def test_a_stream_goes_on_as_if_it_had_never_stopped(
    tmp_path: Path, workers: int, accumulation: int, starts: tuple[int, ...], known: int | None
) -> None:
    """Over the ends of epochs, from shards that are not equal, for the second of two processes."""
    root = make_parquet(tmp_path / "data", shards=(5, 4, 3, 4, 5, 5), drawn=noise)
    images = streamed(root, images=known, buffer=3, crop="random", flip=True)
    plan = recipe(4 * accumulation, accumulation)
    whole = take(images, plan, range(8), workers, rank=1, world=2)
    sizes = [2 if part < 4 * accumulation else 4 for part in range(8 * accumulation)]
    assert [batch.images.shape[-1] for batch in whole] == sizes
    for start in starts:
        later = take(images, plan, range(start, 8), workers, rank=1, world=2)
        assert same(later, whole[start * accumulation :])


def test_shards_that_each_worker_reads_whole_are_told(tmp_path: Path) -> None:
    images = streamed(make_parquet(tmp_path / "data", shards=(4, 4, 4)))
    with pytest.warns(UserWarning, match="3 shards are no multiple of 2"):
        take(images, recipe(2), range(1), workers=0, world=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take(images, recipe(3), range(1), workers=0, world=3)
        take(images, recipe(2), range(1), workers=0, rank=1, world=2)  # once is enough


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 3), (2, 2), (3, 1)])
def test_processes_and_workers_share_an_epoch(tmp_path: Path, kind: str, world: int, workers: int) -> None:
    """Twelve shares of one picture, six of two: all seen once, none twice, and in another order in the next epoch."""
    root = MAKERS[kind](tmp_path / kind, **({"count": 12} if kind == "folder" else {"shards": [2] * 6}))
    images, plan = streamed(root, buffer=4), recipe(world)
    steps = range(2 * 12 // world)
    seen = [[n for b in take(images, plan, steps, workers, rank, world) for n in numbers(b)] for rank in range(world)]
    for epoch in range(2):
        half = slice(epoch * 12 // world, (epoch + 1) * 12 // world)
        assert sorted(n for share in seen for n in share[half]) == list(range(12))
    assert any(share[: 12 // world] != share[12 // world :] for share in seen)
    assert any(share[: 12 // world] != sorted(share[: 12 // world]) for share in seen)


def test_fewer_shards_than_processes_are_shared_too(tmp_path: Path) -> None:
    images = streamed(make_tar(tmp_path / "tar", shards=(7, 5)))
    seen = [n for rank in range(3) for b in take(images, recipe(6), range(2), 0, rank, 3) for n in numbers(b)]
    assert sorted(seen) == list(range(12))


def test_the_end_of_an_epoch_leaves_out_what_fills_no_batch(tmp_path: Path) -> None:
    images = streamed(make_parquet(tmp_path / "data", shards=(7, 6)))
    first, second = (
        Counter(n for b in part for n in numbers(b)) for part in _halves(take(images, recipe(5), range(4), 0))
    )
    assert max(first.values()) == max(second.values()) == 1
    assert len(first) == len(second) == 10 and first != second


def _halves(batches: list[Batch]) -> tuple[list[Batch], list[Batch]]:
    return batches[: len(batches) // 2], batches[len(batches) // 2 :]


def test_where_the_number_is_known_a_smaller_share_begins_again_within_the_epoch(tmp_path: Path) -> None:
    images = streamed(make_parquet(tmp_path / "data", shards=(9, 3)), images=12)
    plan = recipe(4)
    seen = [[n for b in take(images, plan, range(3), 0, rank, 2) for n in numbers(b)] for rank in range(2)]
    small, large = sorted(seen, key=lambda share: len(set(share)))
    assert set(small) < {9, 10, 11} and set(Counter(small).values()) == {3}
    assert set(large) < set(range(9)) and set(Counter(large).values()) == {1}


def test_a_stream_that_goes_on_decodes_nothing_that_was_seen(tmp_path: Path) -> None:
    """All but the last three are damaged; whoever decoded them would say so."""
    root = make_parquet(tmp_path / "data", shards=(12,))
    images, plan = streamed(root, buffer=1), recipe(3)
    last = numbers(take(images, plan, range(4), 0)[-1])
    table = parquet.read_table(root / "0.parquet").to_pydict()
    for number in set(range(12)) - set(last):
        table["image"][number]["bytes"] = b"damaged"
    parquet.write_table(pa.table(table), root / "0.parquet")
    [batch] = take(streamed(root, buffer=1), plan, range(3, 4), 0)
    assert numbers(batch) == last and batch.skipped == 0


@pytest.mark.parametrize("known", [None, 12])
def test_a_share_with_fewer_images_than_a_batch_is_refused(tmp_path: Path, known: int | None) -> None:
    images = streamed(make_parquet(tmp_path / "data"), images=known)
    with pytest.raises(InputError, match="fewer images than a batch, which has 7"):
        take(images, recipe(14), range(1), 0, rank=0, world=2)


@pytest.mark.parametrize("bad", [3, -1, None])
def test_a_streamed_label_out_of_range_is_refused(tmp_path: Path, bad: int | None) -> None:
    images = streamed(make_parquet(tmp_path / "data", labels=[0, 1, bad]))
    with pytest.raises(InputError, match=f"image 2 of the stream has the label {bad}, .* 3 classes .*0 to 2"):
        list(images.in_order(12))
    with pytest.raises(InputError, match=rf"^image \d+ of the stream has the label {bad}, "):  # no traceback before it
        take(images, recipe(12), range(1), workers=1)


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
        ("missing/folder/of", {}, "is no folder"),
        ("gone*.parquet", {}, "matches no file"),
        ("data/0.parquet.txt", {}, "is no folder"),
        ("empty", {}, "has no picture and no .parquet or .tar"),
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


def test_a_batch_of_more_images_than_there_are_is_refused(drawn: ImageDataset) -> None:
    with pytest.raises(InputError, match="a batch of 13 images needs as many; there are 12"):
        drawn.draw(13, seed=0, step=0)
    for wrong in ({"batch_size": 0}, {"batch_size": 2, "size": 0}):
        with pytest.raises(InputError, match="is 0; expected at least 1"):
            drawn.draw(**wrong, seed=0, step=0)


def test_a_name_is_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    local = datasets.load_dataset("parquet", data_dir=str(make_parquet(tmp_path / "data")), split="train")
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **options: asked.update(path=path, **options) or local)
    assert len(open_images("owner/insects", subset="small", revision="v2", split="test")) == 12
    assert asked == {"path": "owner/insects", "name": "small", "revision": "v2", "split": "test", "streaming": False}


def test_what_the_hub_does_not_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"'owner/nothing' cannot be opened.*looked for on the Hub"):
        open_images("owner/nothing")
