"""The operators of a layer, and checks that their modules are those of the equations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from einops import rearrange
from torch import Tensor, nn

from .._indices import resolve_layers
from ..backbones import Readable
from ..errors import InputError
from ..layers import CBSA, ISTA, MHSA, MSSA, ODL, TSSA, LayerScale
from ..layers.plain import oddity
from ..models import Block, ImageTransformer
from ..models._wrappers import unwrap

# Attention whose weights show the subspaces, or the keys, of its heads.
Heads: TypeAlias = MSSA | MHSA | CBSA | TSSA


def refuse_folded(core: ImageTransformer) -> None:
    """Refuses a folded model, whose weights and norms are not those of the equations.

    Raises:
        InputError: If the model is folded.
    """
    if core.folded:
        raise InputError("this model is folded, its weights are products of the paper's: give the one before folding")


def require_plain(owner: nn.Module, name: str, *kinds: type[nn.Module], pre_hooks: bool = True) -> None:
    """Raises InputError unless a module's weights fully describe it. For the arguments see `oddity`."""
    module = unwrap(getattr(owner, name))
    odd = oddity(module, *kinds, pre_hooks=pre_hooks)
    if odd:
        raise InputError(
            f"{name} of {type(owner).__name__} is {odd}, not a plain {' or '.join(kind.__name__ for kind in kinds)}: "
            "its weights do not say what it computes. Merge adapters, remove hooks, or give the model before it was "
            "quantised or sharded"
        )


def measured_layers(core: Readable, layers: int | Sequence[int] | None) -> list[int]:
    """Layers as in `capture`. None means those of `blocks`, which all see the same tokens.

    These are all layers, except ToST's class attention, which comes after them; and all layers of a `Backbone`.

    Raises:
        UnknownNameError: If a layer does not exist.
        InputError: If `layers` is not a list of layers.
    """
    if layers is None and isinstance(core, ImageTransformer):
        return list(range(len(core.blocks)))
    return resolve_layers(layers, len(core.layers()))


def stacked(parts: Sequence[Tensor], layers: Sequence[int]) -> Tensor:
    """Stacks results of each layer along dimension 1.

    Raises:
        InputError: If the layers have different numbers of tokens.
    """
    shapes = [tuple(part.shape) for part in parts]
    if len(set(shapes)) > 1:
        raise InputError(
            f"the layers {', '.join(map(str, layers))} have different numbers of tokens, which do not stack: {shapes}; "
            "ask for those apart that [CLS] has not joined, and for class attention"
        )
    return torch.stack(list(parts), dim=1)


def block_of(core: ImageTransformer, index: int) -> Block:
    """A layer, if it is one that has attention and coding."""
    block = unwrap(core.layers()[index])
    if not isinstance(block, Block):
        raise InputError(f"layer {index} is a {type(block).__name__}, not a Block: nothing says where its heads are")
    return block


def attention_of(core: ImageTransformer, index: int) -> Heads:
    """The attention of a layer, if its heads are known."""
    return subspaces_of(block_of(core, index), f"layer {index}")


def subspaces_of(block: Block, name: str = "the layer") -> Heads:
    """The attention of a block, if its heads are known."""
    attention: object = block.attention
    if not isinstance(attention, Heads):
        raise InputError(
            f"{name} has no subspaces: its attention is {type(attention).__name__}, not MSSA, MHSA, CBSA or TSSA; give "
            "bases of your own to orthonormal_bases"
        )
    return attention


def projected(attention: Heads, x: Tensor) -> Tensor:
    """The projections of attention: w of each head (in MHSA, the keys), (batch, heads, tokens, head_dim).

    Args:
        attention: The operator.
        x: Its input, (batch, tokens, dim).
    """
    reading = attention.readings()["projections"]
    found = reading.read(reading.module(x))
    assert isinstance(found, Tensor)
    return found


def coder_of(block: nn.Module) -> ISTA | ODL | None:
    """The sparse coding of a layer, if it has one. (A folded layer has no dictionary any more.)"""
    return next((module for module in block.modules() if isinstance(module, ISTA | ODL)), None)


def plain_coder(block: nn.Module) -> ISTA | ODL | None:
    """The sparse coding of a layer, if it has one, to read its dictionary.

    Raises:
        InputError: If it is not plain ISTA or ODL, or is only a part of the coding.
    """
    coder = coder_of(block)
    if coder is None:
        return None
    name = next(name for name, module in block.named_modules() if module is coder)
    outer, _, own = name.removesuffix("._orig_mod").rpartition(".")
    if outer:
        holder = type(block.get_submodule(outer)).__name__
        raise InputError(f"{own} stands in a {holder} of {type(block).__name__}: nothing is known of what that codes")
    require_plain(block, own, ISTA, ODL)
    return coder


def key_weights(attention: Heads) -> Tensor:
    """U_1, ..., U_K of MSSA, CBSA and TSSA, the key projections of MHSA: detached, (heads, dim, head_dim).

    Raises:
        InputError: If the joint projection is not a plain Linear.
    """
    require_plain(attention, "qkv", nn.Linear)
    rows = attention.qkv.weight.detach()
    inner_dim = attention.num_heads * attention.head_dim
    if isinstance(attention, MHSA):
        rows = rows[inner_dim : 2 * inner_dim]
    split: Tensor = rows.unflatten(0, (attention.num_heads, attention.head_dim))
    return split.mT


def output_weights(attention: Heads) -> Tensor:
    """The output projection by head, (dim, heads, head_dim). Hooks on its input are ignored.

    Raises:
        InputError: If it is neither a plain Linear nor (without a projection) the identity.
    """
    projects = attention.projects if isinstance(attention, MSSA) else True
    require_plain(attention, "proj", nn.Linear if projects else nn.Identity, pre_hooks=False)
    if isinstance(attention.proj, nn.Linear):
        return rearrange(attention.proj.weight, "d (h p) -> d h p", h=attention.num_heads)
    if isinstance(attention, MSSA) and attention.tied:
        require_plain(attention, "qkv", nn.Linear)
        return rearrange(attention.qkv.weight, "(h p) d -> d h p", h=attention.num_heads)
    weight = attention.qkv.weight  # one head as wide as a token: the projection is the identity
    return torch.eye(attention.head_dim, dtype=weight.dtype, device=weight.device)[:, None]


def output_scale(core: ImageTransformer, index: int) -> Tensor | float:
    """The LayerScale of a layer's attention, detached, (dim,); 1 if there is none.

    Raises:
        InputError: If another module takes its place.
    """
    block = block_of(core, index)
    if not hasattr(block, "ls1"):
        return 1.0
    require_plain(block, "ls1", LayerScale, nn.Identity)
    scale = unwrap(block.get_submodule("ls1"))
    return scale.gamma.detach() if isinstance(scale, LayerScale) else 1.0
