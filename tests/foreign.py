"""Golden weights as other people would have stored them."""

from __future__ import annotations

import re
from typing import Any

import torch
from einops import rearrange
from golden_data import Case
from torch import Tensor

_JAX_ATTENTION = "MultiHeadDotProductSubspaceAttention_0"
_JAX_PARTS = {
    "0.norm.weight": "LayerNorm_0/scale",
    "0.norm.bias": "LayerNorm_0/bias",
    "0.fn.qkv.weight": f"{_JAX_ATTENTION}/proj/kernel",
    "0.fn.to_out.0.weight": f"{_JAX_ATTENTION}/out/kernel",
    "1.norm.weight": "LayerNorm_1/scale",
    "1.norm.bias": "LayerNorm_1/bias",
    "1.fn.D": "OvercompleteISTABlock_0/D",
    "1.fn.D1": "OvercompleteISTABlock_0/D1",
}
_JAX_NAMES = {
    "conv1.weight": "embedding/kernel",
    "conv1.bias": "embedding/bias",
    "cls_token": "cls",
    "pos_embedding": "pos_embedding",
    "mlp_head.0.weight": "encoder_norm/scale",
    "mlp_head.0.bias": "encoder_norm/bias",
    "mlp_head.1.weight": "head/kernel",
    "mlp_head.1.bias": "head/bias",
}


def jax_of(case: Case) -> dict[str, Tensor]:
    """The weights of a CRATE-alpha as its JAX original names and turns them."""
    heads, state = case.kwargs["heads"], dict[str, Tensor]()
    for name, value in case.group("state").items():
        layer = re.fullmatch(r"transformer\.layers\.(\d+)\.(.*)", name)
        theirs = f"Transformer/encoderblock_{layer[1]}/{_JAX_PARTS[layer[2]]}" if layer else _JAX_NAMES[name]
        if theirs == "embedding/kernel":
            value = rearrange(value, "d c h w -> h w c d")
        elif theirs == "head/kernel":
            value = value.T
        elif theirs.endswith("proj/kernel"):
            value = rearrange(value, "(h p) d -> d h p", h=heads)
        elif theirs.endswith("out/kernel"):
            value = rearrange(value, "d (h p) -> h p d", h=heads)
        state[f"params/{theirs}"] = value.contiguous()
    return state


def two_part_of(case: Case) -> dict[str, Tensor]:
    """The weights of an official CRATE whose head is two Linears that together are the one of the case."""
    state = case.group("state")
    weight, bias = state.pop("mlp_head.1.weight").double(), state.pop("mlp_head.1.bias").double()
    generator = torch.Generator().manual_seed(5)
    dim = weight.shape[1]
    first = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
    first_bias = torch.randn(dim, generator=generator, dtype=torch.float64)
    state["mlp_head.1.weight"], state["mlp_head.1.bias"] = first.float(), first_bias.float()
    second = weight @ first.T
    state["head.weight"], state["head.bias"] = second.float(), (bias - second @ first_bias).float()
    return state


def dino_training_of(case: Case) -> dict[str, Any]:
    """The weights of a ViT as the teacher in a checkpoint of DINO's training, whose student is another network."""
    backbone = {f"backbone.{name}": value for name, value in case.group("state").items()}
    head = {"head.mlp.0.weight": torch.ones(2, 2), "head.last_layer.weight_g": torch.ones(2, 1)}
    teacher = {**backbone, **head}
    student = {f"module.{name}": value + 1 for name, value in teacher.items()}
    center = {"center": torch.zeros(1, 2)}
    return {"student": student, "teacher": teacher, "optimizer": {"state": {}}, "epoch": 3, "dino_loss": center}
