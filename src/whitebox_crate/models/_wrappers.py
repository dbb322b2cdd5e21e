"""What torch.compile, distributed training and feature extraction put around a model, taken off."""

from __future__ import annotations

from torch import nn

from ..errors import InputError
from ._base import ImageTransformer
from ._features import FeatureExtractor


def transformer_in(model: nn.Module) -> ImageTransformer:
    """The model of this package inside whatever wraps it.

    Raises:
        InputError: If there is none.
    """
    inner = unwrap(model)
    if isinstance(inner, FeatureExtractor):
        inner = inner.model
    if not isinstance(inner, ImageTransformer):
        name = getattr(inner, "architecture", "") or type(inner).__name__
        raise InputError(
            f"this is of models of this package, and {name} is none; what can be read of other networks, "
            "whitebox_crate.capture reads"
        )
    return inner


def unwrap(module: nn.Module) -> nn.Module:
    """What torch.compile, distributed training and averaging wrap, in any order: torch's own wrappers and no others."""
    if type(module).__module__.startswith("torch."):
        for wrapper in ("_orig_mod", "module"):
            inner = getattr(module, wrapper, None)
            if isinstance(inner, nn.Module):
                return unwrap(inner)
    return module
