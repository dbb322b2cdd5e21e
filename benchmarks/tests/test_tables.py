"""Tables of measurements show what was measured, and what could not be."""

from __future__ import annotations

from benchmarks.precision import table


def test_a_run_that_a_device_cannot_do_is_shown() -> None:
    refused = {"dtype": "fp16", "way": "cast", "model": "folded", "error": "RuntimeError: not for 'Half'"}
    assert "RuntimeError: not for 'Half'" in table({"runs": [refused]})
