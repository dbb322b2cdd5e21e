"""WithAttention: a model that also outputs its attention, for code that runs no hooks: compiled, exported, ONNX.

`capture` reads a model through hooks, but torch.export and ONNX drop hooks. Here attention is an output, like logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._plan import layers_with
from .errors import InputError
from .layers import CBSA, MHSA, MSSA, attention_rows
from .layers.plain import oddity
from .models import ImageTransformer


class WithAttention(nn.Module):
    """A model that returns the attention of [CLS] beside its logits.

    It holds the model and runs the model's own parts; hooks on the model itself do not run. If the projection is a
    plain Linear, the row of [CLS] needs no second projection of all tokens, so a map costs little. An adapter in its
    place is called once more. In CBSA the row of [CLS] depends on all representatives, so the projection and the
    contraction are computed twice.

    Args:
        model: A model of this package, folded or not, of any float dtype.
        layers: Which layers, counted from 0, negative ones from the end; an int n for the last n; None for all that
            have attention.

    Attributes:
        layers: The layers of the maps, counted from 0, in the order asked.

    Shape:
        - Input: (batch, in_chans, height, width), float.
        - Output: the model's output, usually logits (batch, num_classes); and the row of [CLS] of
          softmax(w w^T / sqrt(head_dim)) (arXiv 2308.16271, Eq. 5) in each of the layers, (batch, layers, heads,
          tokens). The tokens are [CLS], then registers if there are any, then the patches, row by row. A row sums to 1.
          For CBSA it is the row of the mixing matrix, which is signed.

    Raises:
        InputError: If `model` is not of this package or has its own forward pass, or `layers` is not a list of
            integers.
        UnknownNameError: If a layer does not exist, or has no attention.

    Example:
        >>> model = WithAttention(create_model("crate_nano", pretrained=True).eval(), layers=[-2])
        >>> logits, maps = model(torch.zeros(1, 3, 96, 96))
        >>> maps.shape
        torch.Size([1, 1, 4, 257])
    """

    def __init__(self, model: ImageTransformer, layers: int | Sequence[int] | None = None) -> None:
        super().__init__()
        if not isinstance(model, ImageTransformer):
            raise InputError(
                f"WithAttention takes a model of this package, not {type(model).__name__}; wrap the model itself, then "
                "compile, distribute or export the result"
            )
        kind, base = type(model), ImageTransformer
        if kind.forward is not base.forward or kind.forward_features is not base.forward_features:
            raise InputError(
                f"{kind.__name__} has its own forward pass, whose parts are unknown here: return attention from that"
            )
        self.model = model
        self.training = model.training
        self.layers = layers_with(model, "attention", layers=layers)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        model = self.model
        tokens, grid, rows = model.embed(images), model.grid_of(images), {}
        blocks: Iterable[Any] = model.layers()
        for index, block in enumerate(blocks):
            tokens = model.joined(index, tokens)
            if index in self.layers:
                rows[index] = _cls_row(block.attention, block.norm1(tokens), grid)
            tokens = model._run_block(block, tokens, grid)
        return model.forward_head(model.norm(tokens)), torch.stack([rows[index] for index in self.layers], dim=1)


def _cls_row(attention: MSSA | MHSA | CBSA, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The row of [CLS] that `capture` reads: softmax(q k^T / sqrt(head_dim)), (batch, heads, tokens).

    With keys k = U^T z, the product q (U^T z) equals (q U^T) z: one vector per head instead of a key per token. A bias
    of the keys adds the same number to a whole row, and softmax ignores that.

    Args:
        attention: The operator.
        tokens: Its input, (batch, tokens, dim), [CLS] first.
        grid: (rows, columns) of the patches.
    """
    if isinstance(attention, CBSA):
        mixing = attention.mixing(attention.qkv(tokens), grid)
        return mixing.make(mixing.left[:, :, :1], mixing.right).squeeze(2)
    if oddity(attention.qkv, nn.Linear):  # for example an adapter: call it, for its weights are not all it does
        q, k, _ = attention.split_heads(attention.qkv(tokens))
        return attention_rows(q[:, :, :1], k).squeeze(2)
    q, _, _ = attention.split_heads(F.linear(tokens[:, :1], attention.qkv.weight, attention.qkv.bias))
    _, basis, _ = attention.split_heads(attention.qkv.weight.mT[None])  # U of each head, (1, heads, dim, head_dim)
    towards = (q * q.shape[-1] ** -0.5 @ basis.mT).squeeze(2)
    row: Tensor = (towards @ tokens.mT).softmax(dim=-1)
    return row
