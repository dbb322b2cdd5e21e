"""The modules whose equations are known. Other modules may compute something else, and a note says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from torch import nn

from ..layers import (
    CBSA,
    ISTA,
    MHSA,
    MLP,
    MSSA,
    ODL,
    TSSA,
    ClassAttention,
    ConvPatchEmbed,
    FourierPosEmbed,
    LayerScale,
    NormedPatchEmbed,
    RepresentativePool,
)
from ..layers.plain import oddity
from ..models import (
    CBTBlock,
    ClassAttentionBlock,
    CrateAlphaBlock,
    CrateAttentionOnlyBlock,
    CrateBlock,
    CrateMaeDecoderBlock,
    CrateMhsaBlock,
    CrateMlpBlock,
    ToSTBlock,
    ViTBlock,
)
from ..models._wrappers import unwrap
from ._lines import Line

Kinds: TypeAlias = tuple[type[nn.Module], ...]

NORM: Kinds = (nn.LayerNorm,)
LINEAR: Kinds = (nn.Linear,)
DROPOUT: Kinds = (nn.Dropout,)
SCALE: Kinds = (LayerScale, nn.Identity)
# The modules inside each class with a known `forward`. A layer's modules are in running order: a norm, an operator and
# perhaps a scale from Z to H; then, from `norm2` on, those from H to Z'. Other classes, also subclasses, may compute
# something else.
LAYERS: dict[type[nn.Module], dict[str, Kinds]] = {
    CrateBlock: {"norm1": NORM, "mssa": (MSSA,), "norm2": NORM, "ista": (ISTA,)},
    CrateAlphaBlock: {"norm1": NORM, "mssa": (MSSA,), "norm2": NORM, "odl": (ODL,)},
    CrateAttentionOnlyBlock: {"norm1": NORM, "mssa": (MSSA,)},
    CBTBlock: {"norm1": NORM, "cbsa": (CBSA,), "norm2": NORM, "ista": (ISTA,)},
    CrateMlpBlock: {"norm1": NORM, "mssa": (MSSA,), "norm2": NORM, "mlp": (MLP,)},
    CrateMhsaBlock: {"norm1": NORM, "attn": (MHSA,), "norm2": NORM, "ista": (ISTA,)},
    ViTBlock: {"norm1": NORM, "attn": (MHSA,), "ls1": SCALE, "norm2": NORM, "mlp": (MLP,), "ls2": SCALE},
    ToSTBlock: {"norm1": NORM, "tssa": (TSSA,), "ls1": SCALE, "norm2": NORM, "mlp": (MLP,), "ls2": SCALE},
    ClassAttentionBlock: {
        **{"norm1": NORM, "attn": (ClassAttention,), "ls1": (LayerScale,)},
        **{"norm2": NORM, "mlp": (MLP,), "ls2": (LayerScale,)},
    },
    CrateMaeDecoderBlock: {"norm1": NORM, "linear": LINEAR, "norm2": NORM, "mssa": (MSSA,)},
}
PARTS: dict[type[nn.Module], dict[str, Kinds]] = {
    MSSA: {"qkv": LINEAR, "proj": LINEAR, "proj_drop": DROPOUT},
    MHSA: {"qkv": LINEAR, "proj": LINEAR, "proj_drop": DROPOUT},
    CBSA: {"qkv": LINEAR, "pool": (RepresentativePool,), "proj": LINEAR, "proj_drop": DROPOUT},
    TSSA: {"qkv": LINEAR, "attend": (nn.Softmax,), "attn_drop": DROPOUT, "proj": LINEAR, "proj_drop": DROPOUT},
    ClassAttention: {"qkv": LINEAR, "proj": LINEAR, "proj_drop": DROPOUT},
    MLP: {"fc1": LINEAR, "fc2": LINEAR, "drop": DROPOUT},
    NormedPatchEmbed: {"norm1": NORM, "proj": LINEAR, "norm2": NORM},
    ConvPatchEmbed: {"proj": (nn.Conv2d,)},
    FourierPosEmbed: {"token_projection": (nn.Conv2d,)},
}


def unknown_modules(module: nn.Module, parts: Mapping[str, Kinds], prefix: str = "") -> Iterator[str]:
    """The inner modules that the equations do not describe, and what they are."""
    for name, kinds in parts.items():
        inner = unwrap(getattr(module, name))
        odd = oddity(inner, *kinds)
        if odd:
            yield f"{prefix}{name} is {odd}"
        else:
            without: dict[str, Kinds] = {"proj": (nn.Identity,)} if not getattr(inner, "projects", True) else {}
            yield from unknown_modules(inner, {**PARTS.get(type(inner), {}), **without}, f"{prefix}{name}.")


def unknown_note(step: str, module: nn.Module, parts: Mapping[str, Kinds], prefix: str = "") -> list[Line]:
    """A note in place of the equations of a step, if they do not describe one of its modules."""
    found = ", ".join(unknown_modules(module, parts, prefix))
    return [Line(f"{step} through modules that are not known here: {found}")] if found else []
