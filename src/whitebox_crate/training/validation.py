"""Validation: how well a model in training names other images, and how well its attention shows objects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch.nn import functional as F

from ..errors import InputError
from ..evaluation import LabelledImages, layer_means, score_image
from ..evaluation.attention import Record, row_of
from ..models import ImageTransformer
from ..segmentation import MaskRule
from .batches import Batch, check_labels, moved
from .facts import described
from .loop import normalize


class Ordered(Protocol):
    """Labelled images in order; see `open_images`, streamed or not."""

    def in_order(self, batch_size: int, size: int, *, rank: int, world: int) -> Iterator[Batch]:
        """Every `world`-th batch from `rank` on, without augmentation. The last batch may be smaller."""


@dataclass(frozen=True)
class Validation:
    """Measurements during training: on labelled images, on images with masks, or on both.

    The processes of torch.distributed share the images: each of `world` processes takes every `world`-th batch and
    mask, and all get the numbers of all. Every process runs the model equally often, as sharded weights need.

    Attributes:
        images: Labelled images, with labels in the order of the model's classes; None for none.
        every: Steps between measurements; the last step is measured too.
        batch_size: Images at a time, in each process.
        size: Side of the images in pixels, and shorter side of those with masks; the model's own if None.
        masks: Images with masks (`read_voc` and `read_folder` of `whitebox_crate.evaluation`), for a model that takes
            images of any size.
        rule: How an attention map becomes a mask; see `attention_masks`.
    """

    images: Ordered | None
    every: int
    batch_size: int = 64
    size: int | None = None
    masks: LabelledImages | None = None
    rule: MaskRule = "mass"

    @property
    def description(self) -> str:
        """The data of the measurements, in words."""
        parts = [] if self.images is None else [described(self.images)]
        return "; ".join([*parts, *([] if self.masks is None else [f"{len(self.masks.items):,} images with masks"])])

    def measure(self, model: ImageTransformer) -> dict[str, float]:
        """Measures a model in evaluation mode, then restores its mode.

        Args:
            model: A model of this package.

        Returns:
            For `images`: the shares `top1` and (with more than 5 classes) `top5`, the `loss` (cross-entropy in float32,
            without label smoothing), the number of `images`, and the number of `skipped` ones, if some could not be
            decoded. For `masks`: `mask_iou`, the mIoU of [CLS] attention in `default_layer`, with the best head for
            each class of an image (arXiv 2308.16271, Figure 10).

        Raises:
            InputError: If there is no image, a label is not a class of the model, a file cannot be read, or no mask has
                an object.
            WeightsError: If the model's attention is not finite.
        """
        training = model.training
        model.eval()
        try:
            found = {} if self.images is None else self._classify(model, self.images)
            if self.masks is not None:
                found["mask_iou"] = self._segment(model, self.masks)
        finally:
            model.train(training)
        return found

    @torch.inference_mode()
    def _classify(self, model: ImageTransformer, images: Ordered) -> dict[str, float]:
        device, size = model.cls_token.device, self.size or min(model.img_size)
        sums = torch.zeros(5, dtype=torch.float64)
        for batch in _rounds(images.in_order(self.batch_size, size, rank=_rank(), world=_world()), device):
            if batch is None:
                _run_idly(model)
                continue
            remedy = "give the validation data the class names of the training data"
            check_labels(batch.labels, model.num_classes, "validation labels", remedy)
            labels = moved(batch.labels, device)
            logits = model(normalize(moved(batch.images, device), model)).float()
            likeliest = logits.topk(min(5, model.num_classes)).indices == labels[:, None]
            loss = F.cross_entropy(logits, labels, reduction="sum")
            counts = loss.new_tensor([len(labels), batch.skipped])
            sums += torch.stack([likeliest[:, 0].sum(), likeliest.sum(), loss, *counts]).cpu()
        if _world() > 1:
            sums = sums.to(device)
            dist.all_reduce(sums)
        top1, top5, total, count, lost = sums.tolist()
        if not count:
            raise InputError("the validation data have no images; give others, or none")
        fifth = {"top5": top5 / count} if model.num_classes > 5 else {}  # with fewer classes, all are among the top 5
        found = {"top1": top1 / count, **fifth, "loss": total / count, "images": int(count)}
        return {**found, "skipped": int(lost)} if lost else found

    def _segment(self, model: ImageTransformer, masks: LabelledImages) -> float:
        records: list[tuple[str, Record]] = []
        size, names = self.size or min(model.img_size), masks.class_names
        for first in range(0, len(masks.items), _world()):
            if first + _rank() >= len(masks.items):
                _run_idly(model)
                continue
            name, pair = masks.items[first + _rank()]
            scored = score_image(model, pair, size=size, rules=[self.rule], void=masks.void, class_names=names)
            records.append((name, scored))
        shares = [records] * _world()
        if _world() > 1:
            dist.all_gather_object(shares, records)
        means = layer_means(record for share in shares for record in share)
        return means.best_head[self.rule][row_of(model)]


@torch.inference_mode()
def _run_idly(model: ImageTransformer) -> None:
    """Runs the model for other processes with one more image: sharded weights need all processes."""
    model(torch.zeros(1, model.in_chans, *model.img_size, device=model.cls_token.device))


def _rounds(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch | None]:
    """This process's batches, then None while other processes still have batches."""
    while True:
        batch = next(batches, None)
        having = torch.tensor(float(batch is not None), device=device)
        if _world() > 1:
            dist.all_reduce(having)
        if not having:
            return
        yield batch


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if _world() > 1 else 0
