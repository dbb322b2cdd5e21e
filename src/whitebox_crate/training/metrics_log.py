"""The log of a run: lines on stderr, records in metrics.jsonl, and accelerate's trackers."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._files import write_whole
from ..errors import InputError, OutputError
from .recipe import Recipe

METRICS = "metrics.jsonl"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a run, each with its "step". Broken lines and lines of other programs are ignored.

    Raises:
        OSError: If the file cannot be read.
    """
    records = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        numbers = isinstance(record, dict) and all(isinstance(value, int | float) for value in record.values())
        if numbers and type(record.get("step")) is int:
            records.append(record)
    return records


class Progress:
    """Means over the steps since the last record, and over processes.

    Args:
        accelerator: The accelerator of the run; it combines the numbers of all processes, and has the trackers.
        recipe: The recipe of the run.
        folder: Folder for metrics.jsonl.
        images: Number of images in an epoch, if known.
    """

    def __init__(self, accelerator: Any, recipe: Recipe, folder: Path, images: int | None = None) -> None:
        self.accelerator, self.recipe, self.path = accelerator, recipe, folder / METRICS
        self.images = images
        self.sums: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.skipped = 0
        self.since = time.monotonic()
        self.validated = self.steps_done = 0.0  # seconds of validation, and steps of this call

    def cut(self, step: int) -> None:
        """Removes records after the last checkpoint of a killed run, because these steps are done again."""
        if self.accelerator.is_main_process and self.path.exists():
            try:
                kept = [record for record in read_metrics(self.path) if record["step"] <= step]
            except OSError as error:
                raise OutputError(
                    f"{self.path} cannot be read: {error}; move it away, or choose another folder"
                ) from error
            write_whole(self.path, lambda path: path.write_text("".join(f"{json.dumps(line)}\n" for line in kept)))

    def add(self, loss: Tensor, accuracy: Tensor, skipped: int) -> None:
        """Adds a part of a step: two scalars on the device, and the number of undecodable pictures."""
        self.sums.append(torch.stack([loss.detach().float(), accuracy.float()]))
        self.skipped += skipped

    def add_norm(self, norm: Tensor) -> None:
        """Adds the norm of a step's gradient, a scalar on the device, equal in all processes."""
        self.norms.append(norm)

    def check(self, step: int) -> Tensor:
        """The means so far, (2,), over all processes.

        Raises:
            InputError: If the loss or the gradient is not finite; in all processes, so that none waits for another.
        """
        means: Tensor = self.accelerator.reduce(torch.stack(self.sums).mean(0), "mean")
        # After a NaN gradient Lion never moves again, and the loss does not show it.
        for what, value in (("loss", means[0]), ("gradient", sum(self.norms))):
            if not math.isfinite(value):
                raise InputError(
                    f"the {what} became {float(value)} by step {step}; lower the learning rate "
                    f"({self.recipe.learning_rate}) or use precision='no', and start again in another folder. If "
                    "images may hold NaN, check them first"
                )
        return means

    def write(self, step: int, steps_done: int) -> None:
        """A record and a line for the `steps_done` steps up to this one.

        Raises:
            InputError: See `check`.
            OutputError: If there is no space for the record.
        """
        recipe, now = self.recipe, time.monotonic()
        loss, accuracy = self.check(step).tolist()
        lost = int(self.accelerator.reduce(torch.tensor(self.skipped, device=self.accelerator.device), "sum"))
        seconds = (now - self.since) / steps_done
        record = {
            **self._place(step),
            "loss": round(loss, 5),
            **({} if recipe.objective == "mae" else {"accuracy": round(accuracy, 5)}),
            **({"skipped": lost} if lost else {}),
            "difficulty": round(recipe.difficulty_at(step - 1), 4),
            "size": recipe.size_at(step - 1),
            "learning_rate": recipe.learning_rate_at(step - 1),
            "seconds_per_step": round(seconds, 4),
        }
        self.sums, self.norms, self.skipped, self.since = [], [], 0, now
        shown = [f"{key.replace('_', ' ')} {record[key]:.3f}" for key in ("loss", "accuracy") if key in record]
        shown += [f"{lost} pictures left out"] if lost else []
        shown += [f"difficulty {record['difficulty']:.2f}"] if recipe.curriculum else []
        shown += [f"{record['size']} px", f"{seconds:.2f} s/step", f"{recipe.batch_size / seconds:.0f} images/s"]
        self.steps_done += steps_done
        left = seconds * _steps_left(recipe, step) + (recipe.steps - step) * self.validated / self.steps_done
        shown += [f"{_duration(left)} left"] if step < recipe.steps else []
        self._put(record, shown)

    def validate(self, step: int, measure: Callable[[], Mapping[str, float]]) -> Mapping[str, float]:
        """Writes a record and a line with the result of `measure`, and returns it. Its time does not count as steps."""
        begun = time.monotonic()
        measured = measure()
        took = time.monotonic() - begun
        self.since, self.validated = self.since + took, self.validated + took
        found = {f"validation_{name}": round(value, 5) for name, value in measured.items()}
        self._put(
            {**self._place(step), **found}, [f"{name.replace('_', ' ')} {value:.4g}" for name, value in found.items()]
        )
        return measured

    def _place(self, step: int) -> dict[str, float]:
        """The position in the run."""
        return {"step": step} | (
            {"epoch": round(step * self.recipe.batch_size / self.images, 2)} if self.images else {}
        )

    def _put(self, record: dict[str, Any], shown: list[str]) -> None:
        self.accelerator.log({key: value for key, value in record.items() if key != "step"}, step=record["step"])
        if not self.accelerator.is_main_process:
            return
        place = f"step {record['step']}/{self.recipe.steps}" + (f"  epoch {record['epoch']:g}" if self.images else "")
        print("  ".join([place, *shown]), file=sys.stderr, flush=True)
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write to {self.path}: {error}; free some space and call again") from error


def _steps_left(recipe: Recipe, step: int) -> float:
    """The remaining steps, in units of the last step, by their pixels."""
    now = recipe.size_at(step - 1)
    begins = [math.ceil(start * recipe.steps) for start in recipe.size_starts] + [recipe.steps]
    parts = zip(recipe.sizes, begins, begins[1:], strict=False)
    return sum((side / now) ** 2 * max(0, end - max(begin, step)) for side, begin, end in parts)


def _duration(seconds: float) -> str:
    """A duration in a readable unit."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
