"""Attention rollout: follows attention through all layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._indices import resolve_index
from ..backbones import readable
from ..capturing import capture
from ..errors import InputError
from ..models._wrappers import unwrap
from .batches import check_images


def attention_rollout(model: nn.Module, images: Tensor, layer: int = -1, skip: float = 0.5) -> Tensor:
    """The share of each input token in each token after a layer, if attention were all (Abnar and Zuidema, 2020).

    It is the product, from layer 0 to `layer`, of `skip I + (1 - skip) A`, where A is the mean of the heads' attention.
    Rows belong to the later tokens; each sums to 1. Neither ISTA nor an MLP moves anything between tokens, so attention
    and skip are the only paths, in CRATE too and with either form of `skip`. Their weights are an assumption: the half
    that the authors give to the skip fits no model in particular. In CRATE the skip may carry tokens much larger or
    smaller than MSSA's output, and the output projection, with its signs, is ignored.

    Args:
        model: A model that `capture` reads.
        images: (batch, in_chans, height, width), float.
        layer: The last layer of the product, from 0; negative from the end.
        skip: Weight of the identity, in [0, 1].

    Returns:
        (batch, tokens, tokens), [CLS] first, the dtype of the attention.

    Raises:
        InputError: If no adapter knows the model, it does not take the images, `skip` is not a share, or the rows of a
            layer are not shares (CBSA).
        UnknownNameError: If there is no such layer.

    Example:
        >>> attention_rollout(create_model("crate_nano", pretrained=True).eval(), torch.rand(1, 3, 96, 96)).shape
        torch.Size([1, 257, 257])
    """
    core = readable(model)
    last = resolve_index("layer", layer, len(core.layers()))
    if not 0 <= skip <= 1:
        raise InputError(f"skip must be a share in [0, 1], not {skip!r}")
    check_images(core, images)
    for index in range(last + 1):
        attention = core.readings_of(unwrap(core.layers()[index])).get("attention")
        if attention is not None and attention.signed:
            raise InputError(
                f"layer {index} mixes tokens by a signed matrix whose rows are not shares, so there is no rollout; "
                "capture(model, 'attention') gives the matrix of each layer"
            )
    rollout: Tensor | None = None

    def roll(rows: Tensor) -> Tensor:
        nonlocal rollout
        attention = rows.mean(1)
        before = torch.eye(attention.shape[-1]).to(attention) if rollout is None else rollout
        rollout = (1 - skip) * (attention @ before) + skip * before
        return rows[..., :0]  # attention of all tokens is large, so none is kept

    with capture(core, "attention", layers=range(last + 1), queries="all", reduce=roll):
        core(images)
    assert rollout is not None
    return rollout


def cls_rollout(model: nn.Module, images: Tensor, layer: int = -1, skip: float = 0.5) -> Tensor:
    """The [CLS] row of `attention_rollout` on the patch grid, (batch, rows, columns), with the same arguments.

    The share of [CLS] itself is left out, so a map sums to less than 1.
    """
    core = readable(model)
    row = attention_rollout(model, images, layer, skip)[:, 0, core.num_prefix_tokens :]
    return row.reshape(len(row), *core.grid_of(images))
