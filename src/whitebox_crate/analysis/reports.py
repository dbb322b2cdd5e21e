"""report: one page of HTML with what a model computes, what its layers do to pictures, and what its heads look at."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError
from ..models import ImageTransformer
from ..preprocess import image_to_tensor, resize_to_grid
from ..segmentation import cls_attention, default_layer
from ..segmentation.draw import draw_map
from .descent import Claim, DescentReport, verify_descent
from .explanation import explain
from .layer_subspaces import SubspaceReport, subspace_report
from .layerwise import LayerwiseReport, Series, layerwise_analysis

if TYPE_CHECKING:
    from PIL.Image import Image

BATCH = 8  # pictures that run through the model together
SIDE = 160  # shorter side of a picture on the page, pixels

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2327; background: #fff; max-width: 62rem; margin: 0 auto;
  padding: 1rem; overflow-wrap: break-word }
h1, h2, h3 { line-height: 1.25 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccd2d8 }
.wide { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums }
caption { text-align: left; padding-bottom: .4rem }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #e3e7eb;
  min-width: 2.5rem; max-width: 14rem }
tbody th { font-weight: 600 }
pre { font-size: .8125rem; line-height: 1.45; background: #f4f6f8; padding: .8rem; overflow-x: auto }
dt { font-weight: 600 } dd { margin: 0 0 .4rem 1rem }
td.long { min-width: 8.5rem }
.holds { color: #0b6b2e } .fails { color: #a3180f; font-weight: 600 } .open { color: #6a4a00 }
.row { display: flex; flex-wrap: wrap; gap: 1rem } .row > figure { flex: 1 1 20rem; margin: 0; max-width: 34rem }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(7.5rem, 1fr)); gap: .6rem; margin-bottom: 2rem }
.maps > figure { margin: 0 } .maps img, .row svg { width: 100%; height: auto; display: block }
figcaption { font-size: .8125rem; line-height: 1.35; padding-top: .2rem }
"""

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
        "to after it. This is the step that MSSA is derived to be.",
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
    """Measures a model on pictures, and writes all of it as one page.

    The page holds its pictures and asks nothing of a network; it has no scripts. On it: facts of the model; what was
    found, in a sentence for each claim; the curves and the table of `layerwise_analysis`; the verdicts of
    `verify_descent`; [CLS] attention of all heads of the model's `default_layer`; `subspace_report`; and `explain`.

    Args:
        model: A model of this package, in evaluation mode; with `dynamic_img_size`, unless all pictures come to have
            its size.
        photos: A name and a Pillow image each; read once, and held at the size that the model takes.
        title: The heading; the model's architecture if it is empty.
        short_side: Shorter side of the pictures for the model, pixels, as of `resize_to_grid`. Default
            `pretrained_cfg.attention_size`, else the shorter side of `img_size`.
        shown: Of how many pictures, from the first on, the page has head maps. All are measured.
        confidence: Of the intervals, in (0, 1).
        progress: Takes lines on progress; to stderr if None.

    Returns:
        The page, HTML; to be written as UTF-8.

    Raises:
        InputError: If there are no pictures, or the model cannot take or be measured on them.
        MissingExtraError: If Pillow is not installed.
    """
    if model.in_chans != 3:
        raise InputError(f"the model takes {model.in_chans} channels; photographs have 3")
    side = (model.pretrained_cfg.attention_size or min(model.img_size)) if short_side is None else short_side
    seen: list[Image] = []
    thumbnails: list[tuple[str, Image]] = []
    for name, photo in photos:
        seen.append(resize_to_grid(photo, model.patch_embed.patch_size, side))
        if len(thumbnails) < shown:
            scale = min(SIDE / min(seen[-1].size), 3 * SIDE / max(seen[-1].size))
            width, height = (max(1, round(length * scale)) for length in seen[-1].size)
            thumbnails.append((name, photo.resize((width, height))))
    if not seen:
        raise InputError("there is no picture to measure the model on; give one or more that can be read")
    batches = _Batches(seen, model)
    layerwise = layerwise_analysis(model, batches, confidence=confidence, report=progress)
    verdicts = verify_descent(model, batches, confidence=confidence, report=progress)
    return "\n".join(
        _page(
            title or layerwise.model,
            _facts(model, seen),
            _summary(verdicts),
            _curves(layerwise),
            _layers(layerwise),
            _verdicts(verdicts),
            _heads(model, thumbnails, seen),
            _subspaces(subspace_report(model), model),
            _equations(model),
        )
    )


@dataclass(frozen=True)
class _Batches:
    """The pictures as batches of one size each, the sizes in the order of their first picture; can be read again."""

    seen: Sequence[Image]
    model: ImageTransformer

    def __iter__(self) -> Iterator[Tensor]:
        by_size: dict[tuple[int, int], list[Image]] = {}
        for image in self.seen:
            by_size.setdefault(image.size, []).append(image)
        for alike in by_size.values():
            for first in range(0, len(alike), BATCH):
                yield torch.stack([_pixels(self.model, image) for image in alike[first : first + BATCH]])


def _pixels(model: ImageTransformer, seen: Image) -> Tensor:
    cfg, weight = model.pretrained_cfg, model.cls_token
    return image_to_tensor(seen, mean=cfg.mean, std=cfg.std).to(weight.device, weight.dtype)


def _page(title: str, *sections: Iterable[str]) -> Iterator[str]:
    yield from ("<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">')
    # Said of the page, and kept by the browser: nothing is fetched, and nothing runs.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield from (f"<title>{_text(title)}: analysis</title>", f"<style>{_STYLE}</style>", "</head>", "<body>", "<main>")
    yield f"<h1>{_text(title)}</h1>"
    for section in sections:
        yield from section
    yield from ("</main>", "</body>", "</html>", "")


def _facts(model: ImageTransformer, seen: Sequence[Image]) -> Iterator[str]:
    cfg = model.pretrained_cfg
    (height, width), (patch_height, patch_width) = model.img_size, model.patch_embed.patch_size
    sizes = list(dict.fromkeys(f"{image.width} x {image.height}" for image in seen))
    facts = {
        "Architecture": f"{model.architecture or type(model).__name__}: {len(model.blocks)} layers, {model.num_heads} "
        f"heads, tokens of width {model.embed_dim}",
        "Parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "Made for": f"images of {width} x {height} pixels in patches of {patch_width} x {patch_height}"
        + (f"; {model.num_classes} classes" if model.num_classes else ""),
        "Weights": "; ".join(fact for fact in (cfg.tag, cfg.origin, cfg.license, cfg.paper) if fact),
        "Measured on": f"{_count(len(seen), 'picture')}, for the model {', '.join(sizes[:4])}"
        + (f" or one of {len(sizes) - 4} other sizes" if len(sizes) > 4 else "")
        + " pixels (width x height)",
    }
    yield "<dl>"
    for name, fact in facts.items():
        if fact:
            yield f"<dt>{name}</dt><dd>{_text(fact)}</dd>"
    yield "</dl>"


def _summary(found: DescentReport) -> Iterator[str]:
    yield from ("<section>", *_heading("found", "What was found"), "<ul>")
    for claim, (name, _) in _CLAIMS.items():
        outcomes = {v.layer: v.outcome for v in found.verdicts if v.claim == claim}
        if not outcomes:
            yield f"<li>{name}: not asked, for no layer has ISTA.</li>"
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
    yield "<p>Layers are counted from 0. Other pictures may give other verdicts.</p></section>"


def _curves(found: LayerwiseReport) -> Iterator[str]:
    yield from ("<section>", *_heading("curves", "Two curves"), '<div class="row">')
    before, after = found["subspace_coding_rate", "tokens"], found["subspace_coding_rate", "compressed"]
    yield from _curve(
        "Coding rate on subspaces, Rc",
        "nats a token",
        found.layers,
        {"before attention": before, "after attention": after},
        "Rc is how many nats a token takes on the layer's own subspaces, at precision "
        f"{found.settings.eps:g}; attention is derived to lower it, so that the second curve should lie below the "
        "first.",
    )
    before, after = found["l0", "compressed"], found["l0", "output"]
    yield from _curve(
        "Entries that are not zero",
        "share, 0 to 1",
        found.layers,
        {"after attention": before, "output": after},
        "The share of a token's entries that are not zero; coding is derived to lower it.",
    )
    spread = " Bands are one standard deviation over pictures." if before.std is not None else ""
    yield f"</div><p>Points are means over {_count(found.images, 'picture')}.{spread}</p></section>"


def _curve(title: str, unit: str, layers: Sequence[int], lines: Mapping[str, Series], caption: str) -> Iterator[str]:
    """Lines over layers as a figure with an inline SVG."""
    width, height, left, right, top, bottom = 440, 280, 48, 12, 46, 40
    bands = {name: s.std or (0.0,) * len(s.mean) for name, s in lines.items()}
    largest = max(m + d for name, s in lines.items() for m, d in zip(s.mean, bands[name], strict=True))
    step = _tick(largest)
    highest = step * max(1, math.ceil(largest / step - 1e-9))

    def x(row: int) -> float:
        return left + (width - left - right) * (row + 0.5) / len(layers)

    def y(value: float) -> float:
        return height - bottom - (height - top - bottom) * max(0.0, value) / highest

    told = "; ".join(f"{name} {', '.join(f'{m:.3g}' for m in s.mean)}" for name, s in lines.items())
    label = f"{title}, {unit}, of layers {layers[0]} to {layers[-1]}: {told}"
    yield f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{_text(label)}" font-size="14">'
    yield f'<text x="0" y="14" font-weight="600">{_text(title)}, {_text(unit)}</text>'
    for number in range(round(highest / step) + 1):
        at = y(number * step)
        yield f'<line x1="{left}" x2="{width - right}" y1="{at:.1f}" y2="{at:.1f}" stroke="#d5dade"/>'
        yield f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{number * step:.10g}</text>'
    for row in range(0, len(layers), math.ceil(len(layers) / 12)):
        yield f'<text x="{x(row):.1f}" y="{height - 22}" text-anchor="middle">{layers[row]}</text>'
    yield f'<text x="{(left + width - right) / 2}" y="{height - 4}" text-anchor="middle">layer</text>'
    for place, (name, series) in enumerate(lines.items()):
        colour, dash = (("#5b6670", ' stroke-dasharray="6 4"'), ("#b3321b", ""))[place % 2]
        low = [f"{x(row):.1f},{y(m - bands[name][row]):.1f}" for row, m in enumerate(series.mean)]
        high = [f"{x(row):.1f},{y(m + bands[name][row]):.1f}" for row, m in enumerate(series.mean)]
        yield f'<polygon points="{" ".join(low + high[::-1])}" fill="{colour}" opacity="0.15"/>'
        points = [f"{x(row):.1f},{y(m):.1f}" for row, m in enumerate(series.mean)]
        yield f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
        for point in points:
            across, down = point.split(",")
            yield f'<circle cx="{across}" cy="{down}" r="3" fill="{colour}"/>'
        start = left + place * 170
        yield f'<line x1="{start}" x2="{start + 28}" y1="30" y2="30" stroke="{colour}" stroke-width="2"{dash}/>'
        yield f'<text x="{start + 34}" y="34">{_text(name)}</text>'
    yield f"</svg><figcaption>{_text(caption)}</figcaption></figure>"


def _tick(largest: float) -> float:
    """The least of 1, 2, 5, 10, 20 ... (or 0.5, 0.2 ...) of which five or fewer reach the largest value."""
    if largest <= 0:
        return 1.0
    decade: float = 10.0 ** math.floor(math.log10(largest / 5))
    return next(decade * times for times in (1, 2, 5, 10, 20) if decade * times * 5 >= largest)


def _layers(found: LayerwiseReport) -> Iterator[str]:
    yield from ("<section>", *_heading("layers", "Every layer"))
    yield "<p>Each cell: at the layer's input → after attention → at its output (entropy: of the attention itself).</p>"
    yield from _table(found.table(markdown=True), f"Means over {_count(found.images, 'picture')}")
    where = "LN(state), by the layer's first norm" if found.settings.normed else "the state"
    yield from _terms(
        {
            "Rc, R": f"Coding rates of {where}, in nats a token, at precision {found.settings.eps:g}: on the layer's "
            "own subspaces, summed over heads, and of the tokens as a whole. Of attention with separate keys, the keys "
            "stand for the subspaces.",
            "Not zero": "Share of all entries of the tokens, from 0 to 1.",
            "Mean magnitude, token length": "Of the entries and of the tokens as vectors, in the model's own scale; "
            "no unit.",
            "Effective rank": "How many directions the tokens fill: k, if they fill k equally.",
            "Attention entropy": "Of a row of attention, mean over rows and heads, in nats; log of the number of "
            "tokens, if a row looks everywhere equally.",
        }
    )
    yield "</section>"


def _verdicts(found: DescentReport) -> Iterator[str]:
    yield from ("<section>", *_heading("verdicts", "Does a layer do what it was derived to do?"))
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
            yield f"<h3>{name}</h3><p>{_text(meaning)}</p>"
            yield from _table(replace(found, verdicts=of_claim).table(markdown=True), columns=columns)
    yield "</section>"


def _heads(model: ImageTransformer, thumbnails: Sequence[tuple[str, Image]], seen: Sequence[Image]) -> Iterator[str]:
    layer = default_layer(model)
    yield from ("<section>", *_heading("heads", f"What the heads of layer {layer} look at"))
    yield (
        "<p>A map shows how much [CLS] attends to each patch, from black (least) to pale yellow (most). Each has a "
        "scale of its own; the percentages are the share of [CLS]'s attention at the patch with the most, and at all "
        "patches together (the rest is [CLS] itself)."
        + (f" Shown are the first {len(thumbnails)} of {len(seen)}." if len(thumbnails) < len(seen) else "")
        + "</p>"
    )
    for (name, photo), image in zip(thumbnails, seen, strict=False):
        with torch.no_grad():
            maps = cls_attention(model, _pixels(model, image)[None], layer=layer)[0].float()
        grid = f"{maps.shape[-1]} x {maps.shape[-2]}"
        yield f'<h3>{_text(name)}</h3><div class="maps">'
        yield from _figure(photo, f"The picture {name}", f"picture; {grid} patches")
        for head, one in enumerate(maps):
            caption = f"head {head}: {_share(one.max())} most, {_share(one.sum())} all"
            drawn = draw_map(one, (photo.height, photo.width))
            yield from _figure(drawn, f"Attention of head {head} on {name}", caption)
        yield "</div>"
    yield "</section>"


def _subspaces(found: SubspaceReport, model: ImageTransformer) -> Iterator[str]:
    width = found.layers[0].singular_values.shape[-1]
    yield from ("<section>", *_heading("subspaces", "Subspaces and dictionaries"))
    yield (
        "<p>The derivation has orthonormal bases U of incoherent subspaces, an output projection P that is U once "
        "more, and an orthogonal dictionary D; nothing holds a model to it. These numbers are of the weights alone. "
        "The last row is of random weights of the same sizes, for chance looks like structure too."
        + ("" if found.bases == "MSSA" else " This model has no such bases: its key projections stand in.")
        + "</p>"
    )
    yield from _table(found.table(markdown=True), f"{_count(model.num_heads, 'head')} in {model.embed_dim} dimensions")
    yield from _terms(
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
    yield "</section>"


def _equations(model: ImageTransformer) -> Iterator[str]:
    yield from ("<section>", *_heading("equations", "What the model computes"))
    yield f'<pre tabindex="0">{_text(explain(model))}</pre></section>'


def _heading(anchor: str, text: str) -> Iterator[str]:
    yield f'<h2 id="{anchor}">{_text(text)}</h2>'


def _terms(terms: Mapping[str, str]) -> Iterator[str]:
    yield "<dl>"
    yield from (f"<dt>{_text(term)}</dt><dd>{_text(meaning)}</dd>" for term, meaning in terms.items())
    yield "</dl>"


def _table(markdown: str, caption: str = "", columns: Sequence[str] = ()) -> Iterator[str]:
    """A report's table, its rounding included, as HTML; its columns in this order, or all as they come."""
    names, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in markdown.splitlines())
    kept = [names.index(column) for column in columns or names]
    yield '<div class="wide" tabindex="0"><table>'
    if caption:
        yield f"<caption>{_text(caption)}</caption>"
    heads = (f'<th scope="col">{_text(_COLUMNS.get(names[column], names[column]))}</th>' for column in kept)
    yield f"<thead><tr>{''.join(heads)}</tr></thead><tbody>"
    for row in rows:
        first, *others = (row[column] for column in kept)
        yield f'<tr><th scope="row">{_text(first)}</th>{"".join(map(_cell, others))}</tr>'
    yield "</tbody></table></div>"


def _cell(text: str) -> str:
    kind = _OUTCOMES.get(text, "long" if text.count(" ") > 2 and "→" not in text else "")
    held = _text(text).replace(" → ", "<br>→\N{NO-BREAK SPACE}").replace(" ± ", " ±\N{NO-BREAK SPACE}")
    return f'<td class="{kind}">{held}</td>' if kind else f"<td>{held}</td>"


def _figure(image: Any, alt: str, caption: str) -> Iterator[str]:
    file = io.BytesIO()
    image.save(file, format="PNG")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    size = f'width="{image.width}" height="{image.height}"'
    yield f'<figure><img src="data:image/png;base64,{data}" {size} alt="{_text(alt)}">'
    yield f"<figcaption>{_text(caption)}</figcaption></figure>"


def _share(value: Tensor) -> str:
    return f"{100 * float(value):.2f}%"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _text(text: str) -> str:
    """Text that is safe in an element and in an attribute: of a file's name, anything may be expected."""
    return escape("".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text))
