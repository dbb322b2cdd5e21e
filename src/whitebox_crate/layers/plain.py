"""Checks that a module computes exactly what its class and its weights say."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from .._hooks import changes


def oddity(module: nn.Module, *kinds: type[nn.Module], pre_hooks: bool = True) -> str:
    """Why a module may compute something else than one of these kinds; "" if it is plainly one of them.

    A subclass may have another `forward`; so may a module or class whose `forward` was replaced. Hooks may change
    inputs and outputs. Weights may be quantised or sharded. Hooks of `capture` only read, and a parametrized module
    still counts as plain.

    Args:
        module: The module.
        kinds: The classes that it should be one of.
        pre_hooks: Whether hooks on the inputs count.
    """
    kind = type_before_parametrizations(module)
    if kind not in kinds:
        return type(module).__name__
    hooks = [*module._forward_hooks.values(), *(module._forward_pre_hooks.values() if pre_hooks else ())]
    if any(map(changes, hooks)):
        return f"{kind.__name__} with hooks"
    for name in (*vars(module), *vars(kind)):
        if _is_another(name, module, kind):
            return f"{kind.__name__} with another {name}"
    for parameter in module.parameters(recurse=False):
        if type(parameter) not in (nn.Parameter, Tensor):
            return f"{kind.__name__} with weights of the type {type(parameter).__name__}"
    return ""


def _is_another(name: str, module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a method was replaced, in the module or in its class."""
    method = getattr(kind, name, None)
    if not callable(method) or name.startswith("__") or name == "reset_parameters":
        return False
    written = name not in vars(kind) or getattr(method, "__qualname__", "") == f"{kind.__qualname__}.{name}"
    return name in vars(module) or not written
