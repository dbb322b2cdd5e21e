"""The folder of a run: checkpoints that are whole or absent, and resuming from the last one."""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .._files import locked, make_folder, read_json, sha256_of
from ..errors import OutputError, WeightsError
from ..models import ImageTransformer
from .recipe import Objective, Recipe

KEPT = 2  # checkpoints: the last, and the one before it in case the last is damaged
_NAME, _ABOUT = re.compile("checkpoint-[0-9]+"), "run.json"

# Names that older versions wrote for the objective.
_OBJECTIVES: dict[str, Objective] = {"all": "supervised", "head": "linear_probe", "pixels": "mae"}


@contextmanager
def run_folder(folder: Path, rank: int = 0) -> Iterator[Path]:
    """Makes the folder of a run if needed, and keeps other runs out of it inside the block.

    Args:
        folder: The folder.
        rank: Rank of this process in its run.

    Raises:
        OutputError: If the folder cannot be written, or another run is writing to it.
    """
    make_folder(folder, "give another folder")
    with locked(folder / f".lock-{rank}"):
        yield folder


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoints of a run, the oldest first. Other files and folders are ignored."""
    found = [path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def describe_run(
    model: ImageTransformer, recipe: Recipe, processes: int, data: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Everything that a run must share with the run that it resumes, as read from JSON."""
    facts = {
        **asdict(recipe),
        "architecture": model.architecture or type(model).__name__,
        "model_args": model.model_args,
        "num_classes": model.num_classes,
        "label_names": model.pretrained_cfg.label_names,
        "processes": processes,
        "data": data or {},
    }
    described: dict[str, Any] = json.loads(json.dumps(facts, default=str))
    return described


def save_checkpoint(accelerator: Any, folder: Path, step: int, run: dict[str, Any]) -> None:
    """Writes a whole checkpoint under another name, renames it, and then deletes all but the one before it.

    Raises:
        OutputError: If there is no space; earlier checkpoints stay.
    """
    try:
        _write(accelerator, folder, step, run)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch reports a full disk as a failed stream
        raise OutputError(f"cannot write a checkpoint to {folder}: {error}; free some space and call again") from error


def _write(accelerator: Any, folder: Path, step: int, run: dict[str, Any]) -> None:
    partial = folder / "checkpoint.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial), safe_serialization=True)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        about = {"step": step, "files": _hashes(partial), "run": run}
        (partial / _ABOUT).write_text(json.dumps(about, indent=1))
        partial.rename(folder / f"checkpoint-{step:07d}")
        for path in checkpoints_of(folder)[:-KEPT]:
            shutil.rmtree(path)
    accelerator.wait_for_everyone()  # else a process that ends would leave an unfinished folder to the others


def resume(accelerator: Any, folder: Path, run: dict[str, Any]) -> int:
    """Loads the last whole checkpoint, if there is one. Returns its step.

    A damaged checkpoint is renamed if there is a whole one before it.

    Raises:
        WeightsError: If it belongs to another recipe, model or data, or all checkpoints are damaged.
    """
    damaged: list[tuple[Path, WeightsError]] = []
    for checkpoint in reversed(checkpoints_of(folder)):
        try:
            saved = _run_of(checkpoint, run)
        except WeightsError as error:
            damaged.append((checkpoint, error))
            continue
        _check_same(checkpoint, saved, run)
        try:
            accelerator.load_state(str(checkpoint))
        except Exception as error:  # each file's library has its own errors
            raise _unusable(checkpoint, error) from error
        accelerator.wait_for_everyone()  # all processes have read the checkpoints that are now renamed
        if accelerator.is_main_process:
            for path, why in damaged:
                _set_aside(path, why)
            print(f"resuming from {checkpoint}", file=sys.stderr)
        return _step_of(checkpoint)
    if damaged:
        raise damaged[0][1]
    return 0


def _run_of(checkpoint: Path, run: dict[str, Any]) -> dict[str, Any]:
    """The facts in a checkpoint about its run.

    Raises:
        WeightsError: If the checkpoint is damaged.
    """
    try:
        about: dict[str, Any] = read_json(checkpoint / _ABOUT)
        saved, files, step = about["run"], about.get("files", {}), about["step"]
        if type(step) is not int or step != _step_of(checkpoint):
            raise ValueError(f"{_ABOUT} gives the step {step!r}")
        found = _hashes(checkpoint) if files else {}  # older versions wrote no hashes
        if changed := [name for name, digest in files.items() if found.get(name) != digest]:
            raise ValueError(f"changed or missing since they were written: {', '.join(changed)}")
        saved = {**saved, "data": {**saved.get("data", {})}}  # older versions did not record the data
        return _renewed(saved, run) if "trains" in saved else saved
    except (OSError, ValueError, WeightsError) as error:
        raise _unusable(checkpoint, error) from error
    except (LookupError, TypeError, AttributeError) as error:
        raise _unusable(checkpoint, ValueError(f"{_ABOUT} differs from the form that training writes")) from error


def _hashes(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of all files of a checkpoint, except the file with the hashes."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != _ABOUT)
    return {path.relative_to(checkpoint).as_posix(): sha256_of(path) for path in files}


def _set_aside(checkpoint: Path, why: WeightsError) -> None:
    aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)
    print(f"{why}. It was renamed to {aside.name}; delete it", file=sys.stderr)


def _check_same(checkpoint: Path, saved: dict[str, Any], run: dict[str, Any]) -> None:
    changed = [key for key in {**saved, **run} if key != "data" and saved.get(key) != run.get(key)]
    differs = [f"{key} was {saved.get(key)!r} and is {run.get(key)!r}" for key in changed]
    was, now = saved["data"], run["data"]
    if others := [key for key in was if key in now and was[key] != now[key]]:
        known = [f"{key} ({was[key]}, now {now[key]})" if type(was[key]) is int else key for key in others]
        differs.append(f"the data have other {', other '.join(known)}")
    if differs:
        shown = textwrap.shorten("; ".join(differs), 300)
        raise WeightsError(
            f"{checkpoint} belongs to another recipe, model or data ({shown}); use the same, or another folder"
        )


def _renewed(saved: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """A record of an older version in this version's terms. The source gives crop, flip and class names."""
    renewed = {**saved, "crop": run["crop"], "flip": run["flip"]}
    renewed["objective"] = _OBJECTIVES[renewed.pop("trains")]
    if not 0 < len(saved["label_names"]) <= saved["num_classes"]:  # none, or names of other weights
        renewed["label_names"] = run["label_names"]
    return renewed


def _unusable(checkpoint: Path, error: Exception) -> WeightsError:
    # torch's own message about pickles advises to load them in a way that runs their content.
    why = "it holds objects that training does not write" if "weights_only" in str(error) else str(error)
    return WeightsError(
        f"{checkpoint} is broken or belongs to another model; make the model as before, or use another folder "
        f"({textwrap.shorten(why, 300)})"
    )
