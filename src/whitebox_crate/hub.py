"""Models as folders: config.json beside model.safetensors, in timm's fields."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .errors import InputError, OutputError, WeightsError
from .loading import read_json
from .models import ImageTransformer, PretrainedCfg
from .models._base import GlobalPool

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_pretrained(model: ImageTransformer, folder: str | Path) -> Path:
    """Writes a model that `create_model` made to a folder that `create_model("local-dir:...")` loads.

    Args:
        model: The model.
        folder: Made if it does not exist.

    Returns:
        The folder.

    Raises:
        InputError: If `create_model` did not make the model, so that its options are not known, or JSON does not
            know their types.
        OutputError: If the folder cannot be written; a file that was there stays whole.
    """
    if not model.architecture:
        raise InputError(f"this {type(model).__name__} was not made by create_model, so its name is not known")
    folder = Path(folder)
    cfg = model.pretrained_cfg
    labels = cfg.label_names if len(cfg.label_names) == model.num_classes else ()
    facts = replace(cfg, num_classes=model.num_classes, input_size=(model.in_chans, *model.img_size), label_names=())
    config = {
        "architecture": model.architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "global_pool": model.global_pool,
        "label_names": labels,
        # The pooling here is that of construction, which says where the last norm is.
        "model_args": {**model.model_args, "num_classes": model.num_classes, "img_size": model.img_size},
        "pretrained_cfg": {k: v for k, v in asdict(facts).items() if k != "label_names"},
    }
    try:
        text = json.dumps(config, indent=1) + "\n"
    except TypeError as error:
        raise InputError(f"the options {model.model_args} cannot be written as JSON ({error})") from error
    state = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error}; give another") from error
    write_whole(folder / WEIGHTS, lambda path: _save_tensors(state, path))
    write_whole(folder / CONFIG, lambda path: path.write_text(text))
    return folder


def read_config(folder: str | Path) -> tuple[str, dict[str, Any], PretrainedCfg, GlobalPool | None]:
    """Architecture, options, facts and pooling from a folder's config.json.

    Raises:
        WeightsError: If it is missing or lacks what is needed.
    """
    path = Path(folder) / CONFIG
    config = read_json(path)
    architecture, options = config.get("architecture"), config.get("model_args", {})
    facts, labels = config.get("pretrained_cfg", {}), config.get("label_names", [])
    if not (isinstance(architecture, str) and isinstance(options, dict) and isinstance(facts, dict)):
        raise WeightsError(f"{path} needs 'architecture' (text), 'model_args' and 'pretrained_cfg' (objects)")
    known = {field.name for field in fields(PretrainedCfg)}
    kept: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items() if k in known}
    kept["label_names"] = tuple(str(label) for label in labels) if isinstance(labels, list) else ()
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    cfg = PretrainedCfg(**kept)
    if not isinstance(cfg.input_size, tuple) or [type(side) for side in cfg.input_size] != [int] * 3:
        raise WeightsError(f"{path}: 'input_size' is (channels, height, width), not {cfg.input_size!r}")
    pool: Any = config.get("global_pool")
    return architecture, options, cfg, pool


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file under a temporary name beside it and renames it, so that it is whole or not there.

    Args:
        path: Where the file shall be.
        write: Writes to the path it is given.

    Raises:
        OutputError: If that fails; nothing is left behind.
    """
    temporary = None
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        os.close(descriptor)
        temporary = Path(name)
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {path}: {error}; choose another place") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _save_tensors(state: dict[str, Tensor], path: Path) -> None:
    save_file(state, path, metadata={"format": "pt"})
