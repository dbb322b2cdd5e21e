"""Forecast: says how many patches a large photograph has and how long it will take; then reports each layer."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from .._hooks import Hook, hooks_here
from ..backbones import Readable
from ..preprocess import grid_for

if TYPE_CHECKING:
    from PIL.Image import Image

MANY = 4096  # patches: a forecast is made from here on
TRIALS = (400, 1600)  # patches of the two small runs that are timed
SAY_EVERY = 10.0  # seconds


class Forecast:
    """Forecasts the time that one model needs for photographs with many patches.

    The time of attention grows with the square of the number of patches, all other time with the number. Two small
    runs measure both factors.

    Args:
        model: The model.
        run: Runs it on a photograph at a shorter side, pixels.
    """

    def __init__(self, model: Readable, run: Callable[[Image, int], object]) -> None:
        self._model, self._run = model, run
        self._factors: tuple[float, float] | None = None
        self._measuring = threading.Lock()

    @contextmanager
    def of(self, photo: Image, name: str, size: int) -> Iterator[None]:
        """Says how long a large photograph will take. Inside the block, says how far the model has come."""
        rows, columns = self._grid(photo, size)
        if rows * columns < MANY:
            yield
            return
        with self._measuring:  # one thread measures for all
            if self._factors is None:
                self._factors = self._timed(photo, size / math.sqrt(rows * columns))
        seconds = sum(factor * (rows * columns) ** power for power, factor in enumerate(self._factors, start=1))
        about = timedelta(seconds=math.ceil(seconds))
        _say(f"{name}: {rows} x {columns} = {rows * columns:,} patches, about {about}")
        with hooks_here(_progress(self._model, name)):
            yield

    def _timed(self, photo: Image, side_by_patch: float) -> tuple[float, float]:
        """Seconds per patch, and per pair of patches."""
        sides = [max(1, round(side_by_patch * math.sqrt(patches))) for patches in TRIALS]
        self._run(photo, sides[0])  # the first run is slower than any other
        took = []
        for side in sides:
            started = time.perf_counter()
            self._run(photo, side)
            took.append(time.perf_counter() - started)
        small, large = ((rows * columns) for rows, columns in (self._grid(photo, side) for side in sides))
        by_square = max(0.0, (took[1] - took[0] * large / small) / (large**2 - small * large))
        return max(0.0, took[1] / large - by_square * large), by_square

    def _grid(self, photo: Image, side: int) -> tuple[int, int]:
        return grid_for(photo, self._model.patch_size, side, square=self._model.square_images)


def _progress(model: Readable, name: str) -> list[Hook]:
    """Hooks that say which layer of the photograph `name` is done, every few seconds at most."""
    started = said = time.monotonic()

    def say(layer: int, *_: object) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= SAY_EVERY:
            said = now
            took = timedelta(seconds=round(now - started))
            _say(f"  {name}: layer {layer + 1} of {len(model.layers())} after {took}")

    return [Hook(block, "after", partial(say, layer)) for layer, block in enumerate(model.layers())]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
