"""Puts weights into a model, all or none, and reports what happened to each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ._deprecated import moved_names
from ._fitting import fit_to
from .errors import InputError, WeightsError
from .load_report import LoadReport
from .models import ImageTransformer

M = TypeVar("M")

# Dtypes of weights. Complex numbers and integers are not weights; 8 bits would need a scale beside them.
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# A model may have at most this many times the numbers of its weights, for options from a file could ask for any size.
# A small model may have more, for another head.
MAX_GROWTH, SMALL = 10, 1 << 26
# More layers are refused: blocks are made one by one, and a huge number would never end.
MAX_DEPTH = 1000


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

    A position embedding of another grid is resampled. A patch embedding, and a layer that predicts pixels, are fitted
    to another number of channels (`_fitting.fit_to`). Everything else must fit, except the head if `new_head` is true.
    A model that was made inside `meta_init` takes the tensors themselves, without a copy if the dtype is the same.

    Args:
        model: The model; its `load_report` is set.
        state: Parameter name -> tensor, in the names of this package.
        source: Name of the weights in messages.
        new_head: Whether a head for another number of classes may be left fresh.
        img_size: (height, width) in pixels of the images that the weights were trained with. If None or impossible,
            positions are taken to be on the model's own grid, or else on a square grid.
        unused: Names that were already left out of `state`, for the report.

    Returns:
        The report.

    Raises:
        WeightsError: If a tensor is missing, unknown or of another shape, or is not floating point of 16 bits or more
            (a counter of the model has its own dtype). Or if the model is quantised, spread over processes, or far
            larger than these weights.
    """
    target = model.state_dict()
    odd = [f"{name} of the model is {what}, not a plain tensor" for name, v in target.items() if (what := not_plain(v))]
    if odd:
        raise _misfit(source, odd, ", before it is quantised or spread over processes")
    counters = {name for name, value in target.items() if value.dtype not in _FLOATS}  # as BatchNorm has
    problems = [
        f"{name} is {value.dtype}, not {target[name].dtype if name in counters else 'floating point'}"
        for name, value in state.items()
        if (value.dtype != target[name].dtype if name in counters else value.dtype not in _FLOATS)
    ]
    given, wanted = (sum(value.numel() for value in of.values()) for of in (state, target))
    if wanted > max(MAX_GROWTH * given, SMALL):  # checked before anything of that size is allocated
        problems.append(f"they have {given} numbers, but the model has {wanted}")
    if problems:
        raise _misfit(source, problems)
    fitting, adapted = fit_to(model, state, img_size)
    head: dict[str, Tensor] = {}
    needless = [name for name in fitting if name not in target and model.ignores_key(name)]
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
            problems.append(f"{name} is {have}, but the model has {want}")
    if problems:
        raise _misfit(source, problems, _folding(model, fitting, target))
    if any(value.is_meta for value in target.values()):
        device = torch.get_default_device()
        device = torch.device("cpu") if device.type == "meta" else device
        values = {name: value.to(device, target[name].dtype) for name, value in {**head, **fitting}.items()}
        model.load_state_dict(_own_memory(values), assign=True)
    else:
        model.load_state_dict({**head, **fitting})
    loaded = tuple(name for name in target if name in fitting and name not in adapted)
    model.load_report = LoadReport(source, loaded, adapted, tuple(head), left)
    return model.load_report


def _folding(model: ImageTransformer, state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> str:
    """The next step if a model is folded and the weights are not, or the other way round."""
    have, want = (sum(name.startswith("blocks.0.norm") for name in names) for names in (state, target))
    if model.folded and have > want:
        return (
            "; the model is folded but these weights are not: load them into an unfolded model, then fold_for_inference"
        )
    if not model.folded and want - have in (2, 4):  # of one norm or of both, scale and shift
        return "; if the weights are folded, load the folder that save_pretrained wrote, as 'local-dir:PATH'"
    return ""


def _misfit(source: str, problems: list[str], hint: str = "") -> WeightsError:
    shown = "; ".join(sorted(problems)[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
    return WeightsError(
        f"the weights of {source} do not fit the model, which was not changed: {shown}. "
        f"Create the model with the options the weights were made with{hint}"
    )


def _own_memory(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, contiguous, each in its own memory; else training one would change another."""
    seen, own = set[int](), dict[str, Tensor]()
    for name, value in values.items():
        place = value.untyped_storage().data_ptr()
        own[name] = value.clone(memory_format=torch.contiguous_format) if place in seen else value.contiguous()
        seen.add(place)
    return own


def _fresh_head(model: ImageTransformer) -> dict[str, Tensor]:
    """The model's own head, or initial values if the head has none yet."""
    head = model.get_classifier()
    if any(parameter.is_meta for parameter in head.parameters()):
        head = model.new_head(model.num_classes)
    return {f"head.{name}": value for name, value in head.state_dict().items()}


def _differ(state: Mapping[str, Tensor], target: Mapping[str, Tensor], prefix: str) -> bool:
    def shapes(of: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        return {name: tuple(value.shape) for name, value in of.items() if name.startswith(prefix)}

    return shapes(state) != shapes(target)


def made_empty(make: Callable[[], M]) -> M | None:
    """Calls `make` inside `meta_init`. None if `make` needs values, for example for `linspace().item()`.

    Raises:
        Exception: Whatever else `make` raises.
    """
    try:
        with meta_init():
            return make()
    except (RuntimeError, NotImplementedError, InputError) as error:
        if "meta" in str(error):
            return None
        raise


def plain_state(model: nn.Module, advice: str) -> dict[str, Tensor]:
    """The `state_dict` of a model, if all its tensors are plain and local. Compiled layers keep their plain names.

    Args:
        model: Any module.
        advice: The next step if they are not, for the message.

    Raises:
        InputError: If a value is quantised, spread over processes, sparse, without values, or not a tensor.
    """
    state: dict[str, Any] = {name.replace("_orig_mod.", ""): value for name, value in model.state_dict().items()}
    for name, value in state.items():
        what = not_plain(value) or ("on the meta device, without values" if value.is_meta else "")
        if what:
            raise InputError(f"{name} of this {type(model).__name__} is {what}, not a plain tensor; {advice}")
    return state


def own_copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that safetensors can write: on the CPU, contiguous, each in its own memory."""
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}


def not_plain(value: Any) -> str:
    """What makes a value of a `state_dict` not a plain dense tensor (quantised, spread over processes); else ""."""
    if type(value) is not Tensor:
        return type(value).__name__
    return "quantised" if value.is_quantized else "" if value.layout == torch.strided else str(value.layout)


@contextmanager
def meta_init() -> Iterator[None]:
    """Modules that are made inside have no values: parameters are on the meta device until weights are loaded.

    No initial value is computed either. This saves as much time as loading takes.
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


if not TYPE_CHECKING:
    __getattr__ = moved_names(__name__)
