"""Dropout of residual branches and of patches in training, at timm's rates. Evaluation drops nothing."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError


class DropRates(NamedTuple):
    """Dropout rates of one layer in training.

    Attributes:
        attn: Rate for the entries of attention.
        proj: Rate for the outputs of attention's projection and of ViT's MLP.
        path: Rate for the samples, in each residual branch.
    """

    attn: float = 0.0
    proj: float = 0.0
    path: float = 0.0


NO_DROP = DropRates()


def layer_drop_rates(depth: int, attn: float, proj: float, path: float, *, constant: bool = False) -> list[DropRates]:
    """The rates of each layer. The rate of paths grows linearly, from 0 in the first layer to `path` in the last.

    With `constant` it is `path` in all layers.

    Raises:
        InputError: If a rate is not in [0, 1).
    """
    for name, rate in (("attn_drop_rate", attn), ("proj_drop_rate", proj), ("drop_path_rate", path)):
        check_rate(name, rate)
    shares = [1.0 if constant else layer / max(depth - 1, 1) for layer in range(depth)]
    return [DropRates(attn, proj, path * share) for share in shares]


def check_rate(name: str, rate: float) -> float:
    """Checks a rate, and returns it.

    Raises:
        InputError: If it is not in [0, 1).
    """
    if not 0 <= rate < 1:
        raise InputError(f"{name} must be a rate in [0, 1), not {rate!r}")
    return rate


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, some samples skip a residual branch.

    The other samples get the branch times 1 / (1 - rate), so that the mean stays.

    Args:
        rate: Share of the samples that skip.

    Shape:
        - Input: (batch, ...), any float dtype.
        - Output: same shape as the input.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = check_rate("drop_path_rate", rate)

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return branch
        kept = branch.new_empty(len(branch), *[1] * (branch.ndim - 1)).bernoulli_(1 - self.rate)
        return branch * (kept / (1 - self.rate))

    def extra_repr(self) -> str:
        """The rate."""
        return f"rate={self.rate}"


class PatchDropout(nn.Module):
    """Drops some patches of each image in training (arXiv 2208.07220). [CLS] and the order of the patches stay.

    Args:
        rate: Share of the patches to drop; at least one stays.
        num_prefix_tokens: Number of tokens before the patches, which stay: [CLS], registers.

    Shape:
        - Input: (batch, num_prefix_tokens + patches, dim), any float dtype.
        - Output: in training (batch, num_prefix_tokens + remaining patches, dim); else the input.
    """

    def __init__(self, rate: float = 0.0, num_prefix_tokens: int = 1) -> None:
        super().__init__()
        self.rate = check_rate("patch_drop_rate", rate)
        self.num_prefix_tokens = num_prefix_tokens

    def forward(self, tokens: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return tokens
        batch, prefix = tokens.shape[0], self.num_prefix_tokens
        patches = tokens.shape[1] - prefix
        kept = max(1, int(patches * (1 - self.rate)))
        chosen = torch.rand(batch, patches, device=tokens.device).topk(kept).indices.sort().values
        rows = torch.cat([torch.arange(prefix, device=tokens.device).expand(batch, -1), prefix + chosen], dim=1)
        return tokens.gather(1, rows[..., None].expand(-1, -1, tokens.shape[2]))

    def extra_repr(self) -> str:
        """The rate."""
        return f"rate={self.rate}"
