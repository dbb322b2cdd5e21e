"""The folder of a run: checkpoints that are whole or not there, and going on from the last one."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..errors import OutputError, WeightsError
from ..models import ImageTransformer
from .recipe import Objective, Recipe

# What a run of an older version wrote for its objective.
_OBJECTIVES: dict[str, Objective] = {"all": "supervised", "head": "linear_probe", "pixels": "mae"}


def make_run_folder(folder: Path) -> Path:
    """Makes the folder if need be, and finds out now whether it can be written.

    Raises:
        OutputError: If it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink(missing_ok=True)  # another process may have been faster
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error}; give another folder") from error
    return folder


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoints of a run, the oldest first."""
    return sorted(folder.glob("checkpoint-[0-9]*"), key=lambda path: int(path.name.rpartition("-")[2]))


def describe_run(model: ImageTransformer, recipe: Recipe, processes: int) -> dict[str, Any]:
    """All that a run must share with the one it goes on from, as JSON gives it back."""
    facts = {
        **asdict(recipe),
        "architecture": model.architecture or type(model).__name__,
        "model_args": model.model_args,
        "num_classes": model.num_classes,
        "label_names": model.pretrained_cfg.label_names,
        "processes": processes,
    }
    described: dict[str, Any] = json.loads(json.dumps(facts, default=str))
    return described


def save_checkpoint(accelerator: Any, folder: Path, step: int, run: dict[str, Any]) -> None:
    """Writes the checkpoint whole under another name, renames it, and only then drops the older ones.

    Raises:
        OutputError: If there is no room; the checkpoint before it stays.
    """
    try:
        _write(accelerator, folder, step, run)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch says of a full disk that a stream failed
        raise OutputError(f"cannot write a checkpoint to {folder}: {error}; make room and call again") from error


def _write(accelerator: Any, folder: Path, step: int, run: dict[str, Any]) -> None:
    older, partial = checkpoints_of(folder), folder / "checkpoint.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial), safe_serialization=True)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (partial / "run.json").write_text(json.dumps({"step": step, "run": run}, indent=1))
        partial.rename(folder / f"checkpoint-{step:07d}")
        for path in older:
            shutil.rmtree(path)
    accelerator.wait_for_everyone()  # or a process that ends would leave the others to an unfinished folder


def resume(accelerator: Any, folder: Path, run: dict[str, Any]) -> int:
    """Loads the last checkpoint, if there is one; returns the step it was made after.

    Raises:
        WeightsError: If it is of another recipe, model or data of other classes, or broken.
    """
    found = checkpoints_of(folder)
    if not found:
        return 0
    try:
        written = json.loads((found[-1] / "run.json").read_text())
        step: int = written["step"]
        saved: dict[str, Any] = written["run"]
        if "trains" in saved:
            saved = _renewed(saved, run)
    except (OSError, ValueError, LookupError) as error:
        raise _unusable(found[-1], error) from error
    if saved != run:
        changed = [key for key in {**saved, **run} if saved.get(key) != run.get(key)]
        differs = ", ".join(f"{key} was {saved.get(key)!r} and is {run.get(key)!r}" for key in changed)
        raise WeightsError(
            f"{found[-1]} belongs to another recipe, model or data ({textwrap.shorten(differs, 300)}); use the same "
            "to go on, or another folder"
        )
    try:
        accelerator.load_state(str(found[-1]))
    except Exception as error:  # each file's library has errors of its own
        raise _unusable(found[-1], error) from error
    if accelerator.is_main_process:
        print(f"going on from {found[-1]}", file=sys.stderr)
    return step


def _renewed(saved: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """A record of an older version in the terms of this one, which asks the source for crop, flip and class names."""
    renewed = {**saved, "crop": run["crop"], "flip": run["flip"]}
    renewed["objective"] = _OBJECTIVES[renewed.pop("trains")]
    if not 0 < len(saved["label_names"]) <= saved["num_classes"]:  # none, or those of other weights
        renewed["label_names"] = run["label_names"]
    return renewed


def _unusable(checkpoint: Path, error: Exception) -> WeightsError:
    return WeightsError(
        f"{checkpoint} is broken or belongs to another model; make the model as it was, or use another folder "
        f"({textwrap.shorten(str(error), 300)})"
    )
