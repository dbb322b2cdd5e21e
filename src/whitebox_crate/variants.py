"""Every named configuration, as data: name -> model class, and options that differ from its defaults."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from .models._base import ImageTransformer
from .models.cbt import CBT
from .models.crate import Crate
from .models.crate_ablations import CrateMhsa, CrateMlp
from .models.crate_alpha import CrateAlpha
from .models.crate_attention_only import CrateAttentionOnly
from .models.crate_cbt import CrateCBT
from .models.crate_mae import CrateMae
from .models.tost import ToST
from .models.vit import ViT

# Widths, depths and heads of the released code (github.com/Ma-Lab-Berkeley/CRATE, model/crate.py).
_RELEASED: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "small": {"embed_dim": 576, "depth": 12, "num_heads": 12},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}
# S of the paper's experiments (arXiv 2308.16271, Table 1 and 2) is 384 wide with 6 heads.
_PAPER_SMALL: dict[str, Any] = {"embed_dim": 384, "depth": 12, "num_heads": 6}
# T of its Table 3 is 192 wide: no other width gives 5.74 M parameters with 21,841 classes of ImageNet-21k and patches
# of 8. The paper does not give its number of heads; here they are 64 dimensions wide, as in S.
_PAPER_TINY: dict[str, Any] = {"embed_dim": 192, "depth": 12, "num_heads": 3}
# B/8 of the paper's public demo has 6 heads, so p = 128, and ImageNet-21k's 21,842 classes.
_DEMO_BASE: dict[str, Any] = {"embed_dim": 768, "depth": 12, "num_heads": 6, "num_classes": 21842}
# Sizes and patches of CRATE-alpha (arXiv 2405.20299; github.com/UCSC-VLAA/CRATE-alpha, models/crate.py).
_ALPHA: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 576, "depth": 12, "num_heads": 12},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}
_ALPHA_PATCHES = {"tiny": (16,), "small": (16,), "base": (32, 16, 8), "large": (32, 14, 8)}
_VIT: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}
# DINOv2 (arXiv 2304.07193), without and with registers (arXiv 2309.16588), in timm's form: with registers, the position
# of [CLS] is part of `cls_token`, and only patches have positions.
_DINOV2: dict[str, Any] = {"patch_size": 14, "img_size": 518, "num_classes": 0, "init_values": 1e-5}
_REGISTERS: dict[str, Any] = {"reg_tokens": 4, "no_embed_class": True}
# SimDINOv2 (arXiv 2502.10385; github.com/RobinWu218/SimDINO, simdinov2/configs), of which base and large are published.
_SIMDINOV2: dict[str, Any] = {"patch_size": 16, "num_classes": 0, "init_values": 0.1, **_REGISTERS}
# Sizes of CBT (arXiv 2509.16875; github.com/QishuaiWen/CBSA, CBSA_image_classification/models.py).
_CBT: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}
# Sizes of ToST for images, with their depth in the name as released (arXiv 2412.17810; github.com/RobinWu218/ToST,
# tost_vision/tost.py); LayerScale starts at 1 with 12 layers, and at 1e-5 with 24.
_TOST: dict[str, dict[str, Any]] = {
    "tiny_12": {"embed_dim": 192, "depth": 12, "num_heads": 4},
    "small_12": {"embed_dim": 384, "depth": 12, "num_heads": 8},
    "tiny_24": {"embed_dim": 192, "depth": 24, "num_heads": 4, "init_values": 1e-5},
    "small_24": {"embed_dim": 384, "depth": 24, "num_heads": 8, "init_values": 1e-5},
    "medium_24": {"embed_dim": 512, "depth": 24, "num_heads": 8, "init_values": 1e-5},
    "large_24": {"embed_dim": 768, "depth": 24, "num_heads": 16, "init_values": 1e-5},
}
_NANO: dict[str, Any] = {
    "embed_dim": 128,
    "depth": 6,
    "num_heads": 4,
    "img_size": 96,
    "patch_size": 6,
    "num_classes": 476,
    "dynamic_img_size": True,
}
# Sizes of the emergence study, for garments.
_PICO: dict[str, Any] = {
    "embed_dim": 64,
    "depth": 6,
    "num_heads": 4,
    "img_size": 32,
    "patch_size": 4,
    "num_classes": 10,
    "dynamic_img_size": True,
}


def _table() -> dict[str, Callable[..., ImageTransformer]]:
    table: dict[str, Callable[..., ImageTransformer]] = {}
    for patch in (16, 8):
        for size, options in _RELEASED.items():
            table[f"crate_{size}_patch{patch}_224"] = partial(Crate, patch_size=patch, **options)
        for size, options in _VIT.items():
            table[f"vit_{size}_patch{patch}_224"] = partial(ViT, patch_size=patch, **options)
        for size, options in _CBT.items():
            table[f"cbt_{size}_patch{patch}_224"] = partial(CBT, patch_size=patch, **options)
        for size, options in _TOST.items():
            table[f"tost_{size}_patch{patch}_224"] = partial(ToST, patch_size=patch, **options)
        small = {"patch_size": patch, **_PAPER_SMALL}
        table[f"crate_paper_tiny_patch{patch}_224"] = partial(Crate, patch_size=patch, **_PAPER_TINY)
        table[f"crate_paper_small_patch{patch}_224"] = partial(Crate, **small)
        table[f"crate_tied_paper_small_patch{patch}_224"] = partial(Crate, proj="tied", **small)
        table[f"crate_cbt_paper_small_patch{patch}_224"] = partial(CrateCBT, **small)
        table[f"crate_attention_only_paper_small_patch{patch}_224"] = partial(CrateAttentionOnly, **small)
        table[f"crate_sth_paper_small_patch{patch}_224"] = partial(Crate, threshold="soft", **small)
        table[f"crate_mlp_paper_small_patch{patch}_224"] = partial(CrateMlp, **small)
        table[f"crate_mhsa_paper_small_patch{patch}_224"] = partial(CrateMhsa, **small)
    for size in ("small", "base", "large"):
        table[f"vit_{size}_patch14_dinov2"] = partial(ViT, **_VIT[size], **_DINOV2)
        table[f"vit_{size}_patch14_reg4_dinov2"] = partial(ViT, **_VIT[size], **_DINOV2, **_REGISTERS)
    for size in ("base", "large"):
        table[f"vit_{size}_patch16_reg4_simdinov2"] = partial(ViT, **_VIT[size], **_SIMDINOV2)
    for size, options in _ALPHA.items():
        for patch in _ALPHA_PATCHES[size]:
            table[f"crate_alpha_{size}_patch{patch}_224"] = partial(CrateAlpha, patch_size=patch, **options)
    # CRATE-MAE has the widths, depths and heads of CRATE, and its decoder those of its encoder.
    for size, options in _RELEASED.items():
        table[f"crate_mae_{size}_patch16_224"] = partial(CrateMae, patch_size=16, **options)
    table["crate_demo_base_patch8_224"] = partial(Crate, patch_size=8, **_DEMO_BASE)
    table["crate_nano_patch6_96"] = partial(Crate, **_NANO)
    table["crate_pico_patch4_32"] = partial(Crate, **_PICO)
    table["vit_nano_patch6_96"] = partial(ViT, **_NANO)
    return table


VARIANTS = _table()

ALIASES = {
    "crate_tiny": "crate_tiny_patch16_224",
    "crate_small": "crate_small_patch16_224",
    "crate_base": "crate_base_patch16_224",
    "crate_large": "crate_large_patch16_224",
    "crate_alpha_tiny": "crate_alpha_tiny_patch16_224",
    "crate_alpha_small": "crate_alpha_small_patch16_224",
    "crate_alpha_base": "crate_alpha_base_patch16_224",
    "crate_alpha_large": "crate_alpha_large_patch14_224",
    "crate_mae_tiny": "crate_mae_tiny_patch16_224",
    "crate_mae_small": "crate_mae_small_patch16_224",
    "crate_mae_base": "crate_mae_base_patch16_224",
    "crate_mae_large": "crate_mae_large_patch16_224",
    "cbt_tiny": "cbt_tiny_patch16_224",
    "cbt_small": "cbt_small_patch16_224",
    "cbt_base": "cbt_base_patch16_224",
    "cbt_large": "cbt_large_patch16_224",
    "crate_sth": "crate_sth_paper_small_patch8_224",
    "crate_mlp": "crate_mlp_paper_small_patch8_224",
    "crate_mhsa": "crate_mhsa_paper_small_patch8_224",
    "crate_tied": "crate_tied_paper_small_patch8_224",
    "crate_cbt": "crate_cbt_paper_small_patch8_224",
    "crate_attention_only": "crate_attention_only_paper_small_patch8_224",
    "crate_nano": "crate_nano_patch6_96",
    "crate_pico": "crate_pico_patch4_32",
    "vit_nano": "vit_nano_patch6_96",
    # T and S of the paper have 12 layers; its M, with 68.1 million parameters, was not released.
    "tost_tiny": "tost_tiny_12_patch16_224",
    "tost_small": "tost_small_12_patch16_224",
    "tost_medium": "tost_medium_24_patch16_224",
    "tost_large": "tost_large_24_patch16_224",
}
