"""Gaussian noise on the pixels of a model's images (arXiv 2308.16271, Fig. 11 and 12)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._hooks import Hook, hooks_here
from ..backbones import readable
from ..errors import InputError


class Noise(NamedTuple):
    """Noise on the pixels of a data set; each image has its own.

    Attributes:
        strength: See `add_noise`.
        share: See `add_noise`.
        seed: Seed of the noise; together with the name of an image it makes that image's noise.
    """

    strength: float
    share: float
    seed: int


def add_noise(
    images: Tensor, strength: float, share: float, generator: torch.Generator, *, std: Sequence[float] | None = None
) -> Tensor:
    """Adds Gaussian noise to pixels chosen at random, as in Fig. 11 and 12 of arXiv 2308.16271.

    Every image gets its own noise on exactly round(`share` * height * width) pixels (halves up), independently on all
    channels. Values may leave the range of an image: nothing is clipped. For one state of the generator, a larger share
    includes the pixels of a smaller one, and another strength only scales the noise. So curves compare like with like.

    Args:
        images: (..., channels, height, width), float: pixels / 255, or normalised as (pixels / 255 - mean) / std.
        strength: Standard deviation, in units of 8-bit pixels (0 to 255). The paper takes 10, 25, 50 and 75.
        share: Share of the pixels that get noise, in [0, 1]. The paper takes 0.1, 0.25, 0.5 and 0.75.
        generator: A generator on the CPU. It advances equally for all strengths and shares.
        std: Standard deviation of the normalisation, for each channel; None for pixels / 255.

    Returns:
        The shape, dtype and device of `images`. Values without noise are the same bit for bit.

    Raises:
        InputError: If an argument is not as above.
    """
    if images.ndim < 3 or not images.is_floating_point() or images.numel() == 0:
        raise InputError(f"expected float (..., channels, height, width), got {images.dtype} {tuple(images.shape)}")
    check_noise(strength, share)
    channels, height, width = images.shape[-3:]
    scale = torch.ones(channels) if std is None else torch.tensor(std, dtype=torch.float32)
    if scale.shape != (channels,) or not (scale > 0).all():
        raise InputError(f"std must be a positive number for each of {channels} channels, not {std!r}")
    number = math.prod(images.shape[:-3])
    ranks = torch.rand(number, height * width, generator=generator).argsort(dim=1).argsort(dim=1)
    noise = torch.randn(number, channels, height, width, generator=generator) * strength / 255 / scale[:, None, None]
    chosen = (ranks < math.floor(share * height * width + 0.5)).view(number, 1, height, width).expand_as(noise)
    chosen, noise = chosen.reshape(images.shape).to(images.device), noise.reshape(images.shape).to(images)
    return torch.where(chosen, images + noise, images)


@contextmanager
def noisy(model: nn.Module, strength: float, share: float, generator: torch.Generator) -> Iterator[None]:
    """Inside the block, the model sees its images with noise (`add_noise`). They must be normalised for its weights.

    Other threads that run the model see theirs without.

    Args:
        model: A model that `capture` reads.
        strength: See `add_noise`.
        share: See `add_noise`.
        generator: See `add_noise`.

    Raises:
        InputError: See `add_noise`.

    Example:
        >>> model = create_model("crate_nano", pretrained=True).eval()
        >>> with torch.no_grad(), noisy(model, strength=0.5, share=0.2, generator=torch.Generator().manual_seed(0)):
        ...     logits = model(torch.zeros(1, 3, 96, 96))
    """
    check_noise(strength, share)
    core = readable(model)
    std = core.pretrained_cfg.std

    def disturb(args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (add_noise(args[0], strength, share, generator, std=std), *args[1:])

    with hooks_here([Hook(core.patch_embed, "before", disturb, changes=True)]):
        yield


def check_noise(strength: float, share: float) -> None:
    """Raises InputError unless the strength is a finite number from 0 on, and the share is in [0, 1]."""
    if not (0 <= strength < math.inf and 0 <= share <= 1):
        raise InputError(f"noise has a strength from 0 on and a share in [0, 1], not {strength!r} and {share!r}")
