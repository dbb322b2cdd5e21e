"""Classes by name, so that a library need not be imported to recognise its classes."""

from __future__ import annotations

from collections.abc import Collection


def names_of(kind: type) -> list[str]:
    """The full names of a class and its base classes, nearest first, for example "timm.models.eva.Eva"."""
    return [f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__]


def is_a(thing: object, names: Collection[str]) -> bool:
    """Whether the class of an object, or one of its base classes, has one of these names."""
    return any(name in names for name in names_of(type(thing)))
