"""Masks that follow the edges and colours of a photograph: the guided filter, and colour histograms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

BINS = 8  # bins of a colour histogram, per channel
PRIOR = 0.02  # share of the whole photograph's histogram that is added to the histogram of a part


def guided_filter(guide: Tensor, values: Tensor, radius: int, eps: float = 1e-3, *, at: Tensor | None = None) -> Tensor:
    """Smooths values, but not across edges of a guide: in each window, a linear function of the guide fits them.

    The guided filter for a guide in colour (He, Sun and Tang 2010, equations 14 to 16). With `at`, the linear functions
    are found on the small guide and read on a larger one: the fast guided filter (arXiv 1505.00996).

    Args:
        guide: (3, height, width), float, about in [0, 1].
        values: (height, width), float.
        radius: Radius of the square windows, pixels, at least 1. A window has (2 radius + 1)^2 pixels, fewer at the
            border.
        eps: Largest variance of a guide that counts as flat.
        at: (3, other height, other width): the same guide at another size.

    Returns:
        float32 (height, width); the size of `at` if that is given.

    Raises:
        InputError: If the arguments are not as above.
    """
    if guide.ndim != 3 or len(guide) != 3 or values.shape != guide.shape[1:]:
        raise InputError(
            f"expected a guide (3, height, width) and values (height, width), got {tuple(guide.shape)} and "
            f"{tuple(values.shape)}"
        )
    if radius < 1 or not eps > 0:
        raise InputError(f"radius must be at least 1 and eps above 0, not {radius!r} and {eps!r}")
    guide, values = guide.float(), values.float()
    height, width = values.shape
    mean, mean_values = _window_means(guide, radius), _window_means(values[None], radius)
    products = (guide[:, None] * guide[None]).flatten(0, 1)
    variance = _window_means(products, radius) - (mean[:, None] * mean[None]).flatten(0, 1)
    covariance = _window_means(guide * values, radius) - mean * mean_values
    regular = variance.view(3, 3, -1).permute(2, 0, 1) + eps * torch.eye(3, device=guide.device)
    slope = torch.linalg.solve(regular, covariance.view(3, -1).T[..., None])[..., 0].T.reshape(3, height, width)
    offset = mean_values - (slope * mean).sum(0, keepdim=True)
    linear = _window_means(torch.cat([slope, offset]), radius)
    if at is not None:
        guide = at.float()
        linear = F.interpolate(linear[None], guide.shape[1:], mode="bilinear")[0]
    return (linear[:3] * guide).sum(0) + linear[3]


def add_colours(photo: Tensor, logits: Tensor, rounds: int = 4) -> Tensor:
    """Raises the logit of being inside for pixels whose colour is more often inside than outside.

    Colours inside and outside are histograms in which each pixel counts by its probability. Probabilities and
    histograms are updated in turn, as GrabCut does with Gaussians (Rother, Kolmogorov and Blake 2004), but without its
    graph cut.

    Args:
        photo: (3, height, width), float, in [0, 1].
        logits: float (height, width): logit of each pixel being inside, from the model.
        rounds: Number of updates.

    Returns:
        float32 (height, width).
    """
    cells = (photo.clamp(0, 1) * BINS).long().clamp_max(BINS - 1)
    colour = ((cells[0] * BINS + cells[1]) * BINS + cells[2]).flatten()
    before = found = logits.float().flatten()
    prior = PRIOR * colour.bincount(minlength=BINS**3)
    for _ in range(rounds):
        inside = found.sigmoid()
        counts = torch.stack([colour.bincount(weight, BINS**3) for weight in (inside, 1 - inside)]) + prior
        shares = counts / counts.sum(1, keepdim=True)
        found = before + (shares[0] / shares[1]).log()[colour]
    return found.view_as(logits)


def _window_means(values: Tensor, radius: int) -> Tensor:
    """Means over the part of square windows inside the image, (channels, height, width), by running sums."""
    for dim in (-2, -1):
        length = values.shape[dim]
        sums = F.pad(values.double().cumsum(dim), (1, 0) if dim == -1 else (0, 0, 1, 0))
        centre = torch.arange(length, device=values.device)
        low, high = (centre - radius).clamp_min(0), (centre + radius + 1).clamp_max(length)
        counts = (high - low).view(-1, *[1] * (-1 - dim))
        values = (sums.index_select(dim, high) - sums.index_select(dim, low)) / counts
    return values.float()
