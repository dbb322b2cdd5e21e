"""The naming schemes of checkpoints of other projects, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Names under which training scripts keep weights, as a dict or as a prefix with a dot: Lightning's "model." and "net.",
# DeepSpeed's and AveragedModel's "module". DINO has two networks; the teacher is the one to use.
WRAPPERS = (
    *("state_dict", "model", "model_state_dict", "net", "module", "teacher", "params"),
    *("state_dict_ema", "model_ema", "ema", "ema_model"),
)
# Prefixes that DINO's heads, JAX, and data parallelism inside of the first put before every name.
PREFIXES = ("backbone.", "params/", "module.")
# Marks that torch.compile, FSDP and activation checkpointing put before the names of wrapped modules, anywhere.
WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


@dataclass(frozen=True)
class Format:
    """A naming scheme. In names, # is the number of a layer, ? of a group of layers, * weight or bias, ** anything.

    Names of this package have no groups, so ? has no part in them.

    Attributes:
        name: Name of the scheme.
        marks: Names that only this scheme has.
        names: Their name -> ours; "" without a counterpart, {norm} for the last norm. None if all names are ours.
        axes: Their name -> how the axes change (einops).
        options: Options that every model of this scheme needs.
    """

    name: str
    marks: tuple[str, ...]
    names: Mapping[str, str] | None = None
    axes: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


# Heads have an axis of their own there: (dim, heads, head_dim) and (heads, head_dim, dim).
JAX_PROJ = "Transformer/encoderblock_#/MultiHeadDotProductSubspaceAttention_0/proj/kernel"
JAX_OUT = "Transformer/encoderblock_#/MultiHeadDotProductSubspaceAttention_0/out/kernel"
CRATE, TWO_PART = "CRATE", "CRATE with a two-part head"
DINOV2, IN_TRAINING = "DINOv2", "DINO or DINOv2 in training"
# Names that official CRATE and CRATE-alpha share.
_CRATE_NAMES = {
    "cls_token": "cls_token",
    "pos_embedding": "pos_embed",
    "transformer.layers.#.0.norm.*": "blocks.#.norm1.*",
    "transformer.layers.#.0.fn.qkv.weight": "blocks.#.mssa.qkv.weight",
    "transformer.layers.#.0.fn.to_out.0.*": "blocks.#.mssa.proj.*",
    "transformer.layers.#.1.norm.*": "blocks.#.norm2.*",
    "mlp_head.0.*": "{norm}.*",
    "mlp_head.1.*": "head.*",
}
# The file has the first format with a mark among the names.
FORMATS = (
    Format(  # github.com/UCSC-VLAA/CRATE-alpha, models/crate.py
        "CRATE-alpha (JAX)",
        ("embedding/kernel", "Transformer/**"),
        {
            "cls": "cls_token",
            "pos_embedding": "pos_embed",
            "embedding/kernel": "patch_embed.proj.weight",
            "embedding/bias": "patch_embed.proj.bias",
            "Transformer/encoderblock_#/LayerNorm_0/scale": "blocks.#.norm1.weight",
            "Transformer/encoderblock_#/LayerNorm_0/bias": "blocks.#.norm1.bias",
            JAX_PROJ: "blocks.#.mssa.qkv.weight",
            JAX_OUT: "blocks.#.mssa.proj.weight",
            "Transformer/encoderblock_#/LayerNorm_1/scale": "blocks.#.norm2.weight",
            "Transformer/encoderblock_#/LayerNorm_1/bias": "blocks.#.norm2.bias",
            "Transformer/encoderblock_#/OvercompleteISTABlock_0/D": "blocks.#.odl.dictionary",
            "Transformer/encoderblock_#/OvercompleteISTABlock_0/D1": "blocks.#.odl.decoder",
            "encoder_norm/scale": "{norm}.weight",
            "encoder_norm/bias": "{norm}.bias",
            "head/kernel": "head.weight",
            "head/bias": "head.bias",
        },
        {
            "embedding/kernel": "h w c d -> d c h w",
            JAX_PROJ: "d h p -> (h p) d",
            JAX_OUT: "h p d -> d (h p)",
            "head/kernel": "d c -> c d",
        },
        {"norm_eps": 1e-6},
    ),
    Format(  # the same, torch_inference/model/crate_alpha.py
        "CRATE-alpha",
        ("conv1.*", "transformer.layers.#.1.fn.D", "transformer.layers.#.1.fn.D1"),
        {
            **_CRATE_NAMES,
            "conv1.*": "patch_embed.proj.*",
            "transformer.layers.#.1.fn.D": "blocks.#.odl.dictionary",
            "transformer.layers.#.1.fn.D1": "blocks.#.odl.decoder",
        },
    ),
    Format(  # github.com/QishuaiWen/CBSA, CBSA_image_classification/models.py
        "CBT",
        ("transformer.layers.#.0.fn.step_rep", "transformer.layers.#.0.fn.step_x"),
        {
            "cls_token": "cls_token",
            "pos_embedding": "pos_embed",
            "to_patch_embedding.proj.**": "patch_embed.proj.**",
            "transformer.layers.#.0.norm.*": "blocks.#.norm1.*",
            "transformer.layers.#.0.fn.proj.weight": "blocks.#.cbsa.qkv.weight",
            "transformer.layers.#.0.fn.step_rep": "blocks.#.cbsa.step_rep",
            "transformer.layers.#.0.fn.step_x": "blocks.#.cbsa.step_x",
            "transformer.layers.#.0.fn.to_out.*": "blocks.#.cbsa.proj.*",
            "transformer.layers.#.1.norm.*": "blocks.#.norm2.*",
            "transformer.layers.#.1.fn.weight": "blocks.#.ista.dictionary",
            "mlp_head.0.*": "{norm}.*",
            "mlp_head.1.*": "head.*",
        },
    ),
    Format(  # github.com/Ma-Lab-Berkeley/CRATE; to_patch_embedding.0 is the rearrangement, head a demo's second Linear
        CRATE,
        ("to_patch_embedding.**", "transformer.layers.**"),
        {
            **_CRATE_NAMES,
            "to_patch_embedding.1.*": "patch_embed.norm1.*",
            "to_patch_embedding.2.*": "patch_embed.proj.*",
            "to_patch_embedding.3.*": "patch_embed.norm2.*",
            "transformer.layers.#.1.fn.weight": "blocks.#.ista.dictionary",
            "head.*": "second.*",
        },
    ),
    Format(  # the same; decoder_embed and its own pos_embed are in the file and used by nothing
        "CRATE-MAE",
        ("blocks.#.layers.**", "decoder_blocks.#.layers.**"),
        {
            "cls_token": "cls_token",
            "mask_token": "mask_token",
            "decoder_pos_embed": "pos_embed",
            "pos_embed": "",
            "patch_embed.proj.*": "patch_embed.proj.*",
            "blocks.#.layers.0.0.norm.*": "blocks.#.norm1.*",
            "blocks.#.layers.0.0.fn.qkv.weight": "blocks.#.mssa.qkv.weight",
            "blocks.#.layers.0.0.fn.to_out.0.*": "blocks.#.mssa.proj.*",
            "blocks.#.layers.0.1.norm.*": "blocks.#.norm2.*",
            "blocks.#.layers.0.1.fn.weight": "blocks.#.ista.dictionary",
            "norm.*": "{norm}.*",
            "decoder_embed.*": "",
            "decoder_blocks.#.layers.0.0.norm.*": "decoder_blocks.#.norm1.*",
            "decoder_blocks.#.layers.0.0.fn.weight": "decoder_blocks.#.linear.weight",
            "decoder_blocks.#.layers.0.1.norm.*": "decoder_blocks.#.norm2.*",
            "decoder_blocks.#.layers.0.1.fn.qkv.weight": "decoder_blocks.#.mssa.qkv.weight",
            "decoder_blocks.#.layers.0.1.fn.to_out.0.*": "decoder_blocks.#.mssa.proj.*",
            "decoder_norm.*": "decoder_norm.*",
            "decoder_pred.*": "decoder_pred.*",
        },
    ),
    Format(  # github.com/RobinWu218/ToST, tost_vision/tost.py
        "ToST",
        ("pos_embeder.**",),
        {
            "cls_token": "cls_token",
            "pos_embeder.token_projection.*": "pos_embed.token_projection.*",
            "patch_embed.proj.**": "patch_embed.proj.**",
            "blocks.#.norm1.*": "blocks.#.norm1.*",
            "blocks.#.attn.qkv.*": "blocks.#.tssa.qkv.*",
            "blocks.#.attn.temp": "blocks.#.tssa.temperature",
            "blocks.#.attn.to_out.0.*": "blocks.#.tssa.proj.*",
            "blocks.#.gamma1": "blocks.#.ls1.gamma",
            "blocks.#.norm2.*": "blocks.#.norm2.*",
            "blocks.#.mlp.**": "blocks.#.mlp.**",
            "blocks.#.gamma2": "blocks.#.ls2.gamma",
            "cls_attn_blocks.#.norm1.*": "cls_attn_blocks.#.norm1.*",
            "cls_attn_blocks.#.attn.**": "cls_attn_blocks.#.attn.**",
            "cls_attn_blocks.#.gamma1": "cls_attn_blocks.#.ls1.gamma",
            "cls_attn_blocks.#.norm2.*": "cls_attn_blocks.#.norm2.*",
            "cls_attn_blocks.#.mlp.**": "cls_attn_blocks.#.mlp.**",
            "cls_attn_blocks.#.gamma2": "cls_attn_blocks.#.ls2.gamma",
            "norm.*": "{norm}.*",
            "head.*": "head.*",
        },
    ),
    Format(  # the network between its heads; what comes of it is of a format of its own
        IN_TRAINING,
        ("backbone.**",),
        {"backbone.**": "**", "head.**": "", "dino_head.**": "", "ibot_head.**": ""},
    ),
    Format(  # github.com/facebookresearch/dinov2, with registers, or layers in groups (BlockChunk), as SimDINOv2
        DINOV2,
        ("register_tokens", "blocks.?.#.**"),
        {
            "cls_token": "cls_token",
            "register_tokens": "reg_token",
            "pos_embed": "pos_embed",
            "mask_token": "",
            "patch_embed.proj.*": "patch_embed.proj.*",
            "blocks.?.#.**": "blocks.#.**",
            "blocks.#.**": "blocks.#.**",
            "norm.*": "{norm}.*",
        },
    ),
    Format("whitebox-crate, timm or DINO", ("pos_embed", "patch_embed.**", "blocks.#.**")),
)
