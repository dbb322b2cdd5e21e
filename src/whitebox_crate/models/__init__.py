"""The models: CRATE, its ablations, and ViT, all on one contract."""

from ._base import Block, ImageTransformer
from ._features import FeatureExtractor, FeatureInfo
from ._pretrained_cfg import PretrainedCfg
from .crate import Crate, CrateBlock
from .crate_ablations import CrateMhsa, CrateMhsaBlock, CrateMlp, CrateMlpBlock
from .vit import ViT, ViTBlock

__all__ = [
    "Block",
    "Crate",
    "CrateBlock",
    "CrateMhsa",
    "CrateMhsaBlock",
    "CrateMlp",
    "CrateMlpBlock",
    "FeatureExtractor",
    "FeatureInfo",
    "ImageTransformer",
    "PretrainedCfg",
    "ViT",
    "ViTBlock",
]
