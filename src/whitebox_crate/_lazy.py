"""attach: names of a package that are imported when they are first used (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from ._deprecated import moved_names


def attach(package: str, names: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package. Its modules are attributes too.

    Args:
        package: Its `__name__`.
        names: Per module, the names that the package takes from it.
    """
    moved = moved_names(package, stacklevel=4)
    module_of = {name: module for module, of in names.items() for name in of}

    def get(name: str) -> Any:
        if name in module_of:
            value = getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)
        elif name.isidentifier() and not name.startswith("__") and find_spec(f"{package}.{name}"):
            value = importlib.import_module(f"{package}.{name}")
        else:
            return moved(name)  # or raises AttributeError
        setattr(sys.modules[package], name, value)  # so that this function is not called again
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *module_of})
