"""Heads: what each one adds to its layer, and to the logit of a class.

Three statements of different strength, for MSSA, CBSA and ViT's attention alike:

- `head_outputs`: the output projection is linear, so attention's output is exactly a sum over heads, and a bias.
- `head_contributions(..., method="ablation")`: the logit with less the logit without a head. Exact as an answer to that
  question, but not additive: LayerNorm, softmax and ISTA come after it, and what is left is off the usual path.
- `head_contributions(..., method="gradient")`: the first-order estimate of the same, for all heads by one backward
  pass.

A direct contribution to the logit, through the residual path with the layers after it held fixed, is not offered: ISTA
has no residual (arXiv 2308.16271, Eq. 8), so CRATE has no such path.
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
    """What attention adds, as a sum over heads; see `head_outputs`.

    Attributes:
        parts: (batch, layers, heads, queries, dim): what each head adds to each token.
        bias: (layers, dim): the bias of the output projection, which belongs to no head; 0 where there is none.
        layers: Which layers, from 0.
    """

    parts: Tensor
    bias: Tensor
    layers: tuple[int, ...]

    @property
    def total(self) -> Tensor:
        """What attention adds to each token, up to rounding, (batch, layers, queries, dim)."""
        return self.parts.sum(2) + self.bias[:, None]


def head_outputs(
    model: nn.Module, images: Tensor, layers: int | Sequence[int] | None = None, queries: Queries = "cls"
) -> HeadOutputs:
    """Splits the output of each layer's attention by head: `MSSA(z) = sum_k P_k w_k softmax(...) + b`, or CBSA's.

    The output projection P = [P_1, ..., P_K] is linear, so the split is exact up to rounding. LayerScale, where a ViT
    has it, is counted in. It ends there: what follows (LayerNorm, then ISTA, ODL or MLP) is not linear.

    Args:
        model: A model of this package, compiled or not; it runs as it is.
        images: (batch, in_chans, height, width), float.
        layers: See `capture`; None for all that have [CLS], or, with other queries, that see the same tokens.
        queries: Which tokens: "cls", "all", or token indices. All tokens of a large model take much memory.

    Raises:
        InputError: If the model is not one of this package, does not take the images, or an output projection is not a
            plain Linear; or if layers have no [CLS] and it is asked for, or different numbers of tokens.
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
    for index in indices:  # after the pass: what a hook computed would count as the layer's to gradient checkpointing
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
    """How much each head speaks for a class.

    - "ablation": logit minus logit without the head, that is with its part of `head_outputs` left out for all tokens;
      the bias stays. The layers before it are not run again, those after it are, once for each head.
    - "gradient": `<d logit / d h, part>`, h being the tokens after attention. This is the linear term of the ablation.
      It is exact if the logit is affine in h on the way from with to without the head, and otherwise off by the
      curvature: of second order in the head's part, and more where that way crosses a kink of ReLU. The terms of a
      layer's heads add up to the term of all of them.

    The model runs as it is, uncompiled, whatever autograd mode the caller is in; no gradient is left on a parameter.

    Args:
        model: A model of this package with a head, compiled or not.
        images: (batch, in_chans, height, width), float, finite.
        classes: By index or name: one for all images, or one for each.
        layers: See `capture`.
        method: "ablation" or "gradient".

    Returns:
        Detached, (batch, layers, heads), the dtype of the logits, in units of a logit.

    Raises:
        InputError: If the model gives no logits, or the images are not finite or not of its shape.
        UnknownNameError: If a class, layer or the method does not exist.

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
        # The images need a gradient, so that a model whose parameters are frozen has one too.
        logits = _logits_from(core, core.embed(images.detach().clone().requires_grad_()), core.grid_of(images))
        wanted = logits.gather(1, classes.clone()[:, None]).sum()  # images do not see each other: one pass for all
        gradients = torch.autograd.grad(wanted, [attended[layer] for layer in layers])
    # <dl/dh, P_k a_k> = <P_k^T dl/dh, a_k>, and the gradient for attention's heads a is P^T dl/dh already.
    terms = [
        rearrange(gradient * attended[layer].detach(), "b n (h p) -> b h (n p)", h=attention_of(core, layer).num_heads)
        for layer, gradient in zip(layers, gradients, strict=True)
    ]
    return torch.stack([term.sum(-1) for term in terms], dim=1)


def _with_cls(core: ImageTransformer, layers: int | Sequence[int] | None) -> list[int]:
    """Layers as in `capture`; of None those that have [CLS]."""
    having = layers_with(core, "attention")  # TSSA has none, and no [CLS]
    asked = list(having) if layers is None else resolve_layers(layers, len(core.layers()))
    for layer in asked:
        if layer not in having:
            raise InputError(f"[CLS] has not joined the patches in layer {layer}: give other queries, 'all' or indices")
    return asked


def _keep_attended(core: ImageTransformer, layer: int, attended: dict[int, Tensor]) -> Hook:
    """Keeps what enters the output projection of a layer, (batch, tokens, heads * head_dim)."""

    def keep(args: tuple[Tensor]) -> None:
        attended.setdefault(layer, args[0])  # checkpointing runs a layer again

    return Hook(attention_of(core, layer).proj, "before", keep)


def _logits_from(core: ImageTransformer, tokens: Tensor, grid: tuple[int, int], layer: int = 0) -> Tensor:
    """The rest of the model, from the input of this layer on."""
    return core.forward_head(core.norm(core.run_layers(tokens, grid, layer)))
