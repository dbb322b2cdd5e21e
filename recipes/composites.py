"""Composites: objects pasted over backgrounds, with a label and an exact mask.

Training sees images and labels; masks are only for measuring. One number, the difficulty, goes from one centred object
on a plain colour to an object anywhere, at any size, over clutter.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.objects import Objects
from whitebox_crate._random import torch_generator
from whitebox_crate.errors import InputError
from whitebox_crate.training import Batch
from whitebox_crate.training.batches import check_positive

EASY_SCALE = 0.9
HARD_SCALES = (0.5, 0.95)  # longer side of the object / side of the image
ROTATION = math.radians(15)
OVERHANG = 0.03  # how far an object may leave the image, as a share of the image's side
BRIGHTNESS, TINT, CONTRAST = 0.3, 0.15, 0.3  # half-widths of the factors around 1
CHUNK = 16  # images handled at once: few enough to stay in the processor's cache


def masks_of(batch: Batch) -> Tensor:
    """The masks of a batch of composites, bool (batch, height, width)."""
    assert batch.masks is not None
    return batch.masks


class Composites:
    """Draws labelled composites of objects over backgrounds.

    Args:
        objects: The objects to paste.
        backgrounds: uint8 (count, 3, side, side).
        size: Side of the drawn images, in pixels.
        name: Name in recipe and card of a run.

    Attributes:
        name: Name in recipe and card of a run.
        class_names: The names of the objects' classes.
        description: Name and numbers, in words.

    Raises:
        InputError: If a tensor has another dtype or shape, or is empty, or `size` is not positive.
    """

    def __init__(self, objects: Objects, backgrounds: Tensor, size: int = 96, name: str = "composites") -> None:
        check_images("objects.images", objects.images, channels=4)
        check_images("backgrounds", backgrounds, channels=3)
        check_positive("size", size)
        count, labels = len(objects.images), objects.labels
        if labels.shape != (count,) or labels.dtype != torch.int64:
            raise InputError(
                f"objects.labels is {labels.dtype} {tuple(labels.shape)}; expected torch.int64 ({count},), "
                "one label for each image"
            )
        self.name, self.class_names, self.size = name, objects.class_names, size
        self.description = f"{name}: composites of {count:,} objects of {len(objects.class_names)} classes"
        self._labels = labels.cpu()
        self._objects = pyramid(_premultiply(objects.images.cpu()))
        self._backgrounds = pyramid(backgrounds.cpu())
        self._background_means = self._backgrounds[-1].float().mean((2, 3), keepdim=True) / 255
        self._extents = extents(objects.images.cpu())

    @torch.no_grad()
    def draw(self, batch_size: int, *, seed: int, step: int, difficulty: float = 1.0, size: int | None = None) -> Batch:
        """Draws one batch, a pure function of the arguments: a resumed training sees the same bits.

        Args:
            batch_size: Number of images.
            seed: Seed of the run.
            step: Number of the batch within the run.
            difficulty: The curriculum's position in [0, 1]. At 0 the object is centred, upright, nine tenths
                of the image long, in its own colours, on a plain random colour. At 1 it is anywhere in the
                image, 0.5 to 0.95 long, mirrored or not, turned by up to 15 degrees, in other light, over a
                cut-out of a background in light of its own. In between every range grows in proportion.
            size: Side of the images in pixels, if different from the initial one.

        Raises:
            InputError: If `difficulty` is not in [0, 1], or `batch_size` or `size` is not positive.
        """
        size = self.size if size is None else size
        check_positive("batch_size", batch_size)
        check_positive("size", size)
        if not 0 <= difficulty <= 1:
            raise InputError(f"difficulty is {difficulty}; expected a number from 0 to 1")
        generator = torch_generator(seed, step)
        chosen = torch.randint(len(self._labels), (batch_size,), generator=generator)
        images = self._draw_backgrounds(batch_size, size, difficulty, generator)
        masks = self._paste_objects(images, chosen, difficulty, generator)
        return Batch(images, self._labels[chosen], masks)

    def _draw_backgrounds(self, count: int, size: int, difficulty: float, generator: torch.Generator) -> Tensor:
        """Plain colours blended towards cut-outs of backgrounds; float32 (count, 3, size, size)."""
        plain = torch.rand(count, 3, 1, 1, generator=generator)
        which = torch.randint(len(self._backgrounds[0]), (count,), generator=generator)
        where = torch.rand(count, 4, generator=generator)
        gain = _light(count, 1.0, generator)
        contrast = 1 + CONTRAST * _symmetric((count, 1, 1, 1), generator)
        if difficulty == 0:
            return plain.repeat(1, 1, size, size)
        # gain * (mean + contrast * (pixel - mean)) as one multiplication and one addition.
        factor, offset = gain * contrast / 255, gain * (1 - contrast) * self._background_means[which]
        # Cuts come from any level that is large enough, so scales vary without resampling.
        levels = [level.numpy() for level in self._backgrounds if level.shape[-1] >= size]
        images = torch.empty(count, 3, size, size)
        for start in range(0, count, CHUNK):
            part = slice(start, min(start + CHUNK, count))
            if levels:
                cuts = np.empty((part.stop - start, 3, size, size), np.uint8)
                for cut, index, place in zip(cuts, which[part].tolist(), where[part].tolist(), strict=True):
                    level, x, y, mirror = place
                    source = levels[int(level * len(levels))]
                    room = source.shape[-1] - size + 1
                    top, left = int(y * room), int(x * room)
                    tile = source[index, :, top : top + size, left : left + size]
                    cut[:] = tile[..., ::-1] if mirror < 0.5 else tile
                tiles = torch.from_numpy(cuts)
            else:
                tiles = self._backgrounds[0][which[part]].float()
                tiles = F.interpolate(tiles, (size, size), mode="bilinear", align_corners=False)
            lit = torch.mul(tiles, factor[part], out=images[part]).add_(offset[part]).clamp_(0, 1)
            if difficulty < 1:
                torch.lerp(plain[part], lit, difficulty, out=lit)
        return images

    def _paste_objects(self, images: Tensor, chosen: Tensor, difficulty: float, generator: torch.Generator) -> Tensor:
        """Pastes the chosen objects into the images, in place; returns the masks."""
        count, size = len(images), images.shape[-1]
        low, high = (EASY_SCALE + difficulty * (hard - EASY_SCALE) for hard in HARD_SCALES)
        scale = low + (high - low) * torch.rand(count, generator=generator)
        angle = difficulty * ROTATION * _symmetric((count,), generator)
        mirror = torch.where(torch.rand(count, generator=generator) < difficulty / 2, -1.0, 1.0)
        place = difficulty * _symmetric((count, 2), generator)
        light = torch.cat([_light(count, difficulty, generator), torch.ones(count, 1, 1, 1)], dim=1) / 255
        # Half the box of the turned object limits the place of its centre. The unit is half the image's side.
        cos, sin = angle.cos(), angle.sin()
        width, height = (scale[:, None] * self._extents[chosen]).unbind(-1)
        reach = torch.stack([cos * width + sin.abs() * height, sin.abs() * width + cos * height], dim=-1)
        centre = place * (1 + 2 * OVERHANG - reach).clamp_min(0)
        # From the image's coordinates to the object's: turn back, scale up, mirror.
        inverse = torch.stack([mirror * cos, mirror * sin, -sin, cos], -1).view(count, 2, 2)
        inverse = inverse / scale[:, None, None]
        masks = torch.zeros(count, size, size, dtype=torch.bool)
        canvases, outlines = images.numpy(), masks.numpy()
        # Objects of similar size are pasted together, with one level of the pyramid and one window shape.
        for rows in scale.argsort(stable=True).chunk(max(4, math.ceil(count / CHUNK))):
            ratio = self._objects[0].shape[-1] / (float(scale[rows].mean()) * size)
            level = min(max(round(2 * math.log2(ratio)), 0), len(self._objects) - 1)
            source = self._objects[level].index_select(0, chosen[rows]) * light[rows]
            torch.minimum(source[:, :3], source[:, 3:], out=source[:, :3])  # premultiplied: colour <= alpha
            window = (reach[rows].amax(0) * size).ceil().add_(3).clamp_max(size)
            corner = ((centre[rows] + 1) * size / 2 - window / 2).round().clamp_min(0).minimum(size - window)
            wide, tall = (int(length) for length in window)
            # In the object's coordinates: the window's first pixel, and a step right or down from it.
            step_x, step_y = (inverse[rows] * 2 / size).unbind(-1)
            start = inverse[rows] @ ((2 * corner + 1) / size - 1 - centre[rows])[:, :, None]
            right = start.mT + step_x[:, None] * torch.arange(wide)[:, None]
            down = step_y[:, None] * torch.arange(tall)[:, None]
            grid = right[:, None] + down[:, :, None]
            warped = F.grid_sample(source, grid, mode="bilinear", align_corners=False)
            colours, through = warped[:, :3].numpy(), (1 - warped[:, 3:]).numpy()
            solid = (warped[:, 3] > 0.5).numpy()
            for at, (row, (left, top)) in enumerate(zip(rows.tolist(), corner.int().tolist(), strict=True)):
                canvas = canvases[row, :, top : top + tall, left : left + wide]
                canvas *= through[at]
                canvas += colours[at]
                outlines[row, top : top + tall, left : left + wide] = solid[at]
        return masks


def _light(count: int, strength: float, generator: torch.Generator) -> Tensor:
    """Factors of brightness times tint per channel; (count, 3, 1, 1)."""
    brightness = 1 + strength * BRIGHTNESS * _symmetric((count, 1, 1, 1), generator)
    return brightness * (1 + strength * TINT * _symmetric((count, 3, 1, 1), generator))


def _symmetric(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform numbers in [-1, 1)."""
    return 2 * torch.rand(shape, generator=generator) - 1


def _premultiply(images: Tensor) -> Tensor:
    """RGBA uint8 (count, 4, side, side) with the colours multiplied by alpha."""
    result = images.clone()
    for part in result.split(256):  # bounded memory, here and below
        part[:, :3] = (part[:, :3] * (part[:, 3:] / 255)).round()
    return result


def pyramid(images: Tensor, smallest: int = 8) -> list[Tensor]:
    """The images at sides divided by 1, sqrt(2), 2, ... down to `smallest`, antialiased; each uint8."""
    levels, side = [images], images.shape[-1]
    while (smaller := round(side / 2 ** (len(levels) / 2))) >= smallest:
        level = torch.empty(*images.shape[:2], smaller, smaller, dtype=torch.uint8)
        for target, source in zip(level.split(256), images.split(256), strict=True):
            source = source.contiguous(memory_format=torch.channels_last)  # several times faster for bytes
            target.copy_(F.interpolate(source, (smaller, smaller), mode="bilinear", antialias=True))
        levels.append(level)
    return levels


def extents(images: Tensor) -> Tensor:
    """Width and height of each object as shares of its square; float32 (count, 2)."""
    visible = images[:, 3] > 0
    n = images.shape[-1]
    from_middle = (torch.arange(n) + 0.5 - n / 2).abs() + 0.5
    return torch.stack([(visible.any(dim) * from_middle).amax(-1) * 2 / n for dim in (1, 2)], dim=-1)


def check_images(what: str, images: Tensor, channels: int) -> None:
    """Raises InputError unless these are uint8 squares (count, channels, side, side), one or more."""
    shape = tuple(images.shape)
    square = len(shape) == 4 and shape[1] == channels and shape[2] == shape[3]
    if images.dtype != torch.uint8 or not square or not images.numel():
        raise InputError(
            f"{what} is {images.dtype} {shape}; expected torch.uint8 (count, {channels}, side, side) with "
            "one image or more"
        )
