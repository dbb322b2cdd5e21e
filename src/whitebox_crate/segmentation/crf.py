"""Masks that follow the edges of the image: a fully connected conditional random field (arXiv 1210.5644)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, require


def dense_crf(
    image: Tensor,
    mask: Tensor,
    *,
    confidence: float = 0.7,
    near: tuple[float, float] = (3.0, 3.0),
    alike: tuple[float, float, float] = (10.0, 60.0, 13.0),
    steps: int = 10,
) -> Tensor:
    """Refines a mask: pixels that are near each other, or near and of similar colour, prefer the same side.

    Mean-field inference with the two kernels of arXiv 1210.5644, equation 3. Made for `maskcut_of(...,
    refine=dense_crf)`.

    Args:
        image: (3, height, width), uint8 or float. Floats are stretched to 0 to 255, so normalised images are fine.
        mask: bool (height, width).
        confidence: The probability that the mask is right about a pixel, in (0.5, 1).
        near: The smoothness kernel: weight, and width in pixels.
        alike: The appearance kernel: weight, width in pixels, and width in colour (of 255).
        steps: Steps of the inference.

    Returns:
        bool (height, width), on the device of the mask.

    Raises:
        InputError: If an argument is not as above.
        MissingExtraError: If pydensecrf2 is not installed (the extra `crf`).
    """
    if mask.ndim != 2 or mask.dtype != torch.bool or image.shape != (3, *mask.shape):
        raise InputError(
            f"expected an image (3, height, width) and a bool mask (height, width), got {tuple(image.shape)} and "
            f"{mask.dtype} of {tuple(mask.shape)}"
        )
    if not 0.5 < confidence < 1:
        raise InputError(f"confidence must be a probability in (0.5, 1), not {confidence!r}")
    if steps < 1 or min(*near, *alike) <= 0:
        raise InputError(f"steps, weights and widths must be above zero, not {steps!r}, {near!r}, {alike!r}")
    height, width = mask.shape
    field: Any = require("pydensecrf.densecrf", extra="crf").DenseCRF2D(width, height, 2)
    inside = np.where(mask.cpu().numpy(), confidence, 1 - confidence).astype(np.float32)
    field.setUnaryEnergy(-np.log(np.stack([1 - inside, inside])).reshape(2, -1))
    field.addPairwiseGaussian(sxy=near[1], compat=near[0])
    field.addPairwiseBilateral(sxy=alike[1], srgb=alike[2], rgbim=_colours(image), compat=alike[0])
    sides = np.array(field.inference(steps)).reshape(2, height, width)
    return torch.from_numpy(sides[1] > sides[0]).to(mask.device)


def _colours(image: Tensor) -> np.ndarray[Any, Any]:
    """uint8 (height, width, 3), contiguous."""
    pixels = image.detach().cpu()
    if pixels.dtype != torch.uint8:
        if not pixels.isfinite().all():
            raise InputError("some values of the image are NaN or infinite; check how it was read and normalised")
        pixels = pixels.float()
        spread = (pixels.max() - pixels.min()).clamp_min(torch.finfo(torch.float32).tiny)
        pixels = ((pixels - pixels.min()) / spread * 255).round().to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
