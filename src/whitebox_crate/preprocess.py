"""Turns images into tensors, with the resize, crop and normalisation that a set of weights was evaluated with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, Union

import numpy as np
import torch
from torch import Tensor, nn

from ._deprecated import moved_names
from .backbones import readable
from .errors import InputError, UnknownNameError, is_finite, require
from .images import to_rgb
from .layers.patch_embed import Size, to_pair
from .pretrained_cfg import IMAGENET_MEAN, IMAGENET_STD, LEAST_CROP, PretrainedCfg

if TYPE_CHECKING:
    from PIL.Image import Image

AnyImage: TypeAlias = Union["Image", np.ndarray[Any, Any], Tensor]

INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")  # Pillow's, in lower case
MOST_CROPPED = 100  # most squares of the crop's longer side in a resized image, so that a strip does not fill memory
MOST_PATCHES, MOST_PIXELS = 1 << 18, 1 << 26  # most of a photograph for a model


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
        _check_statistics(self.mean, self.std, channels)
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
        return _normalised(image, self._resized, self.interpolation, self.mean, self.std, self.input_size[1:])


def resize_to_grid(
    image: Image, patch_size: Size, short_side: int, long_side: int | None = None, *, square: bool = False
) -> Image:
    """Scales an image so that whole patches tile it. Nothing is cut off; sides are rounded to whole patches.

    Args:
        image: A Pillow image of any size and mode.
        patch_size: (height, width) of a patch or one number, pixels.
        short_side: Length of the shorter side, pixels, before rounding to whole patches.
        long_side: Largest length of the longer side, pixels; for it, the whole image is scaled down further. Default
            4 * `short_side`, so that a panorama does not fill memory.
        square: Whether both sides get `short_side`, whatever the image's proportions.

    Returns:
        A Pillow image in mode RGB, resampled by Pillow's antialiased bicubic filter; each side is a multiple
        of the patch, and at least one patch.

    Raises:
        InputError: If a size is not positive, or makes more patches than a model could take.
    """
    pillow: Any = require("PIL.Image", extra="images")
    patch_height, patch_width = to_pair(patch_size)
    rows, columns = grid_for(image, patch_size, short_side, long_side, square=square)
    return to_rgb(image).resize((columns * patch_width, rows * patch_height), pillow.Resampling.BICUBIC)


def grid_for(
    image: Image, patch_size: Size, short_side: int, long_side: int | None = None, *, square: bool = False
) -> tuple[int, int]:
    """The (rows, columns) of patches of an image after `resize_to_grid`, with the same arguments and errors."""
    patch_height, patch_width = to_pair(patch_size)
    longest = 4 * short_side if long_side is None else long_side
    if not all(1 <= side <= 4 * MOST_PIXELS for side in (short_side, longest)):
        raise InputError(
            f"sides must be from 1 to {4 * MOST_PIXELS} pixels, not {short_side!r:.50} and {longest!r:.50}"
        )
    width, height = (1, 1) if square else image.size
    scale = min(short_side / min(width, height), longest / max(width, height))
    rows, columns = max(1, round(height * scale / patch_height)), max(1, round(width * scale / patch_width))
    _check_patches(rows, columns, (patch_height, patch_width), short_side)
    return rows, columns


def _check_patches(rows: int, columns: int, patch: tuple[int, int], short_side: int) -> None:
    """Refuses a picture that would fill the memory, before it takes any."""
    patches, pixels = rows * columns, rows * columns * patch[0] * patch[1]
    if (share := max(patches / MOST_PATCHES, pixels / MOST_PIXELS)) > 1:
        most = min(MOST_PATCHES, MOST_PIXELS // (patch[0] * patch[1]))
        raise InputError(
            f"a shorter side of {short_side} pixels makes {rows} x {columns} = {patches:,} patches of {patch[0]} x "
            f"{patch[1]} pixels, but at most {most:,} are allowed; "
            f"give a size (--size) of at most {max(1, int(short_side / math.sqrt(share)))}"
        )


def best_short_side(model: nn.Module) -> int:
    """The shorter side of a photograph, pixels, at which a model's attention shows objects best.

    Args:
        model: The model. Its `pretrained_cfg.attention_size` says; if that was not measured, its own image size counts.
    """
    core = readable(model)
    return core.pretrained_cfg.attention_size or min(core.img_size)


class SeenPhoto(NamedTuple):
    """A photograph as a model sees it.

    Attributes:
        image: Pillow, RGB, scaled to whole patches, or to the one size that the model takes.
        pixels: (3, height, width), normalised, on the model's device, of its dtype; `pixels[None]` is a batch.
    """

    image: Image
    pixels: Tensor


def fit_photo(model: nn.Module, photo: Image, short_side: int | None = None) -> SeenPhoto:
    """Turns a photograph into a model's tensor: whole patches, nothing cut off, the weights' mean and std.

    A model that takes only one size (`dynamic_img_size=False`) sees the photograph resized to that size, whatever its
    proportions. A model that takes only squares (`square_images`, as CBT's released pooling) sees it as a square.

    Args:
        model: A model that `capture` reads.
        photo: A Pillow image of any size and mode, as `whitebox_crate.images.load_image` reads it.
        short_side: Shorter side of the image, pixels, before rounding to whole patches; `best_short_side` if None.

    Raises:
        InputError: If the model does not take 3 channels, or the side is not positive, or the model takes only another
            size.
        MissingExtraError: If Pillow is not installed.

    Example:
        >>> from whitebox_crate.images import load_image
        >>> model = create_model("crate_nano", pretrained=True)
        >>> fit_photo(model, load_image("photo.jpg"), short_side=96).pixels.shape
        torch.Size([3, 96, 144])
    """
    core = readable(model)
    check_takes_photos(core)
    side = best_short_side(core) if short_side is None else short_side
    if core.dynamic_img_size:
        image = resize_to_grid(photo, core.patch_size, side, square=core.square_images)
    elif short_side in (None, min(core.img_size)):
        pillow: Any = require("PIL.Image", extra="images")
        image = to_rgb(photo).resize(core.img_size[::-1], pillow.Resampling.BICUBIC)
    else:
        height, width = core.img_size
        raise InputError(
            f"the model takes only images of {height} x {width}, not size {short_side}; leave the size out"
        )
    pixels = image_to_tensor(image, mean=core.pretrained_cfg.mean, std=core.pretrained_cfg.std)
    return SeenPhoto(image, pixels.to(next(core.patch_embed.parameters())))


def check_takes_photos(model: nn.Module, name: str = "the model") -> None:
    """Refuses a model that does not take the 3 channels of a photograph.

    Raises:
        InputError: If it does not; the message calls the model by `name`.
    """
    channels = readable(model).in_chans
    if channels != 3:
        raise InputError(f"{name} takes {channels} channels, but photographs have 3; choose another model")


def image_to_tensor(
    image: AnyImage,
    *,
    size: Size | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Tensor:
    """Turns one whole image into a tensor: (pixels / 255 - mean) / std. Nothing is cut off.

    Args:
        image: A Pillow image of any mode; uint8 (height, width, 3) in numpy; or uint8 in [0, 255] or float in
            [0, 1], (3, height, width), in torch.
        size: (height, width) or one number, pixels. Pillow's antialiased bicubic filter resizes the image to it,
            whatever the proportions. Float tensors are not resized.
        mean: Mean of each channel, of images scaled to [0, 1].
        std: Standard deviation of each channel, likewise.

    Returns:
        (3, height, width), float32, on the device of a tensor, else on the CPU. Stack them for a batch.

    Raises:
        InputError: If the image is none of these, or has a value out of range.
        MissingExtraError: If Pillow is needed and not installed.
    """
    _check_statistics(mean, std, channels=3)
    wanted = None if size is None else to_pair(size)
    return _normalised(image, lambda height, width: wanted or (height, width), "bicubic", mean, std)


def _normalised(
    image: AnyImage,
    resized: Callable[[int, int], tuple[int, int]],
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
    crop: tuple[int, int] | None = None,
) -> Tensor:
    """(pixels / 255 - mean) / std of an image that is resized to `resized(its size)`, with as many channels as means.

    `crop` is the (height, width) to take from the middle of the resized image. The rest never becomes floats.
    Float tensors already hold pixels / 255, and are not resized.
    """
    if isinstance(image, Tensor) and image.is_floating_point():
        pixels = _check_unit_range(image, channels=len(mean))
        size = resized(*pixels.shape[1:])
        top, left, height, width = _middle(size, crop)
        if size != pixels.shape[1:]:
            raise InputError(
                f"float tensors are not resized, but {tuple(pixels.shape[1:])} would have to become {size}; resize it "
                "yourself, or give uint8 pixels: (255 * image).round().byte()"
            )
        pixels = pixels[:, top : top + height, left : left + width]
    else:
        pillow: Any = require("PIL.Image", extra="images")
        photo = to_pillow(image)
        if len(mean) == 1:
            photo = photo.convert("L")
        size = resized(photo.height, photo.width)
        top, left, height, width = _middle(size, crop)
        photo = photo.resize(size[::-1], pillow.Resampling[interpolation.upper()])
        array = np.array(photo.crop((left, top, left + width, top + height))).reshape(height, width, len(mean))
        pixels = torch.from_numpy(array).permute(2, 0, 1).float() / 255
    offset, scale = (pixels.new_tensor(values).view(-1, 1, 1) for values in (mean, std))
    # On the CPU if Pillow resized: accelerators round differently.
    normalised = ((pixels - offset) / scale).contiguous()
    return normalised.to(image.device) if isinstance(image, Tensor) else normalised


def _middle(size: tuple[int, int], crop: tuple[int, int] | None) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop from the middle of an image of this (height, width)."""
    height, width = crop or size
    # Python rounds halves to even, and so do the evaluations.
    return round((size[0] - height) / 2), round((size[1] - width) / 2), height, width


def to_pillow(image: Any) -> Image:
    """Any 8-bit image as a Pillow image in mode RGB.

    Args:
        image: A Pillow image of any mode; uint8 (height, width, 3) in numpy; or uint8 (3, height, width) in torch.

    Raises:
        InputError: If it is none of these, or has no pixels.
        MissingExtraError: If Pillow is not installed.
    """
    pillow: Any = require("PIL.Image", extra="images")
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
        image = image.transpose(1, 2, 0) if image.ndim == 3 else image
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise InputError(
                "expected uint8 pixels of shape (height, width, 3) in numpy or (3, height, width) in torch; "
                f"got {image.dtype} of (height, width, channels) {image.shape}"
                + ("; turn floats in [0, 1] into uint8: (255 * values).round()" if image.dtype.kind == "f" else "")
            )
        image = pillow.fromarray(np.ascontiguousarray(image))
    elif not isinstance(image, pillow.Image):
        raise InputError(f"expected a Pillow image, a numpy array or a tensor, got {type(image).__name__}")
    return to_rgb(image)


def _check_unit_range(pixels: Tensor, channels: int) -> Tensor:
    if pixels.ndim != 3 or pixels.shape[0] != channels or pixels.numel() == 0:
        raise InputError(f"expected a tensor of shape ({channels}, height, width), got {tuple(pixels.shape)}")
    if not ((pixels >= 0) & (pixels <= 1)).all():
        raise InputError(
            f"float pixels must be in [0, 1]; these are from {float(pixels.min())} to {float(pixels.max())}: divide by "
            "the largest possible value; if some are NaN, check how they were read"
        )
    return pixels.float()


def _check_statistics(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    finite = all(map(is_finite, (*mean, *std)))
    if len(mean) != channels or len(std) != channels or not finite or min(std) <= 0:
        raise InputError(f"mean and std must be {channels} finite numbers each, std positive, not {mean!r} and {std!r}")


def _for_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    if not values:
        raise InputError("the facts about the weights have no mean or no std; give them by pretrained_cfg_overlay")
    if len(values) == channels:
        return tuple(values)
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[index % len(values)] for index in range(channels))


if not TYPE_CHECKING:
    __getattr__ = moved_names(__name__)
