"""Block: one layer, with its computation and the states that can be read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from torch import Tensor, nn

from ..layers import Reading


class Attention(Protocol):
    """The operator of a layer in which tokens see each other."""

    @property
    def num_heads(self) -> int:
        """Number of heads."""

    def readings(self) -> dict[str, Reading]:
        """The states that can be read while it runs, by name."""


class Block(nn.Module, ABC):
    """One layer: attention on `norm1` of the tokens, then (if the layer codes) coding of `norm2` of the result.

    A subclass that can be folded for inference has a method `normed_products` beside its `forward`. A subclass with
    `takes_grid` gets the patch grid (rows, columns) after the tokens. A subclass without `skips_coding` has no skip
    around its coding, so it continues with `compressed` alone.

    Shape:
        - Input: (batch, tokens, dim), any float dtype.
        - Output: same shape as the input.

    Example:
        >>> from whitebox_crate.layers import ISTA, MSSA
        >>> class Plain(Block):
        ...     def __init__(self, dim, heads):
        ...         super().__init__()
        ...         self.norm1, self.norm2 = torch.nn.LayerNorm(dim), torch.nn.LayerNorm(dim)
        ...         self.mssa, self.ista = MSSA(dim, heads), ISTA(dim)
        ...     @property
        ...     def attention(self):
        ...         return self.mssa
        ...     def forward(self, tokens):
        ...         return self.ista(self.norm2(tokens + self.mssa(self.norm1(tokens))))
        >>> model = create_model("crate_nano")
        >>> model.blocks[0] = Plain(128, 4)
        >>> with capture(model, "attention", layers=[0]) as trace:
        ...     logits = model(torch.zeros(1, 3, 96, 96))
        >>> trace["attention", 0].shape
        torch.Size([1, 4, 1, 257])
    """

    takes_grid = False
    skips_coding = True
    norm1: nn.LayerNorm
    norm2: nn.LayerNorm

    @property
    @abstractmethod
    def attention(self) -> Attention:
        """The operator in which tokens see each other."""

    def readings(self) -> dict[str, Reading]:
        """The states inside this layer that can be read while it runs, by name. (Input and output always can.)"""
        write = None if self.skips_coding else lambda _, tokens: tokens
        compressed = Reading(self.norm2, "before", lambda tokens: tokens, write=write)
        return {**self.attention.readings(), "compressed": compressed}

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """The tokens after this layer."""
