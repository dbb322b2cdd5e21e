"""fold_for_inference: the same function in fewer multiplications, for a trained model."""

from __future__ import annotations

import copy
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from ._hooks import constant_of
from .errors import InputError
from .layers import (
    CBSA,
    ISTA,
    MHSA,
    MLP,
    MSSA,
    TSSA,
    FoldedISTA,
    LayerScale,
    NormedConvolution,
    NormedProduct,
    ScaledProduct,
)
from .layers.plain import oddity
from .models import FeatureExtractor, ImageTransformer

Model = TypeVar("Model", ImageTransformer, FeatureExtractor)
Pair: TypeAlias = NormedProduct | NormedConvolution | ScaledProduct
Part: TypeAlias = tuple[nn.Module, str, nn.Module]  # a module, a name in it, and the new module for that name


def fold_for_inference(model: Model, *, inplace: bool = False) -> Model:
    """Folds linear steps that follow each other into one product, so that the model computes the same in less time.

    - ISTA's two products with D become one: x + eta D^T (x - D x) = A x with A = I + eta (D^T - D^T D). The threshold
      stays, ReLU or soft; with ReLU eta lambda moves into the bias.
    - Scale and shift of a LayerNorm go into the next product. For the patches this is the patch embedding; in a layer
      it is the heads' bases, A, or the first matrix of ViT's MLP.
    - LayerScale goes into the product before it: attention's output projection, or the last matrix of ViT's MLP.
    - A BatchNorm has a fixed mean and variance after training, and goes into the convolution before it.

    Some parts stay:

    - CRATE-alpha's sparse coding, which subtracts the reconstruction from the normed tokens.
    - Norms whose output is also added to the tokens: before attention with `skip="normalized"`, and both of class
      attention.
    - The last norm, because `forward_features` returns its tokens.
    - The MLP's GELU and all attention.

    The result is a model like any other: `capture` reads it, `save_pretrained` and `create_model` save and load it,
    and `torch.compile` and `torch.export` take it. Its parameters are no longer the paper's, so do not train or analyse
    it. Its `load_report` still describes the original parameters. The products are computed in double precision on the
    CPU: fold in float32, then cast.

    Args:
        model: A model of this package in evaluation mode, of any dtype and on any device, not compiled or wrapped.
        inplace: Whether to change the model itself rather than a copy.

    Returns:
        The folded model. Its parameters need no gradients, and its `folded` is true. A model that was folded before is
        returned as it is.

    Raises:
        InputError: If the model is in training mode, wrapped, or not of this package; or if a layer, or a part of it
            that folds, was replaced or has hooks. The model is then unchanged.

    Example:
        >>> model = create_model("crate_nano", pretrained=True).eval()
        >>> fast, images = fold_for_inference(model), torch.zeros(1, 3, 96, 96)
        >>> torch.allclose(fast(images), model(images), atol=1e-4)
        True
    """
    core = _core(model)
    if core.folded:
        return model
    if core.training:
        raise InputError("the model is in training mode, but a folded model cannot be trained: call model.eval() first")
    planned = _normed_products(core)
    for pair in planned:
        _check(pair)
    products = [(id(pair[2]), pair.product) for pair in planned if not isinstance(pair, NormedConvolution)]
    if len(set(products)) < len(products):
        raise InputError("layers share one attention, but each has its own norm, and one product cannot take two norms")
    with torch.inference_mode(False), torch.no_grad():  # a model of inference tensors could not load weights
        if not inplace:
            model = copy.deepcopy(model)
            core = _core(model)
        # All are folded before any is replaced: they may share modules.
        folded = [_fold(pair) for pair in _normed_products(core)]
    for module, name, part in (part for parts in folded for part in parts):
        setattr(module, name, part)
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


def _normed_products(core: ImageTransformer) -> list[Pair]:
    """The foldable pairs of a model, which its patch embedding and its layers declare.

    Raises:
        InputError: If a layer does not declare them.
    """
    found: list[Pair] = []
    for module in dict.fromkeys([core.patch_embed, *core.layers(), *getattr(core, "decoder_blocks", ())]):
        if module is core.patch_embed and not hasattr(module, "normed_products"):  # has no norm
            continue
        # A class declares pairs for its own forward, not for the forward of a subclass, or one that replaces it.
        says, runs = (_definer(module, name) for name in ("normed_products", "forward"))
        if says is not runs or "forward" in vars(module):
            raise InputError(
                f"a layer of type {type(module).__name__} does not say what it computes, so it cannot fold. If the "
                "class is yours, define normed_products beside its forward"
            )
        found += module.normed_products()
    return found


def _definer(module: nn.Module, method: str) -> type | None:
    """The class of the module that defines a method of this name."""
    return next((kind for kind in type(module).__mro__ if method in vars(kind)), None)


def _check(pair: Pair) -> None:
    """Checks that the modules are of the known kinds; another kind may compute something else.

    Raises:
        InputError: If one is not.
    """
    if isinstance(pair, NormedConvolution):
        convolution, norm = pair.parts
        _refuse("a convolution of the patch embedding", oddity(convolution, nn.Conv2d), "Conv2d")
        _refuse("the norm of a convolution", _oddity_of_batch_norm(norm), "BatchNorm")
        return
    layer, neighbour, holder, product = pair
    if holder is not layer:
        known = next((kind for kind in (MSSA, MHSA, CBSA, TSSA, MLP) if isinstance(holder, kind)), type(holder))
        if odd := oddity(holder, known):
            raise InputError(
                f"a {type(holder).__name__} in a layer {type(layer).__name__} is {odd}, and fold does not know what "
                "that computes. If there are hooks or adapters, remove them, then fold"
            )
    scale_or_norm = LayerScale if isinstance(pair, ScaledProduct) else nn.LayerNorm
    linear = ISTA if product == "ista" else nn.Linear
    for owner, name, kind in ((layer, neighbour, scale_or_norm), (holder, product, linear)):
        module = getattr(owner, name)
        odd = oddity(module, kind) or ("without a bias" if kind is nn.LayerNorm and module.bias is None else "")
        _refuse(f"{name} of a layer {type(owner).__name__}", odd, kind.__name__)


def _oddity_of_batch_norm(norm: nn.Module) -> str:
    """Why a norm after a convolution is not a BatchNorm in evaluation mode; "" if it is one."""
    odd = oddity(norm, nn.BatchNorm2d, nn.SyncBatchNorm)
    if odd or not isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm):
        return odd
    if norm.training:
        return f"{type(norm).__name__} in training mode"
    whole = norm.affine and norm.track_running_stats
    return "" if whole else f"{type(norm).__name__} without a scale, or without statistics of its own"


def _refuse(what: str, odd: str, kind: str) -> None:
    if odd:
        raise InputError(
            f"{what} is {odd}; only a plain {kind} with all its parameters can fold. If there are hooks or adapters, "
            "remove them, then fold"
        )


def _fold(pair: Pair) -> list[Part]:
    """The rest of a norm or a scale, and the product that takes in its scale and shift."""
    if isinstance(pair, NormedConvolution):
        return [(pair.parts, "0", _fold_convolution(*pair.parts)), (pair.parts, "1", nn.Identity())]
    layer, neighbour, holder, name = pair
    norm, product = getattr(layer, neighbour), getattr(holder, name)
    if isinstance(pair, ScaledProduct):
        return [(layer, neighbour, nn.Identity()), (holder, name, _fold_scale(norm, product))]
    plain = nn.LayerNorm(norm.normalized_shape, eps=norm.eps, elementwise_affine=False)
    folded = _fold_ista(norm, product) if isinstance(product, ISTA) else _fold_linear(norm, product)
    return [(layer, neighbour, plain), (holder, name, folded)]


def _fold_scale(scale: LayerScale, linear: nn.Linear) -> nn.Linear:
    """g * (W x + c) = (diag(g) W) x + g * c."""
    gamma = _exact(scale.gamma)
    return _linear(gamma[:, None] * _exact(linear.weight), gamma * _bias(linear), linear)


def _fold_convolution(convolution: Any, norm: Any) -> nn.Conv2d:
    """g (K * x - m) / sqrt(v + eps) + b = (K g / sqrt(v + eps)) * x + (b - m g / sqrt(v + eps))."""
    scale, shift, mean, variance = map(_exact, (norm.weight, norm.bias, norm.running_mean, norm.running_var))
    scale = scale / (variance + norm.eps).sqrt()
    bias = shift + scale * ((0 if convolution.bias is None else _exact(convolution.bias)) - mean)
    folded: nn.Conv2d = copy.deepcopy(convolution)
    folded.weight = _parameter(_exact(convolution.weight) * scale[:, None, None, None], convolution.weight)
    folded.bias = _parameter(bias, convolution.weight)
    return folded


def _fold_linear(norm: nn.LayerNorm, linear: nn.Linear) -> nn.Linear:
    """W (g * x + b) + c = (W diag(g)) x + (W b + c)."""
    scale, shift, weight = map(_exact, (norm.weight, norm.bias, linear.weight))
    return _linear(weight * scale, weight @ shift + _bias(linear), linear)


def _linear(weight: Tensor, bias: Tensor, like: nn.Linear) -> nn.Linear:
    folded = nn.Linear(like.in_features, like.out_features, device="meta")
    folded.weight, folded.bias = _parameter(weight, like.weight), _parameter(bias, like.weight)
    return folded


def _bias(linear: nn.Linear) -> Tensor:
    """The bias of a Linear; zeros if it has none."""
    return _exact(linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias)


def _fold_ista(norm: nn.LayerNorm, ista: ISTA) -> FoldedISTA:
    """shrink(A (g * x + b)) = shrink((A diag(g)) x + A b); before ReLU, eta lambda is subtracted."""
    scale, shift, matrix = _exact(norm.weight), _exact(norm.bias), ista.affine()
    shrinkage = constant_of(ista, "step_size") * constant_of(ista, "sparsity")
    folded = FoldedISTA(len(matrix), shrinkage, ista.threshold, device="meta")
    bias = matrix @ shift - (folded.shrinkage if ista.threshold == "relu" else 0)
    folded.weight, folded.bias = _parameter(matrix * scale, ista.dictionary), _parameter(bias, ista.dictionary)
    return folded


def _exact(tensor: Tensor) -> Tensor:
    """The tensor in double precision on the CPU (some devices lack it), or on meta if it has no values yet."""
    return (tensor if tensor.is_meta else tensor.cpu()).double()


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(like.device, like.dtype), requires_grad=False)
