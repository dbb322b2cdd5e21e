"""Finds checkpoints in a folder, in the order of their numbers, and loads a model from each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .._files import read_json
from ..convert.files import read_checkpoint
from ..convert.infer import infer_model
from ..errors import InputError, WeightsError
from ..factory import create_model
from ..hub import CONFIG, WEIGHTS
from ..models import ImageTransformer
from ..ready import check_layers_known

RUN = "run.json"  # beside the weights in the checkpoints of `train`
# Names that `train` leaves beside its checkpoints: not a checkpoint, half of one, or a copy of one.
BESIDE = ("*.damaged", "*.partial", "best.safetensors")
WEIGHT_SUFFIXES = frozenset({".safetensors", ".pth", ".pt", ".bin", ".npz", ".ckpt"})


def find_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """The weight files and folders with weights in a folder, ascending by the last number in their names.

    Raises:
        InputError: If there are none, one has no number, or two have the same number.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; check the path")
    found = [
        path
        for path in folder.iterdir()
        if not any(map(path.match, BESIDE))
        and ((path / WEIGHTS).is_file() or (path.is_file() and path.suffix.lower() in WEIGHT_SUFFIXES))
    ]
    if not found:
        raise InputError(
            f"{folder} holds no checkpoint: neither a folder with {WEIGHTS} nor a file of weights "
            f"({', '.join(sorted(WEIGHT_SUFFIXES))})"
        )
    numbered: dict[int, Path] = {}
    for path in sorted(found):
        numbers = re.findall(r"\d+", path.name if path.is_dir() else path.stem)
        if not numbers:
            raise InputError(
                f"{path} has no number in its name; name checkpoints by epoch or step, for example epoch-12"
            )
        if int(numbers[-1]) in numbered:
            raise InputError(f"{numbered[int(numbers[-1])]} and {path} have the same number; move one of them away")
        numbered[int(numbers[-1])] = path
    return sorted(numbered.items())


def load_checkpoint(path: Path, model: str = "") -> ImageTransformer:
    """A model from a folder of `save_pretrained`, from a checkpoint of `train`, or from a file of weights.

    Args:
        path: The folder or file.
        model: The architecture of a file. Names and shapes in the file show the options.

    Raises:
        WeightsError: If it is broken, or neither of these.
        InputError: If names and shapes do not show the options.
    """
    if (path / CONFIG).is_file():
        made = create_model(f"local-dir:{path}", pretrained=True, dynamic_img_size=True)
    elif (path / RUN).is_file():
        run: Any = read_json(path / RUN).get("run")
        if not isinstance(run, dict) or not isinstance(run.get("model_args"), dict) or "architecture" not in run:
            raise WeightsError(f"{path / RUN} does not name its model; use a checkpoint that train wrote")
        saved: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in run["model_args"].items()}
        saved["dynamic_img_size"] = True
        made = create_model(str(run["architecture"]), checkpoint_path=path / WEIGHTS, **saved)
    else:
        file = path / WEIGHTS if path.is_dir() else path
        name, found = infer_model(read_checkpoint(file), model=model)
        made = create_model(name, checkpoint_path=file, **{**found, "dynamic_img_size": True})
    return check_layers_known(made, str(path)).eval().requires_grad_(False)
