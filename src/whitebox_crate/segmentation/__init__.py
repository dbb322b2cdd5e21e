"""Segmentation without a segmentation head: attention maps, masks, and how good they are."""

from .attention import MaskRule, attention_masks, upsample
from .crf import dense_crf
from .cuts import (
    CutRound,
    FoundObjects,
    bipartition,
    connected_component,
    mask_boxes,
    maskcut,
    maskcut_of,
    maskcut_rounds,
)
from .edges import EDGES, Edges, choose_edges, colour_edges, guided_edges, patch_edges, smooth_edges
from .guided import add_colours, guided_filter
from .methods import (
    METHODS,
    Method,
    Segments,
    by_attention,
    by_features,
    by_maskcut,
    by_multiscale,
    choose_method,
    clearness,
    method_with,
    settings_of,
)
from .metrics import best_head_iou, group_means, mask_iou, mean_iou
from .ncut import affinity, ncut_eigenvector
from .otsu import otsu_cut
from .states import all_cls_attention, cls_attention, default_layer, patch_features, resolve_layer

__all__ = [
    "EDGES",
    "METHODS",
    "CutRound",
    "Edges",
    "FoundObjects",
    "MaskRule",
    "Method",
    "Segments",
    "add_colours",
    "affinity",
    "all_cls_attention",
    "attention_masks",
    "best_head_iou",
    "bipartition",
    "by_attention",
    "by_features",
    "by_maskcut",
    "by_multiscale",
    "choose_edges",
    "choose_method",
    "clearness",
    "cls_attention",
    "colour_edges",
    "connected_component",
    "default_layer",
    "dense_crf",
    "group_means",
    "guided_edges",
    "guided_filter",
    "mask_boxes",
    "mask_iou",
    "maskcut",
    "maskcut_of",
    "maskcut_rounds",
    "mean_iou",
    "method_with",
    "ncut_eigenvector",
    "otsu_cut",
    "patch_edges",
    "patch_features",
    "resolve_layer",
    "settings_of",
    "smooth_edges",
    "upsample",
]
