"""Tables of measurements show what was measured, and what could not be."""

from __future__ import annotations

import random

from benchmarks.precision import table
from benchmarks.speed_tables import ratios, with_interval


def test_a_run_that_a_device_cannot_do_is_shown() -> None:
    refused = {"dtype": "fp16", "way": "cast", "model": "folded", "error": "RuntimeError: not for 'Half'"}
    assert "RuntimeError: not for 'Half'" in table({"runs": [refused]})


def rounds(times: list[float]) -> dict[str, list[dict[str, float]]]:
    return {"seconds": [{"slow": time, "fast": 1.0} for time in times]}


def test_the_interval_of_nine_rounds_leaves_out_one_on_each_side() -> None:
    case = rounds([5.0, 1.0, 2.0, 9.0, 3.0, 4.0, 6.0, 8.0, 7.0])
    assert with_interval(case, "slow", "fast") == "5.00 (2.00 to 8.00)"
    assert with_interval(rounds([3.0, 1.0, 2.0]), "slow", "fast") == "2.00"  # too few for an interval
    assert with_interval(case, "slow", "unknown") == ""


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    draw, held = random.Random(0), 0
    for _ in range(2000):
        case = rounds([draw.expovariate(1) for _ in range(9)])  # whose median is ln 2
        low, high = with_interval(case, "slow", "fast").rpartition("(")[2].rstrip(")").split(" to ")
        held += float(low) <= 0.693 <= float(high)
        assert len(ratios(case, "slow", "fast")) == 9
    assert 0.94 < held / 2000 < 0.98
