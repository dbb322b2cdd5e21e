"""Segmentation without a segmentation head: attention maps, masks, and how good they are."""

from .attention import attention_masks, cls_attention, upsample
from .metrics import best_head_iou, group_means, mask_iou, mean_iou

__all__ = [
    "attention_masks",
    "best_head_iou",
    "cls_attention",
    "group_means",
    "mask_iou",
    "mean_iou",
    "upsample",
]
