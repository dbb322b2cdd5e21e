"""The operators that the models are made of, each usable alone."""

from .embed import ConvPatchEmbed, NormedPatchEmbed, PatchEmbed, resample_pos_embed
from .ista import ISTA
from .mhsa import MHSA
from .mlp import MLP
from .mssa import MSSA

__all__ = [
    "ISTA",
    "MHSA",
    "MLP",
    "MSSA",
    "ConvPatchEmbed",
    "NormedPatchEmbed",
    "PatchEmbed",
    "resample_pos_embed",
]
