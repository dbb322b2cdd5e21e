"""What every report of numbers can do: go to JSON and come back, and be shown as a table."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from .._tables import html_table, markdown_table, text_table
from ..errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Report(ABC):
    """A dataclass of numbers, text, tensors, tuples, mappings and other such dataclasses."""

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON holds it: tensors and tuples as lists, numbers that are not finite as None."""
        plain: dict[str, Any] = _plain(self)
        return plain

    def to_json(self) -> str:
        """Everything as JSON, for `from_json`."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `to_json` wrote.

        Raises:
            InputError: If the text is something else.
        """
        try:
            report: Self = _restored(cls, json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"this is no report that to_json wrote: {error}") from error
        return report

    @abstractmethod
    def rows(self) -> list[list[str]]:
        """Cells of the table, rounded for reading; the first row has the names of the columns."""

    def table(self, *, markdown: bool = False) -> str:
        """What `rows` has, as aligned text.

        Args:
            markdown: Whether it is a table in Markdown instead.
        """
        return as_table(self.rows(), markdown)

    def _repr_html_(self) -> str:
        """The table, as notebooks show it."""
        return html_table(self.rows())


def as_table(rows: list[list[str]], markdown: bool) -> str:
    """Rows, the first one of names, as a table in Markdown or of aligned text."""
    return markdown_table(rows[0], rows[1:]) if markdown else text_table(rows)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value


def _restored(kind: Any, plain: Any) -> Any:
    """The value of this annotation that `_plain` made plain."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:  # with None, the only one that there is
        return None if plain is None else _restored(arguments[0], plain)
    if origin is tuple:
        return tuple(_restored(arguments[0], one) for one in plain)
    if origin is Mapping:
        return {key: _restored(arguments[1], one) for key, one in plain.items()}
    if is_dataclass(kind):
        kinds: Any = get_type_hints(kind)
        return kind(**{name: _restored(kinds[name], one) for name, one in plain.items()})  # type: ignore[operator]
    if kind is Tensor:
        return _tensor(plain)
    return math.inf if kind is float and plain is None else plain


def _tensor(plain: list[Any]) -> Tensor:
    """int64 of integers, float64 of others, with NaN where there is None."""

    def filled(value: Any) -> Any:
        return [filled(one) for one in value] if isinstance(value, list) else math.nan if value is None else value

    return torch.from_numpy(np.array(filled(plain)))
