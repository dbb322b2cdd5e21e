"""The equations of every part of a model, each written twice: in plain ASCII and in LaTeX."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from ..layers import ISTA, MHSA, MSSA, ODL, ConvPatchEmbed, NormedPatchEmbed
from ..models import (
    Block,
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

Symbols: TypeAlias = Mapping[str, "Line"]

# Blocks whose `forward` is known. One of another class, a subclass included, may compute something else.
_KNOWN_BLOCKS = (CrateBlock, CrateAlphaBlock, CrateMlpBlock, CrateMhsaBlock, ViTBlock)


@dataclass(frozen=True)
class Line:
    """The same twice: in plain ASCII, and for Markdown, where mathematics stands between dollar signs."""

    text: str
    markdown: str


@dataclass(frozen=True)
class Parameter:
    """An entry of the state dict, and its symbol in the equations."""

    symbol: Line
    name: str
    shape: tuple[int, ...]
    trained: bool

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Part:
    """What stands under one heading; `repeats` says how many layers have parameters of these names."""

    title: str
    equations: tuple[Line, ...]
    notes: tuple[Line, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    repeats: int = 1


def notation(core: ImageTransformer) -> Part:
    """What holds for all equations."""
    (height, width), (p, q) = core.img_size, core.patch_embed.patch_size
    rows, columns = core.patch_embed.grid_size
    n, d = 1 + rows * columns, core.embed_dim
    sizes = f"images of {height} x {width} pixels, {core.in_chans} channels; patches of {p} x {q}"
    sizes += f", a grid of {rows} x {columns}"
    other = "; images of other sizes are taken, with the positions resampled" if core.dynamic_img_size else ""
    return Part(
        "Notation",
        (
            Line(
                "LN(x) = gamma * (x - mean(x)) / sqrt(var(x) + eps) + beta, for each column x",
                r"\operatorname{LN}(x) = \gamma \odot \frac{x - \operatorname{mean}(x)}"
                r"{\sqrt{\operatorname{var}(x) + \epsilon}} + \beta \quad \text{for each column } x",
            ),
        ),
        (
            Line(f"{sizes}{other}", f"{sizes}{other}"),
            Line(
                f"Z is d x n: a column for each of n = {n} tokens of width d = {d}; column 0 is [CLS]; "
                "1 is a vector of ones",
                f"$Z$ is $d \\times n$: a column for each of $n = {n}$ tokens of width $d = {d}$; column 0 is [CLS]; "
                "$e_i$ picks column $i$, $\\mathbf 1$ is a vector of ones",
            ),
        ),
    )


def embedding(core: ImageTransformer) -> Part:
    """Pixels to the columns of T."""
    embed = core.patch_embed
    pixels = embed.patch_size[0] * embed.patch_size[1] * embed.in_chans
    if type(embed) is NormedPatchEmbed:
        equation = Line(
            "T = LN_b(E LN_a(X) + t 1^T)", "T = " + _ln("b", r"E \, " + _ln("a", "X") + r" + t \mathbf 1^\top")
        )
        order = "row in the patch, column in the patch, channel"
        symbols = {**_norm("norm1", "a"), "proj.weight": _math("E"), "proj.bias": _math("t"), **_norm("norm2", "b")}
        notes = [_eps(a=embed.norm1, b=embed.norm2)]
    elif type(embed) is ConvPatchEmbed:
        equation = Line("T = E X + t 1^T", r"T = E X + t \mathbf 1^\top")
        order = "channel, row in the patch, column in the patch"
        symbols = {"proj.weight": _math("E"), "proj.bias": _math("t")}
        notes = []
    else:
        unknown = f"T comes from {type(embed).__name__}, whose equation is not known here"
        return Part("Embedding", (), (Line(unknown, unknown),), named(embed, "patch_embed.", {}))
    what = f"holds the {pixels} values of each patch as a column, in the order {order}"
    notes.insert(0, Line(f"X {what}", f"$X$ {what}"))
    return Part("Embedding", (equation,), tuple(notes), named(embed, "patch_embed.", symbols))


def positions(core: ImageTransformer) -> Part:
    """T to the Z of the first layer."""
    symbols = {"cls_token": _math("c"), "pos_embed": Line("Pi", r"$\Pi$")}
    own = named(core, "", symbols, only=symbols)
    return Part("[CLS] and positions", (Line("Z = [c, T] + Pi", r"Z = [c, \; T] + \Pi"),), (), own)


def layer(wrapped: nn.Module) -> Part:
    """One layer; names of parameters are those in the block."""
    block = unwrap(wrapped)
    prefix = next(f"{name}." if name else "" for name, module in wrapped.named_modules() if module is block)
    if type(block) is CrateMaeDecoderBlock:
        return _decoder_block(block, prefix)
    if not isinstance(block, Block) or type(block) not in _KNOWN_BLOCKS:
        unknown = f"Z' comes from {type(block).__name__}, whose equations are not known here"
        return Part(type(block).__name__, (), (Line(unknown, unknown),), named(block, prefix, {}))
    normalized = isinstance(block, CrateBlock) and block.skip == "normalized"
    skip = Line("LN_1(Z)", _ln("1", "Z")) if normalized else Line("Z", "Z")
    heads, update, notes, symbols = _attention(block.attention, "Z", "1")
    equations = [*heads, Line(f"H = {skip.text} + {update.text}", f"H = {skip.markdown} + {update.markdown}")]
    equations.append(Line("Y = LN_2(H)", "Y = " + _ln("2", "H")))
    where = "mssa." if isinstance(block.attention, MSSA) else "attn."
    names = {**_norm("norm1", "1"), **_inside(where, symbols), **_norm("norm2", "2")}
    code, more, coder, inner = _coding(block)
    return Part(
        f"{type(block.attention).__name__}, then {coder}",
        (*equations, *code),
        (*notes, *more, _eps(**{"1": block.norm1, "2": block.norm2})),
        named(block, prefix, {**names, **_inside(f"{coder.lower()}.", inner)}),
    )


def _decoder_block(block: CrateMaeDecoderBlock, prefix: str) -> Part:
    heads, update, notes, symbols = _attention(block.mssa, "H", "2")
    names = {"linear.weight": _math("A"), **_norm("norm1", "1"), **_norm("norm2", "2"), **_inside("mssa.", symbols)}
    expand = Line("H = A LN_1(Z)", r"H = A \, " + _ln("1", "Z"))
    compress = Line(f"Z' = H - ({update.text})", rf"Z' = H - \Bigl( {update.markdown} \Bigr)")
    eps = _eps(**{"1": block.norm1, "2": block.norm2})
    return Part("MSSA taken away", (expand, *heads, compress), (*notes, eps), named(block, prefix, names))


def _attention(attention: MSSA | MHSA, tokens: str, norm: str) -> tuple[list[Line], Line, list[Line], Symbols]:
    """Equations before the sum over heads, the sum, notes, and symbols."""
    count, p = attention.num_heads, attention.head_dim
    every = _each("k", count)
    note = Line(f"{every.text}: heads of p = {p} dimensions", rf"${every.markdown}$: heads of $p = {p}$ dimensions")
    bases, outputs = _each("U", count), _each("P", count)
    normed = Line(f"LN_{norm}({tokens})", _ln(norm, tokens))
    symbols = {
        "proj.weight": Line(f"[{outputs.text}]", f"$[{outputs.markdown}]$"),
        "proj.bias": _math("b"),
    }
    if isinstance(attention, MSSA):
        heads = [Line(f"W_k = U_k^T {normed.text}", rf"W_k = U_k^\top {normed.markdown}")]
        mixed = Line("W_k softmax(W_k^T W_k / sqrt(p))", "W_k " + _softmax(r"W_k^\top W_k"))
        symbols["qkv.weight"] = Line(f"[{bases.text}]^T", rf"$[{bases.markdown}]^\top$")
    else:
        bias = attention.qkv.bias is not None
        heads = [
            Line(
                f"{name}_k = B^{name}_k {normed.text}" + (f" + a^{name}_k 1^T" if bias else ""),
                f"{name}_k = B^{name}_k {normed.markdown}" + (rf" + a^{name}_k \mathbf 1^\top" if bias else ""),
            )
            for name in "QKV"
        ]
        mixed = Line("V_k softmax(K_k^T Q_k / sqrt(p))", "V_k " + _softmax(r"K_k^\top Q_k"))
        for name, letter in (("weight", "B"), ("bias", "a")):
            stacked = [f"{letter}^{kind}_k" for kind in "QKV"]
            symbols[f"qkv.{name}"] = Line(", ".join(stacked), f"${', '.join(stacked)}$")
    if not isinstance(attention.proj, nn.Linear):  # one head as wide as a token
        return heads, mixed, [note], symbols
    bias = attention.proj.bias is not None
    update = Line(
        f"sum_k P_k {mixed.text}" + (" + b 1^T" if bias else ""),
        rf"\sum_k P_k {mixed.markdown}" + (r" + b \mathbf 1^\top" if bias else ""),
    )
    return heads, update, [note], symbols


def _coding(block: Block) -> tuple[list[Line], list[Line], str, Symbols]:
    """Equations from Y to Z', notes, the operator's name, and symbols."""
    coder = next((module for module in block.modules() if isinstance(module, ISTA | ODL)), None)
    if coder is None:
        text = "Z' = H + F_2 GELU(F_1 Y + f_1 1^T) + f_2 1^T, GELU(x) = x Phi(x)"
        latex = (
            r"Z' = H + F_2 \operatorname{GELU}(F_1 Y + f_1 \mathbf 1^\top) + f_2 \mathbf 1^\top, \quad "
            r"\operatorname{GELU}(x) = x \, \Phi(x)"
        )
        symbols = {
            f"fc{i}.{kind}": _math(f"{letter}_{i}") for i in (1, 2) for kind, letter in (("weight", "F"), ("bias", "f"))
        }
        return [Line(text, latex)], [], "MLP", symbols
    eta, sparsity, threshold = coder.step_size, coder.sparsity, coder.step_size * coder.sparsity
    constants = Line(
        f"eta = {_number(eta)}, lambda = {_number(sparsity)}, so eta lambda = {_number(threshold)}",
        rf"$\eta = {_latex_number(eta)}$, $\lambda = {_latex_number(sparsity)}$, "
        rf"so $\eta \lambda = {_latex_number(threshold)}$",
    )
    symbols = {"dictionary": _math("D")}
    if isinstance(coder, ISTA):
        step = Line("Y + eta D^T (Y - D Y)", r"Y + \eta D^\top (Y - D Y)")
        if coder.threshold == "soft":
            soft = Line(
                f"Z' = soft({step.text}), soft(x) = sign(x) max(|x| - eta lambda, 0)",
                rf"Z' = \operatorname{{soft}}({step.markdown}), \quad "
                r"\operatorname{soft}(x) = \operatorname{sign}(x) \max(\lvert x \rvert - \eta \lambda, 0)",
            )
            return [soft], [constants], "ISTA", symbols
        relu = Line(
            f"Z' = ReLU({step.text} - eta lambda)", rf"Z' = \operatorname{{ReLU}}({step.markdown} - \eta \lambda)"
        )
        return [relu], [constants], "ISTA", symbols
    symbols["decoder"] = _math("C")
    codes = [
        Line("A_1 = ReLU(eta D^T Y - eta lambda)", r"A_1 = \operatorname{ReLU}(\eta D^\top Y - \eta \lambda)"),
        Line(
            "A_2 = ReLU(A_1 + eta D^T (Y - D A_1) - eta lambda)",
            r"A_2 = \operatorname{ReLU}(A_1 + \eta D^\top (Y - D A_1) - \eta \lambda)",
        ),
        Line("Z' = H + C A_2", "Z' = H + C A_2"),
    ]
    return codes, [constants], "ODL", symbols


_POOLS = {
    "token": Line("y = column 0 of {}", r"y = {} e_0 \quad \text{{([CLS])}}"),
    "avg": Line("y = mean of the columns 1, ..., n - 1 of {}", r"y = \tfrac{{1}}{{n - 1}} \sum_{{i=1}}^{{n-1}} {} e_i"),
    "mean": Line("y = mean of all columns of {}", r"y = \tfrac{{1}}{{n}} \sum_{{i=0}}^{{n-1}} {} e_i"),
    "": Line("y = {}, all columns", r"y = {} \quad \text{{(all columns)}}"),
}


def output(core: ImageTransformer) -> Part:
    """Norm, pooling, norm, head, in the order of `forward_head`; those that are identities do not show."""
    pool = _POOLS[core.global_pool]
    before, after = isinstance(core.norm, nn.LayerNorm), isinstance(core.fc_norm, nn.LayerNorm)
    tokens = Line("LN_c(Z)", _ln("c", "Z")) if before else Line("Z", "Z")
    equations = [Line(pool.text.format(tokens.text), pool.markdown.format(tokens.markdown))]
    pooled = Line("LN_c(y)", _ln("c", "y")) if after else Line("y", "y")
    notes = [_eps(c=core.norm if before else core.fc_norm)] if before or after else []
    if isinstance(core.head, nn.Linear):
        bias = core.head.bias is not None
        text, latex = f"logits = G {pooled.text}", rf"\text{{logits}} = G \, {pooled.markdown}"
        equations.append(Line(text + (" + g" if bias else ""), latex + (" + g" if bias else "")))
        classes = f"{core.num_classes} classes"
        notes.append(Line(classes, classes))
    elif after:
        equations.append(Line(f"features = {pooled.text}", rf"\text{{features}} = {pooled.markdown}"))
    symbols = {**_norm("norm", "c"), **_norm("fc_norm", "c"), "head.weight": _math("G"), "head.bias": _math("g")}
    return Part("Output", tuple(equations), tuple(notes), named(core, "", symbols, only=symbols))


def masking(core: CrateMae) -> Part:
    """What `CrateMae.reconstruct` does to T."""
    note = "with reconstruct alone, and before the positions: columns of T that stand for removed patches become m"
    own = named(core, "", {"mask_token": _math("m")}, only=["mask_token"])
    equation = Line("column i of T = m for each removed patch i", r"T e_i = m \quad \text{for each removed patch } i")
    return Part("Masking", (equation,), (Line(note, note),), own)


def prediction(core: CrateMae) -> Part:
    """The end of CRATE-MAE's decoder."""
    symbols = {**_norm("decoder_norm", "r"), "decoder_pred.weight": _math("R"), "decoder_pred.bias": _math("r")}
    equation = Line("X^ = R LN_r(Z) + r 1^T", r"\hat X = R \, " + _ln("r", "Z") + r" + r \mathbf 1^\top")
    target = ", each patch standardised" if core.norm_pix_loss else ""
    notes = (
        "the decoder begins with the Z of the last layer as Output normalises it; [CLS] is left out of X^",
        f"the loss is the mean squared error of removed patches{target}",
    )
    prose = tuple(Line(note, note) for note in notes)
    return Part("Prediction", (equation,), (*prose, _eps(r=core.decoder_norm)), named(core, "", symbols, only=symbols))


def named(
    module: nn.Module, prefix: str, symbols: Symbols, only: Mapping[str, Line] | Sequence[str] | None = None
) -> tuple[Parameter, ...]:
    """Entries of a module's state dict with their symbols, in its order."""
    trained = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    return tuple(
        Parameter(symbols.get(name, Line("", "")), prefix + name, tuple(tensor.shape), trained.get(name, False))
        for name, tensor in module.state_dict().items()
        if only is None or name in only
    )


def _each(symbol: str, count: int) -> Line:
    """`k = 1, ..., 4`, or `U_1, ..., U_4` of another symbol; of one or two, these."""
    subscript = [f"{symbol}_{i}" if symbol != "k" else str(i) for i in range(1, count + 1)]
    shown = subscript if count < 3 else [subscript[0], "...", subscript[-1]]
    before = "k = " if symbol == "k" else ""
    latex = ", ".join(shown).replace("...", r"\dots").replace(f"_{count}", f"_{{{count}}}")
    return Line(before + ", ".join(shown), before + latex)


def _math(symbol: str) -> Line:
    return Line(symbol, f"${symbol}$")


def _norm(module: str, index: str) -> dict[str, Line]:
    """Symbols of a LayerNorm."""
    return {
        f"{module}.weight": Line(f"gamma_{index}", rf"$\gamma_{index}$"),
        f"{module}.bias": Line(f"beta_{index}", rf"$\beta_{index}$"),
    }


def _inside(prefix: str, symbols: Symbols) -> dict[str, Line]:
    return {prefix + name: symbol for name, symbol in symbols.items()}


def _ln(index: str, argument: str) -> str:
    return rf"\operatorname{{LN}}_{index}({argument})"


def _softmax(scores: str) -> str:
    return rf"\operatorname{{softmax}}\left( {scores} / \sqrt p \right)"


def _eps(**norms: nn.Module) -> Line:
    """The eps of LayerNorms, by their index."""
    values = {index: float(getattr(norm, "eps", 0.0)) for index, norm in norms.items()}
    return Line(
        ", ".join(f"eps of LN_{index} = {_number(value)}" for index, value in values.items()),
        ", ".join(
            rf"$\epsilon$ of $\operatorname{{LN}}_{i}$ = ${_latex_number(value)}$" for i, value in values.items()
        ),
    )


def _number(value: float) -> str:
    return f"{value:.6g}"


def _latex_number(value: float) -> str:
    mantissa, e, exponent = _number(value).partition("e")
    power = f"10^{{{int(exponent)}}}" if e else ""
    return mantissa if not e else power if mantissa == "1" else rf"{mantissa} \cdot {power}"
