"""Weights into a model: all of them or none, and a report of what became of each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import WeightsError
from .layers import resample_pos_embed
from .models import ImageTransformer


@dataclass(frozen=True)
class LoadReport:
    """What became of each weight.

    Attributes:
        source: Where the weights came from.
        loaded: Parameters that took the value in the file as it was.
        adapted: Parameters whose value was changed to fit, and how.
        reinitialised: Parameters that kept their fresh values; never any but the head's.
        unused: Names in the file that the model has no place for; never any but the head's.
    """

    source: str
    loaded: tuple[str, ...]
    adapted: Mapping[str, str]
    reinitialised: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors from {self.source}"]
        parts += [f"adapted {name}: {how}" for name, how in self.adapted.items()]
        parts += [f"re-initialised {name}" for name in self.reinitialised]
        parts += [f"unused {name}" for name in self.unused]
        return "; ".join(parts)


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Nothing in such a file can run.

    Raises:
        WeightsError: If the file is missing, of another kind, or broken.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path} is not a .safetensors file; only that format is loaded from a path")
    if not path.is_file():
        raise WeightsError(f"there is no file {path}; check checkpoint_path")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged or not safetensors ({error}); fetch or write it again") from error


def load_state(
    model: ImageTransformer,
    state: Mapping[str, Tensor],
    source: str,
    *,
    new_head: bool = False,
    img_size: tuple[int, int] | None = None,
) -> LoadReport:
    """Puts weights into a model, or changes nothing and raises.

    A position embedding of another grid is resampled. Everything else must fit, but for the head where `new_head`
    allows it.

    Args:
        model: The model; its `load_report` is set.
        state: Parameter name -> tensor, in the names of this package.
        source: What to call the weights in messages.
        new_head: Whether a head for another number of classes may be left as it is in the model.
        img_size: (height, width) of the images that the weights were made with, pixels. If None, or if it cannot be
            right, positions are taken to be on the model's own grid, or else on a square one.

    Returns:
        The report.

    Raises:
        WeightsError: If a tensor is missing, unknown, of another shape or not floating point.
    """
    target = model.state_dict()
    fitting = dict(state)
    adapted: dict[str, str] = {}
    grid, new_grid = _grid_of_positions(fitting.get("pos_embed"), model, img_size), model.patch_embed.grid_size
    if grid != new_grid:
        fitting["pos_embed"] = resample_pos_embed(fitting["pos_embed"], grid, new_grid, model.num_prefix_tokens)
        adapted["pos_embed"] = f"resampled from {grid[0]} x {grid[1]} to {new_grid[0]} x {new_grid[1]}"
    kept_head: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    if new_head and _differ(fitting, target, "head."):
        kept_head = tuple(name for name in target if name.startswith("head."))
        unused = tuple(name for name in fitting if name.startswith("head."))
        fitting = {name: value for name, value in fitting.items() if name not in unused}

    problems = [f"{name} is missing" for name in target if name not in fitting and name not in kept_head]
    problems += [f"{name} has no place in the model" for name in fitting if name not in target]
    for name in fitting.keys() & target.keys():
        have, want = tuple(fitting[name].shape), tuple(target[name].shape)
        if have != want:
            problems.append(f"{name} is {have}, the model has {want}")
        elif not fitting[name].is_floating_point():
            problems.append(f"{name} is {fitting[name].dtype}, not floating point")
    if problems:
        shown = "; ".join(sorted(problems)[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise WeightsError(
            f"the weights of {source} do not fit the model, which was left as it was: {shown}. "
            "Create the model with the options the weights were made with"
        )
    model.load_state_dict({**{name: target[name] for name in kept_head}, **fitting})
    loaded = tuple(name for name in target if name in fitting and name not in adapted)
    model.load_report = LoadReport(source, loaded, adapted, kept_head, unused)
    return model.load_report


def _differ(state: Mapping[str, Tensor], target: Mapping[str, Tensor], prefix: str) -> bool:
    def shapes(of: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        return {name: tuple(value.shape) for name, value in of.items() if name.startswith(prefix)}

    return shapes(state) != shapes(target)


def _grid_of_positions(
    pos_embed: Tensor | None, model: ImageTransformer, img_size: tuple[int, int] | None
) -> tuple[int, int]:
    """The patch grid that a position embedding is for; the model's own where it is none that could be resampled."""
    own = model.patch_embed.grid_size
    if pos_embed is None or pos_embed.ndim != 3 or pos_embed.shape[::2] != (1, model.embed_dim):
        return own
    patches = pos_embed.shape[1] - model.num_prefix_tokens
    side = math.isqrt(max(patches, 0))
    patch_height, patch_width = model.patch_embed.patch_size
    told = own if img_size is None else (img_size[0] // patch_height, img_size[1] // patch_width)
    for rows, columns in (told, own, (side, side)):
        if rows * columns == patches > 0:
            return rows, columns
    return own


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file.

    Raises:
        WeightsError: If the file is missing or holds something else.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path} holds {type(value).__name__}, not an object")
    return value
