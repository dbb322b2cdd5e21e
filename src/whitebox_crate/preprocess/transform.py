"""The evaluation transform, under timm's names: the resize, crop and normalisation that weights were evaluated with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..backbones import readable
from ..errors import InputError, UnknownNameError
from ..layers.patch_embed import Size, to_pair
from ..pretrained_cfg import IMAGENET_MEAN, IMAGENET_STD, LEAST_CROP, PretrainedCfg
from .pixels import MOST_PIXELS, AnyImage, check_statistics, normalised

INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")  # Pillow's, in lower case
MOST_CROPPED = 100  # most squares of the crop's longer side in a resized image, so that a strip does not fill memory


def resolve_data_config(
    args: nn.Module | Mapping[str, Any] | None = None,
    pretrained_cfg: Mapping[str, Any] | None = None,
    model: nn.Module | None = None,
) -> dict[str, Any]:
    """The images that a model expects: the keyword arguments of `create_transform`, under timm's names.

    `resolve_data_config(model)`, `resolve_data_config(cfg)`, or timm's form: `resolve_data_config({}, model=model)`.

    The size is the model's current size, which may differ from the size of its weights. The model may take another
    number of channels than the weights have means for. Then one channel gets the average mean and the average standard
    deviation (the image becomes grey); any other number repeats them in turn.

    Args:
        args: A model that `capture` reads, or facts about weights, as `get_pretrained_cfg` gives them. Or settings that
            override these, as in timm's command lines: the keys below, `img_size` and `in_chans` (or `chans`), if they
            are not None. Other keys are ignored.
        pretrained_cfg: Facts in place of the model's; missing ones have the values of `PretrainedCfg()`.
        model: The model.

    Returns:
        input_size (channels, height, width); interpolation; mean and std, per channel, of images scaled to [0, 1];
        crop_pct; crop_mode.

    Raises:
        InputError: If there is neither a known model nor facts, or the facts have no mean or std.

    Example:
        >>> config = resolve_data_config(create_model("crate_nano"))
        >>> config["input_size"]
        (3, 96, 96)
        >>> transform = create_transform(**config)
    """
    asked: dict[str, Any] = {}
    if isinstance(args, PretrainedCfg):
        pretrained_cfg = args
    elif isinstance(args, Mapping):
        asked = {key: value for key, value in args.items() if value is not None}
    elif args is not None:
        model = args
    cfg, size = _facts_and_size(model, pretrained_cfg)
    channels = asked.get("in_chans", asked.get("chans", size[0]))
    size = (channels, *(to_pair(asked["img_size"]) if "img_size" in asked else size[1:]))
    size = tuple(asked.get("input_size", size))
    return {
        "input_size": size,
        "interpolation": asked.get("interpolation", cfg["interpolation"]),
        "mean": _for_channels(asked.get("mean", cfg["mean"]), size[0]),
        "std": _for_channels(asked.get("std", cfg["std"]), size[0]),
        "crop_pct": asked.get("crop_pct", cfg["crop_pct"]),
        "crop_mode": asked.get("crop_mode", cfg["crop_mode"]),
    }


def _facts_and_size(model: Any, given: Mapping[str, Any] | None) -> tuple[Mapping[str, Any], tuple[int, ...]]:
    facts: Mapping[str, Any] | None = None if given is None else {**PretrainedCfg(), **given}
    if model is None and facts is not None:
        return facts, tuple(facts["input_size"])
    if not isinstance(model, nn.Module):
        raise InputError(f"expected a model or a PretrainedCfg, got {type(model).__name__}")
    source = readable(model)
    return source.pretrained_cfg if facts is None else facts, (source.in_chans, *source.img_size)


def _for_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    if not values:
        raise InputError("the facts about the weights have no mean or no std; give them by pretrained_cfg_overlay")
    if len(values) == channels:
        return tuple(values)
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[index % len(values)] for index in range(channels))


def create_transform(
    input_size: Size | tuple[int, int, int] = (3, 224, 224),
    interpolation: str = "bicubic",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    crop_pct: float = 1.0,
    crop_mode: str = "center",
    is_training: bool = False,
) -> Transform:
    """The evaluation transform: `create_transform(**resolve_data_config(model))`.

    Args:
        input_size: (channels, height, width), pixels; or (height, width) or one number, with 3 channels.
        interpolation: Pillow's filter: "nearest", "box", "bilinear", "hamming", "bicubic" or "lanczos".
        mean: Mean of each channel, of images scaled to [0, 1].
        std: Standard deviation of each channel, likewise.
        crop_pct: Side of the centre crop over the shorter side of the resized image, from 0.01
            to 1.
        crop_mode: "center", the only one of timm's modes here.
        is_training: False; `whitebox_crate.training` does the random crops of training.

    Returns:
        A `Transform`, to be called with one image or with a batch.

    Raises:
        UnknownNameError: If there is no such interpolation or crop mode; the message lists close matches.
        InputError: If a value is out of range, the channels are not 1 or 3, or `is_training` is true.

    Example:
        >>> from whitebox_crate.images import load_image
        >>> create_transform(input_size=96, crop_pct=0.9)(load_image("photo.jpg")).shape
        torch.Size([3, 96, 96])
    """
    if crop_mode != PretrainedCfg.crop_mode:
        raise UnknownNameError.of("crop_mode", crop_mode, (PretrainedCfg.crop_mode,))
    if is_training:
        raise InputError(
            "is_training=True: this transform is for evaluation; whitebox_crate.training crops for training"
        )
    size: Any
    shape: Any = input_size
    channels, size = (shape[0], shape[1:]) if isinstance(shape, tuple | list) and len(shape) == 3 else (3, shape)
    return Transform((channels, *to_pair(size)), interpolation, tuple(mean), tuple(std), crop_pct)


@dataclass(frozen=True)
class Transform:
    """Resize, centre crop, (pixels / 255 - mean) / std. On uint8 pixels it equals Pillow bit for bit.

    The image keeps its proportions and is resized until it covers floor(side / crop_pct) on both sides. Lengths are
    rounded as in the evaluations behind published accuracies: for square inputs as in torchvision's `Resize` (the
    longer side down), for others as in timm (both to the nearest). `create_transform` explains the fields. In
    input_size, 1 channel is grey (ITU-R 601) and 3 channels are RGB.
    """

    input_size: tuple[int, int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float

    def __post_init__(self) -> None:
        channels = self.input_size[0]
        if channels not in (1, 3):
            raise InputError(
                f"images have 3 channels, or 1 if grey; for a model that takes {channels!r}, make the tensors "
                "yourself: (pixels / 255 - mean) / std"
            )
        to_pair(self.input_size[1:])
        if self.interpolation not in INTERPOLATIONS:
            raise UnknownNameError.of("interpolation", self.interpolation, INTERPOLATIONS)
        check_statistics(self.mean, self.std, channels)
        if not (isinstance(self.crop_pct, int | float) and LEAST_CROP <= self.crop_pct <= 1):
            raise InputError(
                f"crop_pct must be a share from {LEAST_CROP} to 1, not {self.crop_pct!r:.50}; 1 cuts least"
            )

    def __call__(self, images: AnyImage | Sequence[AnyImage]) -> Tensor:
        """Turns one image, or a batch of images, into a tensor for the model.

        Args:
            images: A Pillow image of any mode; uint8 (height, width, 3) in numpy; uint8 (3, height, width) in torch;
                a list or tuple of these, of any sizes; or an array or tensor of them with the batch first. Float
                tensors (channels, height, width) in [0, 1] are cropped and normalised, but not resized.

        Returns:
            (channels, height, width), or (batch, channels, height, width) for a list or a batch; float32, on the
            device of a tensor, else on the CPU.

        Raises:
            InputError: If an image is none of these, has no pixels or has values out of range. Or if it holds floats
                and needs resizing, or is so long a strip (about 1 : 100) that resizing would make it huge. Or if the
                batch is empty.
            MissingExtraError: If Pillow is needed and not installed.
        """
        if isinstance(images, Tensor | np.ndarray) and images.ndim == 4:
            images = list(images)
        if not isinstance(images, list | tuple):
            return self._one(images)
        if not images:
            raise InputError("the batch is empty; give one image or more")
        rows = []
        for index, image in enumerate(images):
            try:
                rows.append(self._one(image))
            except InputError as error:
                raise InputError(f"image {index} of the batch: {error}") from error
        return torch.stack(rows)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) to which an image of this size is resized before the crop."""
        target_height, target_width = self.input_size[1:]
        tall, wide = math.floor(target_height / self.crop_pct), math.floor(target_width / self.crop_pct)
        if tall == wide:
            short = min(height, width)
            size = tall * height // short, wide * width // short
        else:
            ratio = min(height / tall, width / wide)
            size = round(height / ratio), round(width / ratio)
        if size[0] * size[1] > min(MOST_CROPPED * max(target_height, target_width) ** 2, MOST_PIXELS):
            raise InputError(
                f"{height} x {width} pixels would be resized to {size[0]} x {size[1]} and cropped to {target_height} x "
                f"{target_width}; crop the image first"
            )
        return size

    def _one(self, image: Any) -> Tensor:
        return normalised(image, self._resized, self.interpolation, self.mean, self.std, self.input_size[1:])
