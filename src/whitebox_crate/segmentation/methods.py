"""Methods: named ways to find the masks of objects in a photograph, as a model sees it.

`METHODS` is their table: `whitebox_crate.segment`, the command line and the evaluations take names from it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._indices import resolve_indices
from .._plan import State, layers_with
from ..backbones import readable
from ..errors import InputError, UnknownNameError, is_whole
from ..models._classes import Class
from .attention import MaskRule, attention_masks, rule_and_keep
from .cuts import maskcut_rounds
from .gradients import class_maps
from .otsu import otsu_cut
from .pieces import large_pieces
from .states import Grid, all_cls_attention, check_finite, cls_attention, patch_features, resolve_layer

REVISION = 2  # of the masks of methods and edges: one more whenever they change, so that no folder mixes old and new
EDGE = 1e-6  # smallest distance of a level from 0, in standard deviations of the map
SCALES = (2 / 3, 4 / 3)  # chosen on photographs; recipes/measure_masks.py measures them


class Segments(NamedTuple):
    """The result of a method for one image, on the patch grid.

    Attributes:
        levels: float32 (n, rows, columns): a patch is in the mask of an object if its level is above 0; the larger, the
            further inside. n may be 0.
        scores: float32 (n,), in [0, 1]: how clear each object is; see `clearness`.
        map: float32 (rows, columns): the map that the first mask was cut from.
        maps: float32 (maps, rows, columns): all maps behind the masks: maps of heads, or eigenvectors.
    """

    levels: Tensor
    scores: Tensor
    map: Tensor
    maps: Tensor

    @property
    def masks(self) -> Tensor:
        """bool (n, rows, columns)."""
        return self.levels > 0


# Called as method(model, pixels, **settings). Pixels are (in_chans, height, width), normalised, on the model's device,
# of a size that it takes. The settings n and layer mean the same in all methods that have them.
Method: TypeAlias = Callable[..., Segments]
Masker: TypeAlias = Callable[[Tensor, Grid], Tensor]  # features (tokens, dim) and the grid to bool (n, rows, columns)


def by_attention(
    model: nn.Module,
    pixels: Tensor,
    *,
    layer: int | None = None,
    head: int | Sequence[int] | Literal["all"] | None = None,
    rule: MaskRule | None = None,
    keep: float | None = None,
) -> Segments:
    """One mask: the patches that [CLS] attends to most (arXiv 2308.16271, appendix B.1 and B.3).

    Args:
        model: A model that `capture` reads.
        pixels: (in_chans, height, width), normalised.
        layer: Which layer; `default_layer` of the model if None.
        head: One head, several, or "all"; their mean map is cut. If None, the weights' best head, or all if that was
            not measured.
        rule: See `attention_masks`; if None, "mass" if `keep` is given, else "mean".
        keep: See `attention_masks`; 0.6 if None.

    Raises:
        InputError: If the pixels or `keep` are not as above.
        UnknownNameError: If there is no such layer, head or rule.
        WeightsError: If the attention is not finite.
    """
    core = readable(model)
    if head is None:
        head = "all" if core.pretrained_cfg.attention_head is None else core.pretrained_cfg.attention_head
    wanted = range(core.num_heads) if head == "all" else [head] if is_whole(head) else head
    heads = resolve_indices("head", wanted, core.num_heads)
    maps = cls_attention(model, pixels[None], resolve_layer(model, layer))[0, heads].float()
    check_finite(maps, "the attention is")
    map_ = maps.mean(0)
    by_rule, share = rule_and_keep(rule, keep)
    return _segments(map_, maps, [(map_, attention_masks(map_, share, by_rule))])


def by_multiscale(
    model: nn.Module,
    pixels: Tensor,
    *,
    layer: int | None = None,
    scales: Sequence[float] | None = None,
) -> Segments:
    """One mask: where the geometric mean of many [CLS] maps is high.

    The maps of all heads of some layers, for the image at some sizes, are averaged by their logarithms. So a map with a
    few high peaks cannot outvote the others. In CRATE such a logarithm is, up to a constant, the inner product of [CLS]
    and the patch in one subspace: w_cls . w / sqrt(head_dim). Otsu's cut divides the mean map, and `large_pieces`
    stay.

    Several image sizes are common in testing dense predictors (arXiv 1606.00915, section 4.1). A mean of logarithms is
    a product of experts (Hinton 2002).

    Args:
        model: A model that `capture` reads.
        pixels: (in_chans, height, width), normalised.
        layer: The first layer to use, with all later ones that have attention; `default_layer` of the model if None.
        scales: Sizes of the image for the model, as multiples of the size of `pixels`, rounded to whole patches. If
            None, `SCALES`, or 1 for a model that takes only one size.

    Raises:
        InputError: If the pixels or scales are not as above.
        UnknownNameError: If there is no such layer.
        WeightsError: If the attention is not finite.
    """
    core = readable(model)
    if scales is None:
        scales = SCALES if core.dynamic_img_size else (1.0,)
    if not scales or not min(scales) > 0:
        raise InputError(f"scales must be one or more numbers above 0, not {scales!r}")
    first = resolve_layer(core, layer)
    which = [index for index in layers_with(core, "attention") if index >= first]
    grid = core.grid_of(pixels[None])
    maps = torch.cat([_log_maps(core, _scaled(pixels, core.patch_size, scale), which, grid) for scale in scales])
    map_ = maps.mean(0)
    return _segments(map_, maps, [(map_, large_pieces(map_ > otsu_cut(map_)))])


def by_maskcut(
    model: nn.Module,
    pixels: Tensor,
    *,
    n: int = 3,
    layer: int | None = None,
    state: State = "projections",
    tau: float = 0.15,
) -> Segments:
    """Finds objects one after the other with MaskCut, by the features of patches (arXiv 2301.11320, section 3.2).

    Args:
        model: A model that `capture` reads.
        pixels: (in_chans, height, width), normalised.
        n: Most objects, at least 1.
        layer: Which layer; `default_layer` of the model if None.
        state: The features; see `maskcut_of`.
        tau: Patches whose cosine is above this are linked, in [0, 1).

    Raises:
        InputError: If an argument is not as above, or the features are not finite.
        UnknownNameError: If there is no such layer or state.
    """
    features, grid = patch_features(model, pixels[None], resolve_layer(model, layer), state)
    rounds = maskcut_rounds(features[0], grid, n, tau)
    maps = torch.stack([cut.eigenvector.float().view(grid) for cut in rounds])
    masks = [cut.accepted & ~cut.painted for cut in rounds]
    return _segments(maps[0], maps, list(zip(maps, masks, strict=True)))


def by_class(model: nn.Module, pixels: Tensor, *, label: Class | None = None) -> Segments:
    """One mask: the evidence for a class, by Otsu's cut of its relevance (`class_maps`).

    Args:
        model: A model that `capture` reads and that gives logits.
        pixels: (in_chans, height, width), normalised.
        label: The class, by name or index; the most likely class if None.

    Raises:
        InputError: If the model does not classify, or the pixels are not as above.
        UnknownNameError: If there is no such class.
        WeightsError: If the map is not finite.
    """
    map_ = class_maps(model, pixels[None], label)[0].float()
    check_finite(map_, "attention or its gradients are")
    return _segments(map_, map_[None], [(map_, map_ > otsu_cut(map_))])


def by_features(
    model: nn.Module,
    pixels: Tensor,
    *,
    masker: Masker,
    layer: int | None = None,
    state: State = "projections",
) -> Segments:
    """Masks by your own function of the patches' features.

    Args:
        model: A model that `capture` reads.
        pixels: (in_chans, height, width), normalised.
        masker: Your function. It gets features (tokens, dim), row by row, and the grid (rows, columns), and returns
            bool (n, rows, columns) or (rows, columns).
        layer: Which layer; `default_layer` of the model if None.
        state: Which features; see `patch_features`.

    Raises:
        InputError: If the pixels are not as above, or the function returns something else.
        UnknownNameError: If there is no such layer or state.
    """
    features, grid = patch_features(model, pixels[None], resolve_layer(model, layer), state)
    masks: object = masker(features[0], grid)
    if (
        not isinstance(masks, Tensor)
        or masks.dtype != torch.bool
        or masks.shape[-2:] != grid
        or masks.ndim not in (2, 3)
    ):
        told = f"{masks.dtype} of {tuple(masks.shape)}" if isinstance(masks, Tensor) else type(masks).__name__
        raise InputError(f"a method must return bool masks (n, {grid[0]}, {grid[1]}), one per object, not {told}")
    maps = masks.view(-1, *grid).float()
    return _segments(maps.sum(0), maps, [(map_, map_ > 0) for map_ in maps])


METHODS: dict[str, Method] = {
    "multiscale": by_multiscale,
    "attention": by_attention,
    "maskcut": by_maskcut,
    "class": by_class,
}


def choose_method(method: str | Masker, **settings: Any) -> Callable[[nn.Module, Tensor], Segments]:
    """A method with its settings. Call it with a model and the pixels of one image.

    Args:
        method: A name in `METHODS`, or your own function; see `by_features`.
        **settings: Settings of the method; None stands for the default.

    Raises:
        UnknownNameError: If there is no such method, or it has no such setting; the message lists close matches.
        InputError: If the method is neither a name nor a function.
    """
    if isinstance(method, str):
        function, name = _named(method), method
    elif callable(method):
        function, name = partial(by_features, masker=method), getattr(method, "__name__", "function")
    else:
        raise InputError(f"a method must be a name or a function from features and grid to masks, not {method!r}")
    given = {setting: value for setting, value in settings.items() if value is not None}
    known = settings_of(method)
    for setting in given:
        if setting not in known:
            others = [other for other in METHODS if setting in settings_of(other)]
            hint = f"The method {' or '.join(others)} has it." if others else ""
            raise UnknownNameError.of(f"setting of the method {name!r}", setting, known, hint)
    return partial(function, **given)


def method_with(settings: Collection[str]) -> str:
    """The first method in `METHODS` that has all of these settings.

    Raises:
        UnknownNameError: If no method has one of them; the message lists close matches.
        InputError: If no method has all of them.
    """
    known = {setting for name in METHODS for setting in settings_of(name)}
    for setting in settings:
        if setting not in known:
            raise UnknownNameError.of("setting of a method", setting, known)
    for name in METHODS:
        if settings_of(name).keys() >= set(settings):
            return name
    raise InputError(f"no method has all the settings {', '.join(settings)}; leave some out, or name the method")


def settings_of(method: str | Masker) -> dict[str, Any]:
    """The settings of a method, with their defaults.

    Raises:
        UnknownNameError: If there is no such method; the message lists close matches.
    """
    parameters = inspect.signature(_named(method) if isinstance(method, str) else by_features).parameters.values()
    return {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY and one.name != "masker"}


def _named(method: str) -> Method:
    if method not in METHODS:
        raise UnknownNameError.of("method", method, METHODS)
    return METHODS[method]


def clearness(map_: Tensor, mask: Tensor) -> Tensor:
    """How clearly a map separates a mask from the rest: the share of the map's variance that is between the two.

    Otsu's cut maximises this number (Otsu 1979, the criterion eta). It does not depend on the map's scale.

    Args:
        map_: float (rows, columns).
        mask: bool (rows, columns).

    Returns:
        A float32 number in [0, 1]; 0 if the mask or the rest is empty, or the map is constant.
    """
    share, variance = mask.float().mean(), map_.var(unbiased=False)
    if not 0 < share < 1 or variance <= 0:
        return torch.zeros((), device=map_.device)
    between = share * (1 - share) * (map_[mask].mean() - map_[~mask].mean()).square()
    return (between / variance).clamp(0, 1)


def _log_maps(model: nn.Module, pixels: Tensor, layers: Sequence[int], grid: Grid) -> Tensor:
    """Logarithms of the maps of these layers, resampled to a grid. A constant map is 0."""
    maps = all_cls_attention(model, pixels[None], layers)[0].float().flatten(0, 1)
    check_finite(maps, "the attention is")
    maps = maps / maps.mean((-2, -1), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    logs = maps.clamp_min(torch.finfo(maps.dtype).tiny).log()
    return F.interpolate(logs[None], grid, mode="bilinear", antialias=True)[0]


def _scaled(pixels: Tensor, patch_size: tuple[int, int], scale: float) -> Tensor:
    """The image at another size, in whole patches."""
    sides = zip(pixels.shape[1:], patch_size, strict=True)
    size = [max(1, round(side * scale / patch)) * patch for side, patch in sides]
    precise = pixels.to(torch.promote_types(pixels.dtype, torch.float32))  # a CPU antialiases no others
    return F.interpolate(precise[None], size, mode="bicubic", antialias=True)[0].to(pixels.dtype)


def _segments(map_: Tensor, maps: Tensor, objects: Sequence[tuple[Tensor, Tensor]]) -> Segments:
    """The `Segments` of objects, given as map and mask. Objects without a patch are left out."""
    there = [(of, mask) for of, mask in objects if mask.any()]
    empty = map_.new_zeros(0, *map_.shape)
    levels = torch.stack([_levels(of, mask) for of, mask in there]) if there else empty
    scores = torch.stack([clearness(of, mask) for of, mask in there]) if there else empty.new_zeros(0)
    return Segments(levels, scores, map_, maps)


def _levels(map_: Tensor, mask: Tensor) -> Tensor:
    """The map, shifted so that it is above 0 inside the mask and only there."""
    if mask.all():
        return torch.ones_like(map_)
    values = map_ if map_[mask].mean() >= map_[~mask].mean() else -map_
    least = values[mask].amin()
    below = values[~mask & (values < least)]  # parts that MaskCut left out may be higher
    values = values - (least + (below.amax() if len(below) else least)) / 2
    values = values / values.std(unbiased=False).clamp_min(torch.finfo(values.dtype).tiny)
    return torch.where(mask, values.clamp_min(EDGE), values.clamp_max(-EDGE))
