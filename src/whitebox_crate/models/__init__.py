"""The models: CRATE, its family and ablations, ToST, and ViT, all with one interface."""

from ..pretrained_cfg import PretrainedCfg
from ._base import ImageTransformer
from ._block import Block
from ._features import FeatureExtractor, FeatureInfo
from .cbt import CBT, CBTBlock
from .crate import Crate, CrateBlock
from .crate_ablations import CrateMhsa, CrateMhsaBlock, CrateMlp, CrateMlpBlock
from .crate_alpha import CrateAlpha, CrateAlphaBlock
from .crate_attention_only import CrateAttentionOnly, CrateAttentionOnlyBlock
from .crate_cbt import CrateCBT
from .crate_mae import CrateMae, CrateMaeDecoderBlock, Reconstruction
from .tost import ClassAttentionBlock, ToST, ToSTBlock
from .vit import ViT, ViTBlock

__all__ = [
    "CBT",
    "Block",
    "CBTBlock",
    "ClassAttentionBlock",
    "Crate",
    "CrateAlpha",
    "CrateAlphaBlock",
    "CrateAttentionOnly",
    "CrateAttentionOnlyBlock",
    "CrateBlock",
    "CrateCBT",
    "CrateMae",
    "CrateMaeDecoderBlock",
    "CrateMhsa",
    "CrateMhsaBlock",
    "CrateMlp",
    "CrateMlpBlock",
    "FeatureExtractor",
    "FeatureInfo",
    "ImageTransformer",
    "PretrainedCfg",
    "Reconstruction",
    "ToST",
    "ToSTBlock",
    "ViT",
    "ViTBlock",
]
