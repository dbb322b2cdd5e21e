"""Semantic heads: which heads of a layer pick the same part of the object in every image of a set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .attention import upsample

NOTHING = 1e-6  # a pick nearer to the mean patch than this share of a patch's usual distance counts as no pick


@dataclass(frozen=True)
class HeadRanking:
    """How consistently each head picks one kind of patch over a set of images; see `rank_heads`.

    Attributes:
        score: float64 (heads,), in [-2, 2]: `consistency` minus `in_place`.
        consistency: float64 (heads,), in [-1, 1]: how similar the picks of a head in two images are.
        in_place: float64 (heads,), in [-1, 1]: how similar they would be if the head looked at the same places in both.
        recognised: float64 (heads,), in [0, 1]: how often the most similar pick in another image, among the picks of
            all heads, belongs to the same head. Chance is 1 / heads.
    """

    score: Tensor
    consistency: Tensor
    in_place: Tensor
    recognised: Tensor

    @property
    def order(self) -> list[int]:
        """The heads, the highest score first; for equal scores, the lower index."""
        order: list[int] = self.score.argsort(descending=True, stable=True).tolist()
        return order


def rank_heads(maps: Tensor | Sequence[Tensor], features: Tensor | Sequence[Tensor]) -> HeadRanking:
    """Ranks the heads of one layer by how consistently they pick a part (arXiv 2308.16271, Fig. 7), without labels.

    The paper picks its heads by eye: a head that looks at legs should look at legs in every image. Here, the pick of a
    head in an image is the mean of the image's features weighted by the head's map, minus their plain mean. The
    similarity of two picks is their cosine.

    - A head without preference picks nothing; all its similarities are 0.
    - Features of one class are similar anyway, and a head that always looks at the same place finds the same as long as
      objects are placed alike. So the consistency of a head (the mean similarity of its picks in two images) is
      compared with `in_place`: the similarity if one image's map picks in both images. A semantic head follows the
      part.

    Scores compare heads of one layer over one set of images. They say that a head picks the same thing, not which
    thing; in early layers it may be a colour.

    Args:
        maps: (images, heads, rows, columns), or (heads, rows, columns) for each image: attention of [CLS], not
            negative; the scale of a map does not matter. Grids may differ; maps are then resampled for `in_place`.
        features: (images, rows * columns, dim), or (rows * columns, dim) for each image, float: patches only, the same
            features for all heads. See `patch_features`.

    Raises:
        InputError: If there are fewer than two images, shapes do not fit, or a value is NaN, infinite, or (of a map)
            negative, or a map is zero everywhere.

    Example:
        >>> maps, features = torch.rand(3, 4, 8, 8), torch.rand(3, 64, 16)  # of 3 images, 4 heads, 64 patches
        >>> rank_heads(maps, features).score.shape
        torch.Size([4])
    """
    weights, patches = _checked(list(maps), list(features))
    heads = len(weights[0])
    own = [_pick(map_, patch) for map_, patch in zip(weights, patches, strict=True)]  # (heads, dim) each
    consistency, in_place, recognised = torch.zeros(3, heads, dtype=torch.float64)
    pairs = list(permutations(range(len(own)), 2))
    for one, other in pairs:
        alike = own[one] @ own[other].T
        consistency += alike.diagonal()
        recognised += (alike.argmax(1) == torch.arange(heads)) & own[one].any(1)
        there = upsample(weights[one], (weights[other].shape[-2], weights[other].shape[-1]), mode="bilinear")
        in_place += (own[one] * _pick(there, patches[other])).sum(1)
    consistency, in_place, recognised = (total / len(pairs) for total in (consistency, in_place, recognised))
    return HeadRanking(consistency - in_place, consistency, in_place, recognised)


def _pick(map_: Tensor, patches: Tensor) -> Tensor:
    """The pick of each head, as unit vectors (heads, dim); 0 if a head picks nothing."""
    shares = map_.flatten(1) / map_.flatten(1).sum(1, keepdim=True)
    centred = patches - patches.mean(0)
    picks = shares @ centred
    if centred.norm() <= NOTHING * patches.norm():  # equal everywhere, up to rounding
        return torch.zeros_like(picks)
    usual = centred.square().sum(1).mean().sqrt()
    return torch.where(picks.norm(dim=1, keepdim=True) > NOTHING * usual, F.normalize(picks, dim=1), 0)


def _checked(maps: list[Tensor], features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Maps and features in float64 on the CPU."""
    if len(maps) < 2 or len(maps) != len(features):
        raise InputError(f"expected maps and features of two images or more, got {len(maps)} and {len(features)}")
    for index, (map_, patches) in enumerate(zip(maps, features, strict=True)):
        if map_.ndim != 3 or patches.ndim != 2 or map_[0].numel() != len(patches) or 0 in (*map_.shape, *patches.shape):
            raise InputError(
                f"image {index}: expected maps (heads, rows, columns) and features (rows * columns, dim), got "
                f"{tuple(map_.shape)} and {tuple(patches.shape)}"
            )
        if (len(map_), patches.shape[1]) != (len(maps[0]), features[0].shape[1]):
            raise InputError(f"image {index} has other heads or another dim than image 0; take one layer of one model")
        if not map_.is_floating_point() or not patches.is_floating_point():
            raise InputError(f"image {index}: maps and features must be float, not {map_.dtype} and {patches.dtype}")
        if not map_.isfinite().all() or not patches.isfinite().all():
            raise InputError(f"image {index} has NaN or infinite values; check how it was read and normalised")
        if (map_ < 0).any() or not map_.flatten(1).any(1).all():
            raise InputError(
                f"image {index} has a map with negative values, or one that is zero everywhere; give attention maps"
            )
    return [[one.detach().to("cpu", torch.float64) for one in kind] for kind in (maps, features)]  # type: ignore[return-value]
