"""timm's initial values of a Linear, which ViT and ToST begin with."""

from __future__ import annotations

from torch import nn


def init_linear(module: nn.Module) -> nn.Module:
    """Truncated normal of 0.02 for the weight of a Linear, in place, and zero for its bias; others stay as they are."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    return module
