"""The equations from the pixels to the first layer."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..layers import ConvPatchEmbed, ConvStem, FourierPosEmbed, NormedPatchEmbed, PatchDropout
from ..layers.plain import oddity
from ..models import ImageTransformer, ToST
from ._known import PARTS, Kinds, unknown_note
from ._lines import Line, Part, drops_note, each, eps_note, ln, math_symbols, named, norm_symbols, number
from ._tost import fourier_positions


def notation(core: ImageTransformer) -> Part:
    """Notation that all equations share."""
    (height, width), (p, q) = core.img_size, core.patch_embed.patch_size
    rows, columns = core.patch_embed.grid_size
    prefix = core.num_prefix_tokens
    n, d = prefix + rows * columns, core.embed_dim
    sizes = f"images of {height} x {width} pixels, {core.in_chans} channels; patches of {p} x {q}"
    sizes += f", a grid of {rows} x {columns}"
    other = "; images of other sizes are taken" if core.dynamic_img_size else ""
    other += ", with the positions resampled" if other and not isinstance(core, ToST) else ""
    norm = Line(
        r"\operatorname{LN}(x) = \gamma \odot \frac{x - \operatorname{mean}(x)}"
        r"{\sqrt{\operatorname{var}(x) + \epsilon}} + \beta \quad \text{for each column } x",
        "LN(x) = gamma * (x - mean(x)) / sqrt(var(x) + eps) + beta, for each column x",
    )
    first = "column 0 is [CLS]; " + ("" if prefix == 1 else f"registers follow, {prefix - 1} of them; ")
    first += "before it joins, there are the other columns alone; " if isinstance(core, ToST) else ""
    tokens = Line(
        f"$Z$ is $d \\times n$: a column for each of $n = {n}$ tokens of width $d = {d}$; {first}"
        "$e_i$ picks column $i$, $\\mathbf 1$ is a vector of ones",
        f"Z is d x n: a column for each of n = {n} tokens of width d = {d}; {first}1 is a vector of ones",
    )
    return Part("Notation", (norm,), (Line(f"{sizes}{other}"), tokens))


def embedding(core: ImageTransformer) -> Part:
    """Pixels to the columns of T."""
    embed: Any = core.patch_embed
    odd = oddity(embed, NormedPatchEmbed, ConvPatchEmbed, ConvStem)
    if odd:
        unknown = [Line(f"T comes from {odd}, whose equation is not known here")]
    elif type(embed) is ConvStem:
        unknown = _unknown_in_stem(embed)
    else:
        unknown = unknown_note("T comes from X", embed, PARTS[type(embed)], "patch_embed.")
    if unknown:
        return Part("Embedding", (), tuple(unknown), named(embed, "patch_embed.", {}))
    if type(embed) is ConvStem:
        return _stem(embed)
    symbols = math_symbols(proj__weight="E", proj__bias="t")
    if type(embed) is NormedPatchEmbed:
        equation = "T = " + ln("b", r"E \, " + ln("a", "X") + r" + t \mathbf 1^\top")
        order = "row in the patch, column in the patch, channel"
        symbols |= {**norm_symbols("norm1", "a"), **norm_symbols("norm2", "b")}
        notes = [eps_note(a=embed.norm1, b=embed.norm2)]
    else:
        equation, notes = r"T = E X + t \mathbf 1^\top", []
        order = "channel, row in the patch, column in the patch"
    pixels = embed.patch_size[0] * embed.patch_size[1] * embed.in_chans
    notes.insert(0, Line(f"$X$ holds the {pixels} values of each patch as a column, in the order {order}"))
    return Part("Embedding", (Line(equation),), tuple(notes), named(embed, "patch_embed.", symbols))


def _unknown_in_stem(stem: ConvStem) -> list[Line]:
    """A note in place of the stem's equations, if one of its modules is of another kind."""
    parts: dict[str, Kinds] = {"0": (nn.Conv2d,), "1": (nn.BatchNorm2d, nn.SyncBatchNorm)}
    for at, part in enumerate(stem.proj):
        kinds: Kinds = (nn.GELU,) if at % 2 else (nn.Sequential,)
        note = unknown_note("T comes from X", stem.proj, {str(at): kinds}, "patch_embed.proj.")
        note = note or ([] if at % 2 else unknown_note("T comes from X", part, parts, f"patch_embed.proj.{at}."))
        if note:
            return note
    return []


def _stem(stem: ConvStem) -> Part:
    """The equations of a convolutional stem."""
    norms: list[Any] = [part[1] for part in stem.proj if isinstance(part, nn.Sequential)]
    last = len(norms)
    steps = [r"F_1 = \operatorname{BN}_1(K_1 * X)"]
    steps += [r"F_i = \operatorname{BN}_i(K_i * \operatorname{GELU}(F_{i-1}))"] if last > 1 else []
    gelu = r", \quad \operatorname{GELU}(x) = x \, \Phi(x)" if last > 1 else ""
    norm = Line(
        r"\operatorname{BN}(x) = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta"
        r" \quad \text{for each channel}",
        "BN(x) = gamma * (x - mu) / sqrt(sigma^2 + eps) + beta, for each channel",
    )
    notes = [
        Line(f"$X$ is the image; a pixel of $F_{last}$ is a column of $T$, row by row"),
        Line(f"$i = {each('', last)}$; $*$ is a convolution of 3 x 3 pixels, stride 2, padding 1"),
        Line(
            r"$\mu$ and $\sigma^2$ are mean and variance, in training those of the batch, which move the fixed ones of "
            "evaluation"
        ),
        Line(r"$\epsilon$ of BN = " + ", ".join(dict.fromkeys(f"${number(norm.eps)}$" for norm in norms))),
    ]
    symbols: dict[str, Line] = {}
    for i in range(1, last + 1):
        at = f"proj.{2 * i - 2}"
        own = {"weight": r"\gamma", "bias": r"\beta", "running_mean": r"\mu", "running_var": r"\sigma^2"}
        symbols |= {f"{at}.0.weight": Line(f"$K_{i}$")}
        symbols |= {f"{at}.1.{name}": Line(f"${symbol}_{i}$") for name, symbol in own.items()}
    lines = (*map(Line, steps), Line(f"T = F_{last}{gelu}"), norm)
    return Part("Embedding", lines, tuple(notes), named(stem, "patch_embed.", symbols))


def positions(core: ImageTransformer) -> Part:
    """T to the Z of the first layer."""
    if isinstance(core, ToST):
        return _fourier(core)
    symbols = math_symbols(cls_token="c", reg_token="R", pos_embed=r"\Pi")
    own = named(core, "", symbols, only=symbols)
    title = "[CLS] and positions" if core.reg_token is None else "[CLS], registers and positions"
    if unknown := unknown_note("Z comes from T", core, {"patch_drop": (PatchDropout,)}):
        return Part(title, (), tuple(unknown), own)
    learned = "c" if core.reg_token is None else r"c, \; R"
    equation = rf"Z = [{learned}, \; T + \Pi]" if core.no_embed_class else rf"Z = [{learned}, \; T] + \Pi"
    notes = tuple(drops_note((core.patch_drop.rate, "of the columns of patches")))
    return Part(title, (Line(equation),), notes, own)


def _fourier(core: ToST) -> Part:
    """Positions that are computed from the grid."""
    equations, notes, symbols = fourier_positions()
    if unknown := unknown_note("Z comes from T", core, {"pos_embed": (FourierPosEmbed,)}):
        equations, notes = [], unknown
    return Part("Positions", tuple(equations), tuple(notes), named(core, "", symbols, only=symbols))
