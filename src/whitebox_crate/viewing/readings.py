"""The states of a model for one photograph: attention of every layer and head, colours of tokens, rates, names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._plan import layers_with
from ..analysis import LayerwiseReport, layerwise_analysis
from ..analysis.layerwise import Quantity
from ..capturing import capture
from ..errors import InputError
from ..layers import CBSA
from ..models import ImageTransformer
from ..models._classes import class_names, classifies
from ..preprocess import fit_photo
from ..segmentation import all_cls_attention, default_layer
from ..segmentation.pca import pca_maps, unit_range
from ..segmentation.states import Grid, map_state

if TYPE_CHECKING:
    from PIL.Image import Image

QUANTITIES: tuple[Quantity, ...] = ("subspace_coding_rate", "coding_rate", "l0")
NAMED = 3  # number of most likely classes


@dataclass(frozen=True)
class Reading:
    """The states of a model for one photograph.

    Attributes:
        model: Name of the model.
        grid: (rows, columns) of patches.
        prefix: Number of tokens before the patches: [CLS] and registers.
        start: The layer and the head that show objects best; None for the mean of the heads.
        cls_maps: [CLS] attention to patches, float32 (layers, heads, rows, columns).
        queries: float32 (layers, heads, tokens, head_dim), the prefix first.
        keys: Like `queries`; the same tensor if one projection serves as both, as in MSSA.
        plain: For each layer, whether rows of attention are q k^T rather than softmax(q k^T / sqrt(head_dim)).
        colours: The first three principal components of the tokens after each layer, each 0 to 1; float32 (layers, 3,
            rows, columns).
        measures: Coding rates and sparsity of each layer.
        names: The most likely classes with their probabilities; empty without a head. Two classes may share a name.
    """

    model: str
    grid: Grid
    prefix: int
    start: tuple[int, int | None]
    cls_maps: Tensor
    queries: Tensor
    keys: Tensor
    plain: Sequence[bool]
    colours: Tensor
    measures: LayerwiseReport
    names: Sequence[tuple[str, float]]


@torch.inference_mode()
def read(model: ImageTransformer, name: str, photo: Image, size: int | None = None) -> Reading:
    """Runs a model on a photograph.

    Args:
        model: A model of this package, not folded, that takes the size of the photograph (`dynamic_img_size`).
        name: Name of the model.
        photo: A Pillow image.
        size: Shorter side of the image that the model sees, pixels; `best_short_side` if None.

    Raises:
        InputError: If the model is folded, does not take photographs or the size, has layers without attention (ToST),
            or a state is not finite.
    """
    if len(layers_with(model, "attention")) < len(model.layers()):
        raise InputError(
            f"{name} has layers in which tokens do not attend to each other, and the page shows attention; its "
            f"layers {', '.join(map(str, layers_with(model, 'attention')))} have attention of [CLS], and "
            "whitebox-crate attention --state membership draws the others"
        )
    images = fit_photo(model, photo, size).pixels[None].to(model.cls_token)
    measures = layerwise_analysis(model, [images], quantities=QUANTITIES, report=lambda _: None)
    grid, prefix = model.grid_of(images), model.num_prefix_tokens
    maps = all_cls_attention(model, images)[0].float()
    with capture(model, "tokens", "output") as trace:
        logits = model(images)
    projected = [_queries_and_keys(block, trace["tokens", layer], grid) for layer, block in enumerate(model.blocks)]
    if len({q.shape for q, _ in projected}) > 1:
        raise InputError(
            "heads have different widths in different layers here, but the page needs equal layers: choose another"
        )
    queries = torch.stack([q for q, _ in projected])
    shared = all(q is k for q, k in projected)
    outputs = [trace["output", layer][0, prefix:] for layer in trace.layers]
    return Reading(
        model=name,
        grid=grid,
        prefix=prefix,
        start=(default_layer(model), model.pretrained_cfg.attention_head),
        cls_maps=maps.cpu(),
        queries=queries,
        keys=queries if shared else torch.stack([k for _, k in projected]),
        plain=[map_state(model, layer) != "attention" for layer in trace.layers],
        colours=torch.stack([unit_range(pca_maps(z[None], grid, 3))[0] for z in outputs]).cpu(),
        measures=measures,
        names=_names(model, logits),
    )


def _queries_and_keys(block: Any, tokens: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """float32 (heads, tokens, head_dim) each, on the CPU; the same tensor twice if the layer has one projection."""
    if isinstance(block.attention, CBSA):  # the page shows A^T A
        queries = block.attention.contraction(block.attention.qkv(block.norm1(tokens)), grid)[0][0].mT.float().cpu()
        return queries, queries
    q, k, _ = block.attention.split_heads(block.attention.qkv(block.norm1(tokens)))
    queries = q[0].float().cpu()
    return queries, queries if k is q else k[0].float().cpu()


def _names(model: ImageTransformer, logits: Tensor) -> list[tuple[str, float]]:
    if not classifies(model):
        return []
    top = logits[0].float().softmax(-1).topk(min(NAMED, model.num_classes))
    names = class_names(model)
    labels = [names[index] for index in top.indices.tolist()]
    return list(zip(labels, top.values.tolist(), strict=True))
