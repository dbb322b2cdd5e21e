"""Norms and scales that only one product reads, so that `whitebox_crate.fold_for_inference` can fold them into it.

The module that computes both declares them in a method `normed_products` beside its `forward`.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn


class NormedProduct(NamedTuple):
    """A LayerNorm, and the only product that reads it.

    Attributes:
        normer: The module that has the norm.
        norm: The norm's name in `normer`.
        reader: The module that has the product: `normer` or a module in it.
        product: The product's name in `reader`; an nn.Linear or an ISTA.
    """

    normer: nn.Module
    norm: str
    reader: nn.Module
    product: str


class NormedConvolution(NamedTuple):
    """A convolution, and the BatchNorm that is the only one to read its output.

    Attributes:
        parts: The convolution, then its norm.
    """

    parts: nn.Sequential


class ScaledProduct(NamedTuple):
    """A product, and the LayerScale that is the only one to read its output.

    Attributes:
        scaler: The module that has the LayerScale.
        scale: The LayerScale's name in `scaler`.
        writer: The module that has the product, a module in `scaler`.
        product: The product's name in `writer`; an nn.Linear.
    """

    scaler: nn.Module
    scale: str
    writer: nn.Module
    product: str
