"""Whether a module computes what its class and its weights say, so that these may be read in its place."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from .._hooks import changes


def oddity(module: nn.Module, *kinds: type[nn.Module], pre_hooks: bool = True) -> str:
    """Why a module may compute something else than one of these kinds does; "" if it is one of them as it is.

    A subclass may have another `forward`, and so may a module or a class that was given one. Hooks may change what goes
    in and out. Weights may be quantised or sharded. Hooks of `capture` only read, and a parametrized module still is
    what it was.

    Args:
        module: The module that runs.
        kinds: What it should be.
        pre_hooks: Whether hooks on what goes in count.
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
    """Whether a method that computes is not the one which the class was written with."""
    method = getattr(kind, name, None)
    if not callable(method) or name.startswith("__") or name == "reset_parameters":
        return False
    written = name not in vars(kind) or getattr(method, "__qualname__", "") == f"{kind.__qualname__}.{name}"
    return name in vars(module) or not written
