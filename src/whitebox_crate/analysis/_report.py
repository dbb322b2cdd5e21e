"""The base of all reports of numbers: to JSON and back, and as a table."""

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
        """All fields as plain data for JSON: tensors and tuples as lists, non-finite numbers as None."""
        plain: dict[str, Any] = _plain(self)
        return plain

    def to_json(self) -> str:
        """Everything as JSON, for `from_json`."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads the text of `to_json`.

        Raises:
            InputError: If the text is something else.
        """
        try:
            report: Self = _restored(cls, json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"this is not a report of to_json: {error}") from error
        return report

    @abstractmethod
    def rows(self) -> list[list[str]]:
        """Cells of the table, rounded for reading; the first row has the names of the columns."""

    def table(self, *, markdown: bool = False) -> str:
        """The cells of `rows` as aligned text.

        Args:
            markdown: Whether it is a table in Markdown instead.
        """
        return as_table(self.rows(), markdown)

    def _repr_html_(self) -> str:
        """The table for notebooks."""
        return html_table(self.rows())


def as_table(rows: list[list[str]], markdown: bool) -> str:
    """Rows as a table in Markdown or aligned text. The first row has the names."""
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
    """The inverse of `_plain`, for a value of this annotation."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:  # the only union here is with None
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
    """int64 for integers, float64 for others, with NaN in place of None."""

    def filled(value: Any) -> Any:
        return [filled(one) for one in value] if isinstance(value, list) else math.nan if value is None else value

    return torch.from_numpy(np.array(filled(plain)))
