"""Classes by name, so that no library is imported to tell whether something is of it."""

from __future__ import annotations

from collections.abc import Collection


def names_of(kind: type) -> list[str]:
    """The full names of a class and of those that it derives from, nearest first: "timm.models.eva.Eva"."""
    return [f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__]


def is_a(thing: object, names: Collection[str]) -> bool:
    """Whether the class of a thing, or one that it derives from, is called so."""
    return any(name in names for name in names_of(type(thing)))
