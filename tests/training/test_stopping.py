"""A run that is interrupted keeps its step and goes on as one that was not; the best weights outlive worse ones."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from small_training import Colours, content, make, records, same, short, weights

from whitebox_crate.errors import InputError, UnknownNameError, WeightsError
from whitebox_crate.models import ImageTransformer
from whitebox_crate.training import Batch, stopping, train
from whitebox_crate.training.best import best_of


class Interrupted(Colours):
    """Signals come while this step is drawn."""

    def __init__(self, at: int, *signals: int) -> None:
        super().__init__()
        self.at, self.signals = at, signals

    def draw(self, batch_size: int, *, step: int, **options: Any) -> Batch:  # type: ignore[override]
        for number in self.signals if step == self.at else ():
            os.kill(os.getpid(), number)
        return super().draw(batch_size, step=step, **options)


class Scripted:
    """Finds what a test wrote down."""

    every = 1

    def __init__(self, *found: dict[str, float]) -> None:
        self.found, self.states = list(found), list[dict[str, torch.Tensor]]()

    def measure(self, model: ImageTransformer) -> dict[str, float]:
        self.states.append(weights(model))
        return self.found[len(self.states) - 1]


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["SIGINT", "SIGTERM"]
)
def test_an_interrupted_run_keeps_its_step_and_goes_on(
    tmp_path: Path, number: int, error: type[BaseException], capfd: pytest.CaptureFixture[str]
) -> None:
    expected = train(make(), Colours(), short(), tmp_path / "whole", log_every=1)
    handler = signal.getsignal(number)
    with pytest.raises(error) as caught:
        train(make(), Interrupted(3, number, number), short(), tmp_path / "run", log_every=1)
    assert signal.getsignal(number) is handler
    assert number == signal.SIGINT or caught.value.code == 128 + number  # type: ignore[attr-defined]
    assert content(tmp_path / "run") == ["checkpoint-0000004", "metrics.jsonl"]
    assert "stopped after step 4" in capfd.readouterr().err
    source = Colours()
    again = train(make(seed=1), source, short(), tmp_path / "run", log_every=1)
    assert [drawn["step"] for drawn in source.drawn] == [4, 5, 6, 7, 8]
    assert same(weights(again), weights(expected)) and records(tmp_path / "run") == records(tmp_path / "whole")


def test_who_asks_twice_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "AGAIN", -1.0)
    source = Interrupted(3, signal.SIGINT, signal.SIGINT)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker of pytest-xdist ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            train(make(), source, short(), tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(source.drawn) == 3 and content(tmp_path) == []


def test_what_one_process_hears_all_know() -> None:
    class Two:
        num_processes, device, is_main_process = 2, "cpu", True
        others = 0

        def gather(self, mine: torch.Tensor) -> torch.Tensor:
            return torch.cat([mine, torch.tensor([self.others])])

    with stopping.StopRequest(Two()) as stop:
        assert stop.noted() == 0
        Two.others = signal.SIGTERM
        assert stop.noted() == signal.SIGTERM
        Two.others = 0
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.noted() == signal.SIGINT


def test_a_run_in_a_thread_is_as_any_other(tmp_path: Path) -> None:
    thread = threading.Thread(target=train, args=(make(), Colours(), short(), tmp_path))
    thread.start()
    thread.join()
    assert content(tmp_path) == ["checkpoint-0000009", "metrics.jsonl"]


@pytest.mark.parametrize(
    ("found", "best"),
    [
        ([{"top1": 0.5, "loss": 1.0}, {"top1": 0.7, "loss": 2.0}, {"top1": 0.6, "loss": 0.1}], 2),
        ([{"top1": 0.7, "loss": 2.0}, {"top1": 0.7, "loss": 1.0}, {"top1": 0.7, "loss": 1.0}], 2),
        ([{"mask_iou": 0.3}, {"mask_iou": 0.2}, {"mask_iou": 0.3}], 1),
        ([{"top1": 0.1, "mask_iou": 0.3}, {"top1": 0.2, "mask_iou": 0.2}, {"top1": 0.3, "mask_iou": 0.1}], 3),
    ],
)
def test_the_best_weights_are_those_that_validation_liked_most(
    tmp_path: Path, found: list[dict[str, float]], best: int
) -> None:
    validation = Scripted(*found, {name: 0.0 for name in found[0]})
    model = train(make(), Colours(), short(steps=4), tmp_path, validation=validation, keep="best")
    assert [same(weights(model), state) for state in validation.states].index(True) == best - 1
    with safe_open(tmp_path / "best.safetensors", "pt") as file:
        assert f'"best_step": {best}' in file.metadata()["found"]


def test_the_best_weights_of_a_run_in_parts_are_those_of_the_whole(tmp_path: Path) -> None:
    found = [{"top1": share} for share in (0.1, 0.9, 0.3, 0.5)]
    options: dict[str, Any] = {"keep": "best", "checkpoint_every": 1}
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "best.safetensors").write_bytes(b"of another run, which was killed early")
    whole = train(make(), Colours(), short(steps=4), tmp_path / "whole", validation=Scripted(*found), **options)
    for first, stop in ((0, 1), (1, 3), (3, None)):
        part = Scripted(*found[first:])
        again = train(make(), Colours(), short(steps=4), tmp_path / "parts", validation=part, stop_at=stop, **options)
        assert stop is None or same(weights(again), part.states[-1])  # the run goes on from there
    assert same(weights(again), weights(whole))


def test_what_cannot_be_kept_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give validation"):
        train(make(), Colours(), short(), tmp_path, keep="best")
    with pytest.raises(UnknownNameError, match="best"):
        train(make(), Colours(), short(), tmp_path, keep="bst")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"found \['loss'\].*top1"):
        train(make(), Colours(), short(), tmp_path / "a", validation=Scripted({"loss": 1.0}), keep="best")
    train(make(), Colours(), short(steps=1), tmp_path / "b")
    with pytest.raises(WeightsError, match="kept no best weights"):
        train(make(), Colours(), short(steps=1), tmp_path / "b", validation=Scripted(), keep="best")


@pytest.mark.parametrize("about", [None, {"found": "}"}, {"found": "[1]"}, {"other": "1"}, {"found": '{"top1": "x"}'}])
def test_a_file_of_best_weights_that_says_nothing_of_them_is_told(tmp_path: Path, about: dict[str, str] | None) -> None:
    save_file({"head.weight": torch.zeros(2)}, tmp_path / "best.safetensors", about)
    with pytest.raises(WeightsError, match=r"best.safetensors is broken.*delete it"):
        best_of(tmp_path)
