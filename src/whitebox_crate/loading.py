"""Weights into a model: all of them or none, and a report of what became of each."""

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

# What weights are: complex numbers and integers are none, and 8 bits are not without a scale beside them.
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# A model has no more numbers than so many times those of its weights: options from a file could ask for any. A small
# one may, for another head.
MAX_GROWTH, SMALL = 10, 1 << 26
# What asks for more layers is no model: blocks are made one by one, and it would never end.
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

    A position embedding of another grid is resampled, and a patch embedding, with what predicts pixels, fitted to
    another number of channels (`_fitting.fit_to`). Everything else must fit, but for the head where `new_head` allows
    it. A model that was made inside `meta_init` takes the tensors as they are, without a copy where
    the dtype is its own.

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
        WeightsError: If a tensor is missing, unknown, of another shape or not floating point of 16 bits or more (a
            counter of the model is of its own dtype), the model is quantised or spread over processes, or so much
            larger that these cannot be its weights.
    """
    target = model.state_dict()
    odd = [f"{name} of the model is {what}, no plain tensor" for name, v in target.items() if (what := not_plain(v))]
    if odd:
        raise _misfit(source, odd, ", before it is quantised or spread over processes")
    counters = {name for name, value in target.items() if value.dtype not in _FLOATS}  # as BatchNorm has
    problems = [
        f"{name} is {value.dtype}, not {target[name].dtype if name in counters else 'floating point'}"
        for name, value in state.items()
        if (value.dtype != target[name].dtype if name in counters else value.dtype not in _FLOATS)
    ]
    given, wanted = (sum(value.numel() for value in of.values()) for of in (state, target))
    if wanted > max(MAX_GROWTH * given, SMALL):  # looked at before anything of that size is made
        problems.append(f"they are {given} numbers, and the model has {wanted}")
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
            problems.append(f"{name} is {have}, the model has {want}")
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


def _own_memory(values: dict[str, Tensor]) -> dict[str, Tensor]:
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


def made_empty(make: Callable[[], M]) -> M | None:
    """What `make` makes inside `meta_init`, or None if it needs values: it computes with them, as `linspace().item()`.

    Raises:
        Exception: Whatever else goes wrong in it.
    """
    try:
        with meta_init():
            return make()
    except (RuntimeError, NotImplementedError, InputError) as error:
        if "meta" in str(error):
            return None
        raise


def plain_state(model: nn.Module, advice: str) -> dict[str, Tensor]:
    """The `state_dict` of a model, if it is plain tensors that are here; compiled layers have their own names.

    Args:
        model: Any module.
        advice: What to do if not, for the message.

    Raises:
        InputError: If something is quantised, spread over processes, sparse, without values, or no tensor.
    """
    state: dict[str, Any] = {name.replace("_orig_mod.", ""): value for name, value in model.state_dict().items()}
    for name, value in state.items():
        what = not_plain(value) or ("on the meta device, without values" if value.is_meta else "")
        if what:
            raise InputError(f"{name} of this {type(model).__name__} is {what}, no plain tensor; {advice}")
    return state


def own_copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors writes them: on the CPU, contiguous, and none in the memory of another."""
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}


def not_plain(value: Any) -> str:
    """What a value in a `state_dict` is if no plain dense tensor: quantised, spread over processes; else ""."""
    if type(value) is not Tensor:
        return type(value).__name__
    return "quantised" if value.is_quantized else "" if value.layout == torch.strided else str(value.layout)


@contextmanager
def meta_init() -> Iterator[None]:
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


if not TYPE_CHECKING:
    __getattr__ = moved_names(__name__)
