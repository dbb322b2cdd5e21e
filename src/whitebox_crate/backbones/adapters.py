"""Adapters for models of other libraries; `readable` turns any known model into one that can be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from torch import nn

from ..errors import InputError
from ..models import FeatureExtractor, ImageTransformer
from ..models._wrappers import unwrap
from ._names import names_of
from .of_timm import timm_structure
from .of_transformers import classifier_structure, dino_structure, vit_structure
from .structure import Backbone, Structure

Adapter: TypeAlias = Callable[..., Structure]
Readable: TypeAlias = ImageTransformer | Backbone

REGISTERS = "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers"
# By the full name of a class; classes that derive from it are known too.
_ADAPTERS: dict[str, Adapter] = {
    "timm.models.vision_transformer.VisionTransformer": timm_structure,
    "timm.models.eva.Eva": timm_structure,
    "transformers.models.vit.modeling_vit.ViTModel": vit_structure,
    "transformers.models.vit.modeling_vit.ViTForImageClassification": classifier_structure,
    "transformers.models.dinov2.modeling_dinov2.Dinov2Model": dino_structure,
    "transformers.models.dinov2.modeling_dinov2.Dinov2Backbone": dino_structure,
    f"{REGISTERS}.Dinov2WithRegistersModel": dino_structure,
    f"{REGISTERS}.Dinov2WithRegistersBackbone": dino_structure,
    "transformers.models.dinov3_vit.modeling_dinov3_vit.DINOv3ViTModel": dino_structure,
    "transformers.models.dinov3_vit.modeling_dinov3_vit.DINOv3ViTBackbone": dino_structure,
}


def register_adapter(kind: type[nn.Module] | str) -> Callable[[Adapter], Adapter]:
    """Makes a class of backbones readable. A decorator for a function from such a model to its `Structure`.

    Then `capture`, `segment` and everything that reads attention take models of this class and of derived classes, and
    models with such a backbone inside. If a class is registered twice, the last adapter counts.

    Args:
        kind: The class, or its full name "package.module.Class" (then nothing needs to be imported).

    Raises:
        InputError: If `kind` is neither.

    Example:
        >>> @register_adapter("my_package.Network")
        ... def structure(model):
        ...     return Structure(
        ...         layers=list(model.layers),
        ...         patch_embed=model.stem,
        ...         readings=lambda layer: attention_readings(layer, layer.q, layer.k, num_heads=4),
        ...         patch_size=(8, 8),
        ...         img_size=(64, 64),
        ...     )
    """
    if not isinstance(kind, type | str) or (isinstance(kind, str) and "." not in kind):
        raise InputError(f"register_adapter takes a class, or its full name as 'package.module.Class', not {kind!r}")

    def register(adapter: Adapter) -> Adapter:
        if not callable(adapter):
            raise InputError(f"an adapter must be a function from a model to its Structure, not {adapter!r}")
        _ADAPTERS[kind if isinstance(kind, str) else names_of(kind)[0]] = adapter
        return adapter

    return register


def readable(model: nn.Module) -> Readable:
    """A readable form of a model: the model itself if it is of this package, else a new `Backbone` around it.

    Args:
        model: A model of this package, or a model that is (or contains) a backbone that an adapter knows. Torch's
            wrappers are fine.

    Raises:
        InputError: If no adapter knows the model, or it has several backbones inside.
    """
    inner = unwrap(model) if isinstance(model, nn.Module) else model
    if isinstance(inner, FeatureExtractor):
        inner = inner.model
    if isinstance(inner, ImageTransformer | Backbone):
        return inner
    if not isinstance(inner, nn.Module):
        raise InputError(f"a model must be a module of torch, not {inner!r:.100}")
    known = dict(_known_in(inner, ""))
    if len(known) > 1:
        names = ", ".join(name or type(module).__name__ for module, (name, _) in known.items())
        raise InputError(f"this {type(inner).__name__} has {len(known)} backbones inside: give one of {names}")
    for backbone, (_, adapter) in known.items():
        return Backbone(model, adapter(backbone))
    known_names = ", ".join(sorted(map(_short, _ADAPTERS)))
    raise InputError(
        f"no adapter knows where the layers of a {type(inner).__module__}.{type(inner).__qualname__} are. (An exported "
        f"model has no layers.) Known are models of this package and {known_names}. To read this one, write a function "
        "that gives its layers, patch embedding, attention and sizes: see whitebox_crate.backbones.register_adapter"
    )


def _short(name: str) -> str:
    """The library and the class of a full name."""
    return f"{name.partition('.')[0]}'s {name.rpartition('.')[2]}"


def _known_in(module: nn.Module, name: str) -> Iterator[tuple[nn.Module, tuple[str, Adapter]]]:
    """The outermost modules that an adapter knows, with their names."""
    adapter = next((_ADAPTERS[base] for base in names_of(type(module)) if base in _ADAPTERS), None)
    if adapter is not None:
        yield module, (name, adapter)
        return
    for child, inside in module.named_children():
        yield from _known_in(inside, f"{name}.{child}".lstrip("."))
