"""fold_for_inference: the same function in fewer multiplications, for a model that is no longer trained."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from .errors import InputError
from .layers import ISTA, FoldedISTA, NormedPatchEmbed
from .models import FeatureExtractor, ImageTransformer
from .models._base import Block
from .models.crate import CrateBlock
from .models.crate_ablations import CrateMhsaBlock, CrateMlpBlock
from .models.crate_alpha import CrateAlphaBlock
from .models.crate_mae import CrateMaeDecoderBlock
from .models.vit import ViTBlock

Model = TypeVar("Model", ImageTransformer, FeatureExtractor)


@torch.no_grad()
def fold_for_inference(model: Model, *, inplace: bool = False) -> Model:
    """Folds what is linear into one product each, so that the model computes the same with less.

    - ISTA's two products with D become one: x + eta D^T (x - D x) = A x with A = I + eta (D^T - D^T D). The threshold
      stays, ReLU or soft; with ReLU eta lambda moves into the bias.
    - Scale and shift of a LayerNorm go into the product that follows: of the patches into the patch embedding, of a
      layer into its heads' bases, A, or the first matrix of ViT's MLP.

    What stays: CRATE-alpha's sparse coding, which takes the reconstruction from the normed tokens themselves; the norm
    before attention with `skip="normalized"`, which the skip adds as well; the last norm, whose tokens
    `forward_features` returns; ViT's GELU and all attention.

    The result is a model like any other: `capture` reads it, `save_pretrained` and `create_model` save and load it,
    and `torch.compile` and `torch.export` take it. Its parameters are not those of the paper any more, so it is neither
    trained nor analysed. The products are computed in double precision: fold in float32, then cast.

    Args:
        model: A model of this package in evaluation mode, of any dtype and on any device, not compiled or wrapped.
        inplace: Whether to change the model itself rather than a copy.

    Returns:
        The folded model, without gradients, `folded` set; the model itself if it was folded before.

    Raises:
        InputError: If the model is in training mode, wrapped, not of this package, or has layers that are not.
    """
    core = _core(model)
    if core.training:
        raise InputError("the model is in training mode, and a folded one is not trained: call model.eval() first")
    if core.folded:
        return model
    # A subclass may compute something else with the same modules.
    strange = {type(layer).__name__ for layer in _layers(core) if type(layer) not in _FOLDABLE}
    if strange:
        raise InputError(f"nothing is known of what layers of the type {', '.join(strange)} compute: they do not fold")
    if not inplace:
        model = copy.deepcopy(model)
        core = _core(model)
    if isinstance(core.patch_embed, NormedPatchEmbed):
        core.patch_embed.norm1, core.patch_embed.proj = _fold(core.patch_embed.norm1, core.patch_embed.proj)
    for layer in _layers(core):
        _fold_layer(layer)
    core.requires_grad_(False)
    core.folded = True
    return model


def _core(model: nn.Module) -> ImageTransformer:
    core = model.model if isinstance(model, FeatureExtractor) else model
    if not isinstance(core, ImageTransformer):
        raise InputError(
            f"fold_for_inference takes a model of this package, not {type(core).__name__}; fold the model itself, then "
            "compile or distribute it"
        )
    return core


def _layers(core: ImageTransformer) -> list[nn.Module]:
    """The layers, and those of CRATE-MAE's decoder."""
    return [*core.blocks, *getattr(core, "decoder_blocks", ())]


_FOLDABLE = (CrateBlock, CrateMlpBlock, CrateMhsaBlock, CrateAlphaBlock, CrateMaeDecoderBlock, ViTBlock)


def _fold_layer(layer: nn.Module) -> None:
    """Folds the norms of a layer, each into the one product that reads it, and its sparse coding."""
    if isinstance(layer, CrateMaeDecoderBlock):
        layer.norm1, layer.linear = _fold(layer.norm1, layer.linear)
        layer.norm2, layer.mssa.qkv = _fold(layer.norm2, layer.mssa.qkv)
        return
    skips_normed = isinstance(layer, CrateBlock) and layer.skip == "normalized"
    if isinstance(layer, Block) and not skips_normed:
        layer.norm1, layer.attention.qkv = _fold(layer.norm1, layer.attention.qkv)
    if isinstance(layer, CrateBlock | CrateMhsaBlock) and isinstance(layer.ista, ISTA):
        layer.norm2, layer.ista = _fold_ista(layer.norm2, layer.ista)
    elif isinstance(layer, CrateMlpBlock | ViTBlock):
        layer.norm2, layer.mlp.fc1 = _fold(layer.norm2, layer.mlp.fc1)


def _fold(norm: nn.LayerNorm, linear: nn.Linear) -> tuple[nn.LayerNorm, nn.Linear]:
    """W (g * x + b) + c = (W diag(g)) x + (W b + c): a norm without scale and shift, and the product with both."""
    folded = nn.Linear(linear.in_features, linear.out_features, device="meta")
    weight = linear.weight.double()
    shift = weight @ norm.bias.double() + (0 if linear.bias is None else linear.bias.double())
    folded.weight = _parameter(weight * norm.weight.double(), linear.weight.dtype)
    folded.bias = _parameter(shift, linear.weight.dtype)
    return _plain(norm), folded


def _fold_ista(norm: nn.LayerNorm, ista: ISTA) -> tuple[nn.LayerNorm, FoldedISTA]:
    """shrink(A (g * x + b)) = shrink((A diag(g)) x + A b)."""
    matrix = ista.affine()
    folded = FoldedISTA(len(matrix), ista.step_size * ista.sparsity, ista.threshold, device="meta")
    shift = matrix @ norm.bias.double() - (folded.shrinkage if folded.threshold == "relu" else 0)
    folded.weight = _parameter(matrix * norm.weight.double(), ista.dictionary.dtype)
    folded.bias = _parameter(shift, ista.dictionary.dtype)
    return _plain(norm), folded


def _plain(norm: nn.LayerNorm) -> nn.LayerNorm:
    return nn.LayerNorm(norm.normalized_shape, eps=norm.eps, elementwise_affine=False)


def _parameter(value: Tensor, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(value.to(dtype), requires_grad=False)
