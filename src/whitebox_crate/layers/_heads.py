"""The width of a head, for MSSA and MHSA."""

from __future__ import annotations

from ..errors import InputError


def head_width(dim: int, num_heads: int, head_dim: int | None = None) -> int:
    """Returns `head_dim`, or an equal share of `dim` if None.

    Args:
        dim: Width of a token.
        num_heads: Number of heads.
        head_dim: Width of a head, or None.

    Raises:
        InputError: If the heads cannot divide the width equally, or a number is not positive.
    """
    if num_heads < 1 or (head_dim is not None and head_dim < 1):
        raise InputError(f"num_heads and head_dim must be at least 1, not {num_heads} and {head_dim}")
    if head_dim is None and dim % num_heads:
        raise InputError(f"{num_heads} heads cannot divide a width of {dim}; choose another num_heads or give head_dim")
    return dim // num_heads if head_dim is None else head_dim
