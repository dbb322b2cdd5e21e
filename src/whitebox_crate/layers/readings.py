"""What can be read of a layer while it runs: the module where a state passes by, and what is made of it there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Rows(NamedTuple):
    """Rows of a matrix that mixes tokens; each is computed when it is asked for.

    Attributes:
        left: What belongs to one row each, (batch, heads, rows, ...).
        right: What all rows share, (batch, heads, ...).
        make: The rows of `left` and `right`, or of some heads and rows of them: (batch, heads, rows, tokens).
        values: What the rows mix, (batch, heads, tokens, head_dim); None if the layer goes on with anything else than
            the rows times these.
    """

    left: Tensor
    right: Tensor
    make: Callable[[Tensor, Tensor], Tensor]
    values: Tensor | None = None


class Reading(NamedTuple):
    """Where a state can be read.

    Attributes:
        module: The module where it passes by.
        when: "before" or "after" that module runs.
        read: What is read: of the arguments of the module ("before") or of its output ("after"), a tensor or `Rows`.
        num_heads: How many heads the state has, in dimension 1; 0 if it is not of heads.
        rows: Whether `read` gives `Rows`.
        write: Puts a state in place: makes of what passes by, and of a state, what the module is to take ("before") or
            to give ("after"). None if the layer would not go on with that state alone.
        mixed: The module that is given the rows times their values, all heads side by side, (batch, tokens, heads *
            head_dim). None if there is none, or `read` gives no `Rows`.
        signed: Whether rows may be negative, so that they are no shares.
        inside: Modules that run inside `module`. If there are any, `read` is called as soon as each of them has run,
            with the arguments of `module`, a dict by their names, and then with the outputs of these modules.
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
    """`tokens`, what goes into a layer, and `output`, what comes out: tokens, or a tuple that begins with them."""

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
    """softmax(q k^T / sqrt(head_dim)), the attention that the fused kernel does not show.

    Args:
        q: (batch, heads, queries, head_dim).
        k: (batch, heads, tokens, head_dim).

    Returns:
        (batch, heads, queries, tokens), same dtype.
    """
    # einsum reads the heads where they lie in the projections; matmul would copy them first.
    return torch.einsum("bhqp,bhkp->bhqk", q * q.shape[-1] ** -0.5, k).softmax(dim=-1)


class SplitsHeads(Protocol):
    """Attention that projects all heads at once: MSSA, MHSA."""

    num_heads: int
    qkv: nn.Linear
    attn_drop: float
    training: bool

    @property
    def proj(self) -> nn.Module:
        """The output projection, of all heads side by side."""

    def split_heads(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of each head, three times (batch, heads, tokens, head_dim)."""

    def with_keys(self, projected: Tensor, k: Tensor) -> Tensor:
        """What `split_heads` takes apart, with these keys in place of its own."""


def qkv_readings(attention: SplitsHeads) -> dict[str, Reading]:
    """`projections` (of separate query, key and value the keys) and `attention`, of what `qkv` gives."""

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
