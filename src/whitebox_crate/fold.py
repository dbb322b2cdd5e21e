"""fold_for_inference: the same function in fewer multiplications, for a model that is no longer trained."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from .errors import InputError
from .layers import ISTA, FoldedISTA, NormedPatchEmbed
from .models import FeatureExtractor, ImageTransformer
from .models.crate import CrateBlock
from .models.crate_ablations import CrateMhsaBlock, CrateMlpBlock
from .models.crate_alpha import CrateAlphaBlock
from .models.crate_mae import CrateMaeDecoderBlock
from .models.vit import ViTBlock

Model = TypeVar("Model", ImageTransformer, FeatureExtractor)


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
    trained nor analysed; its `load_report` still tells of those. The products are computed in double precision on the
    CPU: fold in float32, then cast.

    Args:
        model: A model of this package in evaluation mode, of any dtype and on any device, not compiled or wrapped.
        inplace: Whether to change the model itself rather than a copy.

    Returns:
        The folded model, whose parameters want no gradients and whose `folded` is true; the model itself if it was
        folded before.

    Raises:
        InputError: If the model is in training mode, wrapped, or not of this package, or if a layer or what folds in
            it was exchanged or has hooks. Nothing is changed then.
    """
    core = _core(model)
    if core.folded:
        return model
    if core.training:
        raise InputError("the model is in training mode, and a folded one is not trained: call model.eval() first")
    planned = _pairs(core)
    for pair in planned:
        pair.check()
    if len({(id(pair.reader), pair.product) for pair in planned}) < len(planned):
        raise InputError("layers share their attention, and each has a norm of its own: one product cannot take both")
    with torch.inference_mode(False), torch.no_grad():  # tensors of inference mode could never be loaded into
        if not inplace:
            model = copy.deepcopy(model)
            core = _core(model)
        pairs = _pairs(core)
        folded = [pair.fold() for pair in pairs]  # all before any is put in place: they may share modules
    for pair, (norm, product) in zip(pairs, folded, strict=True):
        setattr(pair.normer, pair.norm, norm)
        setattr(pair.reader, pair.product, product)
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


@dataclass(frozen=True)
class _Pair:
    """A norm whose scale and shift only one product reads, each by the module that has it and its name there."""

    normer: nn.Module
    norm: str
    reader: nn.Module
    product: str

    def check(self) -> None:
        """Whether these modules are what they are here, for another one may compute something else.

        Raises:
            InputError: If not.
        """
        product = ISTA if self.product == "ista" else nn.Linear
        for owner, name, kind in ((self.normer, self.norm, nn.LayerNorm), (self.reader, self.product, product)):
            module = getattr(owner, name)
            if type(module) is not kind or (kind is nn.LayerNorm and module.bias is None):
                raise InputError(
                    f"{name} of a layer {type(owner).__name__} is {module}, of which nothing is known: it folds as a "
                    f"{kind.__name__} with all its parameters"
                )
            if module._forward_hooks or module._forward_pre_hooks:
                raise InputError(f"there are hooks on {name} of a {type(owner).__name__}: remove them, then fold")

    def fold(self) -> tuple[nn.LayerNorm, nn.Linear | FoldedISTA]:
        """The norm without scale and shift, and the product with both."""
        norm, product = getattr(self.normer, self.norm), getattr(self.reader, self.product)
        plain = nn.LayerNorm(norm.normalized_shape, eps=norm.eps, elementwise_affine=False)
        return plain, _fold_ista(norm, product) if isinstance(product, ISTA) else _fold_linear(norm, product)


def _pairs(core: ImageTransformer) -> list[_Pair]:
    """What is folded in a model.

    Raises:
        InputError: If a layer is of a type that is not known here.
    """
    embed = core.patch_embed
    pairs = [_Pair(embed, "norm1", embed, "proj")] if isinstance(embed, NormedPatchEmbed) else []
    for layer in dict.fromkeys([*core.blocks, *getattr(core, "decoder_blocks", ())]):
        pairs += _pairs_of(layer)
    return pairs


def _pairs_of(layer: nn.Module) -> list[_Pair]:
    if type(layer) is CrateMaeDecoderBlock:
        return [_Pair(layer, "norm1", layer, "linear"), _Pair(layer, "norm2", layer.mssa, "qkv")]
    coding: list[_Pair]
    if type(layer) in (CrateBlock, CrateMhsaBlock):
        coding = [_Pair(layer, "norm2", layer, "ista")]
    elif type(layer) in (CrateMlpBlock, ViTBlock):
        coding = [_Pair(layer, "norm2", layer.mlp, "fc1")]  # type: ignore[arg-type]  # both have an MLP
    elif type(layer) is CrateAlphaBlock:
        coding = []
    else:
        raise InputError(
            f"nothing is known of what a layer of the type {type(layer).__name__} computes: it cannot fold"
        )
    if type(layer) is CrateBlock and layer.skip == "normalized":
        return coding
    return [_Pair(layer, "norm1", layer.attention, "qkv"), *coding]  # type: ignore[arg-type]  # a Block


def _fold_linear(norm: nn.LayerNorm, linear: nn.Linear) -> nn.Linear:
    """W (g * x + b) + c = (W diag(g)) x + (W b + c)."""
    scale, shift, weight = map(_exact, (norm.weight, norm.bias, linear.weight))
    bias = weight @ shift + (0 if linear.bias is None else _exact(linear.bias))
    folded = nn.Linear(linear.in_features, linear.out_features, device="meta")
    folded.weight, folded.bias = _parameter(weight * scale, linear.weight), _parameter(bias, linear.weight)
    return folded


def _fold_ista(norm: nn.LayerNorm, ista: ISTA) -> FoldedISTA:
    """shrink(A (g * x + b)) = shrink((A diag(g)) x + A b); ReLU takes eta lambda off beforehand."""
    scale, shift, matrix = _exact(norm.weight), _exact(norm.bias), ista.affine()
    folded = FoldedISTA(len(matrix), ista.step_size * ista.sparsity, ista.threshold, device="meta")
    bias = matrix @ shift - (folded.shrinkage if ista.threshold == "relu" else 0)
    folded.weight, folded.bias = _parameter(matrix * scale, ista.dictionary), _parameter(bias, ista.dictionary)
    return folded


def _exact(tensor: Tensor) -> Tensor:
    """In double precision on the CPU, for some devices have none; on meta where there are no values yet."""
    return (tensor if tensor.is_meta else tensor.cpu()).double()


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(like.device, like.dtype), requires_grad=False)
