"""Layers, heads and tokens by index, counted from 0, negative ones from the end."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from .errors import InputError, UnknownNameError, is_whole


def resolve_layers(layers: int | Sequence[int] | None, depth: int) -> list[int]:
    """Layer indices counted from 0, in the order asked.

    Args:
        layers: None for all, an int n for the last n, or indices, negative ones from the end.
        depth: Number of layers.

    Raises:
        UnknownNameError: If a layer does not exist.
        InputError: If `layers` is empty, or not a list of integers.
    """
    if layers is None:
        return list(range(depth))
    if is_whole(layers):
        if not 1 <= layers <= depth:
            raise InputError(
                f"the last {layers} layers of {depth} were asked for; ask for 1 to {depth}, or give a list"
            )
        return list(range(depth - int(layers), depth))
    return resolve_indices("layer", layers, depth)


def resolve_indices(kind: str, indices: Sequence[int], count: int) -> list[int]:
    """Indices counted from 0, in the order asked.

    Raises:
        UnknownNameError: If an index is out of range.
        InputError: If `indices` is empty, or not a list of integers.
    """
    try:
        asked = list(indices)
    except TypeError:
        raise InputError(f"{kind}s must be a list of indices, not {indices!r}") from None
    if not asked:
        raise InputError(f"an empty list of {kind}s was given; name one or more, or leave it out")
    return [resolve_index(kind, index, count) for index in asked]


def resolve_index(kind: str, index: int, count: int) -> int:
    """One index counted from 0, negative ones from the end.

    Raises:
        UnknownNameError: If the index is out of range.
        InputError: If it is not an integer.
    """
    try:
        index = operator.index(index)
    except TypeError:
        raise InputError(f"a {kind} must be an integer, not {index!r}") from None
    if not -count <= index < count:
        raise UnknownNameError(f"no {kind} {index}: there are {count}, so {-count} to {count - 1} are valid")
    return index % count
