"""NormedProduct: a LayerNorm whose scale and shift only one product reads, so that folding may put them there."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn


class NormedProduct(NamedTuple):
    """What `whitebox_crate.fold_for_inference` makes one product of, as the module that computes both says of itself.

    Attributes:
        normer: The module that has the norm.
        norm: The norm's name in it.
        reader: The module that has the product, `normer` or a module in it.
        product: The product's name in that, an nn.Linear or an ISTA.
    """

    normer: nn.Module
    norm: str
    reader: nn.Module
    product: str
