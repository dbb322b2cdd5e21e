"""The paper's figures as sheets of pictures: masks, maps of heads, parts by PCA, and maps under noise."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._random import torch_generator
from ..backbones import readable
from ..errors import InputError
from ..images import load_image
from ..preprocess import fit_photo
from ..segmentation.attention import MaskRule, attention_masks, upsample
from ..segmentation.draw import blank_panel, draw_colours, draw_map, draw_mask, draw_panels, frame_panels
from ..segmentation.heads import rank_heads
from ..segmentation.metrics import mask_iou
from ..segmentation.pca import patch_pca, pca_maps, unit_range
from ..segmentation.states import Grid, cls_attention, patch_features
from .folders import LabelledImage
from .noise import add_noise

if TYPE_CHECKING:
    from PIL.Image import Image

SHORT_SIDE, LONGEST = 320, 1280  # shorter side of a picture on its own sheet, pixels; the longer side of a panorama
LONG_SIDE = 120  # longer side of a picture among many, pixels
WIDEST = 8  # most pictures in a row


@dataclass(frozen=True)
class Photograph:
    """A photograph, as a picture to show and as a tensor for a model.

    Attributes:
        path: The file.
        picture: Pillow, RGB, small, in the proportions that the model sees.
        pixels: (3, height, width), normalised, in the model's dtype and on its device.
        short_side: The argument of `read_photograph`.
    """

    path: Path
    picture: Image
    pixels: Tensor
    short_side: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the picture, pixels."""
        return self.picture.height, self.picture.width

    @property
    def batch(self) -> Tensor:
        """(1, 3, height, width): the input of the model."""
        return self.pixels[None]


def read_photograph(
    path: str | os.PathLike[str],
    model: nn.Module,
    short_side: int | None = None,
    *,
    alone: bool = False,
    image: Image | None = None,
) -> Photograph:
    """Reads a photograph for a model (`fit_photo`).

    Args:
        path: Any image that Pillow reads.
        model: A model that `capture` reads.
        short_side: Shorter side of the image that the model sees, pixels; `best_short_side` if None.
        alone: Whether its picture is large, for its own sheet.
        image: The image in the file, mode RGB, if it has been read already; else it is read upright.

    Raises:
        InputError: If the file cannot be read, the model does not take photographs, or the side is not positive.
    """
    photo = load_image(path) if image is None else image
    seen, pixels = fit_photo(model, photo, short_side)
    scale = min(SHORT_SIDE / min(seen.size), LONGEST / max(seen.size)) if alone else LONG_SIDE / max(seen.size)
    picture = photo.resize((max(1, round(seen.width * scale)), max(1, round(seen.height * scale))))
    return Photograph(Path(path), picture, pixels, short_side)


def maps_sheet(photo: Photograph, maps: Tensor, title: str, names: Sequence[str] = ()) -> Image:
    """Draws a photograph and its maps.

    Args:
        photo: The photograph.
        maps: (maps, grid_h, grid_w): for example its [CLS] attention; see `cls_attention`.
        title: The caption of the photograph.
        names: Names of the maps; if there are none, they are named as heads, in order.
    """
    panels, captions = _with_maps(photo, maps, title, names)
    return draw_panels(panels, captions, min(len(panels), 5))


@torch.inference_mode()
def pca_sheet(model: nn.Module, photos: Sequence[Photograph], layer: int, threshold: float | None = None) -> Image:
    """Draws photographs, first components, foregrounds and their parts in rows (arXiv 2308.16271, Fig. 3).

    Args:
        model: The model of the features.
        photos: The photographs, of one class of objects.
        layer: The layer.
        threshold: See `patch_pca`.
    """
    features, grids = _features(model, photos, layer)
    found = patch_pca(features, grids, threshold)
    columns = [
        [
            photo.picture,
            draw_colours(first[None], photo.size),
            draw_mask(photo.picture, inside),
            draw_colours(rgb, photo.size, inside),
        ]
        for photo, first, inside, rgb in zip(photos, found.first, found.foreground, found.rgb, strict=True)
    ]
    titles = [[photo.path.stem, "first component", "foreground", "its parts"] for photo in photos]
    wide = min(len(photos), WIDEST)
    panels: list[Image] = []
    captions: list[str] = []
    for start in range(0, len(photos), wide):  # what does not fit goes on below
        missing = start + wide - len(photos)
        for row in range(4):
            pictures = [column[row] for column in columns[start : start + wide]]
            panels += pictures + [blank_panel(*columns[0][row].size)] * missing
            captions += [title[row] for title in titles[start : start + wide]] + [""] * missing
    return draw_panels(frame_panels(panels), captions, wide)


@torch.inference_mode()
def pca_strip(model: nn.Module, photos: Sequence[Photograph]) -> Image:
    """Draws two rows per photograph, a column per layer: the first component, and the next three (Fig. 6 and 9)."""
    maps = [unit_range(pca_maps(*_features(model, photos, layer))) for layer in range(len(readable(model).layers()))]
    panels: list[Image] = []
    captions: list[str] = []
    for index, photo in enumerate(photos):
        panels += [photo.picture, *(draw_colours(of[index][:1], photo.size) for of in maps)]
        captions += [photo.path.stem, *(f"layer {layer}: 1" for layer in range(len(maps)))]
        panels += [blank_panel(*photo.picture.size), *(draw_colours(of[index][1:], photo.size) for of in maps)]
        captions += ["", *("2 to 4" for _ in maps)]
    return draw_panels(frame_panels(panels), captions, len(maps) + 1)


@torch.inference_mode()
def heads_sheet(
    model: nn.Module,
    photos: Sequence[Photograph],
    layer: int,
    *,
    masks: str | os.PathLike[str] | None = None,
    void: int | None = None,
    rule: MaskRule = "mean",
    keep: float = 0.6,
) -> tuple[Image, dict[str, Any]]:
    """Draws the same heads across photographs; heads that pick the same part come first (arXiv 2308.16271, Fig. 7).

    Args:
        model: The model of maps and features.
        photos: Two or more photographs.
        layer: The layer.
        masks: A folder of mask PNGs, named as the photographs. With it, heads are ranked by IoU, and photographs are
            turned like their masks (`LabelledImage.read`); without it, heads are ranked by `rank_heads`.
        void: The label of pixels to leave out.
        rule: See `attention_masks`.
        keep: See `attention_masks`.

    Returns:
        The sheet; and a dict of `layer`, `heads` (in order, with their numbers from `rank_heads`), and with masks
        `iou`, `rule`, `keep` and `iou_by_image`.

    Raises:
        InputError: If there are fewer than two photographs, or a mask is missing, damaged or marks nothing.
    """
    pairs = [] if masks is None else [_with_mask(photo.path, Path(masks)) for photo in photos]
    if pairs:
        photos = [_turned_as_mask(model, photo, pair) for photo, pair in zip(photos, pairs, strict=True)]
    maps = [cls_attention(model, photo.batch, layer)[0] for photo in photos]
    ranking = rank_heads(maps, _features(model, photos, layer)[0])
    order, judged = ranking.order, ranking.score
    measures = {name: getattr(ranking, name) for name in ("score", "consistency", "in_place", "recognised")}
    result: dict[str, Any] = {"layer": layer, "images": [str(photo.path) for photo in photos]}
    if pairs:
        ious = torch.stack([_ious(map_, pair, void, rule, keep) for map_, pair in zip(maps, pairs, strict=True)])
        judged = measures["iou"] = ious.mean(0)
        order = judged.argsort(descending=True, stable=True).tolist()
        result |= {"rule": rule, "keep": None if rule == "mean" else keep, "iou_by_image": ious.tolist()}
    panels: list[Image] = []
    captions: list[str] = []
    for photo, map_ in zip(photos, maps, strict=True):
        panels += [photo.picture, *(draw_map(map_[head], photo.size) for head in order)]
        captions += [photo.path.stem, *(f"head {head}: {judged[head]:.2f}" for head in order)]
    result["heads"] = [
        {"head": head, **{name: float(value[head]) for name, value in measures.items()}} for head in order
    ]
    return draw_panels(frame_panels(panels), captions, len(order) + 1), result


@torch.inference_mode()
def noise_sheet(
    model: nn.Module,
    photo: Photograph,
    layer: int,
    strengths: Sequence[float],
    shares: Sequence[float],
    seed: int = 0,
) -> Image:
    """Draws the maps of all heads: a row without noise, then a row for each share and strength (Fig. 11 and 12).

    Args:
        model: The model of the maps.
        photo: The photograph.
        layer: The layer.
        strengths: See `add_noise`.
        shares: See `add_noise`.
        seed: Seed of the noise. Together with its name, each photograph gets its own noise.

    Raises:
        InputError: See `add_noise`.
    """
    core = readable(model)
    cfg = core.pretrained_cfg
    mean, std = (torch.tensor(values)[:, None, None] for values in (cfg.mean, cfg.std))
    panels: list[Image] = []
    captions: list[str] = []
    for share, strength in [(0.0, 0.0), *product(shares, strengths)]:
        generator = torch_generator(seed, photo.path.stem)
        pixels = add_noise(photo.pixels, strength, share, generator, std=cfg.std)
        maps = cls_attention(model, pixels[None], layer)[0]
        seen = draw_colours((pixels.float().cpu() * std + mean).clamp(0, 1), photo.size)
        pictures, titles = _with_maps(photo, maps, f"{share:.0%}, deviation {strength:g}" if share else photo.path.stem)
        panels += [seen, *pictures[1:]]
        captions += titles
    return draw_panels(panels, captions, core.num_heads + 1)


def _with_maps(photo: Photograph, maps: Tensor, title: str, names: Sequence[str] = ()) -> tuple[list[Image], list[str]]:
    panels = [photo.picture, *(draw_map(map_, photo.size) for map_ in maps)]
    return panels, [title, *(names or [f"head {head}" for head in range(len(maps))])]


def _features(model: nn.Module, photos: Sequence[Photograph], layer: int) -> tuple[list[Tensor], list[Grid]]:
    found = [patch_features(model, photo.batch, layer) for photo in photos]
    return [features[0] for features, _ in found], [grid for _, grid in found]


def _with_mask(path: Path, masks: Path) -> LabelledImage:
    mask = masks / f"{path.stem}.png"
    upper = mask.with_suffix(".PNG")
    return LabelledImage(path, upper if upper.is_file() else mask)


def _turned_as_mask(model: nn.Module, photo: Photograph, pair: LabelledImage) -> Photograph:
    image, _ = pair.read()
    return read_photograph(photo.path, model, photo.short_side, image=image)


def _ious(maps: Tensor, pair: LabelledImage, void: int | None, rule: MaskRule, keep: float) -> Tensor:
    """IoU of each head's mask with the marked pixels of the image's mask, float (heads,)."""
    _, labels = pair.read()
    target = labels != 0
    valid = torch.ones_like(target) if void is None else labels != void
    if not (target & valid).any():
        raise InputError(f"the mask {pair.mask} is empty; leave its image out")
    masks = upsample(attention_masks(maps, keep, rule), (target.shape[0], target.shape[1]))
    return mask_iou(masks, target, valid=valid)
