"""What training leaves out at random, and evaluation never: residual branches and patches, at timm's rates."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError


class DropRates(NamedTuple):
    """Shares that one layer leaves out in training.

    Attributes:
        attn: Of the entries of its attention.
        proj: Of the entries that attention's output projection and ViT's MLP give.
        path: Of the samples, in each residual branch.
    """

    attn: float = 0.0
    proj: float = 0.0
    path: float = 0.0


NO_DROP = DropRates()


def layer_drop_rates(depth: int, attn: float, proj: float, path: float, *, constant: bool = False) -> list[DropRates]:
    """The rates of each layer: `path` grows in proportion, from 0 in the first to itself in the last.

    With `constant` it is the same in all.

    Raises:
        InputError: If a rate is no share from 0 up to, and without, 1.
    """
    for name, rate in (("attn_drop_rate", attn), ("proj_drop_rate", proj), ("drop_path_rate", path)):
        check_rate(name, rate)
    shares = [1.0 if constant else layer / max(depth - 1, 1) for layer in range(depth)]
    return [DropRates(attn, proj, path * share) for share in shares]


def check_rate(name: str, rate: float) -> float:
    """The rate.

    Raises:
        InputError: If it is no share from 0 up to, and without, 1.
    """
    if not 0 <= rate < 1:
        raise InputError(f"{name} is a share from 0 up to, and without, 1, not {rate!r}")
    return rate


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, a residual branch is left out of some samples.

    The others get it times 1 / (1 - rate), so that the mean stays.

    Args:
        rate: Share of the samples.

    Shape:
        - Input: (batch, ...), any float dtype.
        - Output: as the input.
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
    """In training, some patches of each image are left out (arXiv 2208.07220); the order stays, and so does [CLS].

    Args:
        rate: Share of the patches; one at least stays.
        num_prefix_tokens: How many tokens come before the patches and stay: [CLS], registers.

    Shape:
        - Input: (batch, num_prefix_tokens + patches, dim), any float dtype.
        - Output: in training (batch, num_prefix_tokens + those that stay, dim), else as the input.
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
