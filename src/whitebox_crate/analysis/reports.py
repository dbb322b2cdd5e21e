"""report: one page of HTML with a model's equations, the effect of its layers on pictures, and its attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from ..models import ImageTransformer
from ..preprocess import fit_photo
from ..segmentation import cls_attention, default_layer
from ..segmentation.draw import draw_map
from ._html import definitions, page, picture, safe, section, table
from ._svg import line_chart
from .batches import over_images
from .descent import Claim, DescentReport, LayerClaims
from .explanation import explain
from .layer_subspaces import SubspaceReport, subspace_report
from .layerwise import LayerQuantities, LayerwiseReport, measurable
from .moments import check_confidence

if TYPE_CHECKING:
    from PIL.Image import Image

BATCH = 8  # pictures that run through the model together
SIDE = 160  # shorter side of a picture on the page, pixels

_COLUMNS = {
    "layer": "Layer",
    "subspace_coding_rate": "Rc, nats a token",
    "coding_rate": "R, nats a token",
    "l0": "Not zero, share",
    "l1": "Mean magnitude",
    "token_norm": "Token length",
    "effective_rank": "Effective rank",
    "attention_entropy": "Attention entropy, nats",
    "before": "Before",
    "after": "After",
    "change": "Change",
    "fell in": "Fell in",
    "verdict": "Verdict",
    "effective dimension": "Effective dimension of each head",
    "angles: least, mean": "Angles: least, mean, degrees",
    "overlap": "Overlap",
    "drift: same, nearest": "Drift: same, nearest",
    "cos(P, U)": "cos(P, U) of each head",
    "P in span U": "P in span U, of each head",
    "D: coherence": "D: coherence",
    "D: distance": "D: distance",
}

_CLAIMS: Mapping[Claim, tuple[str, str]] = {
    "compression": (
        "Attention compresses",
        "The coding rate Rc of the tokens on the layer's own subspaces, in nats a token, falls from before attention "
        "to after it. This is the step that MSSA, and CBSA by way of a few representatives, are derived to be. TSSA of "
        "ToST is derived to be a step on the variational form of this rate, with the membership of each patch held "
        "fixed: of its layers, it is that form.",
    ),
    "sparsity": (
        "Coding makes sparse",
        "The share of entries that are not zero, from 0 to 1, falls from after attention to the layer's output. A "
        "threshold at zero does so by itself, whatever was learned.",
    ),
    "coding": (
        "Coding lowers its own objective",
        "|x - D u|^2 / 2 + lambda |u|_1, a mean over tokens without a unit, is lower at the codes u that ISTA gives "
        "than at ReLU(x), where it begins (at x, if the threshold is soft). D is the dictionary, x = LN(h) what is "
        "coded.",
    ),
}

_OUTCOMES = {"holds": "holds", "does not hold": "fails", "undecided": "open"}


def report(
    model: ImageTransformer,
    photos: Iterable[tuple[str, Image]],
    *,
    title: str = "",
    short_side: int | None = None,
    shown: int = 12,
    confidence: float = 0.95,
    progress: Callable[[str], object] | None = None,
) -> str:
    """Measures a model on pictures, and writes the results as one page.

    The page holds its pictures, works offline and has no scripts. Its sections are facts of the model, the findings (a
    sentence for each claim), the curves and the table of `layerwise_analysis`, the verdicts of `verify_descent`, [CLS]
    attention of all heads of the model's `default_layer`, `subspace_report`, and `explain`.

    Args:
        model: A model of this package, in evaluation mode; with `dynamic_img_size`, unless all pictures get its size.
        photos: Names and Pillow images; read once and not kept.
        title: The heading; the model's architecture if empty.
        short_side: Shorter side of the pictures for the model, pixels; see `resize_to_grid`; `best_short_side` of
            the model if None.
        shown: Number of pictures, from the first on, whose head maps are shown. All are measured.
        confidence: Confidence of the intervals, in (0, 1).
        progress: Gets lines on progress; stderr if None.

    Returns:
        The page, HTML; to be written as UTF-8.

    Raises:
        InputError: If there are no pictures, or the model cannot take or be measured on them.
        MissingExtraError: If Pillow is not installed.

    Example:
        >>> from whitebox_crate.images import load_image
        >>> model = create_model("crate_nano", pretrained=True).eval()
        >>> page = report(model, [("cup", load_image("photo.jpg"))], short_side=48)
        >>> page[:15]
        '<!DOCTYPE html>'
    """
    check_confidence(confidence)
    subspaces = subspace_report(model)  # before the pictures: it may refuse the model
    batches = _Batches(model, photos, short_side, shown)
    quantities, claims = LayerQuantities(quantities=measurable(model)), LayerClaims()
    found = over_images(model, batches, quantities, claims, layers=None, gather=False, report=progress)
    layerwise, descent = quantities.report(found[0], confidence), claims.report(found[1], confidence)
    layer = default_layer(model)
    maps = _heads(model, layer, batches.shown, layerwise.images)
    return "\n".join(
        page(
            title or layerwise.model,
            _facts(model, layerwise.images, batches.sizes),
            section("found", "What was found", _summary(descent)),
            section("curves", "Two curves", _curves(layerwise)),
            section("layers", "Every layer", _layers(layerwise)),
            section("verdicts", "Does a layer do what it was derived to do?", _verdicts(descent)),
            section("heads", f"What the heads of layer {layer} look at", maps),
            section("subspaces", "Subspaces and dictionaries", _subspaces(subspaces, model)),
            section("equations", "What the model computes", [f'<pre tabindex="0">{safe(explain(model))}</pre>']),
        )
    )


class _Shown(NamedTuple):
    """A picture on the page: its name, a small copy, and its tensor for the model."""

    name: str
    thumbnail: Image
    pixels: Tensor


class _Batches:
    """The pictures as batches of one size each. Only the first pictures are kept; of the others, only their sizes."""

    def __init__(
        self, model: ImageTransformer, photos: Iterable[tuple[str, Image]], short_side: int | None, shown: int
    ) -> None:
        self._model, self._photos, self._short_side, self._most_shown = model, photos, short_side, shown
        self.sizes: list[str] = []
        self.shown: list[_Shown] = []

    def __iter__(self) -> Iterator[Tensor]:
        waiting: dict[tuple[int, ...], list[Tensor]] = {}
        for name, photo in self._photos:
            image, pixels = fit_photo(self._model, photo, self._short_side)
            self._keep(name, photo, image, pixels)
            alike = waiting.setdefault(tuple(pixels.shape), [])
            alike.append(pixels)
            if len(alike) == BATCH:
                yield torch.stack(waiting.pop(tuple(pixels.shape)))
        if not self.sizes:
            raise InputError("there is no picture to measure the model on; give one or more that can be read")
        yield from map(torch.stack, waiting.values())

    def _keep(self, name: str, photo: Image, image: Image, pixels: Tensor) -> None:
        size = f"{image.width} x {image.height}"
        if size not in self.sizes:
            self.sizes.append(size)
        if len(self.shown) < self._most_shown:
            scale = min(SIDE / min(image.size), 3 * SIDE / max(image.size))
            width, height = (max(1, round(length * scale)) for length in image.size)
            self.shown.append(_Shown(name, photo.resize((width, height)), pixels))


def _facts(model: ImageTransformer, pictures: int, sizes: Sequence[str]) -> Iterator[str]:
    cfg = model.pretrained_cfg
    (height, width), (patch_height, patch_width) = model.img_size, model.patch_embed.patch_size
    facts = {
        "Architecture": f"{model.architecture or type(model).__name__}: {len(model.layers())} layers, "
        f"{model.num_heads} heads, tokens of width {model.embed_dim}",
        "Parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "Made for": f"images of {width} x {height} pixels in patches of {patch_width} x {patch_height}"
        + (f"; {model.num_classes} classes" if model.num_classes else ""),
        "Weights": "; ".join(fact for fact in (cfg.tag, cfg.origin, cfg.license, cfg.paper) if fact),
        "Measured on": f"{_count(pictures, 'picture')}, for the model {', '.join(sizes[:4])}"
        + (f" or one of {len(sizes) - 4} other sizes" if len(sizes) > 4 else "")
        + " pixels (width x height)",
    }
    yield from definitions({name: fact for name, fact in facts.items() if fact})


def _summary(found: DescentReport) -> Iterator[str]:
    yield "<ul>"
    for claim, (name, _) in _CLAIMS.items():
        outcomes = {v.layer: v.outcome for v in found.verdicts if v.claim == claim}
        if not outcomes:
            yield f"<li>{name}: not asked, for no layer codes by ISTA as it is known.</li>"
            continue
        held = [layer for layer, outcome in outcomes.items() if outcome == "holds"]
        line = f"{name}: holds in {len(held)} of {_count(len(outcomes), 'layer')}"
        for outcome in ("does not hold", "undecided"):
            layers = [str(layer) for layer, its in outcomes.items() if its == outcome]
            if layers:
                line += f"; {outcome} in {', '.join(layers)}"
        yield f"<li>{line}.</li>"
    yield "</ul>"
    if found.images == 1:
        yield "<p>One picture has no spread, so that nothing can be decided. Give several.</p>"
    yield "<p>Layers are counted from 0. Other pictures may give other verdicts.</p>"


def _curves(found: LayerwiseReport) -> Iterator[str]:
    yield '<div class="row">'
    before, after = found["subspace_coding_rate", "tokens"], found["subspace_coding_rate", "compressed"]
    yield from line_chart(
        "Coding rate on subspaces, Rc",
        "nats a token",
        found.layers,
        {"before attention": before, "after attention": after},
        "Rc is how many nats a token takes on the layer's own subspaces, at precision "
        f"{found.settings.eps:g}; attention is derived to lower it, so that the second curve should lie below the "
        "first.",
    )
    before, after = found["l0", "compressed"], found["l0", "output"]
    yield from line_chart(
        "Entries that are not zero",
        "share, 0 to 1",
        found.layers,
        {"after attention": before, "output": after},
        "The share of a token's entries that are not zero; coding is derived to lower it.",
    )
    spread = " Bands are one standard deviation over pictures." if before.std is not None else ""
    yield f"</div><p>Points are means over {_count(found.images, 'picture')}.{spread}</p>"


def _layers(found: LayerwiseReport) -> Iterator[str]:
    yield "<p>Each cell: at the layer's input → after attention → at its output (entropy: of the attention itself).</p>"
    yield from _table(found.rows(), f"Means over {_count(found.images, 'picture')}")
    where = "LN(state), by the layer's first norm" if found.settings.normed else "the state"
    meanings = {
        "Rc, R": f"Coding rates of {where}, in nats a token, at precision {found.settings.eps:g}: on the layer's "
        "own subspaces, summed over heads, and of the tokens as a whole. Of attention with separate keys, the keys "
        "stand for the subspaces.",
        "Not zero": "Share of all entries of the tokens, from 0 to 1.",
        "Mean magnitude, token length": "Of the entries and of the tokens as vectors, in the model's own scale; "
        "no unit.",
        "Effective rank": "How many directions the tokens fill: k, if they fill k equally.",
    }
    if "attention_entropy" in found.series:
        meanings["Attention entropy"] = (
            "Of a row of attention, mean over rows and heads, in nats; log of the number of tokens, if a row looks "
            "everywhere equally."
        )
    yield from definitions(meanings)


def _verdicts(found: DescentReport) -> Iterator[str]:
    yield (
        "<p>Each claim says that something falls. It <em>holds</em>, if the "
        f"{100 * found.confidence:.4g}% interval of the mean change lies below zero; it does <em>not hold</em>, if "
        "none of it does; else it is <em>undecided</em>. Before, after and change are means over pictures, ± is half "
        "the interval, and <em>fell in</em> is the share of the pictures in which it fell.</p>"
    )
    columns = ("layer", "verdict", "change", "before", "after", "fell in")
    for claim, (name, meaning) in _CLAIMS.items():
        of_claim = tuple(v for v in found.verdicts if v.claim == claim)
        if of_claim:
            yield f"<h3>{name}</h3><p>{safe(meaning)}</p>"
            yield from _table(replace(found, verdicts=of_claim).rows(), columns=columns)


def _heads(model: ImageTransformer, layer: int, shown: Sequence[_Shown], pictures: int) -> Iterator[str]:
    yield (
        "<p>A map shows how much [CLS] attends to each patch, from black (least) to pale yellow (most). Each has a "
        "scale of its own; the percentages are the share of [CLS]'s attention at the patch with the most, and at all "
        "patches together (the rest is [CLS] itself)."
        + (f" Shown are the first {len(shown)} of {pictures}." if len(shown) < pictures else "")
        + "</p>"
    )
    for name, thumbnail, pixels in shown:
        with torch.no_grad():
            maps = cls_attention(model, pixels[None].to(model.cls_token), layer=layer)[0].float()
        grid = f"{maps.shape[-1]} x {maps.shape[-2]}"
        yield f'<h3>{safe(name)}</h3><div class="maps">'
        yield from picture(thumbnail, f"The picture {name}", f"picture; {grid} patches")
        for head, one in enumerate(maps):
            caption = f"head {head}: {_share(one.max())} most, {_share(one.sum())} all"
            drawn = draw_map(one, (thumbnail.height, thumbnail.width))
            yield from picture(drawn, f"Attention of head {head} on {name}", caption)
        yield "</div>"


def _subspaces(found: SubspaceReport, model: ImageTransformer) -> Iterator[str]:
    width = found.layers[0].singular_values.shape[-1]
    yield (
        "<p>The derivation has orthonormal bases U of incoherent subspaces, an output projection P that is U once "
        "more, and an orthogonal dictionary D; nothing holds a model to it. These numbers are of the weights alone. "
        "The last row is of random weights of the same sizes, for chance looks like structure too."
        + (" This model has no such bases: its key projections stand in." if found.bases == "keys" else "")
        + "</p>"
    )
    yield from _table(found.rows(), f"{_count(model.num_heads, 'head')} in {model.embed_dim} dimensions")
    yield from definitions(
        {
            "Effective dimension": f"Over how many directions a head's basis spreads its weight; at most {width}.",
            "Angles": "Principal angles between the subspaces of two heads, in degrees; incoherent is 90.",
            "Overlap": "Mean squared cosine of these angles: 0 for orthogonal subspaces, 1 for equal ones.",
            "Drift": "Projection distance, from 0 to 1, to the head of the same number in the next layer, and to the "
            "nearest one there.",
            "cos(P, U), P in span U": "Cosine of P and U of a head as long vectors, from -1 to 1 (the derivation has "
            "1); share of P's energy, from 0 to 1, that it writes to the subspace which U reads.",
            "D": "Coherence is the largest |cosine| of two atoms; distance is that from the nearest orthogonal matrix "
            "up to scale. Both are from 0 to 1, and 0 if D is orthogonal.",
        }
    )


def _table(rows: list[list[str]], caption: str = "", columns: Sequence[str] = ()) -> Iterator[str]:
    """A report's table; its columns in this order, or all as they come."""
    names, *rest = rows
    kept = [names.index(column) for column in columns or names]
    head = [_COLUMNS.get(names[column], names[column]) for column in kept]
    yield from table(head, ([row[column] for column in kept] for row in rest), caption, _OUTCOMES)


def _share(value: Tensor) -> str:
    return f"{100 * float(value):.2f}%"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
