"""Segmentation without a segmentation head: attention maps, masks, and their scores."""

from .attention import MaskRule, attention_masks, upsample
from .crf import dense_crf
from .cuts import (
    CutRound,
    FoundObjects,
    bipartition,
    mask_boxes,
    maskcut,
    maskcut_of,
    maskcut_rounds,
)
from .edges import EDGES, Edges, colour_edges, guided_edges, patch_edges, smooth_edges
from .gradients import class_maps, positive_attention, relevance
from .guided import guided_filter
from .methods import (
    METHODS,
    Method,
    Segments,
    by_attention,
    by_class,
    by_features,
    by_maskcut,
    by_multiscale,
    clearness,
)
from .metrics import best_head_iou, mask_iou, mean_iou
from .ncut import affinity, ncut_eigenvector
from .otsu import otsu_cut
from .pieces import connected_component, large_pieces, mask_pieces
from .states import all_cls_attention, cls_attention, default_layer, membership_maps, patch_features

__all__ = [
    "EDGES",
    "METHODS",
    "CutRound",
    "Edges",
    "FoundObjects",
    "MaskRule",
    "Method",
    "Segments",
    "affinity",
    "all_cls_attention",
    "attention_masks",
    "best_head_iou",
    "bipartition",
    "by_attention",
    "by_class",
    "by_features",
    "by_maskcut",
    "by_multiscale",
    "class_maps",
    "clearness",
    "cls_attention",
    "colour_edges",
    "connected_component",
    "default_layer",
    "dense_crf",
    "guided_edges",
    "guided_filter",
    "large_pieces",
    "mask_boxes",
    "mask_iou",
    "mask_pieces",
    "maskcut",
    "maskcut_of",
    "maskcut_rounds",
    "mean_iou",
    "membership_maps",
    "ncut_eigenvector",
    "otsu_cut",
    "patch_edges",
    "patch_features",
    "positive_attention",
    "relevance",
    "smooth_edges",
    "upsample",
]
