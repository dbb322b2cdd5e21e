"""Readings: which state of a running layer can be read, at which module, and how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Rows(NamedTuple):
    """Rows of a matrix that mixes tokens. Each row is computed on demand.

    Attributes:
        left: The part that is different for each row, (batch, heads, rows, ...).
        right: The part that all rows share, (batch, heads, ...).
        make: Computes rows from `left` and `right`, or from some heads and rows of them: (batch, heads, rows, tokens).
        values: The values that the rows mix, (batch, heads, tokens, head_dim); None if the layer does not continue with
            the rows times these values.
    """

    left: Tensor
    right: Tensor
    make: Callable[[Tensor, Tensor], Tensor]
    values: Tensor | None = None


class Reading(NamedTuple):
    """Where a state can be read.

    Attributes:
        module: The module at which the state is read.
        when: "before" or "after" that module runs.
        read: Turns the module's arguments ("before") or its output ("after") into the state: a tensor or `Rows`.
        num_heads: Number of heads, in dimension 1; 0 if the state is not per head.
        rows: Whether `read` returns `Rows`.
        write: Replaces the state. From the module's argument ("before") or output ("after") and a new state, it makes
            the new argument or output. None if the layer does not continue with that state alone.
        mixed: The module that gets the rows times their values, all heads side by side, (batch, tokens, heads *
            head_dim). None if there is none, or `read` does not return `Rows`.
        signed: Whether rows may be negative; then they are not shares.
        inside: Modules that run inside `module`. If there are any, `read` is called when all of them have run, with a
            dict of the arguments of `module` by name, and then the outputs of these modules.
    """

    module: nn.Module
    when: Literal["before", "after"]
    read: Callable[..., Tensor | Rows]
    num_heads: int = 0
    rows: bool = False
    write: Callable[..., Any] | None = None
    mixed: nn.Module | None = None
    signed: bool = False
    inside: tuple[nn.Module, ...] = ()


def layer_readings(layer: nn.Module) -> dict[str, Reading]:
    """`tokens`, the input of a layer, and `output`, its output: tokens, or a tuple that starts with them."""

    def first(out: Any) -> Tensor:
        tokens: Tensor = out[0] if isinstance(out, tuple) else out
        return tokens

    return {
        "tokens": Reading(layer, "before", lambda tokens, *_: tokens, write=lambda _, tokens: tokens),
        "output": Reading(
            layer, "after", first, write=lambda out, tokens: (tokens, *out[1:]) if isinstance(out, tuple) else tokens
        ),
    }


def attention_rows(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)): attention, which the fused kernel does not show.

    Args:
        q: (batch, heads, queries, head_dim).
        k: (batch, heads, tokens, head_dim).

    Returns:
        (batch, heads, queries, tokens), same dtype.
    """
    # einsum reads the heads in place; matmul would copy them first.
    return torch.einsum("bhqp,bhkp->bhqk", q * q.shape[-1] ** -0.5, k).softmax(dim=-1)


class SplitsHeads(Protocol):
    """Attention with one projection for all heads: MSSA, MHSA."""

    num_heads: int
    qkv: nn.Linear
    attn_drop: float
    training: bool

    @property
    def proj(self) -> nn.Module:
        """The output projection; it takes all heads side by side."""

    def split_heads(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of each head, three times (batch, heads, tokens, head_dim)."""

    def with_keys(self, projected: Tensor, k: Tensor) -> Tensor:
        """The projected tensor with its keys replaced by `k`."""


def qkv_readings(attention: SplitsHeads) -> dict[str, Reading]:
    """`projections` and `attention`, read from the output of `qkv`; separate keys serve as the projections."""

    def keys(projected: Tensor) -> Tensor:
        return attention.split_heads(projected)[1]

    def rows(projected: Tensor) -> Rows:
        q, k, v = attention.split_heads(projected)
        dropped = attention.training and attention.attn_drop
        return Rows(q, k, attention_rows, None if dropped else v)

    heads = attention.num_heads
    return {
        "projections": Reading(attention.qkv, "after", keys, heads, write=attention.with_keys),
        "attention": Reading(attention.qkv, "after", rows, heads, rows=True, mixed=attention.proj),
    }
