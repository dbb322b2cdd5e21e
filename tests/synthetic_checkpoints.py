"""Files with the names and shapes of published checkpoints, and holes where their numbers would be.

The names are those of the code that wrote the published files: github.com/Ma-Lab-Berkeley/CRATE (CRATE, CRATE-MAE),
github.com/UCSC-VLAA/CRATE-alpha (torch_inference/ and, for JAX, models/crate.py), github.com/QishuaiWen/CBSA
(CBSA_image_classification/models.py) and timm. Nothing here asks the models
of this package. Sizes of a gigabyte cost nothing: zeros are neither kept in memory nor on the disk.
"""

import io
import json
import math
import os
import re
import struct
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
COUNTER = "num_batches_tracked"  # of BatchNorm, an integer
BLOCK = 4096  # bytes of zeros from which on a file system leaves a hole


def count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many numbers there are."""
    return sum(math.prod(shape) for shape in shapes.values())


# Names and shapes


def _tokens(side: int, patch: int) -> int:
    return 1 + (side // patch) ** 2


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _conv(name: str, width: int, patch: int) -> Shapes:
    return {f"{name}.weight": (width, 3, patch, patch), f"{name}.bias": (width,)}


def crate(width: int, depth: int, patch: int, classes: int, *, side: int = 224) -> Shapes:
    """Official CRATE: LayerNorm, Linear, LayerNorm embed the patches; ISTA has one square matrix."""
    shapes: Shapes = {"pos_embedding": (1, _tokens(side, patch), width), "cls_token": (1, 1, width)}
    patch_dim = 3 * patch * patch
    shapes |= _norm("to_patch_embedding.1", patch_dim)
    shapes |= _linear("to_patch_embedding.2", patch_dim, width)
    shapes |= _norm("to_patch_embedding.3", width)
    for layer in range(depth):
        at = f"transformer.layers.{layer}"
        shapes |= _norm(f"{at}.0.norm", width)
        shapes[f"{at}.0.fn.qkv.weight"] = (width, width)
        shapes |= _linear(f"{at}.0.fn.to_out.0", width, width)
        shapes[f"{at}.1.fn.weight"] = (width, width)
        shapes |= _norm(f"{at}.1.norm", width)
    return {**shapes, **_norm("mlp_head.0", width), **_linear("mlp_head.1", width, classes)}


def crate_demo(width: int, depth: int, patch: int, classes: int, *, side: int = 224) -> Shapes:
    """The public demo: CRATE whose head is as wide as a token, followed by a Linear of its own."""
    return {**crate(width, depth, patch, width, side=side), **_linear("head", width, classes)}


def crate_alpha(width: int, depth: int, patch: int, classes: int, *, side: int = 224) -> Shapes:
    """CRATE-alpha of PyTorch: a convolution, projections without a bias, two dictionaries of four times the width."""
    shapes: Shapes = {"pos_embedding": (1, _tokens(side, patch), width), "cls_token": (1, 1, width)}
    shapes |= _conv("conv1", width, patch)
    for layer in range(depth):
        at = f"transformer.layers.{layer}"
        shapes |= _norm(f"{at}.0.norm", width)
        shapes |= {f"{at}.0.fn.qkv.weight": (width, width), f"{at}.0.fn.to_out.0.weight": (width, width)}
        shapes |= _norm(f"{at}.1.norm", width)
        shapes |= {f"{at}.1.fn.D": (width, 4 * width), f"{at}.1.fn.D1": (width, 4 * width)}
    return {**shapes, **_norm("mlp_head.0", width), **_linear("mlp_head.1", width, classes)}


def crate_alpha_jax(width: int, depth: int, heads: int, patch: int, classes: int, *, side: int = 224) -> Shapes:
    """The parameters of CRATE-alpha of JAX, flattened: kernels have the outputs last, heads an axis of their own."""
    shapes: Shapes = {"cls": (1, 1, width), "pos_embedding": (1, _tokens(side, patch), width)}
    shapes |= {"embedding/kernel": (patch, patch, 3, width), "embedding/bias": (width,)}
    for layer in range(depth):
        at = f"Transformer/encoderblock_{layer}"
        attention = f"{at}/MultiHeadDotProductSubspaceAttention_0"
        for norm in ("LayerNorm_0", "LayerNorm_1"):
            shapes |= {f"{at}/{norm}/scale": (width,), f"{at}/{norm}/bias": (width,)}
        shapes[f"{attention}/proj/kernel"] = (width, heads, width // heads)
        shapes[f"{attention}/out/kernel"] = (heads, width // heads, width)
        shapes |= {f"{at}/OvercompleteISTABlock_0/{matrix}": (width, 4 * width) for matrix in ("D", "D1")}
    shapes |= {"encoder_norm/scale": (width,), "encoder_norm/bias": (width,)}
    return {**shapes, "head/kernel": (width, classes), "head/bias": (classes,)}


def crate_mae(width: int, depth: int, patch: int, *, side: int = 224) -> Shapes:
    """Official CRATE-MAE: a decoder as deep as the encoder; pos_embed and decoder_embed are used by nothing."""
    positions = (1, _tokens(side, patch), width)
    shapes: Shapes = {"cls_token": (1, 1, width), "pos_embed": positions, "mask_token": (1, 1, width)}
    shapes |= {"decoder_pos_embed": positions, **_conv("patch_embed.proj", width, patch)}
    for layer in range(depth):
        at = f"blocks.{layer}.layers.0"
        shapes |= _norm(f"{at}.0.norm", width)
        shapes[f"{at}.0.fn.qkv.weight"] = (width, width)
        shapes |= _linear(f"{at}.0.fn.to_out.0", width, width)
        shapes[f"{at}.1.fn.weight"] = (width, width)
        shapes |= _norm(f"{at}.1.norm", width)
    shapes |= {**_norm("norm", width), **_linear("decoder_embed", width, width)}
    for layer in range(depth):
        at = f"decoder_blocks.{layer}.layers.0"
        shapes |= _norm(f"{at}.0.norm", width)
        shapes[f"{at}.0.fn.weight"] = (width, width)
        shapes |= _norm(f"{at}.1.norm", width)
        shapes[f"{at}.1.fn.qkv.weight"] = (width, width)
        shapes |= _linear(f"{at}.1.fn.to_out.0", width, width)
    return {**shapes, **_norm("decoder_norm", width), **_linear("decoder_pred", width, 3 * patch * patch)}


def cbt(width: int, depth: int, heads: int, patch: int, classes: int, *, side: int = 224) -> Shapes:
    """Official CBT: convolutions with BatchNorm that halve the image, and two numbers for each head of a layer."""
    shapes: Shapes = {"pos_embedding": (1, _tokens(side, patch), width), "cls_token": (1, 1, width)}
    steps = patch.bit_length() - 1
    channels = [3, *(width // 2 ** (steps - 1 - step) for step in range(steps))]
    for step, (before, after) in enumerate(pairwise(channels)):
        at = f"to_patch_embedding.proj.{2 * step}"
        shapes |= {f"{at}.0.weight": (after, before, 3, 3), **_norm(f"{at}.1", after)}
        shapes |= {f"{at}.1.running_mean": (after,), f"{at}.1.running_var": (after,), f"{at}.1.{COUNTER}": ()}
    for layer in range(depth):
        at = f"transformer.layers.{layer}"
        shapes |= {f"{at}.0.fn.step_x": (heads, 1, 1), f"{at}.0.fn.step_rep": (heads, 1, 1)}
        shapes |= {f"{at}.0.fn.proj.weight": (width, width), **_linear(f"{at}.0.fn.to_out", width, width)}
        shapes |= {f"{at}.1.fn.weight": (width, width), **_norm(f"{at}.0.norm", width), **_norm(f"{at}.1.norm", width)}
    return {**shapes, **_norm("mlp_head.0", width), **_linear("mlp_head.1", width, classes)}


def timm_vit(width: int, depth: int, patch: int, classes: int, *, side: int = 224) -> Shapes:
    """timm's ViT: q, k and v in one Linear with a bias, an MLP of four times the width; no head for 0 classes."""
    shapes: Shapes = {"cls_token": (1, 1, width), "pos_embed": (1, _tokens(side, patch), width)}
    shapes |= _conv("patch_embed.proj", width, patch)
    for layer in range(depth):
        at = f"blocks.{layer}"
        shapes |= {**_norm(f"{at}.norm1", width), **_linear(f"{at}.attn.qkv", width, 3 * width)}
        shapes |= {**_linear(f"{at}.attn.proj", width, width), **_norm(f"{at}.norm2", width)}
        shapes |= {**_linear(f"{at}.mlp.fc1", width, 4 * width), **_linear(f"{at}.mlp.fc2", 4 * width, width)}
    shapes |= _norm("norm", width)
    return {**shapes, **_linear("head", width, classes)} if classes else shapes


def timm_dinov2(width: int, depth: int, patch: int, registers: int, *, side: int = 518) -> Shapes:
    """timm's ViT with LayerScale; with registers, patches alone have positions."""
    shapes = timm_vit(width, depth, patch, 0, side=side)
    for layer in range(depth):
        shapes |= {f"blocks.{layer}.ls1.gamma": (width,), f"blocks.{layer}.ls2.gamma": (width,)}
    if registers:
        shapes |= {"reg_token": (1, registers, width), "pos_embed": (1, _tokens(side, patch) - 1, width)}
    return shapes


def simdinov2(width: int, depth: int, patch: int, *, registers: int = 4, groups: int = 4, side: int = 224) -> Shapes:
    """The teacher's network of SimDINOv2, as DINOv2's code names it: layers in groups, a mask token, and [CLS] has a
    position."""
    shapes: Shapes = {}
    for name, shape in timm_dinov2(width, depth, patch, registers, side=side).items():
        layer = re.match(r"blocks\.(\d+)", name)
        shapes[f"blocks.{int(layer[1]) * groups // depth}{name[6:]}" if layer else name] = shape
    shapes["register_tokens"] = shapes.pop("reg_token")
    return {**shapes, "pos_embed": (1, _tokens(side, patch), width), "mask_token": (1, width)}


# Files


def on_disk(path: Path) -> int:
    """How many bytes of the disk a file takes."""
    return os.stat(path).st_blocks * 512


def write_safetensors(path: Path, shapes: Shapes) -> None:
    """What `safetensors` writes of float32 tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def hollow(shapes: Shapes, prefix: str = "") -> dict[str, Tensor]:
    """Tensors whose memory nobody touches."""
    kinds = {name: torch.int64 if name.endswith(COUNTER) else torch.float32 for name in shapes}
    return {prefix + name: torch.zeros(shape, dtype=kinds[name]) for name, shape in shapes.items()}


def write_torch(path: Path, content: Mapping[str, Any]) -> None:
    """What `torch.save` writes, without the bytes of its tensors."""
    with _Holes(path, "w+b") as file:
        torch.save(content, file)


def write_npz(path: Path, params: Shapes) -> None:
    """What CRATE-alpha's training in JAX saves: parameters, then the optimizer's first moments in bfloat16, which
    numpy knows as two bytes, and its second ones in float32, and clocks."""
    zero, two_bytes = np.zeros((), np.float32), np.zeros((), "V2")
    arrays: dict[str, Any] = {f"params/{name}": np.broadcast_to(zero, shape) for name, shape in params.items()}
    arrays |= {f"opt/0/mu/{name}": np.broadcast_to(two_bytes, shape) for name, shape in params.items()}
    arrays |= {f"opt/0/nu/{name}": np.broadcast_to(zero, shape) for name, shape in params.items()}
    arrays |= {"opt/0/count": np.zeros((), np.int32), "chrono/accum_train_time": np.zeros(())}
    with _Holes(path, "w+b") as file:
        np.savez(file, **arrays)


class _Holes(io.FileIO):
    """A file that leaves a hole for a write of nothing but zeros."""

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        if len(view) >= BLOCK and not np.frombuffer(view, np.uint8).any():
            self.seek(len(view), os.SEEK_CUR)
            return len(view)
        return super().write(view)
