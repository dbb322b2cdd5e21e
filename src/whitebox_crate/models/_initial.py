"""timm's initial values of a Linear, for ViT and ToST."""

from __future__ import annotations

from torch import nn


def init_linear(module: nn.Module) -> nn.Module:
    """Initialises a Linear in place: truncated normal of 0.02 for the weight, zero for the bias. Skips others."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    return module
