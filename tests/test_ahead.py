"""Work that threads do ahead: what one by one gives, at any number of threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image
from small_models import FAMILIES, small_model
from torch import Tensor

from whitebox_crate import segment
from whitebox_crate._ahead import AHEAD, in_order
from whitebox_crate.errors import InputError
from whitebox_crate.segmentation import METHODS


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    def slow_at_first(item: int) -> int:
        time.sleep(0.02 / (1 + item))
        return item * item

    assert list(in_order(slow_at_first, range(20), workers)) == [item * item for item in range(20)]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_in_its_turn_and_the_next_item_follows(workers: int) -> None:
    found = in_order(lambda item: 6 // item, [1, 2, 0, 3], workers)
    assert [next(found), next(found)] == [6, 3]
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert list(found) == [2]


def test_items_are_read_as_they_are_needed() -> None:
    """Any number of photographs fits into memory."""
    read = 0

    def endless() -> Iterator[int]:
        nonlocal read
        while True:
            read += 1
            yield read

    found = in_order(lambda item: item, endless(), 2)
    assert [next(found) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert read <= 5 + AHEAD * 2


def test_several_are_worked_at_at_once() -> None:
    together = threading.Barrier(3, timeout=20)  # breaks unless three threads wait at it
    assert sorted(in_order(lambda item: together.wait(), range(3), 3)) == [0, 1, 2]


def test_who_asks_no_more_leaves_no_work_behind() -> None:
    done: list[int] = []

    def slow(item: int) -> None:
        time.sleep(0.01)
        done.append(item)

    found = in_order(slow, range(100), 2)
    next(found)
    del found
    count = len(done)
    time.sleep(0.1)
    assert len(done) == count <= 1 + AHEAD * 2


def test_the_workers_share_the_threads_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(4)
    try:
        assert set(in_order(lambda item: torch.get_num_threads(), range(8), 2)) == {2}
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(1)


@pytest.mark.usefixtures("own_threads")
def test_the_results_are_to_the_bit_those_of_one_with_the_threads_that_each_has() -> None:
    model = small_model(FAMILIES["crate"], dynamic_img_size=True)
    photos = [Image.effect_noise((50 + 9 * number, 60), 60).convert("RGB") for number in range(6)]

    def found(method: str, workers: int, threads: int) -> list[tuple[Tensor, Tensor]]:
        torch.set_num_threads(threads)
        results = in_order(lambda photo: segment(photo, model, method), photos, workers)
        return [(one.maps, one.scores) for one in results]

    for method in METHODS:
        for one, other in zip(found(method, 1, 1), found(method, 2, 2), strict=True):
            assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("workers", [0, -1, 1.5, "2", None])
def test_no_number_of_workers_is_refused_at_once(workers: Any) -> None:
    with pytest.raises(InputError, match=f"workers must be a whole number, at least 1, not {workers!r}"):
        in_order(str, [1], workers)
