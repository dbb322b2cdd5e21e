"""Heads: the contribution of each head to its layer, and to the logit of a class.

Three measures of different strength, for MSSA, CBSA and ViT's attention:

- `head_outputs`: the output projection is linear, so attention's output is exactly a sum over heads, plus a bias.
- `head_contributions(..., method="ablation")`: the logit with the head minus the logit without it. This answers the
  question exactly, but it is not additive: LayerNorm, softmax and ISTA follow, and without the head the later layers
  see unusual tokens.
- `head_contributions(..., method="gradient")`: the first-order estimate of this number, for all heads in one backward
  pass.

There is no direct contribution to the logit through the residual path with later layers held fixed: ISTA has no
residual (arXiv 2308.16271, Eq. 8), so CRATE has no such path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from .._hooks import Hook, hooks_here, uncompiled
from .._indices import resolve_indices, resolve_layers
from .._plan import layers_with
from .._rows import Queries
from ..capturing import capture
from ..errors import InputError, UnknownNameError
from ..models import ImageTransformer
from ..models._classes import Class, class_indices
from ..models._wrappers import transformer_in
from .batches import check_images
from .interventions import intervene
from .operators import attention_of, measured_layers, output_scale, output_weights, stacked

Method: TypeAlias = Literal["ablation", "gradient"]


@dataclass(frozen=True)
class HeadOutputs:
    """The output of attention as a sum over heads; see `head_outputs`.

    Attributes:
        parts: (batch, layers, heads, queries, dim): the part of each head in each token.
        bias: (layers, dim): the bias of the output projection, which belongs to no head; 0 if there is none.
        layers: The layers, from 0.
    """

    parts: Tensor
    bias: Tensor
    layers: tuple[int, ...]

    @property
    def total(self) -> Tensor:
        """The output of attention for each token, up to rounding, (batch, layers, queries, dim)."""
        return self.parts.sum(2) + self.bias[:, None]


def head_outputs(
    model: nn.Module, images: Tensor, layers: int | Sequence[int] | None = None, queries: Queries = "cls"
) -> HeadOutputs:
    """Splits the output of each layer's attention by head: `MSSA(z) = sum_k P_k w_k softmax(...) + b`, or CBSA's.

    The output projection P = [P_1, ..., P_K] is linear, so the split is exact up to rounding. A ViT's LayerScale is
    included. The split ends there, because the next steps (LayerNorm, then ISTA, ODL or MLP) are not linear.

    Args:
        model: A model of this package, compiled or not; it runs in its current mode.
        images: (batch, in_chans, height, width), float.
        layers: See `capture`. None for all layers that have [CLS], or (with other queries) that see the same tokens.
        queries: The tokens: "cls", "all", or token indices. All tokens of a large model need much memory.

    Raises:
        InputError: If the model is not of this package, does not take the images, or an output projection is not a
            plain Linear; or if layers lack the requested [CLS], or have different numbers of tokens.
        UnknownNameError: If a layer or token does not exist.
    """
    core = transformer_in(model)
    if isinstance(queries, str) and queries not in ("cls", "all"):
        raise UnknownNameError.of("queries", queries, ("cls", "all"), "Token indices are fine too.")
    check_images(core, images)
    indices = _with_cls(core, layers) if queries == "cls" else measured_layers(core, layers)
    attended: dict[int, Tensor] = {}
    with uncompiled, hooks_here([_keep_attended(core, index, attended) for index in indices]):
        model(images)
    parts: dict[int, Tensor] = {}
    for index in indices:  # after the pass: gradient checkpointing would count tensors of a hook as the layer's
        attention = attention_of(core, index)
        of_heads = rearrange(attended[index], "b n (h p) -> b h n p", h=attention.num_heads)
        if not isinstance(queries, str):
            of_heads = of_heads[:, :, resolve_indices("query token", queries, of_heads.shape[2])]
        elif queries == "cls":
            of_heads = of_heads[:, :, :1]
        of_proj = torch.einsum("bhnp,dhp->bhnd", of_heads, output_weights(attention))
        parts[index] = of_proj * output_scale(core, index)
    zero = parts[indices[0]].new_zeros(core.embed_dim)
    biases = {index: getattr(attention_of(core, index).proj, "bias", None) for index in indices}
    return HeadOutputs(
        stacked([parts[index] for index in indices], indices),
        torch.stack([zero if bias is None else bias.detach() * output_scale(core, i) for i, bias in biases.items()]),
        tuple(indices),
    )


def head_contributions(
    model: nn.Module,
    images: Tensor,
    classes: Class | Sequence[Class] | Tensor,
    *,
    layers: int | Sequence[int] | None = None,
    method: Method = "ablation",
) -> Tensor:
    """The evidence of each head for a class.

    - "ablation": the logit minus the logit without the head, that is, without its part of `head_outputs` in all tokens.
      The bias stays. Only the later layers run again, once for each head.
    - "gradient": `<d logit / d h, part>`, where h are the tokens after attention. This is the linear term of the
      ablation. It is exact if the logit is affine in h between the tokens with and without the head. Otherwise it is
      off by the curvature: of second order in the head's part, and more if a kink of ReLU lies between. The terms of a
      layer's heads add up to the term of all heads together.

    The model runs in its current mode, uncompiled, whatever the caller's autograd mode. No gradient stays on a
    parameter.

    Args:
        model: A model of this package with a head, compiled or not.
        images: (batch, in_chans, height, width), float, finite.
        classes: Index or name: one for all images, or one for each.
        layers: See `capture`.
        method: "ablation" or "gradient".

    Returns:
        Detached, (batch, layers, heads), in the dtype and units of the logits.

    Raises:
        InputError: If the model gives no logits, or the images are not finite or do not fit it.
        UnknownNameError: If a class, a layer or the method does not exist.

    Example:
        >>> model = create_model("crate_nano", pretrained=True).eval()
        >>> head_contributions(model, torch.rand(1, 3, 96, 96), classes=3, layers=[-1]).shape
        torch.Size([1, 1, 4])
    """
    if method not in get_args(Method):
        raise UnknownNameError.of("method", method, get_args(Method))
    core = transformer_in(model)
    indices = resolve_layers(layers, len(core.layers()))
    check_images(core, images)
    chosen = class_indices(core, classes, len(images)).to(images.device)
    with uncompiled:
        return (_by_gradient if method == "gradient" else _by_ablation)(core, images, chosen, indices)


@torch.no_grad()
def _by_ablation(core: ImageTransformer, images: Tensor, classes: Tensor, layers: list[int]) -> Tensor:
    with capture(core, "tokens", layers=layers) as trace:
        whole = core(images)
    logits = whole.gather(1, classes[:, None])[:, 0]
    grid, result = core.grid_of(images), []
    for layer in layers:
        without = []
        for head in range(attention_of(core, layer).num_heads):
            with intervene(core, mask_heads={layer: [head]}):
                without.append(
                    _logits_from(core, trace["tokens", layer], grid, layer).gather(1, classes[:, None])[:, 0]
                )
        result.append(logits[:, None] - torch.stack(without, dim=1))
    return torch.stack(result, dim=1)


def _by_gradient(core: ImageTransformer, images: Tensor, classes: Tensor, layers: list[int]) -> Tensor:
    attended: dict[int, Tensor] = {}
    hooks = [_keep_attended(core, layer, attended) for layer in layers]
    with torch.inference_mode(False), torch.enable_grad(), hooks_here(hooks):
        # The images need a gradient, so that a model with frozen parameters has one too.
        logits = _logits_from(core, core.embed(images.detach().clone().requires_grad_()), core.grid_of(images))
        wanted = logits.gather(1, classes.clone()[:, None]).sum()  # images are independent: one pass for all
        gradients = torch.autograd.grad(wanted, [attended[layer] for layer in layers])
    # <dl/dh, P_k a_k> = <P_k^T dl/dh, a_k>, and the gradient for attention's heads a is P^T dl/dh already.
    terms = [
        rearrange(gradient * attended[layer].detach(), "b n (h p) -> b h (n p)", h=attention_of(core, layer).num_heads)
        for layer, gradient in zip(layers, gradients, strict=True)
    ]
    return torch.stack([term.sum(-1) for term in terms], dim=1)


def _with_cls(core: ImageTransformer, layers: int | Sequence[int] | None) -> list[int]:
    """Layers as in `capture`; None means those that have [CLS]."""
    having = layers_with(core, "attention")  # TSSA has none, and no [CLS]
    asked = list(having) if layers is None else resolve_layers(layers, len(core.layers()))
    for layer in asked:
        if layer not in having:
            raise InputError(f"layer {layer} has no [CLS], which joins later: give other queries, 'all' or indices")
    return asked


def _keep_attended(core: ImageTransformer, layer: int, attended: dict[int, Tensor]) -> Hook:
    """Keeps the input of a layer's output projection, (batch, tokens, heads * head_dim)."""

    def keep(args: tuple[Tensor]) -> None:
        attended.setdefault(layer, args[0])  # checkpointing runs a layer again

    return Hook(attention_of(core, layer).proj, "before", keep)


def _logits_from(core: ImageTransformer, tokens: Tensor, grid: tuple[int, int], layer: int = 0) -> Tensor:
    """The rest of the model, from the input of this layer on."""
    return core.forward_head(core.norm(core.run_layers(tokens, grid, layer)))
