"""Weights into a model: all of them or none, and a report of what became of each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .adapt import fit_channels, fit_positions
from .errors import WeightsError
from .models import ImageTransformer

# What weights are: complex numbers and integers are none, and 8 bits are not without a scale beside them.
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# A model has no more numbers than so many times those of its weights: options from a file could ask for any. A small
# one may, for another head.
MAX_GROWTH, SMALL = 10, 1 << 26

_MAX_JSON = 16 << 20  # bytes; 22,000 class names take less than 1 MiB


@dataclass(frozen=True)
class LoadReport:
    """What became of each weight.

    Attributes:
        source: Where the weights came from.
        loaded: Parameters that took the value in the file as it was.
        adapted: Parameters whose value was changed to fit, and how.
        reinitialised: Parameters that have fresh values; never any but the head's.
        unused: Names in the file that were left out: a head for other classes, or what a conversion drops.
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


def load_state(
    model: ImageTransformer,
    state: Mapping[str, Tensor],
    source: str,
    *,
    new_head: bool = False,
    img_size: tuple[int, int] | None = None,
    unused: Sequence[str] = (),
) -> LoadReport:
    """Puts weights into a model, or changes nothing and raises.

    A position embedding of another grid is resampled, and a patch embedding fitted to another number of channels
    (`whitebox_crate.adapt`). Everything else must fit, but for the head where `new_head` allows it. A model that was
    made inside `weightless` takes the tensors as they are, without a copy where the dtype is its own.

    Args:
        model: The model; its `load_report` is set.
        state: Parameter name -> tensor, in the names of this package.
        source: What to call the weights in messages.
        new_head: Whether a head for another number of classes may be left fresh.
        img_size: (height, width) of the images that the weights were made with, pixels. If None, or if it cannot be
            right, positions are taken to be on the model's own grid, or else on a square one.
        unused: Names that were left out of `state` already, for the report.

    Returns:
        The report.

    Raises:
        WeightsError: If a tensor is missing, unknown, of another shape or not floating point of 16 bits or more, or the
            model so much larger that these cannot be its weights.
    """
    target = model.state_dict()
    problems = [f"{name} is {t.dtype}, not floating point" for name, t in state.items() if t.dtype not in _FLOATS]
    given, wanted = (sum(value.numel() for value in of.values()) for of in (state, target))
    if wanted > max(MAX_GROWTH * given, SMALL):  # looked at before anything of that size is made
        problems.append(f"they are {given} numbers, and the model has {wanted}")
    if problems:
        raise _misfit(source, problems)
    fitting, positions = fit_positions(state, model, img_size)
    fitting, channels = fit_channels(fitting, model.patch_embed)
    adapted = {**positions, **channels}
    head: dict[str, Tensor] = {}
    needless = [name for name in fitting if name not in target and model.does_without(name)]
    fitting = {name: value for name, value in fitting.items() if name not in needless}
    left: tuple[str, ...] = (*unused, *needless)
    if new_head and _differ(fitting, target, "head."):
        head = _fresh_head(model)
        left += tuple(name for name in fitting if name.startswith("head."))
        fitting = {name: value for name, value in fitting.items() if not name.startswith("head.")}

    problems += [f"{name} is missing" for name in target if name not in fitting and name not in head]
    problems += [f"{name} has no place in the model" for name in fitting if name not in target]
    for name in fitting.keys() & target.keys():
        have, want = tuple(fitting[name].shape), tuple(target[name].shape)
        if have != want:
            problems.append(f"{name} is {have}, the model has {want}")
    if problems:
        raise _misfit(source, problems, _folding(model, fitting, target))
    if any(value.is_meta for value in target.values()):
        device = torch.get_default_device()
        device = torch.device("cpu") if device.type == "meta" else device
        values = {name: value.to(device, target[name].dtype) for name, value in {**head, **fitting}.items()}
        model.load_state_dict(_apart(values), assign=True)
    else:
        model.load_state_dict({**head, **fitting})
    loaded = tuple(name for name in target if name in fitting and name not in adapted)
    model.load_report = LoadReport(source, loaded, adapted, tuple(head), left)
    return model.load_report


def _folding(model: ImageTransformer, state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> str:
    """What to do where a model is folded and weights are not, or the other way round."""
    have, want = (sum(name.startswith("blocks.0.norm") for name in names) for names in (state, target))
    if model.folded and have > want:
        return "; these are not of a folded model: load them into one that is not, and call fold_for_inference"
    if not model.folded and want - have in (2, 4):  # of one norm or of both, scale and shift
        return "; if they are of a folded model, load the folder that save_pretrained wrote, as 'local-dir:PATH'"
    return ""


def _misfit(source: str, problems: list[str], hint: str = "") -> WeightsError:
    shown = "; ".join(sorted(problems)[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
    return WeightsError(
        f"the weights of {source} do not fit the model, which was left as it was: {shown}. "
        f"Create the model with the options the weights were made with{hint}"
    )


def _apart(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, contiguous and none in the memory of another: training would change both."""
    seen, own = set[int](), dict[str, Tensor]()
    for name, value in values.items():
        place = value.untyped_storage().data_ptr()
        own[name] = value.clone(memory_format=torch.contiguous_format) if place in seen else value.contiguous()
        seen.add(place)
    return own


def _fresh_head(model: ImageTransformer) -> dict[str, Tensor]:
    """The model's own head, or initial values for it where it has none yet."""
    head = model.get_classifier()
    if any(parameter.is_meta for parameter in head.parameters()):
        head = model.new_head(model.num_classes)
    return {f"head.{name}": value for name, value in head.state_dict().items()}


def _differ(state: Mapping[str, Tensor], target: Mapping[str, Tensor], prefix: str) -> bool:
    def shapes(of: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        return {name: tuple(value.shape) for name, value in of.items() if name.startswith(prefix)}

    return shapes(state) != shapes(target)


@contextmanager
def weightless() -> Iterator[None]:
    """Modules made inside hold no values: their parameters are on the meta device, and loading gives them theirs.

    No initial value is computed either, which saves as much time as loading takes.
    """
    with torch.device("meta"), _NoFills():
        yield


class _NoFills(TorchFunctionMode):
    _FILLS = frozenset({"add_", "clamp_", "copy_", "erfinv_", "fill_", "mul_", "normal_", "uniform_", "zero_"})

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in self._FILLS and args and isinstance(args[0], Tensor) and args[0].is_meta:
            return args[0]
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file.

    Raises:
        WeightsError: If the file is missing, holds something else, or is larger than a config can be.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe or a device would be read for ever
            raise WeightsError(f"{path} is no file; look at what it is")
        if path.stat().st_size > _MAX_JSON:
            raise WeightsError(f"{path} is {path.stat().st_size} bytes long, which no config is; look at what it holds")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path} holds {type(value).__name__}, not an object")
    return value
