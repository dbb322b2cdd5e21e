"""Readings of other libraries' attention: rows of softmax(q k^T / sqrt(head_dim)), and the keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..layers import Reading, Rows, attention_rows

# Called with the attention's arguments by name, and with queries and keys, each (batch, heads, tokens, head_dim).
Change: TypeAlias = Callable[[Mapping[str, Any], Tensor, Tensor], tuple[Tensor, Tensor]]


def attention_readings(
    attention: nn.Module,
    projections: nn.Module | Sequence[nn.Module],
    num_heads: int,
    *,
    num_key_heads: int | None = None,
    change: Change | None = None,
    mixed: nn.Module | None = None,
    dropout: float = 0.0,
) -> dict[str, Reading]:
    """Readings of `attention`, and of `projections`, the projected keys.

    Queries and keys are the ones that the attention computes itself, with any replacement of its projections (low-rank
    adapters, quantised layers). Only the softmax is computed again, for the requested rows.

    Args:
        attention: The module that mixes tokens.
        projections: Modules inside it. Either one, which returns queries, keys and values side by side, (batch, tokens,
            3 * heads * head_dim); or several, for queries, keys and (if known) values, each (batch, tokens, heads *
            head_dim) or (batch, heads, tokens, head_dim). For the third, the last entries count.
        num_heads: Number of heads.
        num_key_heads: Number of heads of keys and values, if smaller; each then serves several heads of queries.
        change: Changes queries and keys before the softmax: norms, rotations.
        mixed: The module that gets the rows times the values, (batch, tokens, heads * head_dim). With it and with
            values, `capture` can send gradients to the rows (`eager`).
        dropout: Dropout rate of the rows in training.

    Raises:
        InputError: In a pass in which the attention gets a mask; its rows would then not be those of the softmax.
    """
    together = isinstance(projections, nn.Module)
    inside = (projections,) if isinstance(projections, nn.Module) else tuple(projections)
    key_heads = num_key_heads or num_heads

    def rows(given: Mapping[str, Any], *outputs: Tensor) -> Rows:
        _refuse_masks(given)
        if together:
            q, k, v = _split(outputs[0], num_heads)
            values: Tensor | None = v
        else:
            q, k = _of_heads(outputs[0], num_heads), _of_heads(outputs[1], key_heads)
            width = key_heads * k.shape[-1]
            values = _of_heads(outputs[2][..., -width:], key_heads) if outputs[2:] else None
        if change is not None:
            q, k = change(given, q, k)
        if dropout and attention.training:
            values = None
        shared = num_heads // key_heads
        if shared > 1:
            k = k.repeat_interleave(shared, dim=1)
            values = None if values is None else values.repeat_interleave(shared, dim=1)
        return Rows(q, k, attention_rows, values)

    def keys(out: Tensor) -> Tensor:
        return _split(out, num_heads)[1] if together else _of_heads(out, key_heads)

    def with_keys(out: Tensor, k: Tensor) -> Tensor:
        if together:
            q, _, v = _split(out, num_heads)
            return torch.stack([q, k, v]).permute(1, 3, 0, 2, 4).flatten(2)
        return k if out.ndim == 4 else k.transpose(1, 2).flatten(2)

    if not (together or inside[2:]):
        mixed = None
    return {
        "projections": Reading(inside[0] if together else inside[1], "after", keys, key_heads, write=with_keys),
        "attention": Reading(attention, "after", rows, num_heads, rows=True, inside=inside, mixed=mixed),
    }


def _split(projected: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, (batch, heads, tokens, head_dim) each."""
    q, k, v = projected.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return q, k, v


def _of_heads(projected: Tensor, heads: int) -> Tensor:
    """(batch, heads, tokens, head_dim)."""
    return projected if projected.ndim == 4 else projected.unflatten(-1, (heads, -1)).transpose(1, 2)


def _refuse_masks(given: Mapping[str, Any]) -> None:
    masked = [name for name in ("attn_mask", "attention_mask") if given.get(name) is not None]
    if masked or given.get("is_causal"):
        raise InputError(
            f"attention with {masked[0] if masked else 'is_causal'} cannot be read, because its rows are not a softmax "
            "over all tokens; call the model without a mask"
        )
