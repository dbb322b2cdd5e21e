"""The equations of every part of a model, as the modules that run compute them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from torch import nn

from .._hooks import constant_of
from ..layers import ISTA, MHSA, MLP, MSSA, ODL, ConvPatchEmbed, NormedPatchEmbed
from ..layers.plain import oddity
from ..models import (
    CrateAlphaBlock,
    CrateBlock,
    CrateMae,
    CrateMaeDecoderBlock,
    CrateMhsaBlock,
    CrateMlpBlock,
    ImageTransformer,
    ViTBlock,
)
from ..models._wrappers import unwrap
from ._lines import Line, Part, Symbols, math_symbols, named, number

Kinds: TypeAlias = tuple[type[nn.Module], ...]
Step: TypeAlias = tuple[list[Line], list[Line], Symbols]  # equations, notes, symbols

_NORM: Kinds = (nn.LayerNorm,)
_LINEAR: Kinds = (nn.Linear,)
# The modules of what has a `forward` that is known here; those of a layer in the order in which they run, the first two
# from Z to H, the others from H to Z'. What is of another class, a subclass included, may compute something else.
_LAYERS: dict[type[nn.Module], dict[str, Kinds]] = {
    CrateBlock: {"norm1": _NORM, "mssa": (MSSA,), "norm2": _NORM, "ista": (ISTA,)},
    CrateAlphaBlock: {"norm1": _NORM, "mssa": (MSSA,), "norm2": _NORM, "odl": (ODL,)},
    CrateMlpBlock: {"norm1": _NORM, "mssa": (MSSA,), "norm2": _NORM, "mlp": (MLP,)},
    CrateMhsaBlock: {"norm1": _NORM, "attn": (MHSA,), "norm2": _NORM, "ista": (ISTA,)},
    ViTBlock: {"norm1": _NORM, "attn": (MHSA,), "norm2": _NORM, "mlp": (MLP,)},
    CrateMaeDecoderBlock: {"norm1": _NORM, "linear": _LINEAR, "norm2": _NORM, "mssa": (MSSA,)},
}
_PARTS: dict[type[nn.Module], dict[str, Kinds]] = {
    MSSA: {"qkv": _LINEAR, "proj": (nn.Linear, nn.Identity)},
    MHSA: {"qkv": _LINEAR, "proj": _LINEAR},
    MLP: {"fc1": _LINEAR, "fc2": _LINEAR},
    NormedPatchEmbed: {"norm1": _NORM, "proj": _LINEAR, "norm2": _NORM},
    ConvPatchEmbed: {"proj": (nn.Conv2d,)},
}


def unknown_modules(module: nn.Module, parts: Mapping[str, Kinds], prefix: str = "") -> Iterator[str]:
    """Which of a module's modules are not what the equations mean, and what is there."""
    for name, kinds in parts.items():
        inner = unwrap(getattr(module, name))
        odd = oddity(inner, *kinds)
        if odd:
            yield f"{prefix}{name} is {odd}"
        else:
            yield from unknown_modules(inner, _PARTS.get(type(inner), {}), f"{prefix}{name}.")


def _unknown(step: str, module: nn.Module, parts: Mapping[str, Kinds], prefix: str = "") -> list[Line]:
    """A note in place of the equations of a step, if one of its modules is not what they mean."""
    found = ", ".join(unknown_modules(module, parts, prefix))
    return [Line(f"{step} through modules that are not known here: {found}")] if found else []


def notation(core: ImageTransformer) -> Part:
    """What holds for all equations."""
    (height, width), (p, q) = core.img_size, core.patch_embed.patch_size
    rows, columns = core.patch_embed.grid_size
    n, d = 1 + rows * columns, core.embed_dim
    sizes = f"images of {height} x {width} pixels, {core.in_chans} channels; patches of {p} x {q}"
    sizes += f", a grid of {rows} x {columns}"
    other = "; images of other sizes are taken, with the positions resampled" if core.dynamic_img_size else ""
    norm = Line(
        r"\operatorname{LN}(x) = \gamma \odot \frac{x - \operatorname{mean}(x)}"
        r"{\sqrt{\operatorname{var}(x) + \epsilon}} + \beta \quad \text{for each column } x",
        "LN(x) = gamma * (x - mean(x)) / sqrt(var(x) + eps) + beta, for each column x",
    )
    tokens = Line(
        f"$Z$ is $d \\times n$: a column for each of $n = {n}$ tokens of width $d = {d}$; column 0 is [CLS]; "
        "$e_i$ picks column $i$, $\\mathbf 1$ is a vector of ones",
        f"Z is d x n: a column for each of n = {n} tokens of width d = {d}; column 0 is [CLS]; 1 is a vector of ones",
    )
    return Part("Notation", (norm,), (Line(f"{sizes}{other}"), tokens))


def embedding(core: ImageTransformer) -> Part:
    """Pixels to the columns of T."""
    embed: Any = core.patch_embed
    odd = oddity(embed, NormedPatchEmbed, ConvPatchEmbed)
    if odd:
        unknown = [Line(f"T comes from {odd}, whose equation is not known here")]
    else:
        unknown = _unknown("T comes from X", embed, _PARTS[type(embed)], "patch_embed.")
    if unknown:
        return Part("Embedding", (), tuple(unknown), named(embed, "patch_embed.", {}))
    symbols = math_symbols(proj__weight="E", proj__bias="t")
    if type(embed) is NormedPatchEmbed:
        equation = "T = " + _ln("b", r"E \, " + _ln("a", "X") + r" + t \mathbf 1^\top")
        order = "row in the patch, column in the patch, channel"
        symbols |= {**_norm("norm1", "a"), **_norm("norm2", "b")}
        notes = [_eps(a=embed.norm1, b=embed.norm2)]
    else:
        equation, notes = r"T = E X + t \mathbf 1^\top", []
        order = "channel, row in the patch, column in the patch"
    pixels = embed.patch_size[0] * embed.patch_size[1] * embed.in_chans
    notes.insert(0, Line(f"$X$ holds the {pixels} values of each patch as a column, in the order {order}"))
    return Part("Embedding", (Line(equation),), tuple(notes), named(embed, "patch_embed.", symbols))


def positions(core: ImageTransformer) -> Part:
    """T to the Z of the first layer."""
    symbols = math_symbols(cls_token="c", pos_embed=r"\Pi")
    notes = tuple(_drops((core.patch_drop.rate, "of the columns of patches")))
    return Part("[CLS] and positions", (Line(r"Z = [c, \; T] + \Pi"),), notes, named(core, "", symbols, only=symbols))


def layer(wrapped: nn.Module) -> Part:
    """One layer; names of parameters are those in the block."""
    block: Any = unwrap(wrapped)
    prefix = next(f"{name}." if name else "" for name, module in wrapped.named_modules() if module is block)
    odd = oddity(block, *_LAYERS)
    if odd:
        note = Line(f"Z' comes from {odd}, whose equations are not known here")
        return Part(type(block).__name__, (), (note,), named(block, prefix, {}))
    modules = list(_LAYERS[type(block)].items())
    decodes = type(block) is CrateMaeDecoderBlock
    left_out = 0.0 if decodes else getattr(block.drop_path, "rate", 0.0)
    first: Callable[[Any, Any], Step] = _expansion if decodes else _compression
    second: Callable[[Any, Any], Step] = _removal if decodes else _coding
    equations: list[Line] = []
    notes: list[Line] = []
    symbols: dict[str, Line] = {}
    norms: dict[str, nn.Module] = {}
    for index, way, step, (norm, operator) in (
        ("1", "H comes from Z", first, modules[:2]),
        ("2", "Z' comes from H", second, modules[2:]),
    ):
        unknown = _unknown(way, block, dict((norm, operator)))
        if unknown:
            notes += unknown
            continue
        name = operator[0]
        own, constants, inner = step(block, unwrap(getattr(block, name)))
        equations += own
        notes += constants
        symbols |= _norm(norm[0], index) | {f"{name}.{entry}": symbol for entry, symbol in inner.items()}
        norms[index] = getattr(block, norm[0])
    title = ", then ".join(type(unwrap(getattr(block, name))).__name__ for name, _ in modules[1::2])
    return Part(
        "MSSA taken away" if decodes else title,
        tuple(equations),
        (*notes, *([_eps(**norms)] if norms else []), *_drops((left_out, "of the samples in each residual branch"))),
        named(block, prefix, symbols),
    )


def _drops(*rates: tuple[float, str]) -> list[Line]:
    """A note on what training leaves out, if anything."""
    shares = ", ".join(f"{number(rate)} {what}" for rate, what in rates if rate)
    return [Line(f"left out at random, in training alone: {shares}")] if shares else []


def _compression(block: Any, attention: MSSA | MHSA) -> Step:
    """From Z to H."""
    skip = _ln("1", "Z") if getattr(block, "skip", "input") == "normalized" else "Z"
    heads, update, notes, symbols = _attention(attention, _ln("1", "Z"))
    return [*heads, Line(f"H = {skip} + {update}")], notes, symbols


def _expansion(_: Any, __: nn.Linear) -> Step:
    """From Z to H, in CRATE-MAE's decoder."""
    return [Line(r"H = A \, " + _ln("1", "Z"))], [], math_symbols(weight="A")


def _removal(_: Any, mssa: MSSA) -> Step:
    """From H to Z', in CRATE-MAE's decoder."""
    heads, update, notes, symbols = _attention(mssa, _ln("2", "H"))
    return [*heads, Line(rf"Z' = H - \Bigl( {update} \Bigr)")], notes, symbols


def _attention(attention: MSSA | MHSA, normed: str) -> tuple[list[Line], str, list[Line], Symbols]:
    """Equations before the sum over heads, the sum, notes, and symbols."""
    count, p = attention.num_heads, attention.head_dim
    notes = [Line(rf"$k = {_each('', count)}$: heads of $p = {p}$ dimensions")]
    proj_drop: Any = attention.proj_drop
    notes += _drops((attention.attn_drop, "of the entries of attention"), (proj_drop.p, "of what attention adds"))
    symbols = math_symbols(proj__weight=f"[{_each('P_', count)}]", proj__bias="b")
    if isinstance(attention, MSSA):
        heads = [Line(rf"W_k = U_k^\top {normed}")]
        mixed = "W_k " + _softmax(r"W_k^\top W_k")
        symbols |= math_symbols(qkv__weight=rf"[{_each('U_', count)}]^\top")
    else:
        bias = attention.qkv.bias is not None
        heads = [
            Line(f"{name}_k = B^{name}_k {normed}" + (rf" + a^{name}_k \mathbf 1^\top" if bias else ""))
            for name in "QKV"
        ]
        mixed = "V_k " + _softmax(r"K_k^\top Q_k")
        stacked = {letter: ", ".join(f"{letter}^{kind}_k" for kind in "QKV") for letter in "Ba"}
        symbols |= math_symbols(qkv__weight=stacked["B"], qkv__bias=stacked["a"])
    if not isinstance(attention.proj, nn.Linear):  # one head as wide as a token
        return heads, mixed, notes, symbols
    bias = attention.proj.bias is not None
    return heads, rf"\sum_k P_k {mixed}" + (r" + b \mathbf 1^\top" if bias else ""), notes, symbols


def _coding(_: Any, coder: ISTA | ODL | MLP) -> Step:
    """From H to Z'."""
    normed = Line("Y = " + _ln("2", "H"))
    if isinstance(coder, MLP):
        mlp = Line(
            r"Z' = H + F_2 \operatorname{GELU}(F_1 Y + f_1 \mathbf 1^\top) + f_2 \mathbf 1^\top, \quad "
            r"\operatorname{GELU}(x) = x \, \Phi(x)"
        )
        drops = _drops((coder.drop.p, "of the hidden entries, and of what the MLP adds"))
        return (
            [normed, mlp],
            drops,
            math_symbols(fc1__weight="F_1", fc1__bias="f_1", fc2__weight="F_2", fc2__bias="f_2"),
        )
    eta, weight = constant_of(coder, "step_size"), constant_of(coder, "sparsity")
    constants = Line(
        rf"$\eta = {number(eta)}$, $\lambda = {number(weight)}$, so $\eta \lambda = {number(eta * weight)}$"
    )
    if isinstance(coder, ODL):
        codes = (
            r"A_1 = \operatorname{ReLU}(\eta D^\top Y - \eta \lambda)",
            r"A_2 = \operatorname{ReLU}(A_1 + \eta D^\top (Y - D A_1) - \eta \lambda)",
            "Z' = H + C A_2",
        )
        return [normed, *map(Line, codes)], [constants], math_symbols(dictionary="D", decoder="C")
    step = r"Y + \eta D^\top (Y - D Y)"
    if coder.threshold == "soft":
        code = Line(
            rf"Z' = \operatorname{{soft}}({step}), \quad "
            r"\operatorname{soft}(x) = \operatorname{sign}(x) \max(\lvert x \rvert - \eta \lambda, 0)"
        )
    else:
        code = Line(rf"Z' = \operatorname{{ReLU}}({step} - \eta \lambda)")
    return [normed, code], [constants], math_symbols(dictionary="D")


_POOLS = {
    "token": (r"y = {} e_0 \quad \text{{([CLS])}}", "y = column 0 of {}"),
    "avg": (r"y = \tfrac{{1}}{{n - 1}} \sum_{{i=1}}^{{n-1}} {} e_i", "y = mean of the columns 1, ..., n - 1 of {}"),
    "mean": (r"y = \tfrac{{1}}{{n}} \sum_{{i=0}}^{{n-1}} {} e_i", "y = mean of all columns of {}"),
    "": (r"y = {} \quad \text{{(all columns)}}", "y = {}, all columns"),
}


def output(core: ImageTransformer) -> Part:
    """Norm, pooling, norm, head, in the order of `forward_head`; those that are identities do not show."""
    symbols = {**_norm("norm", "c"), **_norm("fc_norm", "c"), **math_symbols(head__weight="G", head__bias="g")}
    own = named(core, "", symbols, only=symbols)
    norm: Kinds = (nn.LayerNorm, nn.Identity)
    parts: dict[str, Kinds] = {"norm": norm, "fc_norm": norm, "head": (nn.Linear, nn.Identity)}
    unknown = _unknown(f"{'logits' if core.num_classes else 'features'} come from Z", core, parts)
    if unknown:
        return Part("Output", (), tuple(unknown), own)
    before, after = isinstance(core.norm, nn.LayerNorm), isinstance(core.fc_norm, nn.LayerNorm)
    tokens, pooled = Line(_ln("c", "Z") if before else "Z"), _ln("c", "y") if after else "y"
    pool, plain = _POOLS[core.global_pool]
    equations = [Line(pool.format(tokens.markdown), plain.format(tokens.text))]
    notes = [_eps(c=core.norm if before else core.fc_norm)] if before or after else []
    if isinstance(core.head, nn.Linear):
        bias = " + g" if core.head.bias is not None else ""
        equations.append(Line(rf"\text{{logits}} = G \, {pooled}{bias}"))
        notes.append(Line(f"{core.num_classes} classes"))
    elif after:
        equations.append(Line(rf"\text{{features}} = {pooled}"))
    notes += _drops((core.head_drop.p, "of what the head reads"))
    return Part("Output", tuple(equations), tuple(notes), own)


def masking(core: CrateMae) -> Part:
    """What `CrateMae.reconstruct` does to T."""
    note = "with reconstruct alone, and before the positions: columns of T that stand for removed patches become m"
    own = named(core, "", math_symbols(mask_token="m"), only=["mask_token"])
    equation = Line(r"T e_i = m \quad \text{for each removed patch } i", "column i of T = m for each removed patch i")
    return Part("Masking", (equation,), (Line(note),), own)


def prediction(core: CrateMae) -> Part:
    """The end of CRATE-MAE's decoder."""
    symbols = {**_norm("decoder_norm", "r"), **math_symbols(decoder_pred__weight="R", decoder_pred__bias="r")}
    own = named(core, "", symbols, only=symbols)
    unknown = _unknown("X^ comes from Z", core, {"decoder_norm": _NORM, "decoder_pred": _LINEAR})
    if unknown:
        return Part("Prediction", (), tuple(unknown), own)
    target = ", each patch standardised" if core.norm_pix_loss else ""
    notes = (
        Line("the decoder begins with the Z of the last layer as Output normalises it; [CLS] is left out of X^"),
        Line(f"the loss is the mean squared error of removed patches{target}"),
        _eps(r=core.decoder_norm),
    )
    return Part("Prediction", (Line(r"\hat X = R \, " + _ln("r", "Z") + r" + r \mathbf 1^\top"),), notes, own)


def _each(symbol: str, count: int) -> str:
    """`1, ..., 4`, or `U_1, ..., U_4` of another symbol; of one or two, these."""
    last = f"{symbol}{{{count}}}" if symbol else str(count)
    return last if count == 1 else ", ".join([f"{symbol}1", *([r"\dots"] if count > 2 else []), last])


def _norm(module: str, index: str) -> dict[str, Line]:
    """Symbols of a LayerNorm."""
    return {f"{module}.weight": Line(rf"$\gamma_{index}$"), f"{module}.bias": Line(rf"$\beta_{index}$")}


def _ln(index: str, argument: str) -> str:
    return rf"\operatorname{{LN}}_{index}({argument})"


def _softmax(scores: str) -> str:
    return rf"\operatorname{{softmax}}\left( {scores} / \sqrt p \right)"


def _eps(**norms: nn.Module) -> Line:
    """The eps of LayerNorms, by their index."""
    values = {index: number(float(getattr(norm, "eps", 0.0))) for index, norm in norms.items()}
    return Line(", ".join(rf"$\epsilon$ of $\operatorname{{LN}}_{i}$ = ${value}$" for i, value in values.items()))
