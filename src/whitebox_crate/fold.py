"""fold_for_inference: the same function in fewer multiplications, for a model that is no longer trained."""

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
Part: TypeAlias = tuple[nn.Module, str, nn.Module]  # a module, a name in it, and what is to be there


def fold_for_inference(model: Model, *, inplace: bool = False) -> Model:
    """Folds what is linear into one product each, so that the model computes the same with less.

    - ISTA's two products with D become one: x + eta D^T (x - D x) = A x with A = I + eta (D^T - D^T D). The threshold
      stays, ReLU or soft; with ReLU eta lambda moves into the bias.
    - Scale and shift of a LayerNorm go into the product that follows: of the patches into the patch embedding, of a
      layer into its heads' bases, A, or the first matrix of ViT's MLP.
    - LayerScale goes into the product before it: attention's output projection, or the last matrix of ViT's MLP.
    - A BatchNorm, whose mean and variance are fixed by now, goes into the convolution before it.

    What stays: CRATE-alpha's sparse coding, which takes the reconstruction from the normed tokens themselves; the norm
    before attention with `skip="normalized"`, and both norms of class attention, which are added to the tokens as well;
    the last norm, whose tokens `forward_features` returns; the MLP's GELU and all attention.

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
        raise InputError("the model is in training mode, and a folded one is not trained: call model.eval() first")
    planned = _normed_products(core)
    for pair in planned:
        _check(pair)
    products = [(id(pair[2]), pair.product) for pair in planned if not isinstance(pair, NormedConvolution)]
    if len(set(products)) < len(products):
        raise InputError("layers share their attention, and each has a norm of its own: one product cannot take both")
    with torch.inference_mode(False), torch.no_grad():  # tensors of inference mode could never be loaded into
        if not inplace:
            model = copy.deepcopy(model)
            core = _core(model)
        folded = [_fold(pair) for pair in _normed_products(core)]  # all before any is in place: they may share modules
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
    """What folds in a model, as its patch embedding and its layers say of themselves.

    Raises:
        InputError: If a layer does not say.
    """
    found: list[Pair] = []
    for module in dict.fromkeys([core.patch_embed, *core.layers(), *getattr(core, "decoder_blocks", ())]):
        if module is core.patch_embed and not hasattr(module, "normed_products"):  # has no norm
            continue
        # What a class says of its own forward is not true of the forward of a subclass, or of one put in its place.
        says, runs = (_definer(module, name) for name in ("normed_products", "forward"))
        if says is not runs or "forward" in vars(module):
            raise InputError(
                f"nothing is known of what a layer of the type {type(module).__name__} computes: it cannot fold. If "
                "it is yours, define normed_products beside its forward"
            )
        found += module.normed_products()
    return found


def _definer(module: nn.Module, method: str) -> type | None:
    """The class of the module that defines a method of this name."""
    return next((kind for kind in type(module).__mro__ if method in vars(kind)), None)


def _check(pair: Pair) -> None:
    """Whether these modules are what they are here, for another one may compute something else.

    Raises:
        InputError: If not.
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
                f"a {type(holder).__name__} of a layer {type(layer).__name__} is {odd}, of which nothing is "
                "known. If there are hooks or adapters, remove them, then fold"
            )
    scale_or_norm = LayerScale if isinstance(pair, ScaledProduct) else nn.LayerNorm
    linear = ISTA if product == "ista" else nn.Linear
    for owner, name, kind in ((layer, neighbour, scale_or_norm), (holder, product, linear)):
        module = getattr(owner, name)
        odd = oddity(module, kind) or ("without a bias" if kind is nn.LayerNorm and module.bias is None else "")
        _refuse(f"{name} of a layer {type(owner).__name__}", odd, kind.__name__)


def _oddity_of_batch_norm(norm: nn.Module) -> str:
    """Why a norm after a convolution is no BatchNorm in evaluation; "" if it is one."""
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
            f"{what} is {odd}, of which nothing is known: it folds as a plain {kind} with all its parameters. If there "
            "are hooks or adapters, remove them, then fold"
        )


def _fold(pair: Pair) -> list[Part]:
    """What stays of a norm or a scale, and the product with the rest of it."""
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
    """Its bias, zeros where it has none."""
    return _exact(linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias)


def _fold_ista(norm: nn.LayerNorm, ista: ISTA) -> FoldedISTA:
    """shrink(A (g * x + b)) = shrink((A diag(g)) x + A b); ReLU takes eta lambda off beforehand."""
    scale, shift, matrix = _exact(norm.weight), _exact(norm.bias), ista.affine()
    shrinkage = constant_of(ista, "step_size") * constant_of(ista, "sparsity")
    folded = FoldedISTA(len(matrix), shrinkage, ista.threshold, device="meta")
    bias = matrix @ shift - (folded.shrinkage if ista.threshold == "relu" else 0)
    folded.weight, folded.bias = _parameter(matrix * scale, ista.dictionary), _parameter(bias, ista.dictionary)
    return folded


def _exact(tensor: Tensor) -> Tensor:
    """In double precision on the CPU, for some devices have none; on meta where there are no values yet."""
    return (tensor if tensor.is_meta else tensor.cpu()).double()


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(like.device, like.dtype), requires_grad=False)
