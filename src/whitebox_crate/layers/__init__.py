"""The operators that the models are made of, each usable alone."""

from .embed import (
    ConvPatchEmbed,
    NormedPatchEmbed,
    PatchEmbed,
    patchify,
    resample_pos_embed,
    sincos_pos_embed,
    unpatchify,
)
from .ista import ISTA, FoldedISTA
from .mhsa import MHSA
from .mlp import MLP
from .mssa import MSSA
from .odl import ODL

__all__ = [
    "ISTA",
    "MHSA",
    "MLP",
    "MSSA",
    "ODL",
    "ConvPatchEmbed",
    "FoldedISTA",
    "NormedPatchEmbed",
    "PatchEmbed",
    "patchify",
    "resample_pos_embed",
    "sincos_pos_embed",
    "unpatchify",
]
