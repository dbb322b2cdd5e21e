"""finish: writes a trained model to a folder with its recipe, metrics and card; push_to_hub uploads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import HfApi

from .._files import write_json, write_whole
from .._version import __version__
from ..errors import InputError, OutputError
from ..hub import CARD, model_card, save_pretrained
from ..models import ImageTransformer
from ..models._wrappers import unwrap
from .batches import Source, Stream
from .facts import described, settled
from .metrics_log import METRICS as RUN_METRICS
from .metrics_log import read_metrics
from .presets import PRESETS
from .recipe import Recipe

RECIPE, METRICS = "recipe.json", "metrics.json"
_NAMED = 30  # classes that a card spells out
_BEFORE = "validation_"  # prefix of validation numbers in a run's own file
# The card's words for the numbers of `Validation`.
_NAMES = {
    "top1": "Top-1",
    "top5": "Top-5",
    "loss": "Cross-entropy",
    "images": "Images",
    "mask_iou": "mIoU of [CLS] attention",
    "best_step": "Step after which these weights were the best on these images",
    "training_loss": "Loss in training, at the end",
    "training_accuracy": "Accuracy in training, at the end",
    "skipped": "Images left out because they cannot be decoded",
    "training_skipped": "Images left out in training, counted each time",
}


def finish(
    model: ImageTransformer,
    folder: str | Path,
    recipe: Recipe,
    *,
    data: str | Source | Stream,
    metrics: Mapping[str, Any],
    measured_on: str = "",
    preset: str = "",
) -> Path:
    """Writes a trained model and the record of its training to a folder that `create_model` loads.

    Files are written whole or not at all: model.safetensors and config.json with the label names (`save_pretrained`),
    recipe.json (`write_recipe`), metrics.json, and README.md, a model card, if there is none yet.

    Args:
        model: The whole model, on any device. Wrappers of torch.compile or distributed training are taken off.
        folder: Made if it does not exist.
        recipe: The recipe of its training.
        data: The training data, or a description in words. (Words do not add crop, flip and steps to the recipe.)
        metrics: The measured numbers, ready for JSON; the card spells out the names of `Validation`.
        measured_on: The data of the measurements, in words.
        preset: The recipe's name in `PRESETS`, if it has one.

    Returns:
        The folder.

    Raises:
        InputError: See `save_pretrained`.
        OutputError: If the folder cannot be written.
    """
    if not isinstance(data, str):
        recipe, data = settled(recipe, data), described(data)
    edited = (Path(folder) / CARD).exists()  # perhaps by hand
    folder = save_pretrained(model, folder)
    model = cast(ImageTransformer, unwrap(model))
    names = model.pretrained_cfg.label_names
    write_recipe(folder, recipe, data=data, class_names=names, preset=preset)
    write_json(folder / METRICS, metrics)
    if not edited:
        card = "\n".join([model_card(model), *_about(model, recipe, data, preset), *_measured(metrics, measured_on)])
        write_whole(folder / CARD, lambda path: path.write_text(card, encoding="utf-8"))
    return folder


def write_recipe(folder: Path, recipe: Recipe, *, data: str, class_names: Sequence[str] = (), preset: str = "") -> Path:
    """Writes recipe.json: every number, the preset and its source, the data, and the versions of libraries.

    Args:
        folder: An existing folder.
        recipe: The numbers.
        data: The training data, in words.
        preset: The recipe's name in `PRESETS`, if it has one.

    Returns:
        The file.

    Raises:
        OutputError: If the file cannot be written.
    """
    about = {
        "recipe": asdict(recipe),
        "preset": preset or None,
        "source": PRESETS[preset].source if preset else None,
        "changed": _changed(recipe, preset),
        "data": data,
        "class_names": list(class_names),
        "versions": {"whitebox_crate": __version__, "torch": torch.__version__},
    }
    write_json(folder / RECIPE, about)
    return folder / RECIPE


def last_metrics(run: str | Path) -> dict[str, Any]:
    """The last value of each number that `train` measured, from the folder of the run; the sum of left-out pictures.

    Returns:
        Numbers of `Validation` by their names, and numbers of training with the prefix `training_`. Empty if the run
        has measured nothing.

    Raises:
        InputError: If the run's metrics cannot be read.
    """
    last: dict[str, Any] = {}
    written_to = Path(run) / RUN_METRICS
    try:
        for written in read_metrics(written_to):
            lost = last.get("skipped", 0)
            record = {name.replace("left_out", "skipped"): value for name, value in written.items()}  # the older name
            last.update(record)
            if "skipped" in record:  # counted since the record before
                last["skipped"] += lost
    except OSError as error:
        raise InputError(f"{written_to} cannot be read: {error}; restore the file that train wrote") from error
    measured = {name.removeprefix(_BEFORE): value for name, value in last.items() if name.startswith(_BEFORE)}
    return {**measured, **{f"training_{name}": last[name] for name in ("loss", "accuracy", "skipped") if name in last}}


def push_to_hub(
    folder: str | Path, repo_id: str, *, private: bool | None = None, token: str | bool | None = None
) -> str:
    """Uploads a folder to the Hub: weights, config, recipe, metrics and card together.

    The card (in the folder too) then says to load the model from the Hub. Nothing else changes.

    Args:
        folder: A folder of `finish` or `save_pretrained`.
        repo_id: "org/name"; made if it does not exist.
        private: Whether a new repository is private; None takes the owner's setting.
        token: Access token; None takes the token of `hf auth login` or `HF_TOKEN`.

    Returns:
        The address of the commit.

    Raises:
        OutputError: If there is no such folder, or the Hub cannot be reached or refuses; the folder stays whole.
    """
    api = HfApi(token=token, library_name="whitebox-crate", library_version=__version__)
    try:
        card = Path(folder, CARD).read_text(encoding="utf-8")
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        named = card.replace('"local-dir:PATH"', f'"hf-hub:{repo_id}"')
        write_whole(Path(folder, CARD), lambda path: path.write_text(named, encoding="utf-8"))
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="A model and its recipe"))
    except OutputError:
        raise
    except Exception as error:  # the client raises its own errors and those of HTTP and sockets
        raise OutputError(
            f"cannot push {folder} to {repo_id}: {error}; log in by 'hf auth login' with a token that may write, and "
            "check the name. The folder is complete: 'hf upload' takes it as well"
        ) from error


def _changed(recipe: Recipe, preset: str) -> dict[str, Any]:
    """What differs from the preset, but for steps that epochs came to."""
    if not preset:
        return {}
    before, now = asdict(PRESETS[preset].recipe), asdict(recipe)
    derived = "steps" if recipe.epochs else ""
    return {name: value for name, value in now.items() if value != before[name] and name != derived}


def _about(model: ImageTransformer, recipe: Recipe, data: str, preset: str) -> list[str]:
    """How the model came about, for the card."""
    names = model.pretrained_cfg.label_names
    lines = ["## Trained on", "", f"{data}.", ""]
    if names:
        shown = ", ".join(names[:_NAMED]) + (", ... (all are in config.json)" if len(names) > _NAMED else "")
        lines += [f"It names the {len(names)} classes that it was trained on and nothing else: {shown}.", ""]
    lines += ["## Recipe", ""]
    if preset:
        changed = ", ".join(f"{name} {value}" for name, value in _changed(recipe, preset).items())
        lines += [f"Preset `{preset}`: {PRESETS[preset].source}." + (f" Changed: {changed}." if changed else ""), ""]
    numbers = _counted(recipe)
    return [*lines, "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in numbers.items()), ""]


def _measured(metrics: Mapping[str, Any], on: str) -> list[str]:
    """What was measured, for the card."""
    shown = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
    lines = ["## Measured", "", *([f"On {on}.", ""] if on else [])]
    if not shown:
        return [*lines, "Nothing: no validation data were given.", ""]
    lines += ["| | |", "|---|---|"]
    lines += [f"| {_NAMES.get(name, name)} | {_number(name, value)} |" for name, value in shown.items()]
    return [*lines, "", "These numbers hold for data like those that they were measured on.", ""]


def _counted(recipe: Recipe) -> dict[str, Any]:
    """The recipe without what plays no part: epochs where steps count, and numbers of other objectives."""
    idle = {"label_smoothing"} if recipe.objective == "mae" else {"mask_ratio"}
    return {name: value for name, value in asdict(recipe).items() if name not in idle and (name != "epochs" or value)}


def _number(name: str, value: float) -> str:
    if name in ("top1", "top5", "mask_iou", "training_accuracy"):
        return f"{100 * value:.1f}%"
    return f"{value:g}"
