"""Published ways from a network to a mask, and variants of them: a few lines each, with the source.

Each takes a `Photo` and returns a map on the patch grid (float; larger means more of an object) or a mask (bool). Those
that helped are in the package. The others are here, so that anyone can try them with other weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from whitebox_crate import ImageTransformer, capture
from whitebox_crate.layers import attention_rows
from whitebox_crate.segmentation import (
    EDGES,
    Segments,
    all_cls_attention,
    connected_component,
    default_layer,
    dense_crf,
    maskcut_rounds,
    otsu_cut,
)
from whitebox_crate.segmentation.methods import choose_method

Way: TypeAlias = Callable[["Photo"], Tensor]


class Photo:
    """A photograph and a network's states for it. Every state is computed once.

    Attributes:
        model: The model, in evaluation mode.
        pixels: (3, height, width), as the model sees it.
        image: uint8 (3, height, width), at its own size.
    """

    def __init__(self, model: ImageTransformer, pixels: Tensor, image: Tensor) -> None:
        self.model, self.pixels, self.image = model, pixels, image
        self.grid = model.grid_of(pixels[None])
        self._segments: dict[str, Segments] = {}

    @cached_property
    def maps(self) -> Tensor:
        """[CLS] attention, each map scaled to mean 1; (layers, heads, rows, columns)."""
        maps = all_cls_attention(self.model, self.pixels[None])[0]
        return maps / maps.mean((-2, -1), keepdim=True)

    @cached_property
    def projections(self) -> list[Tensor]:
        """Projections of each layer, with [CLS]; (heads, tokens, head_dim)."""
        with capture(self.model, "projections") as trace:
            self.model(self.pixels[None])
        return [trace["projections", layer][0] for layer in trace.layers]

    @cached_property
    def attention(self) -> list[Tensor]:
        """Attention of each layer, the mean of the heads; (tokens, tokens). In a ViT, keys attend to keys."""
        return [attention_rows(w[None], w[None])[0].mean(0) for w in self.projections]

    def features(self, layer: int) -> Tensor:
        """Projections of all heads side by side; (patches, dim)."""
        w = self.projections[layer][:, self.model.num_prefix_tokens :]
        return w.transpose(0, 1).flatten(1)

    def cosines(self, layer: int, centred: bool = False) -> Tensor:
        """Cosines of the patches' features, or of their differences from the mean; (patches, patches)."""
        features = self.features(layer)
        unit = F.normalize(features - features.mean(0) if centred else features, dim=1)
        return unit @ unit.T

    def segments(self, method: str, **settings: Any) -> Segments:
        """The result of a method of the package."""
        key = f"{method} {sorted(settings.items())}"
        if key not in self._segments:
            self._segments[key] = choose_method(method, **settings)(self.model, self.pixels)
        return self._segments[key]

    @property
    def border(self) -> Tensor:
        """bool (patches,): the patches along the four sides."""
        border = torch.ones(self.grid, dtype=torch.bool)
        border[1:-1, 1:-1] = False
        return border.flatten()

    @property
    def base(self) -> Tensor:
        """The start map for others: the map of `multiscale`, as a share; (patches,)."""
        return self.segments("multiscale").map.flatten().softmax(0)


def above_mean(map_: Tensor) -> Tensor:
    return map_ > map_.mean()


def above_otsu(map_: Tensor) -> Tensor:
    return map_ > otsu_cut(map_)


CUTS = {"mean": above_mean, "Otsu": above_otsu}
MEANS: dict[str, Callable[[Tensor], Tensor]] = {"plain": lambda x: x, "root": Tensor.sqrt, "logarithm": Tensor.log}


def mean_of_maps(photo: Photo, first: int, means: str) -> Tensor:
    """The mean map over heads, and over layers from `first` on."""
    return MEANS[means](photo.maps[first:]).mean((0, 1))


def most_alike_heads(photo: Photo, first: int, count: int) -> Tensor:
    """The mean of the heads with the most similar projections, by linear CKA (arXiv 1905.00414, section 3)."""
    heads = torch.cat(photo.projections[first:])
    heads = heads - heads.mean(1, keepdim=True)
    shared = torch.einsum("inp,jnq->ijpq", heads, heads).square().sum((-2, -1))
    alike = shared / (shared.diagonal().sqrt()[:, None] * shared.diagonal().sqrt())
    centre = int(alike.sum(1).argmax())
    nearest = alike[centre].topk(min(count, len(alike))).indices
    return photo.maps[first:].flatten(0, 1)[nearest].log().mean(0)


def rollout(photo: Photo, first: int) -> Tensor:
    """Attention rollout (arXiv 2005.00928, section 3): half attention, half identity, from a layer to the last."""
    row = torch.zeros(len(photo.attention[0]))
    row[0] = 1
    for attention in reversed(photo.attention[first:]):
        row = 0.5 * row + 0.5 * row @ attention
    return row[photo.model.num_prefix_tokens :].view(photo.grid)


def walk_from_cls(photo: Photo, layer: int, steps: int) -> Tensor:
    """A random walk from [CLS] after some steps: the row of a power of the attention matrix."""
    row = photo.attention[layer][0]
    for _ in range(steps - 1):
        row = row @ photo.attention[layer]
    return row[photo.model.num_prefix_tokens :].view(photo.grid)


def lost(photo: Photo, layer: int, seeds: int = 100) -> Tensor:
    """LOST (arXiv 2109.14279, section 3): the patch that is least similar to others, and patches similar to it."""
    features = photo.features(layer)
    links = features @ features.T
    degree = (links >= 0).sum(1)
    seed = int(degree.argmin())
    near = [int(patch) for patch in degree.argsort()[:seeds] if links[seed, patch] >= 0]
    mask = (links[:, near].sum(1) > 0).view(photo.grid)
    return connected_component(mask, seed)


def spectral(photo: Photo, layer: int, tau: float, whole: bool) -> Tensor:
    """TokenCut (arXiv 2202.11539) and the first round of MaskCut (arXiv 2301.11320).

    Takes the part of the foreground around its seed, or all of it.
    """
    cut = maskcut_rounds(photo.features(layer), photo.grid, 1, tau)[0]
    return cut.foreground if whole else cut.accepted


def cut_by_cls(photo: Photo, layer: int, tau: float) -> Tensor:
    """The side of the normalised cut with more attention of [CLS]."""
    salient = maskcut_rounds(photo.features(layer), photo.grid, 1, tau)[0].salient
    base = photo.base.view(photo.grid)
    return salient if not salient.all() and base[salient].mean() > base[~salient].mean() else ~salient


def unlike_background(photo: Photo, layer: int, share: float) -> Tensor:
    """FOUND's first step (arXiv 2212.07834, section 3.1): patches unlike those with the least attention of [CLS]."""
    seeds = photo.base.topk(max(1, int(share * len(photo.base))), largest=False).indices
    return -photo.cosines(layer)[:, seeds].mean(1).view(photo.grid)


def unlike_border(photo: Photo, layer: int) -> Tensor:
    """Patches similar to the border are background (Zhu et al. 2014, CVPR, section 3)."""
    return -photo.cosines(layer)[:, photo.border].mean(1).view(photo.grid)


def steps_to_border(photo: Photo, layer: int) -> Tensor:
    """The steps of a random walk over similar patches to the border (absorbing Markov chain, ICCV 2013)."""
    walk = _walk(photo.cosines(layer).clamp_min(0) ** 4)
    inner = ~photo.border
    here = walk[inner][:, inner]
    steps = torch.zeros(len(walk))
    steps[inner] = torch.linalg.solve(torch.eye(len(here)) * (1 + 1e-4) - here, torch.ones(len(here)))
    return steps.view(photo.grid)


def spread(photo: Photo, layer: int, power: int, centred: bool, steps: int, colour: float = 0) -> Tensor:
    """The map averaged over similar patches (arXiv 1803.10464, section 3.3), optionally in colour too."""
    alike = photo.cosines(layer, centred).clamp_min(0) ** power
    if colour:
        colours = F.adaptive_avg_pool2d(photo.image.float() / 255, photo.grid).flatten(1).T
        alike = alike * (-torch.cdist(colours, colours).square() / (2 * colour**2)).exp()
    map_, walk = photo.base, _walk(alike)
    for _ in range(steps):
        map_ = walk @ map_
    return map_.view(photo.grid)


def like_seeds(photo: Photo, layer: int, share: float) -> Tensor:
    """The similarity of a patch to those with the most attention of [CLS]."""
    seeds = photo.base.topk(max(1, int(share * len(photo.base)))).indices
    return photo.cosines(layer)[:, seeds].mean(1).view(photo.grid)


def views(photo: Photo, scales: tuple[float, ...], mirrored: bool) -> Tensor:
    """The mean of logarithms at some scales, and of the mirrored photograph."""
    found = photo.segments("multiscale", scales=scales).map
    if mirrored:
        other = choose_method("multiscale", scales=scales)(photo.model, photo.pixels.flip(-1))
        found = (found + other.map.flip(-1)) / 2
    return found


def centred(photo: Photo, width: float) -> Tensor:
    """Times a bell around the middle, its width a share of the sides: a prior of photographers, not of the network."""
    rows, columns = ((torch.arange(side) + 0.5) / side - 0.5 for side in photo.grid)
    return photo.segments("multiscale").map - (rows[:, None].square() + columns.square()) / (2 * width**2)


def box(photo: Photo) -> Tensor:
    """A box in the middle, 60% of each side: it knows nothing about the photograph."""
    mask = torch.zeros(photo.grid, dtype=torch.bool)
    top, left = (round(0.2 * side) for side in photo.grid)
    mask[top : photo.grid[0] - top, left : photo.grid[1] - left] = True
    return mask


def method(photo: Photo, name: str, edges: str) -> Tensor:
    """A method and edges of the package, at the pixels."""
    levels = photo.segments(name, **({"n": 1} if name == "maskcut" else {})).levels
    return EDGES[edges](levels, photo.image).any(0)


def box_with_edges(photo: Photo, edges: str) -> Tensor:
    """The box after the edges: the effect of edges alone."""
    return EDGES[edges](2 * box(photo)[None].float() - 1, photo.image).any(0)


def with_crf(photo: Photo) -> Tensor:
    """A dense CRF (arXiv 1210.5644) on the smooth mask."""
    return dense_crf(photo.image, method(photo, "multiscale", "smooth"))


def ways(model: ImageTransformer) -> dict[str, dict[str, Way]]:
    """The variants of each family, to choose from on the first half of the photographs."""
    depth, best = len(model.blocks), default_layer(model)
    late = range(max(0, depth - 3), depth)
    firsts = sorted({0, min(2, depth - 1), best, depth - 1})

    def cut(of: Callable[..., Tensor], **variants: Any) -> dict[str, Way]:
        """A way for each cut of a map."""
        return {f"{variants} {name}": partial(_cut, of, above, variants) for name, above in CUTS.items()}

    def each(*parts: dict[str, Way]) -> dict[str, Way]:
        return {name: way for part in parts for name, way in part.items()}

    package: dict[str, dict[str, Way]] = {
        f"{name} + {edges}": {"": partial(method, name=name, edges=edges)}
        for name in ("attention", "multiscale", "maskcut")
        for edges in EDGES
    }
    families: dict[str, dict[str, Way]] = {
        "box in the middle": {"": box},
        "box in the middle + guided": {"": partial(box_with_edges, edges="guided")},
        "box in the middle + colours": {"": partial(box_with_edges, edges="colours")},
        **package,
        "multiscale + dense CRF": {"": with_crf},
        **{
            f"mean of maps, {kind}": each(*(cut(mean_of_maps, first=first, means=kind) for first in firsts))
            for kind in MEANS
        },
        "scale 1, mirrored too": cut(views, scales=(1.0,), mirrored=True),
        "scales 2/3, 1, 4/3": cut(views, scales=(2 / 3, 1.0, 4 / 3), mirrored=False),
        "scales 2/3, 4/3, mirrored too": cut(views, scales=(2 / 3, 4 / 3), mirrored=True),
        "times a bell in the middle": each(*(cut(centred, width=width) for width in (0.5, 1.0))),
        "heads alike in projections": each(*(cut(most_alike_heads, first=best, count=count) for count in (3, 5))),
        "attention rollout": each(*(cut(rollout, first=first) for first in firsts)),
        "walk from [CLS]": each(*(cut(walk_from_cls, layer=layer, steps=steps) for layer in late for steps in (2, 3))),
        "LOST": {f"{layer}": partial(lost, layer=layer) for layer in late},
        "TokenCut": {f"{layer}": partial(spectral, layer=layer, tau=0.2, whole=True) for layer in late},
        "MaskCut, layers": {f"{layer}": partial(spectral, layer=layer, tau=0.15, whole=False) for layer in late},
        "side of the cut by [CLS]": {f"{layer}": partial(cut_by_cls, layer=layer, tau=0.2) for layer in late},
        "unlike what [CLS] leaves out": each(*(cut(unlike_background, layer=layer, share=0.1) for layer in late)),
        "unlike the border": each(*(cut(unlike_border, layer=layer) for layer in late)),
        "steps to the border": each(*(cut(steps_to_border, layer=layer) for layer in late[1:])),
        "like the seeds of [CLS]": each(*(cut(like_seeds, layer=layer, share=0.1) for layer in late)),
        "spread over like patches": each(
            *(cut(spread, layer=layer, power=4, centred=False, steps=steps) for layer in late[1:] for steps in (1, 3)),
            cut(spread, layer=depth - 1, power=3, centred=True, steps=3),
        ),
        "spread over like patches of like colour": each(
            *(cut(spread, layer=layer, power=4, centred=False, steps=2, colour=0.1) for layer in late[1:])
        ),
    }
    return families


def _cut(
    of: Callable[..., Tensor], above: Callable[[Tensor], Tensor], settings: dict[str, Any], photo: Photo
) -> Tensor:
    return above(of(photo, **settings))


def _walk(alike: Tensor) -> Tensor:
    return alike / alike.sum(1, keepdim=True)
