"""Which rows of attention a capture keeps, and how gradients of the output reach them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from ._indices import resolve_indices
from .errors import InputError, UnknownNameError, whole_number
from .layers import Rows

Queries: TypeAlias = Literal["cls", "all"] | Sequence[int]
Reduce: TypeAlias = Callable[[Tensor], Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True)
class RowChoice:
    """Which rows of attention are computed, how many at once, and what `reduce` keeps of them.

    Raises:
        UnknownNameError: If `queries` is a word other than "cls" and "all".
        InputError: If `chunk` is not a positive integer.
    """

    queries: Queries
    chunk: int | None
    reduce: Reduce | None

    def __post_init__(self) -> None:
        if isinstance(self.queries, str) and self.queries not in ("cls", "all"):
            raise UnknownNameError.of("queries", self.queries, ("cls", "all"), "Token indices are fine too.")
        if self.chunk is not None:
            object.__setattr__(self, "chunk", whole_number("chunk", self.chunk))

    def tokens(self, count: int) -> list[int]:
        """The indices of the tokens whose rows are kept, of `count` tokens."""
        if isinstance(self.queries, str):
            return [0] if self.queries == "cls" else list(range(count))
        return resolve_indices("query token", self.queries, count)

    def of(self, found: Rows) -> Any:
        """The rows, (batch, heads, queries, tokens), or what `reduce` makes of them."""
        left = found.left
        if not isinstance(self.queries, str):
            left = left[:, :, self.tokens(left.shape[2])]
        elif self.queries == "cls":
            left = left[:, :, :1]
        parts = left.split(self.chunk or left.shape[2], dim=2)
        kept = [self._keep(found.make(part, found.right)) for part in parts]
        if isinstance(kept[0], Tensor):
            return torch.cat(kept, dim=2) if len(kept) > 1 else kept[0]
        return tuple(torch.cat(parts, dim=2) for parts in zip(*kept, strict=True))

    def _keep(self, rows: Tensor) -> Any:
        if self.reduce is None:
            return rows
        kept: object = self.reduce(rows)
        parts = kept if isinstance(kept, tuple) else (kept,)
        if not parts or not all(isinstance(p, Tensor) and p.ndim > 2 and p.shape[2] == rows.shape[2] for p in parts):
            found = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
            raise InputError(
                f"reduce must turn rows {tuple(rows.shape)} into a tensor, or a tuple of tensors, with {rows.shape[2]} "
                f"rows in dimension 2; it gave {found}"
            )
        return kept


def through_rows(mixed: Tensor, rows: Tensor, values: Tensor, heads: Sequence[int], tokens: Sequence[int]) -> Tensor:
    """The output of attention, with the gradient of rows times values. (A fused kernel shows no rows.)

    The numbers stay those of the kernel, to the bit: the product minus itself, which is 0, is added.

    Args:
        mixed: The output of attention, all heads side by side, (batch, tokens, all heads * head_dim).
        rows: (batch, heads, queries, tokens).
        values: (batch, heads, tokens, head_dim).
        heads: The heads of `rows`.
        tokens: The tokens of `rows`. The output for all other tokens keeps its own gradient.

    Returns:
        The same shape as `mixed`.
    """
    made = (rows @ values).transpose(1, 2).to(mixed.dtype)
    given = mixed.unflatten(-1, (-1, values.shape[-1]))
    where = (slice(None), torch.tensor(tokens, device=mixed.device)[:, None], torch.tensor(heads, device=mixed.device))
    replaced = given.clone()
    replaced[where] = given.detach()[where] + (made - made.detach())
    out: Tensor = replaced.flatten(-2)
    return out
