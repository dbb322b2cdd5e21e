"""Attention of all heads, for MSSA and MHSA: by the fused kernel, or written out where that is slow."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WRITTEN_OUT = 512  # tokens, at most; with more, both ways take about as long, and the kernel less memory


def attend(q: Tensor, k: Tensor, v: Tensor, drop: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v of each head.

    In bf16 on a CPU the fused kernel's backward pass takes several times as long as plain products of so few tokens.

    Args:
        q: Queries, (batch, heads, queries, head_dim), any float dtype.
        k: Keys, (batch, heads, tokens, head_dim).
        v: Values, (batch, heads, tokens, head_dim).
        drop: Dropout rate of attention.

    Returns:
        The same shape and dtype as `q`.
    """
    slow = q.requires_grad and q.dtype == torch.bfloat16 and q.device.type == "cpu"
    # An exported program would keep the choice, for other sizes and devices too.
    if slow and not torch.compiler.is_compiling() and k.shape[-2] <= WRITTEN_OUT:
        attention = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1)
        return F.dropout(attention, drop) @ v
    return F.scaled_dot_product_attention(q, k, v, dropout_p=drop)
