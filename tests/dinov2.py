"""DINOv2 with the names of its files, and its equations written down plainly, as github.com/facebookresearch/dinov2.

With registers that is not timm's form: [CLS] has a position, and registers, which have none, are put in after it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

State = dict[str, Tensor]
HEADS = 2


def dinov2_state(
    registers: int, groups: int = 0, *, dim: int = 16, depth: int = 4, patch: int = 4, side: int = 12
) -> State:
    """Random weights; `groups` says in how many groups the layers are, whose numbers are then part of the names."""
    torch.manual_seed(0)
    shapes = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, 1 + (side // patch) ** 2, dim),
        "mask_token": (1, dim),
        "patch_embed.proj.weight": (dim, 3, patch, patch),
        "patch_embed.proj.bias": (dim,),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
    }
    if registers:
        shapes["register_tokens"] = (1, registers, dim)
    for layer in range(depth):
        at = f"blocks.{layer * groups // depth}.{layer}" if groups else f"blocks.{layer}"
        for name, outputs, inputs in (
            ("attn.qkv", 3 * dim, dim),
            ("attn.proj", dim, dim),
            ("mlp.fc1", 4 * dim, dim),
            ("mlp.fc2", dim, 4 * dim),
        ):
            shapes |= {f"{at}.{name}.weight": (outputs, inputs), f"{at}.{name}.bias": (outputs,)}
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"{at}.{name}"] = (dim,)
    return {name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}


def dinov2_tokens(state: State, images: Tensor) -> Tensor:
    """What comes out of the last norm: [CLS], registers, patches; (batch, tokens, dim)."""
    patch = state["patch_embed.proj.weight"].shape[-1]
    patches = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch)
    x = rearrange(patches, "b d h w -> b (h w) d")
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], dim=1) + _positions(state, patches.shape[-2:])
    if "register_tokens" in state:
        x = torch.cat([x[:, :1], state["register_tokens"].expand(len(x), -1, -1), x[:, 1:]], dim=1)
    for at in dict.fromkeys(name.rpartition(".ls1")[0] for name in state if name.endswith("ls1.gamma")):
        layer = {name.removeprefix(f"{at}."): value for name, value in state.items() if name.startswith(f"{at}.")}
        x = x + layer["ls1.gamma"] * _attention(layer, _norm(x, layer["norm1.weight"], layer["norm1.bias"]))
        hidden = F.gelu(_linear(_norm(x, layer["norm2.weight"], layer["norm2.bias"]), layer, "mlp.fc1"))
        x = x + layer["ls2.gamma"] * _linear(hidden, layer, "mlp.fc2")
    return _norm(x, state["norm.weight"], state["norm.bias"])


def _positions(state: State, grid: tuple[int, ...]) -> Tensor:
    """To the size, with antialias: what its models with registers do."""
    of_class, of_patches = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
    side = round(of_patches.shape[1] ** 0.5)
    if tuple(grid) != (side, side):
        image = rearrange(of_patches, "1 (h w) d -> 1 d h w", h=side)
        image = F.interpolate(image, size=tuple(grid), mode="bicubic", antialias=True)
        of_patches = rearrange(image, "1 d h w -> 1 (h w) d")
    return torch.cat([of_class, of_patches], dim=1)


def _attention(layer: State, x: Tensor) -> Tensor:
    q, k, v = rearrange(_linear(x, layer, "attn.qkv"), "b n (three h p) -> three b h n p", three=3, h=HEADS)
    mixed = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
    return _linear(rearrange(mixed, "b h n p -> b n (h p)"), layer, "attn.proj")


def _linear(x: Tensor, layer: State, name: str) -> Tensor:
    return F.linear(x, layer[f"{name}.weight"], layer[f"{name}.bias"])


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, eps=1e-6)
