"""Block: one layer, what it computes and which of its states can be read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from torch import Tensor, nn

from ..layers import Reading


class Attention(Protocol):
    """What lets the tokens of a layer see each other."""

    @property
    def num_heads(self) -> int:
        """How many heads it has."""

    def readings(self) -> dict[str, Reading]:
        """States that can be read of it while it runs, by name."""


class Block(nn.Module, ABC):
    """One layer: attention on `norm1` of the tokens, then coding of `norm2` of the result, if it codes.

    A subclass that can be folded for inference has a method `normed_products` beside its `forward`. One with
    `takes_grid` is called with the patch grid (rows, columns) after the tokens. One without `skips_coding` has no skip
    around its coding, so that `compressed` is all that it goes on with.

    Shape:
        - Input: (batch, tokens, dim), any float dtype.
        - Output: as the input.

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
        """The operator that lets tokens see each other."""

    def readings(self) -> dict[str, Reading]:
        """States that can be read of this layer while it runs, by name; its input and output are known without."""
        write = None if self.skips_coding else lambda _, tokens: tokens
        compressed = Reading(self.norm2, "before", lambda tokens: tokens, write=write)
        return {**self.attention.readings(), "compressed": compressed}

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """The tokens after this layer."""
