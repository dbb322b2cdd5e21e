"""Class maps: where an image gives evidence for a class, by the gradient of its logit at attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from ..backbones import Readable, readable
from ..capturing import capture
from ..errors import InputError, UnknownNameError
from ..models._classes import Class, check_classifies, class_indices
from ..models._wrappers import unwrap
from .states import check_finite_images, resolve_layer

ClassMap: TypeAlias = Literal["relevance", "gradient_attention"]


def class_maps(
    model: nn.Module,
    images: Tensor,
    classes: Class | Sequence[Class] | Tensor | None = None,
    method: ClassMap = "relevance",
    layer: int | None = None,
) -> Tensor:
    """Where an image gives evidence for a class: attention, weighted by its effect on the logit y of that class.

    With the attention A of a layer, `G = mean over heads of max(dy/dA * A, 0)`:

    - "relevance": `(1 + G_L) ... (1 + G_1) - 1`: all paths from the patches through one or more layers, in the row that
      the head reads (Chefer et al., arXiv 2103.15679, Eq. 5 and 6; their earlier method, arXiv 2012.09838, has another
      relevance in place of A). It assumes that a skip keeps each token in its place, as a rollout does.
    - "gradient_attention": this row of G in a single layer.

    The row is the row of [CLS]. With the pooling "avg" or "mean" it is the mean row of the pooled tokens, if they have
    rows. (Class attention, as in ToST, has only the row of [CLS].)

    The model runs in its current mode, whatever the caller's autograd mode. No gradient stays on a parameter.
    "relevance" keeps the attention of all layers and its gradients, 2 * layers * batch * heads * tokens^2 values, so
    give it few images at once. "gradient_attention" for [CLS] keeps one row of each.

    Args:
        model: A model that `capture` reads and that gives logits (`num_classes` of a `Structure`).
        images: (batch, in_chans, height, width), float, finite.
        classes: Index or name: one for all images, or one for each; None for the most likely class of each.
        method: "relevance" or "gradient_attention".
        layer: The layer of "gradient_attention"; `default_layer` of the model if None.

    Returns:
        Detached, (batch, grid_h, grid_w), not negative, the dtype of the attention.

    Raises:
        InputError: If the model gives no logits, does not take the images, or checkpoints gradients; if the images are
            not finite, a layer does not multiply its attention by values, or `layer` is given for "relevance".
        UnknownNameError: If there is no such class, layer or method, or a layer has no attention.

    Example:
        >>> model = create_model("crate_nano", pretrained=True).eval()
        >>> class_maps(model, torch.zeros(1, 3, 96, 96), "cup").shape
        torch.Size([1, 16, 16])
    """
    if method not in get_args(ClassMap):
        raise UnknownNameError.of("method", method, get_args(ClassMap))
    if method == "relevance" and layer is not None:
        raise InputError("relevance goes through all layers: leave layer out, or choose the method gradient_attention")
    core = readable(model)
    check_classifies(core)
    grid = core.grid_of(images)
    check_finite_images(images)
    chosen = None if classes is None else class_indices(core, classes, len(images)).to(images.device)
    layers = range(len(core.layers())) if method == "relevance" else [resolve_layer(core, layer)]
    if method == "relevance" and not all("attention" in core.readings_of(unwrap(each)) for each in core.layers()):
        raise InputError(
            "relevance needs attention in every layer, and some layers have none: choose gradient_attention"
        )
    of_cls = core.global_pool == "token" and method == "gradient_attention"
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        capture(core, "attention", layers=layers, queries="cls" if of_cls else "all", eager=True) as trace,
    ):
        # The images need a gradient, so that a model with frozen parameters has one too.
        logits = core(images.detach().clone().requires_grad_())
        wanted = logits.amax(1) if chosen is None else logits.gather(1, chosen.clone()[:, None])
        attention = [trace["attention", index] for index in layers]
        gradients = torch.autograd.grad(wanted.sum(), attention)  # images are independent: one pass for all
    weighted = [positive_attention(rows.detach(), of_rows) for rows, of_rows in zip(attention, gradients, strict=True)]
    if of_cls or weighted[0].shape[1] == 1:  # class attention has no other row
        found = weighted[0][:, 0]
    else:
        read = _read_by_head(core, weighted[0])
        found = relevance(weighted, read)
    return found[:, core.num_prefix_tokens :].reshape(-1, *grid)


def positive_attention(attention: Tensor, gradient: Tensor) -> Tensor:
    """Attention that raises a number: `mean over heads of max(gradient * attention, 0)`, arXiv 2103.15679, Eq. 5.

    Args:
        attention: (batch, heads, queries, tokens), of any backbone.
        gradient: Gradient of the number at the attention, the same shape.

    Returns:
        (batch, queries, tokens).
    """
    return (gradient * attention).clamp_min(0).mean(1)


def relevance(weighted: Sequence[Tensor], read: Tensor) -> Tensor:
    """The contribution of each token: `read ((1 + G_L) ... (1 + G_1) - 1)`, arXiv 2103.15679, Eq. 6.

    Args:
        weighted: G of each layer, the first one first, (batch, tokens, tokens); see `positive_attention`.
        read: (tokens,): the weights with which the head reads the last tokens; 1 for [CLS] and 0 elsewhere, if the head
            reads only [CLS].

    Returns:
        (batch, tokens).
    """
    found = torch.zeros_like(weighted[0][:, 0])
    for of_layer in reversed(weighted):
        found = found + torch.einsum("bq,bqk->bk", read + found, of_layer)
    return found


def _read_by_head(core: Readable, like: Tensor) -> Tensor:
    """The weights with which the head reads the last tokens, (tokens,)."""
    read = like.new_zeros(like.shape[-1])
    if core.global_pool == "token":
        read[0] = 1
    else:
        read[core.num_prefix_tokens if core.global_pool == "avg" else 0 :] = 1
    return read / read.sum()
