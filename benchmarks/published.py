"""CRATE as published, in plain PyTorch from the equations: what the package's own forward pass is measured against.

Every attention matrix is there in full, the dictionary enters three products, all tokens go through all layers. It is
one function of a model's parameters, with gradients, and tests hold the package's faster formulations to it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from whitebox_crate.errors import InputError
from whitebox_crate.layers import ISTA, MSSA
from whitebox_crate.models import Crate, CrateBlock


def published_logits(model: Crate, images: Tensor) -> Tensor:
    """The logits of a CRATE (arXiv 2308.16271, section 2 and Algorithm 1).

    Args:
        model: A `Crate` that is not folded, with a head, that pools [CLS] ("token") or all tokens ("mean").
        images: (batch, in_chans, height, width) of the size that the model expects.

    Returns:
        (batch, num_classes), with gradients to all parameters.

    Raises:
        InputError: If the model is another one, or the images have another size.
    """
    if type(model) is not Crate or model.folded or not model.num_classes or model.global_pool not in ("token", "mean"):
        raise InputError("published_logits takes a Crate with a head, not folded, that pools 'token' or 'mean'")
    if images.shape[-2:] != model.img_size:
        raise InputError(f"expected images of {model.img_size}, not {tuple(images.shape[-2:])}: set_input_size first")
    tokens = embed(model, images)
    for block in cast(list[CrateBlock], list(model.blocks)):
        normed = norm(tokens, block.norm1)
        skipped = tokens if block.skip == "input" else normed
        tokens = ista(norm(skipped + mssa(normed, block.mssa), block.norm2), cast(ISTA, block.ista))  # Eq. 8
    if model.global_pool == "token":
        return linear(norm(tokens, model.norm)[:, 0], model.head)
    return linear(norm(tokens.mean(dim=1), model.fc_norm), model.head)


def embed(model: Crate, images: Tensor) -> Tensor:
    """Patches, [CLS] and positions, (batch, tokens, dim): LN(W LN(x) + b) of each patch x."""
    (p, q), embedding = model.patch_embed.patch_size, model.patch_embed
    patches = rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=q)
    patches = norm(linear(norm(patches, embedding.norm1), embedding.proj), embedding.norm2)
    tokens: Tensor = torch.cat([model.cls_token.expand(len(images), -1, -1), patches], dim=1) + model.pos_embed
    return tokens


def mssa(z: Tensor, layer: MSSA) -> Tensor:
    """Eq. 5: softmax(w w^T / sqrt(p)) w of each head, w = U^T z, and the output projection; (batch, tokens, dim)."""
    w = rearrange(linear(z, layer.qkv), "b n (h p) -> b h n p", h=layer.num_heads)
    attention = (w @ w.mT * layer.head_dim**-0.5).softmax(dim=-1)
    heads = rearrange(attention @ w, "b h n p -> b n (h p)")
    return heads if isinstance(layer.proj, nn.Identity) else linear(heads, layer.proj)


def ista(x: Tensor, layer: ISTA) -> Tensor:
    """Eq. 7: shrink(x + eta (D^T x - D^T D x)), tokens as rows; ReLU(. - eta lambda), or the soft threshold."""
    dictionary, step = layer.dictionary, layer.step_size
    gradient = x @ dictionary - (x @ dictionary.T) @ dictionary
    code = x + step * gradient
    if layer.threshold == "soft":
        return code.sign() * F.relu(code.abs() - step * layer.sparsity)
    return F.relu(code - step * layer.sparsity)


def norm(x: Tensor, layer: Any) -> Tensor:
    """LayerNorm, with the parameters of an nn.LayerNorm."""
    return F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)


def linear(x: Tensor, layer: Any) -> Tensor:
    """W x + b, with the parameters of an nn.Linear."""
    return F.linear(x, layer.weight, layer.bias)
