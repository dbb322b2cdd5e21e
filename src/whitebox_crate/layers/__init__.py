"""The operators of the models. Each can be used alone."""

from .cbsa import CBSA, RepresentativePool
from .class_attention import ClassAttention
from .conv_stem import ConvStem
from .drop import NO_DROP, DropPath, DropRates, PatchDropout, layer_drop_rates
from .ista import ISTA, FoldedISTA
from .layer_scale import LayerScale
from .mhsa import MHSA
from .mlp import MLP
from .mssa import MSSA
from .normed_product import NormedConvolution, NormedProduct, ScaledProduct
from .odl import ODL
from .patch_embed import ConvPatchEmbed, NormedPatchEmbed, PatchEmbed, patchify, unpatchify
from .pos_embed import FourierPosEmbed, resample_pos_embed, sincos_pos_embed
from .readings import Reading, Rows, attention_rows, layer_readings
from .tssa import TSSA, second_moments

__all__ = [
    "CBSA",
    "ISTA",
    "MHSA",
    "MLP",
    "MSSA",
    "NO_DROP",
    "ODL",
    "TSSA",
    "ClassAttention",
    "ConvPatchEmbed",
    "ConvStem",
    "DropPath",
    "DropRates",
    "FoldedISTA",
    "FourierPosEmbed",
    "LayerScale",
    "NormedConvolution",
    "NormedPatchEmbed",
    "NormedProduct",
    "PatchDropout",
    "PatchEmbed",
    "Reading",
    "RepresentativePool",
    "Rows",
    "ScaledProduct",
    "attention_rows",
    "layer_drop_rates",
    "layer_readings",
    "patchify",
    "resample_pos_embed",
    "second_moments",
    "sincos_pos_embed",
    "unpatchify",
]
