"""A device that is pretended: tensors say that they are on "other", and the processor computes.

What an accelerator refuses is refused: tensors of two devices in one operation, numpy of a tensor that is there, a
generator of another device. So faults of devices show where there is none, with the values that the processor has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

NAME, CPU = "other", torch.device("cpu")
aten = torch.ops.aten
PLAIN = 0  # the way of attention that needs no kernel of its own
COPIES = {aten.copy_.default, aten._copy_from.default}  # which lead from one device to another
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class Pretended(Tensor):
    """A tensor of the device, which holds one of the processor."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Pretended:
        made: Pretended = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Pretended({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        return _run(function, arguments, named or {})

    __torch_function__ = torch._C._disabled_torch_function_impl


class _Mode(TorchDispatchMode):
    """Sees what has no tensor among its arguments, as torch.zeros."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        return _run(function, arguments, named or {})


def _run(function: Callable[..., Any], arguments: Any, named: dict[str, Any]) -> Any:
    """Runs an operation on what is held; what comes out is on the device if it says so, or if the arguments are."""
    if function is aten._fused_sdp_choice.default:
        return PLAIN
    tensors = [one for one in tree_leaves((arguments, named)) if isinstance(one, Tensor)]
    there = [one for one in tensors if isinstance(one, Pretended)]
    device = named.get("device")
    goes = bool(there) if device is None else device.type == NAME
    if there and function in INDEXING:  # an index may be on the processor, but not the other way round
        _check_one_device(function, [arguments[0], *(arguments[2:] or there)])
    elif there and function not in COPIES:
        _check_one_device(function, tensors)
    if named.get("generator") is not None and goes and named["generator"].device.type != NAME:
        raise RuntimeError(f"expected a generator of the device {NAME!r}, not one of {named['generator'].device}")
    arguments, named = tree_map_only(Pretended, lambda one: one.held, (arguments, named))
    arguments, named = tree_map_only(torch.device, lambda one: CPU if one.type == NAME else one, (arguments, named))
    found = function(*arguments, **named)
    mine, known = {id(one.held): one for one in there}, {id(one) for one in tensors}

    def back(one: Tensor) -> Tensor:
        if id(one) in mine:  # what works in place gives its own argument back
            return mine[id(one)]
        return Pretended(one) if goes and id(one) not in known else one

    return tree_map_only(Tensor, back, found)


def _check_one_device(function: Any, tensors: Any) -> None:
    """Numbers may come from anywhere."""
    first, *rest = (one for one in tensors if isinstance(one, Tensor))
    for other in rest:
        if isinstance(first, Pretended) != isinstance(other, Pretended) and first.ndim and other.ndim:
            raise RuntimeError(f"{function} got tensors of two devices, {tuple(first.shape)} and {tuple(other.shape)}")


@lru_cache(maxsize=1)
def _register() -> None:
    """For the rest of the process."""
    torch.utils.backend_registration._setup_privateuseone_for_python_backend(NAME)


@contextmanager
def pretended_device() -> Iterator[torch.device]:
    """Inside the block, in its thread, tensors can be on the device."""
    _register()
    lifts = torch._C._only_lift_cpu_tensors()
    # So that torch.tensor makes its tensor here, and moves it by an operation.
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with _Mode():
            yield torch.device(NAME, 0)
    finally:
        torch._C._set_only_lift_cpu_tensors(lifts)
