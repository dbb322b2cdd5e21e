"""Takes off the wrappers of torch.compile, distributed training and feature extraction."""

from __future__ import annotations

from torch import nn

from ..errors import InputError
from ._base import ImageTransformer
from ._features import FeatureExtractor


def transformer_in(model: nn.Module) -> ImageTransformer:
    """The model of this package inside its wrappers.

    Raises:
        InputError: If there is no model of this package.
    """
    inner = unwrap(model)
    if isinstance(inner, FeatureExtractor):
        inner = inner.model
    if not isinstance(inner, ImageTransformer):
        name = getattr(inner, "architecture", "") or type(inner).__name__
        raise InputError(
            f"this needs a model of this package, and {name} is not one; whitebox_crate.capture reads other networks "
            "too"
        )
    return inner


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside torch's own wrappers for compilation, distributed training and averaging, in any order."""
    if type(module).__module__.startswith("torch."):
        for wrapper in ("_orig_mod", "module"):
            inner = getattr(module, wrapper, None)
            if isinstance(inner, nn.Module):
                return unwrap(inner)
    return module
