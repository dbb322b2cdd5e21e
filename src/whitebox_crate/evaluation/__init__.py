"""The paper's measurements over data sets: VOC, COCO and folders. A killed run resumes."""

from .attention import RULES, score_image, score_maps
from .attention_runs import evaluate_attention
from .checkpoints import find_checkpoints, load_checkpoint
from .coco import average_precision, check_images, read_annotations, read_results, to_results
from .curves import Curves
from .folders import VOC_CLASSES, VOID, LabelledImage, LabelledImages, read_folder, read_labels, read_voc
from .maskcut import evaluate_maskcut, maskcut_results
from .masks import evaluate_masks, score_masks, summarize_masks
from .noise import Noise, add_noise, noisy
from .records import Records, content_of
from .runs import Outcome, Run
from .summaries import LayerMeans, layer_means, summarize, summary_tables

__all__ = [
    "RULES",
    "VOC_CLASSES",
    "VOID",
    "Curves",
    "LabelledImage",
    "LabelledImages",
    "LayerMeans",
    "Noise",
    "Outcome",
    "Records",
    "Run",
    "add_noise",
    "average_precision",
    "check_images",
    "content_of",
    "evaluate_attention",
    "evaluate_maskcut",
    "evaluate_masks",
    "find_checkpoints",
    "layer_means",
    "load_checkpoint",
    "maskcut_results",
    "noisy",
    "read_annotations",
    "read_folder",
    "read_labels",
    "read_results",
    "read_voc",
    "score_image",
    "score_maps",
    "score_masks",
    "summarize",
    "summarize_masks",
    "summary_tables",
    "to_results",
]
