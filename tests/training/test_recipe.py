"""The numbers of a recipe at each step, and those that mean nothing."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whitebox_crate.errors import InputError, UnknownNameError
from whitebox_crate.training import Recipe


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, InputError, "at least 1"),
        ({"batch_size": 0}, InputError, "at least 1"),
        ({"sizes": (0,), "size_starts": (0.0,)}, InputError, "at least 1"),
        ({"epochs": math.nan}, InputError, "epochs must be finite and at least 0, not nan"),
        ({"optimizer": "lion", "learning_rate": 0.0}, InputError, "lion needs a learning_rate above 0"),
        ({"learning_rate": -1e-3}, InputError, "learning_rate must be finite and at least 0"),
        ({"weight_decay": math.inf}, InputError, "weight_decay must be finite"),
        ({"warmup": 3}, InputError, "warmup must be from 0 to 1, not 3"),
        ({"label_smoothing": -0.1}, InputError, "label_smoothing must be from 0 to 1"),
        ({"clip_norm": 0}, InputError, "must be above 0"),
        ({"sizes": ()}, InputError, "needs a start"),
        ({"sizes": (12, 18)}, InputError, "needs a start"),
        ({"size_starts": (0.5,)}, InputError, "the starts begin at 0"),
        ({"sizes": (12, 18, 24), "size_starts": (0.0, 0.6, 0.3)}, InputError, "the starts begin at 0"),
        ({"precision": "bf61"}, UnknownNameError, "did you mean 'bf16'"),
    ],
    ids=str,
)
def test_numbers_that_mean_nothing(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Recipe(**options)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    starts = sorted(draw(st.lists(st.floats(0.01, 0.99), max_size=3)))
    return Recipe(
        steps=draw(st.integers(1, 300)),
        learning_rate=draw(st.floats(1e-6, 1.0)),
        warmup=draw(st.floats(0.0, 1.0)),
        curriculum=draw(st.floats(0.0, 1.0)),
        sizes=tuple(range(6, 6 * (len(starts) + 2), 6)),
        size_starts=(0.0, *starts),
    )


@given(recipes())
def test_the_learning_rate_rises_and_falls(recipe: Recipe) -> None:
    rates = [recipe.learning_rate_at(step) for step in range(recipe.steps)]
    peak = rates.index(max(rates))
    assert all(0 <= rate <= recipe.learning_rate * (1 + 1e-12) for rate in rates)
    assert rates[0] > 0
    assert all(a < b for a, b in pairwise(rates[: peak + 1]))
    assert all(a >= b for a, b in pairwise(rates[peak:]))
    warm = max(1, math.floor(recipe.warmup * recipe.steps + 1e-9))  # steps that end within the warm-up
    assert peak in (warm - 1, warm)
    for step in range(warm):  # a line through zero
        assert rates[step] == pytest.approx(rates[0] * (step + 1))
    if warm < recipe.steps - 1:
        assert rates[-1] == pytest.approx(0, abs=1e-9 * recipe.learning_rate)


def test_the_learning_rate_by_hand() -> None:
    recipe = Recipe(steps=100, learning_rate=2.0, warmup=0.2)
    for step, rate in ((0, 0.1), (9, 1.0), (19, 2.0), (39, 1 + math.cos(math.pi / 4)), (59, 1.0), (99, 0.0)):
        assert recipe.learning_rate_at(step) == pytest.approx(rate, abs=1e-12)


@given(recipes())
def test_the_difficulty_rises_to_one(recipe: Recipe) -> None:
    levels = [recipe.difficulty_at(step) for step in range(recipe.steps)]
    assert levels[0] == 0
    assert all(a <= b <= 1 for a, b in pairwise(levels))
    for step, level in enumerate(levels):
        if step >= max(1, recipe.curriculum * recipe.steps):
            assert level == 1
        else:
            assert level == pytest.approx(step / max(1, recipe.curriculum * recipe.steps)) and level < 1


@given(recipes())
def test_each_size_begins_where_it_should(recipe: Recipe) -> None:
    sizes = [recipe.size_at(step) for step in range(recipe.steps)]
    assert sizes[0] == recipe.sizes[0]
    assert sizes == sorted(sizes)
    for size, start in zip(recipe.sizes, recipe.size_starts, strict=True):
        for step in range(recipe.steps):
            assert (sizes[step] >= size) == (step >= start * recipe.steps)
