"""Mean and spread of measurements in one pass, batch by batch, over any number of processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import InputError

_LARGE = 200  # from these degrees of freedom on, the series for the quantile is exact to 1e-8


class Moments:
    """Count, mean and spread over images, by Welford's update in the form for batches (Chan et al., 1979).

    Args:
        shape: Shape of the measurements of one image.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = 0
        self.mean = torch.zeros(shape, dtype=torch.float64)
        self._squares = torch.zeros(shape, dtype=torch.float64)  # sum of squared distances from the mean

    def add(self, values: Tensor) -> None:
        """Adds measurements (images, *shape)."""
        values = values.detach().to("cpu", torch.float64)
        if len(values):
            batch = Moments(tuple(self.mean.shape))
            batch.count, batch.mean = len(values), values.mean(dim=0)
            batch._squares = (values - batch.mean).square().sum(dim=0)
            self.merge(batch)

    def merge(self, other: Moments) -> None:
        """Adds the measurements of another one."""
        count = self.count + other.count
        if not other.count:
            return
        step = other.mean - self.mean
        self.mean = self.mean + step * (other.count / count)
        self._squares = self._squares + other._squares + step.square() * (self.count * other.count / count)
        self.count = count

    def split(self, columns: Sequence[int]) -> list[Moments]:
        """Splits the last dimension of the measurements into parts of so many columns each."""
        parts = []
        for mean, squares in zip(self.mean.split(columns, -1), self._squares.split(columns, -1), strict=True):
            part = Moments(tuple(mean.shape))
            part.count, part.mean, part._squares = self.count, mean, squares
            parts.append(part)
        return parts

    @property
    def std(self) -> Tensor | None:
        """Standard deviation over images, unbiased in its square; None for fewer than two images."""
        return (self._squares / (self.count - 1)).sqrt() if self.count > 1 else None

    def half_width(self, confidence: float) -> Tensor | None:
        """Half the width of the interval of the mean, by Student's t; None for fewer than two images."""
        std = self.std
        return None if std is None else std * (student_t(confidence, self.count - 1) / math.sqrt(self.count))


@lru_cache
def student_t(confidence: float, degrees: int) -> float:
    """t such that Student's variable lies in [-t, t] with this probability (2.262 for 0.95 and 9 degrees of freedom).

    Args:
        confidence: The probability, in (0, 1).
        degrees: Degrees of freedom, at least 1.

    Raises:
        InputError: If an argument is out of its range.
    """
    check_confidence(confidence)
    if degrees < 1:
        raise InputError(f"degrees of freedom must be at least 1, not {degrees}")
    if degrees >= _LARGE:
        # Abramowitz and Stegun, 26.7.5: the normal quantile and its corrections in 1 / degrees.
        z = torch.special.ndtri(torch.tensor((1 + confidence) / 2, dtype=torch.float64)).item()
        terms = (
            z,
            (z**3 + z) / 4,
            (5 * z**5 + 16 * z**3 + 3 * z) / 96,
            (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        )
        return float(sum(term / degrees**power for power, term in enumerate(terms)))
    low, high = 0.0, math.pi / 2
    for _ in range(100):  # bisection of the angle atan(t / sqrt(degrees)), which is bounded
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < confidence else (low, middle)
    return math.tan((low + high) / 2) * math.sqrt(degrees)


def check_confidence(confidence: float) -> None:
    """Raises InputError unless it is a probability between 0 and 1."""
    if not 0 < confidence < 1:
        raise InputError(f"confidence must be between 0 and 1, such as 0.95, not {confidence!r}")


def _within(angle: float, degrees: int) -> float:
    """Probability of [-t, t] for t = sqrt(degrees) tan(angle) (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for power in range(2 + odd, degrees + 1, 2):
        total += term
        term *= cosine**2 * (power - 1) / power
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
