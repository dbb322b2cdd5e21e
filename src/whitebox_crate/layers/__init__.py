"""The operators that the models are made of, each usable alone."""

from .ista import ISTA, FoldedISTA
from .mhsa import MHSA
from .mlp import MLP
from .mssa import MSSA
from .normed_product import NormedProduct
from .odl import ODL
from .patch_embed import ConvPatchEmbed, NormedPatchEmbed, PatchEmbed, patchify, unpatchify
from .pos_embed import resample_pos_embed, sincos_pos_embed

__all__ = [
    "ISTA",
    "MHSA",
    "MLP",
    "MSSA",
    "ODL",
    "ConvPatchEmbed",
    "FoldedISTA",
    "NormedPatchEmbed",
    "NormedProduct",
    "PatchEmbed",
    "patchify",
    "resample_pos_embed",
    "sincos_pos_embed",
    "unpatchify",
]
