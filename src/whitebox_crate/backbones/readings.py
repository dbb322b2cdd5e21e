"""What can be read of attention that others wrote: rows of softmax(q k^T / sqrt(head_dim)), and the keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

from ..errors import InputError
from ..layers import Reading, Rows, attention_rows

# Called with the arguments of the attention by name, and queries and keys (batch, heads, tokens, head_dim) each.
Change: TypeAlias = Callable[[Mapping[str, Any], Tensor, Tensor], tuple[Tensor, Tensor]]


def attention_readings(
    attention: nn.Module,
    query: nn.Module,
    key: nn.Module,
    num_heads: int,
    *,
    num_key_heads: int | None = None,
    change: Change | None = None,
) -> dict[str, Reading]:
    """`attention`, and `projections`: the keys as they are projected.

    Queries and keys are those that the attention computes for itself, with whatever stands in the place of its
    projections (adapters of low rank, quantised ones); only the softmax is computed once more, of the asked rows.

    Args:
        attention: The module that mixes tokens.
        query: A module inside it whose output is the queries, (batch, tokens, heads * head_dim) or (batch, heads,
            tokens, head_dim).
        key: Likewise, of the keys.
        num_heads: How many heads of queries there are.
        num_key_heads: How many of keys, if there are fewer; `change` then repeats them.
        change: What becomes of queries and keys between there and the softmax: norms, rotations.

    Raises:
        InputError: In a pass in which the attention gets a mask: its rows would not be those of the softmax.
    """
    key_heads = num_key_heads or num_heads

    def rows(given: Mapping[str, Any], queries: Tensor, keys: Tensor) -> Rows:
        _refuse_masks(given)
        q, k = _of_heads(queries, num_heads), _of_heads(keys, key_heads)
        return Rows(*(q, k) if change is None else change(given, q, k), attention_rows)

    def read_keys(keys: Tensor) -> Tensor:
        return _of_heads(keys, key_heads)

    def write_keys(keys: Tensor, k: Tensor) -> Tensor:
        return k if keys.ndim == 4 else k.transpose(1, 2).flatten(2)

    return {
        "projections": Reading(key, "after", read_keys, key_heads, write=write_keys),
        "attention": Reading(attention, "after", rows, num_heads, rows=True, inside=(query, key)),
    }


def _of_heads(projected: Tensor, heads: int) -> Tensor:
    """(batch, heads, tokens, head_dim)."""
    return projected if projected.ndim == 4 else projected.unflatten(-1, (heads, -1)).transpose(1, 2)


def _refuse_masks(given: Mapping[str, Any]) -> None:
    masked = [name for name in ("attn_mask", "attention_mask") if given.get(name) is not None]
    if masked or given.get("is_causal"):
        raise InputError(
            f"attention under {masked[0] if masked else 'is_causal'} is not read: its rows are no softmax over all "
            "tokens; call the model without a mask"
        )
