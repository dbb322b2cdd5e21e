"""Each picture once per epoch, however batches are shared out and runs are stopped; damaged ones are counted."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures_on_disk import CLASSES, MAKERS, make_folder, make_parquet, make_tar, noise, numbers
from PIL import Image
from pyarrow import parquet

from whitebox_crate.errors import InputError
from whitebox_crate.training import Batch, Recipe
from whitebox_crate.training.batches import Share, batches_of
from whitebox_crate.training.datasets import ImageDataset, StreamedImageDataset, open_images

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


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
    with pytest.warns(UserWarning, match=r"left out: .*001\.png.*cut short|left out: .*004\.png.*not an image"):
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
            with pytest.raises(
                InputError, match=r"none of 4 pictures can be decoded; the first: .*png .* not an image"
            ):
                images.draw(4, seed=0, step=step)
    assert len(warned) == 5 and "further ones are only counted" in str(warned[-1].message)
    with pytest.raises(InputError, match="none of 12 pictures"):
        list(images.in_order(5))


def test_a_batch_of_more_images_than_there_are_is_refused(drawn: ImageDataset) -> None:
    with pytest.raises(InputError, match="a batch needs 13 images, but there are 12"):
        drawn.draw(13, seed=0, step=0)
    for wrong in ({"batch_size": 0}, {"batch_size": 2, "size": 0}):
        with pytest.raises(InputError, match="is 0; expected at least 1"):
            drawn.draw(**wrong, seed=0, step=0)


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
    with pytest.warns(UserWarning, match="3 shards are not a multiple of 2"):
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
    with pytest.raises(InputError, match="fewer images than a batch of 7"):
        take(images, recipe(14), range(1), 0, rank=0, world=2)


@pytest.mark.parametrize("bad", [3, -1, None])
def test_a_streamed_label_out_of_range_is_refused(tmp_path: Path, bad: int | None) -> None:
    images = streamed(make_parquet(tmp_path / "data", labels=[0, 1, bad]))
    with pytest.raises(InputError, match=f"image 2 of the stream has the label {bad}, .* 3 classes .*0 to 2"):
        list(images.in_order(12))
    with pytest.raises(InputError, match=rf"^image \d+ of the stream has the label {bad}, "):  # no traceback before it
        take(images, recipe(12), range(1), workers=1)
