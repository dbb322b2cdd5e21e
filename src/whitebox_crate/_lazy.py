"""attach: the names of a package, each imported from its module when it is first asked for (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from ._deprecated import moved_names


def attach(package: str, names: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package, whose modules are attributes of it too.

    Args:
        package: Its `__name__`.
        names: By module, what the package has from it.
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
        setattr(sys.modules[package], name, value)  # so that it is not asked for again
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *module_of})
