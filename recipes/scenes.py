"""Scenes: composites like photographs: one named object among others, cut by the border, with uninformative seams.

Each image has, from back to front: a background; decoys (the outline of an object, filled with another background); a
smaller object of another class; perhaps a second object of the labelled class; the object itself; perhaps a decoy in
front. Then light, blur and noise are applied to all. Training sees images and labels; masks are only for measuring.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.composites import check_images, extents, pyramid
from recipes.objects import Objects
from whitebox_crate._random import torch_generator
from whitebox_crate.errors import InputError
from whitebox_crate.training import Batch

LARGEST, SMALLEST = 128, 8  # sides of the pyramids' levels, pixels


@dataclass(frozen=True)
class Style:
    """The composition of scenes at full difficulty.

    Attributes:
        decoys: Slots for decoys behind the object; each is filled with probability `filled`.
        others: Slots for smaller objects of other classes.
        filled: Probability that a slot is filled.
        twin: Probability of a second object of the same class.
        front: Probability of a decoy in front of the object.
        scales: Smallest and largest length of the object, as a share of the image's side.
        overhang: Largest share of the object's half that may lie outside the image.
        blur: Probability that the background is out of focus. The whole image is, with half this probability.
        harmony: Largest share by which the object's mean colour moves towards the background's.
        noise: Largest standard deviation of the pixel noise; pixels go from 0 to 1.
        grey: Probability that the image has no colours.
        light: Variation of brightness, contrast, tint and saturation, as a share of the largest useful one.
    """

    decoys: int = 2
    others: int = 1
    filled: float = 0.25
    twin: float = 0.05
    front: float = 0.05
    scales: tuple[float, float] = (0.5, 1.15)
    overhang: float = 0.5
    blur: float = 0.2
    harmony: float = 0.2
    noise: float = 0.03
    grey: float = 0.03
    light: float = 0.5


class Scenes:
    """Draws labelled scenes of objects over backgrounds, a `Source` of `whitebox_crate.training.train`.

    Args:
        objects: The objects to paste. A class is drawn in proportion to the square root of its number of objects.
        backgrounds: uint8 (count, 3, side, side).
        size: Side of the drawn images, in pixels.
        style: The composition.

    Raises:
        InputError: If there is no object or no background, or a tensor has another dtype or shape.
    """

    def __init__(self, objects: Objects, backgrounds: Tensor, size: int = 96, style: Style | None = None) -> None:
        check_images("objects.images", objects.images, 4)
        check_images("backgrounds", backgrounds, 3)
        self.size, self.style = size, style or Style()
        self.class_names, self._labels = objects.class_names, objects.labels
        counts = objects.labels.bincount()[objects.labels].float()
        self._weights = counts.rsqrt()  # so a class weighs the root of its count
        premultiplied = _premultiply(objects.images)
        self._objects, self._backgrounds = pyramid(premultiplied, SMALLEST), pyramid(backgrounds, SMALLEST)
        self._extents = extents(objects.images)
        total = premultiplied.float().sum((2, 3))
        self._object_means = total[:, :3] / total[:, 3:].clamp_min(1)  # (count, 3) in [0, 1]
        self._background_means = self._backgrounds[-1].float().mean((2, 3)) / 255
        by_class: dict[int, list[int]] = {}
        for index, label in enumerate(objects.labels.tolist()):
            by_class.setdefault(label, []).append(index)
        self._by_class = {label: torch.tensor(members) for label, members in by_class.items()}

    @torch.no_grad()
    def draw(self, batch_size: int, *, seed: int, step: int, difficulty: float = 1.0, size: int | None = None) -> Batch:
        """Draws one batch, a pure function of the arguments.

        Args:
            batch_size: Number of images.
            seed: Seed of the run.
            step: Number of the batch within the run.
            difficulty: From 0, one whole object on a plain colour, to 1, `style`.
            size: Side of the images in pixels, if different from the initial one.

        Returns:
            Images, labels, and masks of the visible parts of the labelled objects.

        Raises:
            InputError: If `difficulty` is not in [0, 1], or `batch_size` or `size` is not positive.
        """
        side = self.size if size is None else size
        if batch_size < 1 or side < 1 or not 0 <= difficulty <= 1:
            raise InputError(f"cannot draw {batch_size} images of {side} pixels at difficulty {difficulty}")
        return _Drawing(self, batch_size, side, difficulty, torch_generator(seed, step)).batch()


class _Drawing:
    """One batch during composition: its images, float32 (batch, 3, side, side), and its random numbers."""

    def __init__(self, scenes: Scenes, count: int, side: int, difficulty: float, generator: torch.Generator) -> None:
        self.scenes, self.count, self.side = scenes, count, side
        self.difficulty, self.generator = difficulty, generator
        self.images = torch.empty(0)
        self.masks = torch.zeros(count, side, side)

    def batch(self) -> Batch:
        """Composes from back to front."""
        scenes, style = self.scenes, self.scenes.style
        everyone = torch.arange(self.count)
        chosen = torch.multinomial(scenes._weights, self.count, replacement=True, generator=self.generator)
        behind = self._lay_background()
        for _ in range(style.decoys):
            self._paste_decoys(self._some(style.filled), scales=(0.15, 0.8))
        for _ in range(style.others):
            rows = self._some(style.filled)
            others = torch.randint(len(scenes._labels), (len(rows),), generator=self.generator)
            self._paste_objects(rows, others, behind, scales=(0.12, 0.35), spread=True, named=False)
        for rows, what, small in ((self._some(style.twin), None, True), (everyone, chosen, False)):
            objects = self._twins(chosen[rows]) if what is None else what
            low, high = (0.25, 0.6) if small else style.scales
            self._paste_objects(rows, objects, behind, scales=(low, high), spread=small, named=True)
        self._paste_decoys(self._some(style.front), scales=(0.15, 0.45))
        self._expose()
        return Batch(self.images, scenes._labels[chosen], self.masks > 0.5)

    # --- chance -------------------------------------------------------------------------------------------------

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator)

    def _symmetric(self, *shape: int) -> Tensor:
        return 2 * self._uniform(*shape) - 1

    def _some(self, share: float) -> Tensor:
        """Random rows, each chosen with this probability at full difficulty."""
        return (self._uniform(self.count) < share * self.difficulty).nonzero().flatten()

    def _twins(self, chosen: Tensor) -> Tensor:
        """For each object one of the same class, perhaps itself."""
        picks = self._uniform(len(chosen)).tolist()
        members = [self.scenes._by_class[label] for label in self.scenes._labels[chosen].tolist()]
        return torch.tensor([int(of[int(pick * len(of))]) for of, pick in zip(members, picks, strict=True)]).long()

    # --- layers -------------------------------------------------------------------------------------------------

    def _lay_background(self) -> Tensor:
        """Draws cut-outs of backgrounds in their own light, some blurred. Returns their mean colours, (batch, 3)."""
        scenes, style, count = self.scenes, self.scenes.style, self.count
        which = torch.randint(len(scenes._backgrounds[0]), (count,), generator=self.generator)
        plain = self._uniform(count, 3, 1, 1)
        images = self._cut(which, self._uniform(count) < style.blur)
        means = scenes._background_means[which]
        contrast = 1 + 0.35 * style.light * self._symmetric(count, 1, 1, 1)
        lit = (means[:, :, None, None] + contrast * (images - means[:, :, None, None])) * self._light(count)
        self.images = torch.lerp(plain.expand_as(lit), lit, self.difficulty)
        return torch.lerp(plain[:, :, 0, 0], means, self.difficulty)

    def _cut(self, which: Tensor, blurred: Tensor) -> Tensor:
        """Squares of backgrounds, mirrored or not, (rows, 3, side, side). Blurred ones come from a coarser level."""
        rows = len(which)
        share = 0.45 + 0.55 * self._uniform(rows)  # of the background's side that is seen
        centre = (1 - share)[:, None] * self._symmetric(rows, 2)
        mirror = torch.where(self._uniform(rows) < 0.5, -1.0, 1.0)
        matrix = torch.zeros(rows, 2, 2)
        matrix[:, 0, 0], matrix[:, 1, 1] = mirror * share, share
        softer = blurred * (0.5 + 2 * self._uniform(rows))
        levels = _levels(share * LARGEST / self.side, softer, len(self.scenes._backgrounds))
        return _sample(self.scenes._backgrounds, which, levels, matrix, centre, self.side) / 255

    def _place(self, rows: int, what: Tensor, scales: tuple[float, float], spread: bool) -> tuple[Tensor, ...]:
        """Matrices from the image's coordinates to the objects', offsets, and scales, for `rows` objects."""
        style, difficulty = self.scenes.style, self.difficulty
        low, high = (0.9 + difficulty * (bound - 0.9) for bound in scales)
        scale = low * (high / low) ** self._uniform(rows)
        angle = difficulty * math.radians(15) * self._symmetric(rows)
        mirror = torch.where(self._uniform(rows) < difficulty / 2, -1.0, 1.0)
        stretch = torch.exp(difficulty * 0.15 * self._symmetric(rows))
        cos, sin = angle.cos(), angle.sin()
        width, height = (scale[:, None] * self.scenes._extents[what]).unbind(-1)
        reach = torch.stack([cos * width + sin.abs() * height, sin.abs() * width + cos * height], -1)
        beyond = 2 * reach * style.overhang * (self._uniform(rows, 1) * (self._uniform(rows, 1) < 0.4))
        room = (1 - reach).abs() + (0.9 * reach if spread else beyond)
        centre = difficulty * self._symmetric(rows, 2) * room
        inverse = torch.stack([mirror * cos * stretch, mirror * sin * stretch, -sin / stretch, cos / stretch], -1)
        matrix = inverse.view(rows, 2, 2) / scale[:, None, None]
        return matrix, -(matrix @ centre[:, :, None])[:, :, 0], scale

    def _paste_objects(
        self, rows: Tensor, what: Tensor, behind: Tensor, scales: tuple[float, float], spread: bool, named: bool
    ) -> None:
        """Pastes objects `what` into the images `rows`, in their own light or drawn towards that of the background."""
        if not len(rows):
            return
        layer = self._objects(what, len(rows), scales, spread)
        colours, alpha = layer[:, :3], layer[:, 3:]
        means = self.scenes._object_means[what][:, :, None, None]
        contrast = 1 + 0.3 * self._strength() * self._symmetric(len(rows), 1, 1, 1)
        drawn = self.difficulty * self.scenes.style.harmony * self._uniform(len(rows), 1, 1, 1)
        target = means + drawn * (behind[rows][:, :, None, None] - means)
        colours = (contrast * colours + alpha * (target - contrast * means)) * self._light(len(rows))
        self._over(rows, colours, alpha, named)

    def _paste_decoys(self, rows: Tensor, scales: tuple[float, float]) -> None:
        """Pastes outlines of objects, filled with other backgrounds: a seam without a named object."""
        if not len(rows):
            return
        count = len(rows)
        outlines = torch.randint(len(self.scenes._labels), (count,), generator=self.generator)
        fillings = torch.randint(len(self.scenes._backgrounds[0]), (count,), generator=self.generator)
        alpha = self._objects(outlines, count, scales, spread=True)[:, 3:]
        colours = self._cut(fillings, self._uniform(count) < self.scenes.style.blur) * self._light(count)
        self._over(rows, colours * alpha, alpha, named=False)

    def _objects(self, what: Tensor, rows: int, scales: tuple[float, float], spread: bool) -> Tensor:
        """Objects in their final places, premultiplied RGBA in [0, 1]; (rows, 4, side, side)."""
        matrix, offset, scale = self._place(rows, what, scales, spread)
        softer = (self._uniform(rows) < 0.15 * self.difficulty) * self._uniform(rows)
        levels = _levels(LARGEST / (scale * self.side), softer, len(self.scenes._objects))
        layer = _sample(self.scenes._objects, what, levels, matrix, offset, self.side) / 255
        torch.minimum(layer[:, :3], layer[:, 3:], out=layer[:, :3])
        return layer

    def _over(self, rows: Tensor, colours: Tensor, alpha: Tensor, named: bool) -> None:
        """Lays premultiplied colours over the images `rows`. Unnamed things hide parts of named ones."""
        colours = torch.minimum(colours.clamp_min_(0), alpha)
        self.images[rows] = self.images[rows] * (1 - alpha) + colours
        cover = alpha[:, 0]
        self.masks[rows] = self.masks[rows] * (1 - cover) + (cover if named else 0)

    # --- the camera ---------------------------------------------------------------------------------------------

    def _strength(self) -> float:
        """The variation of light at this difficulty, in [0, 1]."""
        return self.difficulty * self.scenes.style.light

    def _light(self, rows: int) -> Tensor:
        """Factors of brightness and tint, brighter on one side; (rows, 3, side, side)."""
        strength = self._strength()
        brightness = 1 + strength * 0.35 * self._symmetric(rows, 1, 1, 1)
        tint = 1 + strength * 0.12 * self._symmetric(rows, 3, 1, 1)
        slope = strength * 0.2 * self._symmetric(rows, 2)
        along = torch.linspace(-1, 1, self.side)
        ramp = 1 + slope[:, 0, None, None] * along[None, :, None] + slope[:, 1, None, None] * along[None, None, :]
        return brightness * tint * ramp[:, None]

    def _expose(self) -> None:
        """Focus, contrast, saturation, and noise over all of each image; clamps to [0, 1]."""
        style, count, strength = self.scenes.style, self.count, self._strength()
        images = self.images
        rows = self._some(style.blur / 2)
        if len(rows):
            soft = F.avg_pool2d(F.pad(images[rows], (1, 1, 1, 1), mode="replicate"), 3, stride=1)
            images[rows] = torch.lerp(images[rows], soft, self._uniform(len(rows), 1, 1, 1))
        grey = images.mean(1, keepdim=True)
        saturation = 1 + strength * (0.3 * self._symmetric(count, 1, 1, 1))
        saturation[self._some(style.grey)] = 0
        contrast = 1 + strength * 0.25 * self._symmetric(count, 1, 1, 1)
        middle = images.mean((1, 2, 3), keepdim=True)
        images = torch.lerp(grey.expand_as(images), images, saturation)
        images = middle + contrast * (images - middle)
        deviation = self.difficulty * style.noise * self._uniform(count, 1, 1, 1) ** 2
        images = images + deviation * torch.randn(images.shape, generator=self.generator)
        self.images = images.clamp_(0, 1)


def _levels(ratio: Tensor, softer: Tensor, count: int) -> Tensor:
    """The pyramid's level for each row: source pixels to a pixel drawn, and octaves of blur beside; int64."""
    return (2 * (ratio.clamp_min(1e-3).log2() + softer)).round().clamp(0, count - 1).long()


def _sample(of: list[Tensor], which: Tensor, levels: Tensor, matrix: Tensor, offset: Tensor, side: int) -> Tensor:
    """Pictures `which` seen through affine maps of coordinates in [-1, 1]; float32 (rows, channels, side, side)."""
    along = (torch.arange(side) * 2 + 1) / side - 1
    right, down = matrix[:, :, 0, None] * along, matrix[:, :, 1, None] * along + offset[:, :, None]
    grid = right.mT[:, None] + down.mT[:, :, None]
    result = torch.empty(len(which), of[0].shape[1], side, side)
    for level in levels.unique().tolist():
        rows = (levels == level).nonzero().flatten()
        source = of[level].index_select(0, which[rows]).float()
        padding = "zeros" if source.shape[1] == 4 else "reflection"
        result[rows] = F.grid_sample(source, grid[rows], mode="bilinear", padding_mode=padding, align_corners=False)
    return result


def _premultiply(images: Tensor) -> Tensor:
    """RGBA uint8 with the colours multiplied by alpha; (count, 4, side, side)."""
    result = images.clone()
    for part in result.split(256):
        part[:, :3] = (part[:, :3] * (part[:, 3:] / 255)).round()
    return result
